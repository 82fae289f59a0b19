"""A server of volumes to call without a network, on a stub engine whose network is any Python function."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import stub_engine
from serving import Asked
from volume_recipes import volume_recipe

from segship.inference.predictor import Predictor
from segship.manifest import Channel, Manifest, Output, Tiling, Variant, VolumeInput
from segship.package import Package, sha256_bytes, write_package
from segship.serve.options import VolumeServeOptions
from segship.serve.volume_app import build_volume_app
from segship.serve.volume_service import VolumeService

AFFINE = np.array([[0.0, 1.2, 0.0, -20.0], [-1.5, 0.0, 0.0, 30.0], [0.0, 0.0, 2.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
"""axes exchanged and one of them flipped"""
SHAPE = (14, 12, 9)
"""x, y, z in the file's axes"""
GRAPH = b"a stub's graph"


def case_bytes(seed: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, *, packed: bool = True) -> bytes:
    """A NIfTI file: a bright box somewhere in noise, another one for each seed."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 40, shape).astype(np.int16)
    start = rng.integers(0, 5, 3)
    values[tuple(slice(a, a + 5) for a in start)] += 160
    data = nibabel.Nifti1Image(values, affine).to_bytes()
    return gzip.compress(data) if packed else data


def bright(x: np.ndarray) -> list[np.ndarray]:
    """Two classes: background, and where the mean of the channels is above 100."""
    mean = x.mean(axis=1, keepdims=True)
    return [np.concatenate([np.zeros_like(mean), (mean - 100) / 10], axis=1).astype(np.float32)]


def stub_volumes(path: Path, *, channels: int = 1, **changes: Any) -> Package:
    """A package of `volume_recipes` with two mirror axes, for the stub engine."""
    recipe = volume_recipe()
    names = ("CT", "PET", "T1")[:channels]
    network = recipe.network.model_copy(
        update={"input_channels": channels, "outputs": (Output(name="logits", channels=2, values="logits"),)}
    )
    settings: dict[str, Any] = {
        "input": VolumeInput(
            reader="nibabel", channels=tuple(Channel(name=name) for name in names), file_ending=".nii.gz",
            channel_files="suffix-0000",
        ),
        "network": network,
        "tiling": Tiling.model_validate(recipe.tiling.model_dump() | {"mirror_axes": (0, 1)}),  # type: ignore[union-attr]
        **changes,
    }  # fmt: skip
    variant = Variant(
        precision="fp32", graphs={"model": "graphs/fp32.onnx"}, sha256={"model": sha256_bytes(GRAPH)}, shapes="dynamic",
        batches=(1,), engines=(stub_engine.NAME,),
    )  # fmt: skip
    manifest = Manifest(**(recipe.model_dump() | {k: _plain(v) for k, v in settings.items()}), variants=(variant,))
    return write_package(path, manifest, {"graphs/fp32.onnx": GRAPH}, {}, folder=True)


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def open_volumes(path: Path, **changes: Any) -> Predictor:
    return Predictor.open(stub_volumes(path, **changes), engine=stub_engine.NAME)


class VolumeServer(Asked):
    def __init__(self, predictor: Predictor, **options: Any) -> None:
        service = VolumeService(predictor, VolumeServeOptions(**options))
        super().__init__(predictor, service, build_volume_app(service))

    def submit(self, *files: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
        """A job that was accepted."""
        answer = self.ask("POST", "/v1/jobs", files=[("file", one) for one in files], data=fields)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def until(self, job: dict[str, Any], *states: str) -> dict[str, Any]:
        """The job once its status is one of ``states``."""
        deadline = time.monotonic() + 60
        while (job := self.ask("GET", job["links"]["self"]).json())["status"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.01)
        return job

    def done(self, *files: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
        return self.until(self.submit(*files, **fields), "done")


def written(data: bytes) -> np.ndarray:
    """A label file's voxels, in its own axes."""
    image = nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(data)))
    return np.asarray(image.dataobj)


def said(answer: httpx.Response, status: int) -> str:
    """A refusal's line."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "hint"}
    assert "\n" not in body["error"] + body["hint"]
    return body["error"]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "never true"
        time.sleep(0.005)


def nothing_left(server: VolumeServer) -> bool:
    """No place taken, no byte counted, no file in the folder but the lock."""
    until(lambda: server.service.jobs.taken == 0 and server.service.space.total == 0)
    return [path for path in server.service.space.folder.rglob("*") if path.is_file()] == [
        server.service.space.folder / "in-use"
    ]
