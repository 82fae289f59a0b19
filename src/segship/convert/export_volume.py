"""Export of networks for volumes: one graph an ensemble member, proved on a case of one window.

Each member's network is compared with its source on that window, alone and in a batch; then the whole chain, from the
case as read to labels on its own grid, without mirroring (which repeats the same network and is tested on its own).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.convert import checks, onnx_graph, parity
from segship.convert.onnx_join import split_joined
from segship.convert.onnx_sizes import settle_sizes
from segship.convert.parity import ParityRow
from segship.engines import get_engine
from segship.families import Source
from segship.inference import tiling as windows
from segship.inference import volume_decode
from segship.inference.predictor import Predictor
from segship.inference.volume_chain import PreparedVolume, prepare_volume
from segship.inference.volume_network import TileOptions, scores
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import Volume, read_volume
from segship.manifest import Argmax, Executed, Manifest, Recipe, Resample, Transpose, Variant
from segship.package import Package, golden_files, open_package, sha256_bytes, write_package

NO_MIRROR = TileOptions(mirror=False)
SAMPLE_NAME = "sample.npz"
BATCHES = (1, 2)
ROUNDING = 10
"""How many times further than one rounding of its input moves the network's answer an engine may differ. Measured on ten
networks: PyTorch's own float32 lies 0.6 to 1 times as far from float64, ONNX Runtime 0.6 to 3 times, OpenVINO 1.5 to 6.5
times where instance norm amplifies rounding (seeded weights), all within the engine's tolerance where it does not."""
Next = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Expected:
    """What the source networks give for the sample case."""

    volume: Volume
    previous: np.ndarray | None
    prepared: PreparedVolume
    window: np.ndarray
    """(C, *window) the first window of the case"""
    scores: np.ndarray
    prediction: VolumePrediction
    answers: Mapping[str, np.ndarray]
    """each member's answer to the window and to its mirror image (`_pair`): a window of 128³ is many seconds, once each"""
    sensitivity: float
    """how far the last bit of the window's values moves a network's answer, at most"""
    floor: float = 0.0
    """what the world itself allows an engine, relative as an engine's own tolerance is"""

    def allowed(self, tolerance: float, wanted: np.ndarray) -> float:
        """How far an engine of this tolerance may differ from ``wanted``."""
        floor = parity.network_tolerance(self.floor, wanted) if self.floor else 0.0
        return max(parity.network_tolerance(tolerance, wanted), ROUNDING * self.sensitivity, floor)


def graphs(source: Source, batch: int | None) -> dict[str, bytes]:
    """member -> ONNX graph, its window fixed; the batch is free unless ``batch`` fixes it."""
    network = source.recipe.network
    out = {}
    for member, module in members(source).items():
        graph = onnx_graph.from_torch(
            module,
            source.input_example_shape,
            input_name=network.input_name,
            output_names=[output.name for output in network.outputs],
            batch=batch,
            size_multiple=None,
        )
        graph = settle_sizes(graph)
        out[member] = onnx_graph.serialise(split_joined(graph) if len(source.input_example_shape) == 4 else graph)
    return out


def members(source: Source) -> Mapping[str, Any]:
    return source.members or {source.recipe.network.members[0]: source.network}


def graph_name(member: str, count: int, precision: str = "fp32") -> str:
    return f"graphs/{precision}.onnx" if count == 1 else f"graphs/{precision}.{member}.onnx"


