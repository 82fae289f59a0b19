"""From a prediction and `OutputOptions` to one image: the mask, the object cut out, or the object elsewhere.

The array functions stand alone; `render` puts them together for one `Prediction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from segship.errors import UsageError
from segship.inference import matting, writers
from segship.inference.options import CLEANING_SIGMA, LABEL_KINDS, Backdrop, OutputOptions
from segship.inference.postprocess import smooth_mask
from segship.manifest import Argmax, Recipe, Saliency, Threshold

if TYPE_CHECKING:
    from segship.inference.prediction import Prediction

BACKGROUND_NAMES = frozenset({"background", "_background_", "bg", "unlabeled", "void", "ignore", "other", "nothing"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendered:
    """One image, ready to be looked at, written or sent."""

    pixels: np.ndarray
    """(H, W) uint8 or uint16, (H, W, 3) RGB or (H, W, 4) RGBA uint8"""
    notes: tuple[str, ...] = ()
    """what a user should know about how it was made"""
    flat: bool = False
    """few values in large areas, which compress differently"""
    palette: Mapping[int, writers.Color] | None = None
    """colours that an indexed PNG shows its numbers in"""

    def encode(self) -> bytes:
        """PNG; the same pixels always give the same bytes."""
        if self.palette is not None:
            return writers.encode_palette_png(self.pixels, self.palette)
        return writers.encode_png(self.pixels, flat=self.flat)


# ------------------------------------------------------------------------------------------------- arrays


def put_alpha(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4): the colours untouched, the mask as alpha."""
    rgba = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2RGBA)
    cv2.mixChannels([np.ascontiguousarray(alpha)], [rgba], [0, 3])
    return np.asarray(rgba)


def without_alpha(rgba: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): the colours alone."""
    return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB))


def premultiplied(rgba: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4): every plane, alpha too, times mask / 255, rounded (danielgatis/rembg: bg.py, naive_cutout)."""
    from PIL import Image

    nothing = Image.new("RGBA", (rgba.shape[1], rgba.shape[0]), 0)
    return np.asarray(Image.composite(Image.fromarray(rgba), nothing, Image.fromarray(mask)))


