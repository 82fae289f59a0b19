"""Window plans of upstream's own code: MLPerf's crop, padding and counts, MMSegmentation's grids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.inference import tiling as windows
from segship.manifest import Tiling


def mlperf(**changes: object) -> Tiling:
    settings: dict[str, object] = {
        "window": (128, 128, 128),
        "step": (64, 64, 64),
        "positions": "stride-multiple",
        "weighting": "gaussian-centred",
        "gaussian_sigma_scale": 0.125 * 3**0.5,
        "pad_mode": "constant",
        "pad_value": -2.2,
        "crop_remainder_below": 32,
        "average": "logits",
    }
    return Tiling(**{**settings, **changes})  # type: ignore[arg-type]


def test_mlperfs_plans(shared: Path) -> None:
    plans = json.loads((shared / "reference/mlperf_training.json").read_text())["window_plans"]
    assert len(plans) >= 8
    for plan in plans:
        kept = windows.remainder_crop(plan["shape"], mlperf())
        cut = [[part.start, size - part.stop] for part, size in zip(kept, plan["shape"], strict=True)]
        assert cut == plan["crop"]
        out = [part.stop - part.start for part in kept]
        assert out == plan["out"]
        widths = windows.padding(out, mlperf())
        assert [list(width) for width in widths] == plan["pad"]
        padded = [size + sum(width) for size, width in zip(out, widths, strict=True)]
        starts = [windows.axis_starts(size, 128, 64, "stride-multiple") for size in padded]
        assert [len(axis) for axis in starts] == plan["windows"]
        assert all(axis == [64 * i for i in range(len(axis))] for axis in starts)


def test_the_full_grid_is_padded_and_never_cut(shared: Path) -> None:
    about = json.loads((shared / "reference/mlperf_unet3d_sliding.json").read_text())
    shape, tiling = about["volume"]["shape"], mlperf(crop_remainder_below=0)
    assert windows.remainder_crop(shape, tiling) == tuple(slice(0, size) for size in shape)
    padded = [size + sum(width) for size, width in zip(shape, windows.padding(shape, tiling), strict=True)]
    assert padded == about["full_grid"]["padded_shape"]
    assert all(after - before in (0, 1) for before, after in windows.padding(shape, tiling))


@given(size=st.integers(1, 700), below=st.integers(0, 64))
def test_nothing_below_the_window_and_nothing_long_is_cut(size: int, below: int) -> None:
    tiling = mlperf(window=(128,) * 3, crop_remainder_below=below)
    (kept, *_) = windows.remainder_crop((size,) * 3, tiling)
    rest = kept.stop - kept.start
    assert rest == size or (size - rest < below and rest % 64 == 0 and rest >= 128)
    assert 0 <= (size - kept.stop) - kept.start <= 1


@pytest.mark.parametrize(
    ("size", "crop", "stride", "starts"),
    [(200, 128, 85, [0, 72]), (304, 128, 85, [0, 85, 170, 176]), (112, 128, 100, [0]), (303, 128, 90, [0, 90, 175])],
)
def test_mmsegmentations_grids(size: int, crop: int, stride: int, starts: list[int]) -> None:
    """The two grids of the reference case for slide mode, 2 x 4 and 1 x 3 windows."""
    assert windows.axis_starts(size, crop, stride, "flush-last") == starts