def export_volume(
    source: Source,
    target: Path,
    *,
    sample: Any,
    batch: int | None,
    folder: bool,
    engines: Sequence[str],
    environment: dict[str, Any],
    step: Next,
) -> tuple[Package, list[ParityRow]]:
    """Convert, prove, write. Raises what `export` raises; nothing is written beyond tolerance."""
    source = replace(source, recipe=_linked(source.recipe, target))
    recipe = source.recipe
    volume, bundled = _sample(sample, recipe)
    step("running the source network")
    expected = _expected(source, volume)
    step("converting to ONNX")
    made = graphs(source, batch)
    files = {graph_name(member, len(made)): graph for member, graph in made.items()}
    manifest = _manifest(recipe, made, batch, engines, ())
    rows, executed = _prove(source, manifest, files, expected, engines, step)
    parity.require(rows, f"{recipe.name} differs from its source")
    step("writing the package")
    content = sample_bytes(volume, expected.previous)
    provenance = {
        "command": "export",
        "source": source.provenance,
        "environment": environment,
        "warnings": list(source.warnings),
        "parity": [row.as_dict() for row in rows],
        "sample": {"name": volume.name, "bundled": bundled, "sha256": sha256_bytes(content)},
    }
    tolerance = max(get_engine(name).TOLERANCE["fp32"] for name in engines)
    golden = golden_files(SAMPLE_NAME, content, bundled, _golden_stages(expected, tolerance))
    package = write_package(
        target, _manifest(recipe, made, batch, engines, executed), {**files, **golden}, provenance, folder=folder
    )
    return package, rows


def _linked(recipe: Recipe, target: Path) -> Recipe:
    """With the network of the first stage's package recorded, where that lies beside ``target`` already."""
    link = recipe.previous_stage
    if link is None or link.sha256 is not None or not (target.parent / link.file).exists():
        return recipe
    first = open_package(target.parent / link.file)
    return recipe.model_copy(update={"previous_stage": link.model_copy(update={"sha256": first.network_sha256})})


def _manifest(
    recipe: Recipe, made: Mapping[str, bytes], batch: int | None, engines: Sequence[str], executed: Sequence[Executed]
) -> Manifest:
    variant = Variant(
        precision="fp32",
        graphs={member: graph_name(member, len(made)) for member in made},
        sha256={member: sha256_bytes(graph) for member, graph in made.items()},
        shapes="dynamic" if batch is None else "static",
        batches=BATCHES if batch is None else (batch,),
        engines=tuple(engines),
        executed=tuple(executed),
    )
    return Manifest(**recipe.model_dump(), variants=(variant,))


# ---------------------------------------------------------------------------------------------- the sample


def _sample(given: Any, recipe: Recipe) -> tuple[Volume, bool]:
    """A case that fills one window: the middle of the user's own, or a drawn one."""
    if given is None:
        return drawn_volume(recipe), True
    assert recipe.input.kind == "volume"
    volume = read_volume(given, recipe.input)
    return middle(volume, recipe), False


def window_extent(recipe: Recipe) -> tuple[float | None, ...]:
    """(z, y, x) of one window in millimetres in the case's own axes; None where slices are run one by one."""
    assert recipe.tiling is not None
    resample = next((step for step in recipe.preprocess if isinstance(step, Resample)), None)
    spacing = resample.spacing_mm_zyx if resample is not None else (None, None, None)
    window = (None,) * (3 - len(recipe.tiling.window)) + recipe.tiling.window
    extent = [None if side is None else side * (mm or 1.0) for side, mm in zip(window, spacing, strict=True)]
    turn = next((step.axes for step in recipe.preprocess if isinstance(step, Transpose)), (0, 1, 2))
    out: list[float | None] = [None, None, None]
    for place, axis in enumerate(turn):
        out[axis] = extent[place]
    return tuple(out)


def middle(volume: Volume, recipe: Recipe) -> Volume:
    """The middle of a case, no larger than one window; as many slices as a window has rows at most."""
    box = []
    for size, spacing, extent in zip(volume.shape, volume.spacing, window_extent(recipe), strict=True):
        keep = min(size, 4 if extent is None else max(1, int(extent / spacing)))
        start = (size - keep) // 2
        box.append(slice(start, start + keep))
    part = np.ascontiguousarray(volume.channels[(slice(None), *box)])
    return Volume(channels=part, spacing=volume.spacing, name=volume.name)


