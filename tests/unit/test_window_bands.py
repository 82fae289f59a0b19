"""Windows over a picture, given away row by row: the bits of the whole, the memory of one row of windows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mmseg import CLASSES, cityscapes_tree, slide, street_manifest, street_package

from segship.cli import run
from segship.errors import EngineError, UsageError
from segship.inference import windows
from segship.inference.options import OutputOptions
from segship.inference.predictor import Failure, Predictor
from segship.inference.windows import picture_bands, run_picture
from segship.manifest import Pad, Recipe, ResizeKeepRatio
from segship.measure.evaluate import evaluate
from segship.package import Package

sides = st.integers(1, 60)


def recipe(window: tuple[int, int], step: tuple[int, int], multiple: int = 1) -> Recipe:
    made = street_manifest(b"", tiling=slide(window, step)).recipe
    return made.model_copy(update={"network": made.network.model_copy(update={"size_multiple": (multiple, multiple)})})


def network(stride: int, classes: int = 3):
    """What stands for a network: (N, C, h, w) to scores of a grid that is ``stride`` times coarser."""

    def scores(x: np.ndarray) -> list[np.ndarray]:
        coarse = x[:, :, ::stride, ::stride]
        return [np.concatenate([coarse * np.float32(k + 1) - coarse.mean() for k in range(classes)], axis=1)]

    return scores


@settings(deadline=None, max_examples=120)
@given(
    size=st.tuples(sides, sides), window=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    overlap=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), stride=st.sampled_from([1, 2, 4]),
    multiple=st.sampled_from([1, 4]), batch=st.integers(1, 7), seed=st.integers(0, 99), pixels=st.sampled_from([1, 64, 1 << 15]),
)  # fmt: skip
def test_bands_are_the_whole_to_the_bit(size, window, overlap, stride, multiple, batch, seed, pixels) -> None:
    step = tuple(max(1, int(side * share)) for side, share in zip(window, overlap, strict=True))
    about = recipe(window, (step[0], step[1]), multiple)
    x = np.random.default_rng(seed).normal(size=(2, *size)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BAND_PIXELS", pixels)
        bands = list(picture_bands(network(stride), x, about, batch))
    assert [rows.start for rows, _ in bands] == [0, *(rows.stop for rows, _ in bands)][:-1]
    assert bands[-1][0].stop == size[0]
    whole = run_picture(network(stride), x, about, batch)[0]
    np.testing.assert_array_equal(np.concatenate([part for _, part in bands], axis=1), whole)


def test_a_tall_picture_takes_a_row_of_windows() -> None:
    about = recipe((128, 256), (86, 170))
    x = np.zeros((1, 4096, 256), np.float32)
    x[:, ::7] = 1
    tracemalloc.start()
    rows = 0
    for part, _ in picture_bands(network(1, 19), x, about):
        rows += part.stop - part.start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 4096
    assert peak < 19 * 256 * 4 * 4096 / 6  # the scores are 80 MB


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One network with windows: of pictures as they are, and of pictures fitted and padded."""
    folder = tmp_path_factory.mktemp("windows")
    normalize = street_manifest(b"").preprocess
    steps = (
        ResizeKeepRatio(long_side=100, short_side=70, method="opencv:linear"),
        *normalize,
        Pad(multiple_of=32, where="end", mode="constant"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE_DIR", str(folder / "cache"))
        yield {
            "plain": street_package(folder / "plain.segship", tiling=slide()),
            "fitted": street_package(folder / "fitted.segship", tiling=slide(), preprocess=steps),
        }


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 7 + 2, width // 7 + 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("kind", ["plain", "fitted"])
@pytest.mark.parametrize("size", [(64, 128), (33, 47), (5, 9), (201, 50)])
def test_labels_alone_are_the_labels(packages: dict[str, Package], kind: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    with Predictor.open(packages[kind], engine="onnxruntime", batch=2) as predictor:
        full, alone = predictor(image), predictor(image, keep_scores=False)
        assert alone.labels_alone is not None
        assert alone.outputs == ()
        for grid in ("input", "network"):
            np.testing.assert_array_equal(alone.on_grid(grid).labels, full.on_grid(grid).labels)
            assert alone.on_grid(grid).size_hw == full.on_grid(grid).size_hw
        np.testing.assert_array_equal(alone.masks, full.masks)
        assert alone.encode("overlay") == full.encode("overlay")
        assert not alone.constant_output
        for ask in (lambda: alone.probabilities, lambda: alone.logits):
            with pytest.raises(UsageError, match="keep_scores=True"):
                ask()
        np.testing.assert_allclose(predictor(image, keep_scores=False, probabilities=True).probabilities.sum(axis=0), 1, rtol=1e-5)  # fmt: skip
        several = list(predictor.stream([image, "missing.png", image], keep_scores=False))
        assert isinstance(several[1], Failure)
        np.testing.assert_array_equal(several[2].labels, full.labels)


def test_files_are_the_same_whatever_is_kept(packages: dict[str, Package], tmp_path: Path) -> None:
    path, package = tmp_path / "street.png", packages["fitted"]
    cv2.imwrite(str(path), picture(81, 143))
    common = ["predict", str(package.path), str(path), "--engine", "onnxruntime", "-q", "--palette", "-o"]
    assert run([*common, str(tmp_path / "labels")]) == 0
    assert run([*common, str(tmp_path / "scores"), "--save-probabilities"]) == 0
    assert (tmp_path / "labels" / "street.png").read_bytes() == (tmp_path / "scores" / "street.png").read_bytes()
    with np.load(tmp_path / "scores" / "probabilities" / "street.npz") as found:
        assert found["probabilities"].shape == (CLASSES, 81, 143)


def test_scoring_never_asks_for_scores(packages: dict[str, Package], tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "cs")
    kept = evaluate(packages["plain"], tree, engine="onnxruntime", record=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segship.inference.predictor.decides_in_bands", lambda recipe: False)
        whole = evaluate(packages["plain"], tree, engine="onnxruntime", record=False)
    assert kept.variants[0].evaluation.metrics == whole.variants[0].evaluation.metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segship.inference.predictor.run_picture", lambda *_: pytest.fail("the scores were put together"))
        evaluate(packages["plain"], tree, engine="onnxruntime", record=False)


def test_augmentation_over_windows_is_what_it_was(packages: dict[str, Package]) -> None:
    image = picture(40, 72)
    with Predictor.open(packages["plain"], engine="onnxruntime", tta="1.x", tta_ratios=(0.75, 1.5)) as predictor:
        found = predictor(image).probabilities
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "segship.inference.predictor.picture_bands",
                lambda run, x, about, batch: iter([(slice(0, x.shape[1]), run_picture(run, x, about, batch)[0])]),
            )
            np.testing.assert_array_equal(predictor(image).probabilities, found)


def test_not_a_number_and_one_constant_are_found_on_the_way(packages: dict[str, Package]) -> None:
    shape = (1, CLASSES, 16, 24)
    with Predictor.open(packages["plain"], engine="onnxruntime") as predictor, pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "members", lambda x, batch: [np.ones(shape, np.float32)])
        assert predictor(picture(64, 96), keep_scores=False).constant_output
        broken = np.ones(shape, np.float32)
        broken[0, 3, 7, 7] = np.nan
        patch.setattr(predictor, "members", lambda x, batch: [broken])
        with pytest.raises(EngineError, match="NaN or infinite"):
            predictor(picture(64, 96), keep_scores=False).render(OutputOptions(kind="color"))
