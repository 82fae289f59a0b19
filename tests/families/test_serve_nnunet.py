"""nnU-Net over HTTP: the files that its own implementation wrote, in their own geometry, from the server's bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunet_files import write_model
from PIL import Image
from seeded import State
from serving_volumes import VolumeServer

from segship.convert.export import export
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, predict_cases
from segship.inference.volume_network import TileOptions
from segship.inference.volumes import read_labels

LEAST = 0.9999
"""of a label file's voxels, equal to those of nnU-Net with float32 sums"""


def label_file(server: VolumeServer, files: list[Path], **fields: object) -> tuple[dict[str, Any], bytes]:
    job = server.done(*((file.name, file.read_bytes()) for file in files), **fields)
    return job, server.ask("GET", job["links"]["labels"]).content


def predicted(predictor: Predictor, files: list[Path], folder: Path, *, mirror: bool = True) -> bytes:
    """The file that `segship predict` writes."""
    summary = predict_cases(predictor, files, folder, CaseOptions(tiles=TileOptions(mirror=mirror)))  # type: ignore[arg-type]
    assert summary.failed == ()
    return next(path for path in folder.iterdir() if "json" not in path.suffix).read_bytes()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "case", ["v2_2d", "v1_2d", pytest.param("v2_aniso", marks=SLOW), pytest.param("v2_regions", marks=SLOW)]
)
def test_label_files_of_the_reference(
    case: str, shared: Path, reference_case: Callable[[str], Any], fill: Callable[..., State], tmp_path: Path
) -> None:
    about, arrays = reference_case(f"nnunet_{case}")
    model = shared / "reference" / f"nnunet_{case}_model"
    folder = model if case.startswith("v1") else write_model(tmp_path, about, fill)
    package = export(folder, tmp_path / "net.segship", engines=["openvino"]).package.path
    files = [shared.parent / name for name in about["inputs"]]
    with Predictor.open(package) as predictor, VolumeServer(predictor) as server:
        job, data = label_file(server, files)
        assert data == predicted(predictor, files, tmp_path / "out")
        assert job["windows"]["done"] == job["windows"]["total"] > 0
    path = tmp_path / "served.nii.gz"
    path.write_bytes(data)
    served, source = nibabel.load(path), nibabel.load(files[0])
    assert np.allclose(served.affine, source.affine, atol=1e-6)
    assert np.allclose(served.header.get_zooms()[:3], source.header.get_zooms()[:3], atol=1e-6)
    labels = read_labels(path, predictor.manifest.input)  # type: ignore[arg-type]  # in the reader's own axes
    wanted = arrays["labels_fp32" if "labels_fp32" in arrays else "labels"].reshape(labels.shape)
    assert np.mean(labels == wanted) >= LEAST


def test_the_trained_folder_and_single_pictures(shared: Path, tmp_path: Path) -> None:
    """Channels in one file (.png), labels as .png, one plane to look at."""
    root = shared / "reference" / "nnunet_v2_trained"
    folder = next(root.glob("nnUNetTrainer*"))
    package = export(folder, tmp_path / "net.segship", engines=["openvino"]).package.path
    sources = sorted((root / "images").iterdir())[:2]
    with Predictor.open(package) as predictor, VolumeServer(predictor) as server:
        for number, source in enumerate(sources):
            job, data = label_file(server, [source], disable_tta="true")
            assert data == predicted(predictor, [source], tmp_path / f"out{number}", mirror=False)
            labels = np.asarray(Image.open(io.BytesIO(data)))
            name = source.name.replace("_0000.png", ".png")
            theirs = np.asarray(Image.open(root / "predictions_disable_tta" / name))
            assert np.mean(labels == theirs) >= 0.999
            assert list(job["planes"]) == ["axial"]
            shown = server.ask("GET", f"{job['links']['planes']}/axial/0").content
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown)))[..., 1], labels)
            assert server.ask("GET", job["links"]["labels"]).headers["content-type"] == "image/png"
            assert job["file_name"] == name
            assert json.dumps(job)
