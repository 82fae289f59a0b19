"""Slide mode against a plain reading of its rules, with torch's interpolation; views and sizes of packages of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segship.errors import UsageError
from segship.families import get_family
from segship.inference.preprocess import resized_size
from segship.inference.views import affordable_batch, augmented, check_recipe, pixels_at_once, usual_size, with_resize
from segship.inference.windows import run_picture
from segship.manifest import Augmentation, Recipe, Resize, ResizeByFactor, ResizeKeepRatio, Tiling

small = st.integers(1, 37)


def network(x: np.ndarray) -> list[np.ndarray]:
    """Two classes at stride 4: means of 4×4 pixels and of their squares, the last row and column repeated."""
    tensor = torch.from_numpy(x)
    missing = [-side % 4 for side in x.shape[2:]]
    tensor = functional.pad(tensor, (0, missing[1], 0, missing[0]), mode="replicate")
    pooled = functional.avg_pool2d(tensor, 4)
    return [torch.cat([pooled[:, :1], pooled[:, 1:2] ** 2], dim=1).numpy()]


def recipe(**changes: object) -> Recipe:
    base = get_family("mmseg").tiny().recipe
    net = base.network.model_copy(
        update={"size": None, "size_multiple": (1, 1), "check_size": (16, 32), **changes.pop("network", {})}
    )
    return base.model_copy(update={"network": net, **changes})


def tiled(window: tuple[int, int], step: tuple[int, int]) -> Tiling:
    return Tiling(
        window=window, step=step, positions="flush-last", weighting="uniform", pad_mode="none", average="logits"
    )


def slide(x: np.ndarray, window: tuple[int, int], step: tuple[int, int], aligned: bool) -> np.ndarray:
    """open-mmlab/mmsegmentation: slide_inference, in words of its own."""
    (height, width), total = x.shape[1:], np.zeros((2, *x.shape[1:]), np.float32)
    seen = np.zeros(x.shape[1:], np.float32)
    for i in range(max(height - window[0] + step[0] - 1, 0) // step[0] + 1):
        for j in range(max(width - window[1] + step[1] - 1, 0) // step[1] + 1):
            bottom, right = min(i * step[0] + window[0], height), min(j * step[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            part = np.ascontiguousarray(x[None, :, top:bottom, left:right])
            logits = torch.from_numpy(network(part)[0])
            logits = functional.interpolate(logits, size=part.shape[2:], mode="bilinear", align_corners=aligned)
            total[:, top:bottom, left:right] += logits[0].numpy()
            seen[top:bottom, left:right] += 1
    return total / seen


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(small, small), window=st.tuples(small, small), step=st.tuples(small, small), batch=st.integers(1, 5),
    aligned=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_slide_mode(size, window, step, batch, aligned, seed) -> None:
    step = tuple(
        min(pair) for pair in zip(step, window, strict=True)
    )  # a larger stride leaves gaps, upstream refuses it
    x = np.random.default_rng(seed).normal(size=(3, *size)).astype(np.float32)
    method = "torch:bilinear-align-corners" if aligned else "torch:bilinear"
    base = recipe(tiling=tiled(window, step))
    base = base.model_copy(update={"decode": base.decode.model_copy(update={"restore_method": method})})
    found = run_picture(network, x, base, batch)[0]
    np.testing.assert_allclose(found, slide(x, window, step, aligned), atol=2e-5)


def test_windows_are_filled_up_to_what_the_network_takes() -> None:
    seen: list[tuple[int, ...]] = []

    def run(x: np.ndarray) -> list[np.ndarray]:
        seen.append(x.shape)
        return [x[:, :2]]

    x = np.random.default_rng(0).normal(size=(3, 21, 40)).astype(np.float32)
    base = recipe(tiling=tiled((18, 18), (11, 11)), network={"size_multiple": (16, 16)})
    assert np.abs(run_picture(run, x, base, 4)[0] - x[:2]).max() < 1e-6
    assert {shape[2:] for shape in seen} == {(32, 32)}


def test_sides_round_as_mmcv_rounds_them() -> None:
    kept = ResizeByFactor(factor=0.501, keep_ratio=True, method="opencv:linear")
    free = kept.model_copy(update={"keep_ratio": False})
    assert resized_size((101, 200), free) == (51, 100)
    assert resized_size((101, 200), kept) == (51, 100)
    tall = ResizeByFactor(factor=0.5, keep_ratio=True, method="opencv:linear")
    assert resized_size((101, 2), tall) == (51, 1)
    fits = ResizeKeepRatio(long_side=2049, short_side=1025, method="opencv:linear")
    assert resized_size((1024, 2048), fits) == (1025, 2049)
    assert resized_size((1, 5000), fits) == (1, 2049)


def test_a_size_to_fit_into_may_take_a_pixel_off() -> None:
    """23 × 0.75 is 17.25: rounded down, the ratio of 17 to 23 leaves 1.48 of the other side's 1.5, which rounded up."""
    step = ResizeByFactor(factor=0.75, keep_ratio=True, method="opencv:linear")
    assert resized_size((2, 23), step.model_copy(update={"keep_ratio": False})) == (2, 17)
    assert resized_size((2, 23), step) == (1, 17)


