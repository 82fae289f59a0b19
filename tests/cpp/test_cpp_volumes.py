"""Volumes step by step: preprocessing, windows, decisions, resampling back, clean-up, folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import (
    VOLUME_ARGMAX,
    labels,
    tiling,
    volume_input,
    volume_package,
    write_volume,
)
from cpp_compare import Runner, check_stages, same, volume_stages

from segship.inference.predictor import Predictor
from segship.inference.volume_network import TileOptions
from segship.manifest import (
    Clip,
    CropToNonzero,
    Decode,
    KeepLargest,
    Normalize,
    Pad,
    Regions,
    ReplaceNonFinite,
    Resample,
    RescaleMinMax,
    Threshold,
    Transpose,
    ZScore,
)
from segship.package import Package

SHAPES = {"case": (21, 26, 17), "thin": (30, 22, 5), "small": (6, 9, 4)}
"""of the files, (x, y, z): larger than the window, flatter, and smaller on every side"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cases")
    return [
        write_volume(folder / f"{name}_0000.nii.gz", shape, seed=seed, zooms=(1.5, 1.2, 2.0 + 3 * (name == "thin")))
        for seed, (name, shape) in enumerate(SHAPES.items())
    ]


def beside(package: Package, run_cpp: Runner, inputs: list[Path], **tolerances: float) -> None:
    found = run_cpp(package, *inputs)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in inputs:
            name = path.name.removesuffix(".nii.gz").removesuffix("_0000")
            try:
                check_stages(found.of(name), predictor.trace(path), **tolerances)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None


def resample(spacing: tuple[float | None, ...] = (2.5, 1.0, 1.9), **changes: Any) -> Resample:
    fields: dict[str, Any] = {
        "spacing_mm_zyx": spacing, "shape_rule": "round-half-even", "method": "skimage:edge", "order": 3, "order_z": 0,
        "separate_z": "auto", "anisotropy_threshold": 3.0,
    }  # fmt: skip
    return Resample(**(fields | changes))


# -------------------------------------------------------------------------------------------- preprocessing

