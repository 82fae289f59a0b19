"""Other ways through a package's preprocessing: the views of test-time augmentation, and the small size it is checked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from segship.errors import UsageError
from segship.inference.bands import Band, Float
from segship.inference.decode import activate
from segship.inference.images import Image
from segship.inference.preprocess import Prepared, prepare
from segship.manifest import ImageResize, Mirror, Recipe, Resize, ResizeByFactor, ResizeKeepRatio, Step, Tiling

Augmenting = Literal["1.x", "0.x"]
AUGMENTING: tuple[Augmenting, ...] = get_args(Augmenting)
"""whose test-time augmentation: mmseg 1.x resizes by factors of the picture's own size, 0.x by factors of the test size"""
PIXELS_AT_ONCE = 1 << 20
"""that share a batch in packages that take several sizes"""
Resizing = Resize | ResizeKeepRatio | ResizeByFactor


def augmented(recipe: Recipe, kind: Augmenting, ratios: tuple[float, ...] | None = None) -> list[Recipe]:
    """One recipe for each view: every ratio, as it is and mirrored.

    Raises UsageError where the package knows no augmentation or takes one size alone.
    """
    if kind not in AUGMENTING:
        raise UsageError(f"--tta is {' or '.join(AUGMENTING)}, not {kind!r}")
    if recipe.augmentation is None:
        raise UsageError(f"package '{recipe.name}' has no test-time augmentation of pictures; leave --tta out")
    if recipe.network.size is not None:
        raise UsageError(
            f"package '{recipe.name}' takes {recipe.network.size[0]}x{recipe.network.size[1]} alone, and --tta needs several "
            "sizes; export without --input-size"
        )
    chosen = ratios or recipe.augmentation.ratios
    if min(chosen) <= 0 or max(chosen) > 16:
        raise UsageError(f"--tta-ratios are factors above 0 and at most 16, not {', '.join(map(str, chosen))}")
    mirrored = (False, True) if recipe.augmentation.mirror else (False,)
    return [
        with_resize(recipe, _scaled(recipe, kind, ratio), mirror=mirror) for ratio in chosen for mirror in mirrored
    ]  # fmt: skip


def _scaled(recipe: Recipe, kind: Augmenting, ratio: float) -> Resizing:
    step = resizing(recipe)
    if kind == "0.x" and isinstance(step, ResizeKeepRatio):
        sides = {name: max(1, int(getattr(step, name) * ratio)) for name in ("long_side", "short_side")}
        return step.model_copy(update=sides)
    if kind == "0.x" and isinstance(step, Resize):
        sides = {name: max(1, int(getattr(step, name) * ratio)) for name in ("height", "width")}
        return step.model_copy(update=sides)
    method: ImageResize = "opencv:linear" if step is None else step.method
    return ResizeByFactor(factor=ratio, keep_ratio=True, method=method)


def mean_probabilities(
    views: Sequence[Recipe], image: Image, activation: str, scores: Callable[[Prepared, Recipe], Iterator[Band]]
) -> Float:
    """The mean of the views' probabilities (K, H, W) on the picture's own grid; ``scores`` gives a view's, restored, in
    bands of rows. One view is prepared and held at a time."""
    total: Float | None = None
    for recipe in views:
        for rows, found in scores(prepare(image, recipe), recipe):
            if total is None:
                total = np.zeros((len(found), *image.size_hw), np.float32)
            total[:, rows] += activate(found, activation)
    assert total is not None
    total /= np.float32(len(views))
    return total


def resizing(recipe: Recipe) -> Resizing | None:
    """The first step that resizes; None where pictures keep their size."""
    return next((step for step in recipe.preprocess if isinstance(step, Resizing)), None)


def told_size(step: Step | None) -> tuple[int, int] | None:
    """(height, width) that a step brings a picture to: of a fit with the ratio kept a lying one that fills it.

    None for a step that resizes by a factor or not at all.
    """
    if isinstance(step, Resize):
        return step.height, step.width
    return (step.short_side, step.long_side) if isinstance(step, ResizeKeepRatio) else None


def pixels_at_once(recipe: Recipe) -> int | None:
    """Pixels of one network input of a package that takes several sizes, at most; None where nobody knows, or it takes one."""
    if recipe.network.size is not None or recipe.input.kind != "image":
        return None
    if recipe.tiling is not None:
        return int(recipe.tiling.window[0] * recipe.tiling.window[1])
    sides = told_size(resizing(recipe))
    return None if sides is None else sides[0] * sides[1]


def usual_size(recipe: Recipe) -> tuple[int, int] | None:
    """(height, width) of the network's input: its window, or what a picture is resized to (see `told_size`).

    None for a network of no fixed size whose pictures keep theirs.
    """
    if recipe.input.kind != "image":
        return None
    if recipe.tiling is not None:
        sides: tuple[int, int] | None = (recipe.tiling.window[0], recipe.tiling.window[1])
    else:
        sides = told_size(next((step for step in reversed(recipe.preprocess) if isinstance(step, Resizing)), None))
    if sides is None:
        return None
    multiples = recipe.network.size_multiple
    up = [-(-side // multiple) * multiple for side, multiple in zip(sides, multiples, strict=True)]
    return up[0], up[1]


def affordable_batch(batch: int, pixels: int | None) -> int:
    """``batch``, or what of it fits into `PIXELS_AT_ONCE` where inputs are large: eight street scenes would take tens of GB."""
    return batch if pixels is None else max(1, min(batch, PIXELS_AT_ONCE // pixels))


def with_resize(recipe: Recipe, resize: Resizing, *, mirror: bool = False) -> Recipe:
    """The same recipe with another resizing in the place of its own, or in front where it has none."""
    new: tuple[Step, ...] = (resize, Mirror()) if mirror else (resize,)
    old = resizing(recipe)
    if old is None:
        return recipe.model_copy(update={"preprocess": (*new, *recipe.preprocess)})
    place = recipe.preprocess.index(old)
    steps = (*recipe.preprocess[:place], *new, *recipe.preprocess[place + 1 :])
    return recipe.model_copy(update={"preprocess": steps})


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe that a package is proved and verified by: at `Network.check_size`, its windows made smaller alike."""
    size = recipe.network.check_size
    if size is None or recipe.network.size is not None:
        return recipe
    step = resizing(recipe)
    method: ImageResize = "opencv:linear" if step is None else step.method
    small = with_resize(recipe, ResizeKeepRatio(long_side=max(size), short_side=min(size), method=method))
    if recipe.tiling is None:
        return small
    sides = told_size(step)
    share = 1.0 if sides is None else min(1.0, min(size) / min(sides))
    return small.model_copy(update={"tiling": _shrunk(recipe.tiling, share, recipe.network.size_multiple)})


def _shrunk(tiling: Tiling, share: float, multiples: tuple[int, ...]) -> Tiling:
    window = tuple(
        max(multiple, -(-int(side * share) // multiple) * multiple)
        for side, multiple in zip(tiling.window, multiples, strict=True)
    )
    step = tuple(max(1.0, float(int(stride * share))) for stride in tiling.step)
    return tiling.model_copy(update={"window": window, "step": step})