def test_the_views_of_both_versions() -> None:
    resize = ResizeKeepRatio(long_side=2048, short_side=1024, method="opencv:linear")
    base = with_resize(recipe(augmentation=Augmentation(ratios=(0.5, 1.75), mirror=True)), resize)
    new = [view.preprocess[:2] for view in augmented(base, "1.x")]
    assert [step.step for step in new[1]] == ["resize_by_factor", "mirror"]
    assert [view[0].factor for view in new] == [0.5, 0.5, 1.75, 1.75]
    old = [view.preprocess[0] for view in augmented(base, "0.x")]
    assert [(step.long_side, step.short_side) for step in old[::2]] == [(1024, 512), (3584, 1792)]
    assert len(augmented(base, "1.x", (1.0,))) == 2
    plain = recipe(augmentation=Augmentation(ratios=(1.0,), mirror=False))
    assert [view.preprocess[0].step for view in augmented(plain, "1.x")] == ["resize_by_factor"]


@pytest.mark.parametrize(
    ("changes", "kind", "ratios", "message"),
    [
        ({"augmentation": None}, "1.x", None, "has no test-time augmentation"),
        ({"network": {"size": (64, 64)}}, "1.x", None, "takes 64x64 alone"),
        ({}, "2.x", None, "--tta is 1.x or 0.x"),
        ({}, "1.x", (0.0, 1.0), "factors above 0"),
    ],
)
def test_views_that_cannot_be(changes: dict, kind: str, ratios: tuple | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augmented(recipe(**changes), kind, ratios)


def test_packages_of_any_size_are_checked_small() -> None:
    resize = ResizeKeepRatio(long_side=2048, short_side=1024, method="opencv:linear")
    base = with_resize(recipe(network={"check_size": (256, 512), "size_multiple": (16, 16)}), resize)
    checked = check_recipe(base.model_copy(update={"tiling": tiled((769, 769), (513, 513))}))
    assert (checked.preprocess[0].long_side, checked.preprocess[0].short_side) == (512, 256)
    assert checked.tiling == tiled((192, 192), (128, 128))
    fixed = recipe(network={"size": (64, 64)})
    assert check_recipe(fixed) is fixed


def test_how_much_goes_through_the_network_at_once() -> None:
    resize = ResizeKeepRatio(long_side=2048, short_side=1024, method="opencv:linear")
    base = with_resize(recipe(), resize)
    assert affordable_batch(8, pixels_at_once(base)) == 1
    assert affordable_batch(8, pixels_at_once(base.model_copy(update={"tiling": tiled((512, 512), (9, 9))}))) == 4
    assert affordable_batch(8, pixels_at_once(recipe(network={"size": (64, 64)}))) == 8
    assert usual_size(base) == (1024, 2048)
    assert usual_size(with_resize(base, Resize(height=5, width=9, method="opencv:linear"))) == (5, 9)
    assert usual_size(base.model_copy(update={"preprocess": base.preprocess[1:]})) is None