STEPS: dict[str, tuple[Any, ...]] = {
    "crop": (CropToNonzero(fill_holes=True),),
    "crop without filling": (CropToNonzero(fill_holes=False),),
    "transpose": (Transpose(axes=(2, 0, 1)), CropToNonzero(fill_holes=True)),
    "clip and zscore of given numbers": (
        Clip(low=10, high=120),
        ZScore(channel=0, mean=55.5, std=31.25, epsilon=1e-8, epsilon_rule="maximum", mask="none"),
    ),
    "zscore": (ZScore(channel=0, mean=None, std=None, epsilon=1e-8, epsilon_rule="add", mask="none"),),
    "zscore inside the mask": (
        CropToNonzero(fill_holes=True),
        ZScore(
            channel=0, mean=None, std=None, epsilon=1e-8, epsilon_rule="maximum", mask="nonzero", outside_mask="zero"
        ),
    ),
    "zscore outside zero, between": (
        CropToNonzero(fill_holes=True),
        ZScore(
            channel=0, mean=None, std=None, epsilon=0.1, epsilon_rule="add", mask="none", outside_mask="zero",
            between=(5.0, 140.0),
        ),
    ),
    "rescale": (RescaleMinMax(channel=0, epsilon=1e-6),),
    "normalize": (Normalize(subtract=(40.0,), multiply=(0.02,)),),
    "pad both": (Pad(minimum=(20, 20, 40), multiple_of=8, where="both", mode="constant", value=-3.0),),
    "pad end edge": (Pad(minimum=(9, 33, 8), multiple_of=4, where="end", mode="edge"),),
    "pad reflect": (Pad(minimum=None, multiple_of=8, where="both", mode="reflect"),),
    "all of nnU-Net": (
        Transpose(axes=(1, 0, 2)),
        CropToNonzero(fill_holes=True),
        ZScore(channel=0, mean=None, std=None, epsilon=1e-8, epsilon_rule="maximum", mask="nonzero"),
        resample(),
    ),
    "all of MLPerf": (
        resample((1.6, 1.2, 0.8), method="torch:trilinear", order=1, order_z=1, shape_rule="truncate", separate_z="never"),
        Clip(low=-79.0, high=304.0),
        Normalize(subtract=(101.0,), multiply=(1 / 76.9,)),
        Pad(minimum=(16, 32, 32), multiple_of=1, where="both", mode="constant", value=-2.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    scale = 1 / 150 if name in ("crop", "crop without filling", "transpose") or name.startswith("pad") else 0.3
    package = volume_package(tmp_path / "net.segship", *STEPS[name], scale=scale)
    beside(package, run_cpp, cases, prepared=2e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("separate", ["auto", "always", "never"])
def test_spline_orders(order: int, separate: Any, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    step = resample((3.0, 1.0, 1.6), order=order, separate_z=separate)
    decode = VOLUME_ARGMAX.model_copy(update={"restore_order": order, "restore_separate_z": separate})
    beside(volume_package(tmp_path / "net.segship", step, decode=decode), run_cpp, cases, prepared=2e-5)


@pytest.mark.parametrize("method", ["torch:trilinear", "torch:trilinear-align-corners", "torch:nearest"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 2.0, 3.0), (None, 1.7, None)])
def test_torch_resampling(method: Any, spacing: Any, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    step = resample(spacing, method=method, order=1, order_z=1, separate_z="never", shape_rule="truncate")
    back = "torch:trilinear" if method == "torch:nearest" else method
    decode = VOLUME_ARGMAX.model_copy(update={"restore_method": back, "restore_separate_z": "never"})
    beside(volume_package(tmp_path / "net.segship", step, decode=decode), run_cpp, cases, prepared=2e-6)


def test_coarse_axes_are_resampled_apart(run_cpp: Runner, tmp_path: Path) -> None:
    """Either spacing may be the coarse one, along any axis; equal coarse axes are not separated."""
    zooms = {"x": (7.0, 1.0, 1.0), "y": (1.0, 6.0, 1.2), "z": (0.9, 0.9, 5.0), "xy": (5.0, 5.0, 1.0)}
    inputs = [
        write_volume(tmp_path / f"{name}_0000.nii.gz", (18, 20, 16), zooms=size) for name, size in zooms.items()
    ]  # fmt: skip
    for number, spacing in enumerate([(1.5, 1.5, 1.5), (1.0, 1.0, 6.0)]):
        package = volume_package(tmp_path / f"{number}.segship", resample(spacing))
        beside(package, run_cpp, inputs, prepared=2e-5)


def test_values_that_are_no_numbers_are_replaced(run_cpp: Runner, tmp_path: Path) -> None:
    import nibabel

    path = write_volume(tmp_path / "a_0000.nii.gz", dtype="f4")
    image = nibabel.load(path)
    array = np.array(image.dataobj)
    array[3, 4, 5], array[6, 7, 8], array[9, 9, 9] = np.nan, np.inf, -np.inf
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
    package = volume_package(tmp_path / "net.segship", ReplaceNonFinite(value=12.0))
    found = run_cpp(package, path)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        wanted = predictor.trace(path)
    assert np.array_equal(found.of("a")["read"], wanted["read"], equal_nan=True)
    for stages in (found.stages["a"], wanted):
        stages["read"] = np.zeros(1)
    check_stages(found.of("a"), wanted)


# -------------------------------------------------------------------------------------------------- windows

WINDOWS: dict[str, dict[str, Any]] = {
    "even spread": {},
    "a step that is no whole number": {"step": (2.7, 5.5, 3.3)},
    "flush": {"positions": "flush-last", "weighting": "uniform", "gaussian_sigma_scale": None, "step": (5, 7, 6)},
    "multiples of the stride": {"positions": "stride-multiple", "step": (6, 9, 7), "weighting": "gaussian-centred"},
    "MLPerf's": {
        "positions": "stride-multiple", "step": (4, 6, 5), "weighting": "gaussian-centred", "gaussian_sigma_scale": 0.125,
        "pad_value": -2.2, "crop_remainder_below": 2,
    },
    "uniform": {"weighting": "uniform", "gaussian_sigma_scale": None},
    "one window unweighted": {"window": (20, 32, 32), "step": (10, 16, 16), "gaussian_single_tile": False},
    "edge padding": {"window": (12, 40, 30), "step": (6, 20, 15), "pad_mode": "edge"},
    "probabilities": {"average": "probabilities"},
    "half sums": {"accumulator": "float16"},
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", windows=tiling(**WINDOWS[name]))
    half = name == "half sums"
    beside(package, run_cpp, cases, network=2e-3 if half else 1e-4, agreement=0.999 if half else 0.9999)


@pytest.mark.parametrize("window", [(12, 16), (40, 30), (7, 7)])
@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_flat_windows(window: Any, axes: Any, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    """A network of two axes runs over every slice."""
    step = tuple(side / 2 for side in window)
    package = volume_package(tmp_path / "net.segship", windows=tiling(window, step=step, mirror_axes=axes))
    beside(package, run_cpp, cases)


def test_a_large_empty_part(run_cpp: Runner, tmp_path: Path) -> None:
    """Windows of one constant value, which need to be computed once."""
    import nibabel

    array = np.zeros((40, 36, 24), np.int16)
    array[4:12, 5:17, 3:9] = np.random.default_rng(0).integers(20, 150, (8, 12, 6))
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), tmp_path / "a_0000.nii.gz")
    package = volume_package(tmp_path / "net.segship", windows=tiling(mirror_axes=(0, 2)))
    beside(package, run_cpp, [tmp_path / "a_0000.nii.gz"])


# ------------------------------------------------------------------------------------------------ decisions


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("what", ["logits", "probabilities"])
@pytest.mark.parametrize("kind", ["regions", "threshold"])
def test_overlapping_classes(
    kind: str, what: Any, order: int, cases: list[Path], run_cpp: Runner, tmp_path: Path
) -> None:
    rule = Regions(threshold=0.5, order=(2, 1, 3)) if kind == "regions" else Threshold(threshold=0.4)
    decode = Decode(
        activation="sigmoid", decision=rule, restore_what=what, restore_method="skimage:edge", restore_order=order
    )
    named = labels(4)
    package = volume_package(tmp_path / "net.segship", resample(), decode=decode, labels=named)
    beside(package, run_cpp, cases, prepared=2e-5)


def test_ids_that_are_not_0_1_2(cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    for number, ids in enumerate([(0, 4, 2), (0, 300, 5)]):
        named = tuple(label.model_copy(update={"id": i}) for label, i in zip(labels(3), ids, strict=True))
        beside(volume_package(tmp_path / f"{number}.segship", resample(), labels=named), run_cpp, cases, prepared=2e-5)


@pytest.mark.parametrize("rule", ["apart", "joint", "above"])
def test_clean_up_in_cubic_millimetres(rule: str, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    rules = {
        "apart": KeepLargest(labels=(1, 2), joint=False, connectivity="face"),
        "joint": KeepLargest(labels=(1, 2), joint=True, connectivity="face"),
        "above": KeepLargest(labels=(2,), joint=False, minimum_mm3=60.0, connectivity="full"),
    }
    named: dict[str, Any] = {"classes": 5, "labels": labels(5)}
    package = volume_package(tmp_path / "net.segship", resample(), postprocess=(rules[rule],), **named)
    beside(package, run_cpp, cases, prepared=2e-5)
    raw = volume_package(tmp_path / "raw.segship", resample(), **named)
    with Predictor.open(package) as clean, Predictor.open(raw) as plain:
        assert (clean.trace(cases[0])["decoded"] != plain.trace(cases[0])["decoded"]).any(), "nothing to clean"


@pytest.mark.parametrize("kind", ["argmax", "regions"])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_probabilities(kind: str, average: Any, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    decode = VOLUME_ARGMAX
    if kind == "regions":
        decode = Decode(
            activation="sigmoid", decision=Regions(threshold=0.5, order=(1, 2, 3)), restore_what="logits",
            restore_method="skimage:edge",
        )  # fmt: skip
    steps = (Transpose(axes=(1, 2, 0)), CropToNonzero(fill_holes=True), resample())
    package = volume_package(
        tmp_path / "net.segship", *steps, decode=decode, windows=tiling(average=average, mirror_axes=(1,)),
        labels=labels(3 if kind == "argmax" else 4),
    )  # fmt: skip
    found = run_cpp(package, *cases, save_probabilities=True)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in cases:
            name = path.name.removesuffix("_0000.nii.gz")
            wanted = predictor(path).probabilities
            with np.load(found.folder / f"{name}.npz", allow_pickle=False) as arrays:
                kept = arrays["probabilities"]
            assert (kept.dtype, kept.shape) == (np.float32, wanted.shape)
            assert np.abs(kept - wanted).max() <= 1e-4


# ---------------------------------------------------------------------------- channels, folds, first stages


def test_a_file_for_each_channel(run_cpp: Runner, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 4)):
        for channel in range(3):
            write_volume(tmp_path / "in" / f"{name}_{channel:04d}.nii.gz", (14, 18, 12), seed=seed + channel)
    spec = volume_input(channels=3)
    steps = tuple(
        ZScore(channel=k, mean=None, std=None, epsilon=1e-8, epsilon_rule="add", mask="none") for k in range(3)
    )
    package = volume_package(tmp_path / "net.segship", *steps, spec=spec, scale=0.3)
    found = run_cpp(package, tmp_path / "in")
    assert found.code == 0, found.err
    assert sorted(path.name for path in found.folder.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    with Predictor.open(package) as predictor:
        for name in ("a", "b"):
            files = [tmp_path / "in" / f"{name}_{channel:04d}.nii.gz" for channel in range(3)]
            check_stages(found.of(name), predictor.trace(files), prepared=2e-5)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_folds(average: Any, cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    members = ("fold_0", "fold_1", "fold_3")
    package = volume_package(
        tmp_path / "net.segship", members=members, windows=tiling(average=average, mirror_axes=(0, 1, 2))
    )
    beside(package, run_cpp, cases)
    with Predictor.open(package) as predictor:
        answers = {}
        for folds, chosen in (("0", ("fold_0",)), ("1 3", ("fold_1", "fold_3"))):
            found = run_cpp(package, cases[0], folds=folds)
            wanted = volume_stages(predictor, cases[0], tiles=TileOptions(members=chosen))
            check_stages(found.of("case"), wanted)
            answers[folds] = wanted["network"]
    assert np.abs(answers["0"] - answers["1 3"]).max() > 0.1


def test_an_unknown_fold_names_those_there_are(cases: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", members=("fold_0", "fold_1"))
    found = run_cpp(package, cases[0], folds="7")
    assert found.code == 2
    assert "7" in found.error
    assert "0, 1" in found.error


def test_arrays_instead_of_files(run_cpp: Runner, tmp_path: Path) -> None:
    """The form of a package's golden sample: channels and spacing in an npz."""
    from cpp_cases import values

    array = values((9, 20, 16), 3)[None]
    np.savez(tmp_path / "sample.npz", channels=array, spacing=np.array([4.0, 1.0, 1.5]))
    steps = (CropToNonzero(fill_holes=True), resample())
    package = volume_package(tmp_path / "net.segship", *steps)
    found = run_cpp(package, tmp_path / "sample.npz")
    with Predictor.open(package) as predictor:
        check_stages(found.of("sample"), predictor.trace((array, (4.0, 1.0, 1.5))), prepared=2e-5)


@pytest.mark.parametrize("place", ["before the network", "behind it"])
def test_an_order_that_nobody_interpolates(
    place: str, cases: list[Path], run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    """The manifest can say it, and either runner names it."""
    decode = VOLUME_ARGMAX.model_copy(update={"restore_order": 2 if place == "behind it" else 1})
    step = resample(order=2) if place != "behind it" else resample()
    package = volume_package(tmp_path / "net.segship", step, decode=decode).path
    same(run_cpp(package, cases[0]), python(package, cases[0]), "interpolation order 2 is not offered")