def drawn_volume(recipe: Recipe) -> Volume:
    """Blobs on a dark ground, in a range that an 8-bit picture and a CT share; spacing as the network wants it."""
    resample = next((step for step in recipe.preprocess if isinstance(step, Resample)), None)
    turn = next((step.axes for step in recipe.preprocess if isinstance(step, Transpose)), (0, 1, 2))
    wanted = resample.spacing_mm_zyx if resample is not None else (None, None, None)
    spacing = [1.0, 1.0, 1.0]
    for place, axis in enumerate(turn):
        spacing[axis] = wanted[place] or 1.0
    shape = [
        3 if extent is None else max(1, int(extent / mm))
        for extent, mm in zip(window_extent(recipe), spacing, strict=True)
    ]
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    rng = np.random.default_rng(0)
    channels = []
    for _ in recipe.input.channels:
        field = np.full(shape, 20.0)
        for _ in range(6):
            centre, radius = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.2, 0.5)
            distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
            field += rng.uniform(30, 90) * np.exp(-distance / (2 * radius**2))
        channels.append(np.clip(np.rint(field + rng.normal(0, 4, shape)), 0, 255))
    return Volume(
        channels=np.stack(channels).astype(np.float32), spacing=(spacing[0], spacing[1], spacing[2]), name="drawn"
    )


def sample_bytes(volume: Volume, previous: np.ndarray | None = None) -> bytes:
    """The sample as it lies in a package: channels (16-bit integers where they hold them), spacing, previous labels."""
    channels: np.ndarray = volume.channels
    if np.array_equal(channels, np.rint(channels)) and np.abs(channels).max() < 32767:
        channels = channels.astype(np.int16)
    arrays = {"channels": channels, "spacing": np.array(volume.spacing)}
    if previous is not None:
        arrays["previous"] = previous.astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------- the proof