def over(rgba: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """uint8 (H, W, 4): straight RGBA laid over a colour or picture, as Pillow's ``alpha_composite`` rounds."""
    from PIL import Image

    below = backdrop.fill(rgba.shape[:2])
    below.alpha_composite(Image.fromarray(rgba))
    return np.asarray(below)


# ------------------------------------------------------------------------------------------- predictions


def check(recipe: Recipe, options: OutputOptions) -> None:
    """Raise UsageError where a package's answer cannot become such an image."""
    decision = recipe.decode.decision
    if options.threshold is not None and isinstance(decision, Argmax):
        raise UsageError("threshold needs independent classes or a map; this package gives one class a pixel")
    if options.kind in ("mask", "overlay") and options.clean_mask and not isinstance(decision, Saliency | Threshold):
        raise UsageError(
            "clean_mask smooths single masks; this package gives one map of labels (a cutout can be cleaned)"
        )
    if options.kind in LABEL_KINDS:
        _require_labels(recipe, options)
    if options.kind in ("cutout", "composite") or (options.kind == "mask" and options.estimates_alpha):
        _require_background(recipe)


def _require_labels(recipe: Recipe, options: OutputOptions) -> None:
    decision = recipe.decode.decision
    if isinstance(decision, Saliency) and decision.threshold is None and options.threshold is None:
        raise UsageError(
            f"{options.kind} is made of classes and this package gives maps of grey; give a threshold, 0.5 for example"
        )
    if options.clean_mask or options.matting or options.rgb_mask:
        raise UsageError(f"clean_mask, matting and rgb_mask are for masks, not for {options.kind}; leave them out")
    if options.kind == "cityscapes" and not any(label.file_value is not None for label in recipe.labels):
        raise UsageError(
            f"package '{recipe.name}' does not know the label ids of Cityscapes (labels.file_value in its manifest); "
            "take ids or color, or export it again from a network with Cityscapes' classes"
        )


def has_background(recipe: Recipe) -> bool:
    """Whether the class of id 0 means that there is nothing; of a street's classes none does."""
    if not isinstance(recipe.decode.decision, Argmax):
        return True
    zero = [label.name for label in recipe.labels if label.id == 0]
    return bool(zero) and zero[0].casefold() in BACKGROUND_NAMES


def _require_background(recipe: Recipe) -> None:
    if not has_background(recipe):
        names = ", ".join(label.name for label in recipe.labels[:3])
        raise UsageError(
            f"package '{recipe.name}' gives every pixel a class ({names} …) and none is the background, so there is "
            "nothing to cut out; take the mask"
        )


def foreground(found: Prediction, options: OutputOptions) -> np.ndarray:
    """(H, W) uint8 of what `Prediction.decided` gives: how much each pixel belongs to an object."""
    if isinstance(found.recipe.decode.decision, Saliency):
        return writers.to_levels(found.saliency) if options.threshold is None else _binary(found.labels)
    if isinstance(found.recipe.decode.decision, Threshold):
        return _binary(found.masks[found.foreground_classes].any(axis=0))
    plane = _binary(found.labels)
    return smooth_mask(plane, CLEANING_SIGMA) if options.clean_mask else plane


def _binary(chosen: np.ndarray) -> np.ndarray:
    return (chosen != 0).astype(np.uint8) * np.uint8(255)


def render(found: Prediction, options: OutputOptions) -> Rendered:
    """The image that ``options`` ask for. Cutouts lie on the picture's own grid; a mask on the prediction's.

    Raises UsageError where the package's answer or a missing picture does not allow it.
    """
    check(found.recipe, options)
    return draw(found.decided(options), options)


def draw(found: Prediction, options: OutputOptions) -> Rendered:
    """`render` for a prediction that is checked and `Prediction.decided` already."""
    if options.kind in LABEL_KINDS:
        return _label_picture(found, options)
    if options.kind == "overlay":
        return Rendered(pixels=_overlay(found.on_grid("input"), options), notes=found.notes)
    if options.kind == "mask" and not options.estimates_alpha:
        return _mask(found, options)
    return _object(found.on_grid("input"), options)


def _mask(found: Prediction, options: OutputOptions) -> Rendered:
    decision = found.recipe.decode.decision
    if isinstance(decision, Saliency):
        plane, flat = foreground(found, options), options.clean_mask or options.threshold is not None
    elif isinstance(decision, Threshold) and len(found.classes) == 1:
        plane, flat = _binary(found.masks[0]), True
    else:
        plane, flat = found.labels, True
    return Rendered(pixels=_planes(plane, options), notes=found.notes, flat=flat)


def _planes(plane: np.ndarray, options: OutputOptions) -> np.ndarray:
    if not options.rgb_mask:
        return plane
    if plane.dtype != np.uint8:
        raise UsageError("three equal planes hold 8 bits; this package's ids take 16, leave out rgb_mask")
    return np.repeat(plane[..., None], 3, axis=2)


def _object(found: Prediction, options: OutputOptions) -> Rendered:
    plane = foreground(found, options)
    cut, notes = None, found.notes
    if options.estimates_alpha:
        cut, said = _matted(found.picture, plane, options)
        notes += said
    if options.kind == "mask":
        alpha = plane if cut is None else cut[..., 3]
        return Rendered(pixels=_planes(alpha, options), notes=notes)
    if cut is None:
        cut = _plain_cutout(found, plane, options)
    if options.kind == "cutout":
        return Rendered(pixels=cut, notes=notes)
    pixels = over(cut, options.backdrop)
    if options.backdrop.opaque and options.cutout_style == "straight":
        pixels = without_alpha(pixels)
    return Rendered(pixels=pixels, notes=notes)


def _plain_cutout(found: Prediction, plane: np.ndarray, options: OutputOptions) -> np.ndarray:
    if options.cutout_style == "straight":
        return put_alpha(found.picture, plane)
    assert found.image is not None
    own = found.image.alpha8()
    return premultiplied(put_alpha(found.picture, np.full_like(plane, 255) if own is None else own), plane)


def _matted(rgb: np.ndarray, plane: np.ndarray, options: OutputOptions) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """RGBA, or None where no matting is possible, and what to say about it."""
    known = matting.trimap(plane, options.foreground_threshold, options.background_threshold, options.erode)
    try:
        if options.kind == "mask":
            alpha = matting.as_levels(matting.estimate_alpha(rgb, known))
            cut = put_alpha(rgb, alpha)
        else:
            cut = matting.estimate_cutout(rgb, known)
    except ValueError as error:
        return None, (f"no matting: {_first_line(error)}; the mask itself was used",)
    if known.size > matting.MAX_PIXELS:
        return cut, (f"alpha was estimated at {matting.MAX_PIXELS / 1e6:g} megapixels and enlarged",)
    return cut, ()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _label_picture(found: Prediction, options: OutputOptions) -> Rendered:
    """Exclusive classes as the data set's own numbers, or in their colours."""
    labels = found.recipe.labels
    if options.kind == "color":
        pixels = writers.colored(found.labels, {label.id: label.color for label in labels})
        return Rendered(pixels=pixels, notes=found.notes, flat=True)
    number = {label.id: label.id if label.file_value is None else label.file_value for label in labels}
    pixels = writers.renumbered(found.labels, number)
    palette = {number[label.id]: label.color for label in labels} if options.kind == "cityscapes" else None
    return Rendered(pixels=pixels, notes=found.notes, flat=True, palette=palette)


def _overlay(found: Prediction, options: OutputOptions) -> np.ndarray:
    if isinstance(found.recipe.decode.decision, Saliency):
        plane = foreground(found, options)
        return writers.draw_heat(found.picture, plane, found.classes[0].color)
    if not has_background(found.recipe):
        return writers.blend_labels(
            found.picture, found.labels, {label.id: label.color for label in found.recipe.labels}
        )
    shown = found.foreground_classes
    colors = [label.color for label, wanted in zip(found.classes, shown, strict=True) if wanted]
    return writers.draw_overlay(found.picture, found.masks[shown], colors)