def _expected(source: Source, volume: Volume) -> _Expected:
    recipe = source.recipe
    assert recipe.tiling is not None
    previous = None
    if recipe.previous_stage is not None:  # any labels do for the proof: bands of the brightness
        image = volume.channels[0]
        edges = np.quantile(image, [0.5, 0.8])
        previous = np.digitize(image, edges).astype(np.uint8)
    prepared = prepare_volume(volume, recipe, previous)
    passes = [_torch_pass(module) for module in members(source).values()]
    found = scores(prepared.x, recipe, passes, NO_MIRROR)
    prediction = VolumePrediction(
        scores=found, frame=prepared.frame, recipe=recipe, volume=volume,
        activated=recipe.tiling.average == "probabilities",
    )  # fmt: skip
    x = prepared.x if len(recipe.tiling.window) == 3 else prepared.x[:, prepared.x.shape[1] // 2]
    padded, _ = windows.pad(np.ascontiguousarray(x), recipe.tiling)
    window = np.ascontiguousarray(windows.cut(padded, (0,) * len(recipe.tiling.window), recipe.tiling))
    pair = _pair(window)
    answers = {member: parity.run_source(module, pair)[0] for member, module in members(source).items()}
    near = {m: parity.run_source(module, pair * np.float32(1 + 2**-22))[0] for m, module in members(source).items()}
    return _Expected(
        volume=volume, previous=previous, prepared=prepared, window=window, scores=found, prediction=prediction,
        answers=answers, sensitivity=max(float(np.abs(answers[m] - near[m]).max()) for m in answers),
        floor=source.engine_tolerance,
    )  # fmt: skip


def _pair(window: np.ndarray) -> np.ndarray:
    """A batch of two different inputs."""
    return np.ascontiguousarray(np.stack([window, window[:, ::-1]]))


def _torch_pass(module: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: parity.run_source(module, x)[0]


def _prove(
    source: Source,
    manifest: Manifest,
    files: Mapping[str, bytes],
    expected: _Expected,
    engines: Sequence[str],
    step: Next,
) -> tuple[list[ParityRow], list[Executed]]:
    rows: list[ParityRow] = []
    executed: list[Executed] = []
    with checks.temporary_package(manifest, dict(files)) as package:
        for name in engines:
            step(f"comparing with {name}")
            tolerance = get_engine(name).TOLERANCE["fp32"]
            cache = package.path / ".cache"
            with Predictor.open(package, engine=name, cache_dir=cache, profile=True) as predictor:
                rows += _network_rows(source, predictor, name, expected, tolerance)
                rows += _chain_rows(predictor, name, expected, tolerance)
                static = predictor.members.fixed_batch(1)
                x = np.repeat(expected.window[None], static or 1, axis=0)
                executed.append(predictor.sessions[0].executed(x))
    return rows, executed


def _network_rows(
    source: Source, predictor: Predictor, engine: str, expected: _Expected, tolerance: float
) -> list[ParityRow]:
    rows = []
    pair = _pair(expected.window)
    several = members(source)
    for index, member in enumerate(several):
        inputs = [("", pair[:1])] if index else [("", pair[:1]), (", batch 2", pair)]
        for label, x in inputs:
            wanted, got = expected.answers[member][: len(x)], predictor.members.run_member(index, x)[0]
            allowed = expected.allowed(tolerance, wanted)
            stage = f"network{label}" if len(several) == 1 else f"network {member}{label}"
            rows.append(parity.difference_row(engine, stage, wanted, got, allowed, shared_code=False))
    return rows


def _chain_rows(predictor: Predictor, engine: str, expected: _Expected, tolerance: float) -> list[ParityRow]:
    """Read, preprocessed, the averaged scores, and the labels on the case's own grid."""
    content = sample_bytes(expected.volume, expected.previous)
    trace = predictor.golden_trace(content)
    allowed = expected.allowed(tolerance, expected.scores)
    labels = expected.prediction.decoded
    sure = _sure(expected, allowed)
    agreement = float(np.mean(labels[sure] == trace["decoded"][sure])) if sure.any() else 1.0
    read = expected.volume.channels
    return [
        parity.difference_row(engine, "read", read, trace["read"], 0.0, shared_code=True),
        parity.difference_row(engine, "preprocessed", expected.prepared.x, trace["preprocessed"], 0.0, shared_code=True),
        parity.difference_row(engine, "scores", expected.scores, trace["network"], allowed, shared_code=False),
        ParityRow(
            engine=engine, stage="decoded", max_abs=float((labels[sure] != trace["decoded"][sure]).any()),
            mean_abs=1 - agreement, tolerance=1.0, label_agreement=agreement, shared_code=True,
        ),
    ]  # fmt: skip


def _sure(expected: _Expected, slack: float) -> np.ndarray:
    """Voxels whose decision a change of ``slack`` in a score cannot turn over."""
    recipe = expected.prediction.recipe
    found = volume_decode.probabilities(
        expected.scores, expected.prepared.frame, recipe, activated=expected.prediction.activated
    )
    # A probability moves by at most half of what its logits moved.
    slack = slack if expected.prediction.activated else 0.5 * slack
    if isinstance(recipe.decode.decision, Argmax):
        if len(found) == 1:
            return np.ones(found.shape[1:], bool)
        best = np.partition(found, len(found) - 2, axis=0)
        return np.asarray(best[-1] - best[-2] > 2 * slack + 1e-6)
    sure = np.abs(found - 0.5) > slack + 1e-6
    shape = expected.prediction.decoded.shape
    return np.asarray(sure if sure.shape == shape else sure.all(axis=0))


def _golden_stages(expected: _Expected, engine_tolerance: float) -> dict[str, tuple[np.ndarray, float]]:
    scale = max(1.0, float(np.abs(expected.prepared.x).max()))
    return {
        "read": (expected.volume.channels, 1e-3),
        "preprocessed": (expected.prepared.x, 1e-4 * scale),
        "network": (expected.scores, expected.allowed(engine_tolerance, expected.scores)),
        "decoded": (expected.prediction.decoded, 0.5),
    }
