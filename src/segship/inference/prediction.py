"""The answer for one picture: labels, masks, probabilities, computed when they are asked for, and how to keep them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.errors import OutputError, PackageError, UsageError
from segship.inference import writers
from segship.inference.cutout import Rendered, has_background, render
from segship.inference.decode import (
    LabelsAlone,
    argmax_index,
    class_labels,
    label_dtype,
    require_finite,
    saliency_map,
    scores_on_grid,
    stacked_labels,
    threshold_masks,
)
from segship.inference.images import Image
from segship.inference.options import CLEANING_SIGMA, Kind, OutputOptions, changed
from segship.inference.postprocess import clean_labels, clean_mask, components, smooth_mask
from segship.inference.preprocess import Frame, Prepared
from segship.manifest import Argmax, Label, Recipe, Regions, Saliency, SmoothMask, Threshold

Grid = Literal["input", "network"]
GRIDS = ("input", "network")
CONSTANT = "the network's output is one constant: it sees nothing here"


def decode(
    outputs: Sequence[np.ndarray],
    prepared: Prepared | Frame,
    recipe: Recipe,
    *,
    grid: Grid = "input",
    activated: bool = False,
    image: Image | None = None,
) -> Prediction:
    """The prediction for one case from the network's outputs, each (K, h, w); nothing is computed yet.

    ``activated`` says that the outputs already are probabilities (an ensemble averaged after its activation).
    Raises PackageError when the first output has other channels than the manifest says, EngineError for NaN.
    """
    frame = prepared.frame if isinstance(prepared, Prepared) else prepared
    if grid not in GRIDS:
        raise UsageError(f"grid is one of {', '.join(GRIDS)}, not {grid!r}")
    raw = outputs[0]
    expected = recipe.network.outputs[0].channels
    if raw.ndim != 3 or raw.shape[0] != expected:
        raise PackageError(
            f"the graph gives {raw.shape} for one picture, the manifest says {expected} channel(s); export the package again"
        )
    require_finite(raw, frame.name)
    return Prediction(outputs=tuple(outputs), frame=frame, recipe=recipe, grid=grid, activated=activated, image=image)


def decide(
    found: LabelsAlone, frame: Frame, recipe: Recipe, *, grid: Grid = "input", image: Image | None = None
) -> Prediction:
    """The prediction for one case that was decided already."""
    if grid not in GRIDS:
        raise UsageError(f"grid is one of {', '.join(GRIDS)}, not {grid!r}")
    return Prediction(outputs=(), frame=frame, recipe=recipe, grid=grid, image=image, labels_alone=found)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Prediction:
    """What the network says about one picture, on the picture's own grid (or the network's, see `on_grid`)."""

    outputs: tuple[np.ndarray, ...]
    """raw network outputs (K, h, w) float32; the first is the answer. None where the labels alone were kept"""
    frame: Frame
    recipe: Recipe
    grid: Grid = "input"
    activated: bool = False
    image: Image | None = None
    """the decoded picture, kept for overlays and cutouts where it was asked for"""
    labels_alone: LabelsAlone | None = None
    """what was decided while windows ran, where the scores were not to be kept"""

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"Prediction({self.name!r}, {height}x{width}, {len(self.recipe.labels)} labels, grid={self.grid!r})"

    @property
    def name(self) -> str:
        return self.frame.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: that only a first frame was used, that the output is constant …"""
        return self.frame.notes + ((CONSTANT,) if self.constant_output else ())

    @cached_property
    def constant_output(self) -> bool:
        """Whether the network gave one value for the whole picture (a saliency map is then all zeros)."""
        if self.labels_alone is not None:
            return self.labels_alone.constant
        flat = self.outputs[0].reshape(len(self.outputs[0]), -1)
        first = flat[:, :1]
        return bool((flat[:, -1:] == first).all() and (flat == first).all())

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of labels, masks and probabilities."""
        if self.grid == "input":
            return self.frame.original_hw
        shape = self.outputs[0].shape[1:] if self.labels_alone is None else self.labels_alone.on_network.shape
        return shape[0], shape[1]

    @property
    def classes(self) -> tuple[Label, ...]:
        """The label of each channel of `masks` and `probabilities`."""
        return class_labels(self.recipe)

    @property
    def logits(self) -> np.ndarray:
        """(K, h, w) float32 on the network's own grid. Raises UsageError where the graph gives probabilities."""
        if self.recipe.network.outputs[0].values != "logits" or self.activated:
            raise UsageError("this network gives probabilities, not logits; use .probabilities")
        return self._scores

    @property
    def _scores(self) -> np.ndarray:
        if self.labels_alone is not None:
            raise UsageError("the scores of this picture were not kept; call the model with keep_scores=True")
        return self.outputs[0]

    @property
    def _restored(self) -> Frame | None:
        return self.frame if self.grid == "input" else None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(K, H, W) float32 in 0..1; a saliency map is one channel. Without an activation: the values as they are."""
        decision = self.recipe.decode.decision
        if isinstance(decision, Saliency):
            found = self.saliency
            return (found.astype(np.float32) / np.float32(255) if found.dtype == np.uint8 else found)[None]
        found = scores_on_grid(self._scores, self.recipe.decode, self._restored, self.activated)
        return found.astype(np.float32, copy=False)  # scikit-image's resize gives float64

    @cached_property
    def saliency(self) -> np.ndarray:
        """(H, W) map as the manifest writes it: uint8 0..255 or float32 0..1. Only for saliency networks."""
        if not isinstance(self.recipe.decode.decision, Saliency):
            raise UsageError("this network gives classes, not a saliency map; use .masks, .labels or .probabilities")
        found = self._map
        if found.dtype == np.float64:  # scikit-image's resize
            found = found.astype(np.float32)
        cleaned = self._smoothed(writers.to_levels(found)) if self._smoothing else found
        return cleaned if cleaned.dtype == found.dtype else cleaned.astype(np.float32) / np.float32(255)

    @cached_property
    def _map(self) -> np.ndarray:
        return saliency_map(self.outputs[0], self.recipe.decode, self._restored, self.activated)

    @property
    def _smoothing(self) -> list[SmoothMask]:
        return [rule for rule in self.recipe.postprocess if isinstance(rule, SmoothMask)]

    def _smoothed(self, mask: np.ndarray) -> np.ndarray:
        for rule in self._smoothing:
            mask = smooth_mask(mask, rule.sigma)
        return mask

    @cached_property
    def masks(self) -> np.ndarray:
        """(K, H, W) bool, one mask a class; overlapping where the classes are independent."""
        decision = self.recipe.decode.decision
        if isinstance(decision, Threshold | Regions):
            found = threshold_masks(self.outputs[0], self.recipe.decode, self._restored, self.activated)
            if isinstance(decision, Threshold) and self.recipe.postprocess:
                pairs = zip(found, self.classes, strict=True)
                found = np.stack([clean_mask(mask, self.recipe.postprocess, label.id) for mask, label in pairs])
            return found
        if isinstance(decision, Argmax):
            return np.stack([self.labels == label.id for label in self.classes])
        return (self.labels != 0)[None]

    @cached_property
    def labels(self) -> np.ndarray:
        """(H, W) uint8 or uint16 ids. Where independent classes overlap the later one stands on top; see `masks`."""
        decision = self.recipe.decode.decision
        if isinstance(decision, Saliency):
            if decision.threshold is None:
                raise UsageError("a saliency map is no decision and this package sets no threshold; use .probabilities")
            levels = self._map  # a clean-up belongs behind the decision
            scale = np.float32(255 if levels.dtype == np.uint8 else 1)
            chosen = (levels.astype(np.float32) / scale > np.float32(decision.threshold)).astype(np.uint8)
            return np.minimum(self._smoothed(chosen * np.uint8(255)), np.uint8(1))
        if isinstance(decision, Argmax):
            index = self._index()
            ids = tuple(label.id for label in self.classes)
            if ids != tuple(range(len(ids))):
                index = np.array(ids, label_dtype(ids))[index]
            return clean_labels(index, self.recipe.postprocess)
        if isinstance(decision, Regions):
            stacked = stacked_labels(self.masks, decision.order, self.size_hw)
            return clean_labels(stacked, self.recipe.postprocess)
        return stacked_labels(self.masks, tuple(label.id for label in self.classes), self.size_hw)

    def _index(self) -> np.ndarray:
        """(H, W) index of each pixel's class."""
        if self.labels_alone is not None:
            return self.labels_alone.on_input if self.grid == "input" else self.labels_alone.on_network
        return argmax_index(self.outputs[0], self.recipe.decode, self._restored, self.activated)

    @property
    def decoded(self) -> np.ndarray:
        """The decision in its own form: masks (K, H, W) bool for independent classes, labels (H, W) for exclusive
        ones, the map (H, W) for saliency."""
        decision = self.recipe.decode.decision
        if isinstance(decision, Saliency):
            return self.saliency
        return self.masks if isinstance(decision, Threshold) else self.labels

    def instances(self, connectivity: Literal["face", "full"] = "face") -> np.ndarray:
        """Connected components numbered 1, 2, 3 … : (H, W) for one class, (K, H, W) for more; uint16, uint32 if needed.

        A separation by touching pixels, nothing learned: nuclei that touch count as one.
        """
        exclusive = isinstance(self.recipe.decode.decision, Argmax)
        masks = self.masks[self.foreground_classes] if exclusive else self.masks
        numbered = [components(mask, connectivity) for mask in masks]
        most = max((count for _, count in numbered), default=0)
        stacked = np.stack([array for array, _ in numbered]).astype(np.uint16 if most <= 65535 else np.uint32)
        return stacked[0] if len(stacked) == 1 else stacked

    @property
    def foreground_classes(self) -> np.ndarray:
        """(K,) bool: which of `classes` are objects, which is all but the one of id 0 where that is a background."""
        everything = not has_background(self.recipe)
        chosen = np.array([everything or label.id != 0 for label in self.classes])
        return chosen if chosen.any() else np.ones_like(chosen)

    def on_grid(self, grid: Grid) -> Prediction:
        """The same answer on the input's or the network's grid."""
        if grid not in GRIDS:
            raise UsageError(f"grid is one of {', '.join(GRIDS)}, not {grid!r}")
        return self if grid == self.grid else replace(self, grid=grid)

    def decided(self, options: OutputOptions) -> Prediction:
        """The same answer decided as ``options`` say: at another threshold, single masks cleaned."""
        decode, rules = self.recipe.decode, self.recipe.postprocess
        if options.threshold is not None:
            decision = decode.decision.model_copy(update={"threshold": options.threshold})
            decode = decode.model_copy(update={"decision": decision})
        if options.clean_mask and isinstance(decode.decision, Saliency | Threshold):
            rules = (*rules, SmoothMask(sigma=CLEANING_SIGMA))
        if decode is self.recipe.decode and rules is self.recipe.postprocess:
            return self
        return replace(self, recipe=self.recipe.model_copy(update={"decode": decode, "postprocess": rules}))

    # ------------------------------------------------------------------------------------------- images

    @cached_property
    def picture(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB as the file shows it, turned as the masks are. Raises UsageError where it was not kept."""
        if self.image is None:
            raise UsageError("the picture was not kept; call the model on a single input, or stream(keep_images=True)")
        return self.image.rgb8()

    def render(self, options: OutputOptions | None = None, /, **changes: Any) -> Rendered:
        """The image that `OutputOptions` describe, with what is to be said about it; ``changes`` are its fields.

        Raises UsageError where this package's answer, or a picture that was not kept, does not allow it.
        """
        return render(self, changed(options, changes))

    def cutout(self, options: OutputOptions | None = None, /, **changes: Any) -> np.ndarray:
        """uint8 (H, W, 4): the picture's colours, and as alpha how much each pixel belongs to an object.

        model("cat.jpg").cutout(matting=True)
        """
        return self.render(options, **(changes | {"kind": "cutout"})).pixels

    def composite(self, background: Any = None, options: OutputOptions | None = None, /, **changes: Any) -> np.ndarray:
        """The object over a colour ('white', '#rrggbb', 'r,g,b[,a]') or over an image, resized to cover.

        uint8 (H, W, 3), or (H, W, 4) where the colour is not opaque; without a background: over white.
        """
        if background is not None:
            changes["background"] = background
        return self.render(options, **(changes | {"kind": "composite"})).pixels

    def overlay(self, options: OutputOptions | None = None, /, **changes: Any) -> np.ndarray:
        """The picture with what was found tinted and outlined: uint8 (H, W, 3) RGB, on the input's grid.

        A class has its own colour; a saliency map tints as strongly as it says and is outlined at half.
        """
        return self.render(options, **(changes | {"kind": "overlay"})).pixels

    def encode(self, kind: Kind | None = None, options: OutputOptions | None = None, **changes: Any) -> bytes:
        """PNG bytes of a mask, cutout, composite or overlay: the ones that ``segship predict`` writes.

        Several independent classes give one mask each on disk and one map of their ids here.

            model(image_bytes).encode("cutout")
        """
        if kind is not None:
            changes["kind"] = kind
        return self.render(options, **changes).encode()

    def save(self, path: str | Path, *, palette: bool = False, probabilities: bool = False) -> list[Path]:
        """Write the decision; the suffix chooses the form. Returns the files written.

            .png   one class: 0/255. Several independent classes: ``<class>/<name>.png`` each 0/255 (class = 0, 1 …).
                   One class per pixel: the ids (``palette``: shown in the manifest's colours). Saliency: the map.
            .npz   labels, masks, class names; with ``probabilities`` also float32 probabilities

        Raises OutputError for another suffix or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".npz":
            return [writers.write_npz(path, self._arrays(probabilities))]
        if path.suffix.lower() != ".png":
            raise OutputError(f"{path.name}: masks are kept as .png or .npz (lossless); choose one of these suffixes")
        decision = self.recipe.decode.decision
        if isinstance(decision, Saliency) and not palette:
            return [writers.write_png(path, writers.to_levels(self.saliency))]
        if palette:
            colors = {label.id: label.color for label in self.recipe.labels}
            return [writers.write_palette_png(path, self.labels, colors)]
        if not isinstance(decision, Threshold):
            return [writers.write_label_png(path, self.labels)]
        if len(self.masks) == 1:
            return [writers.write_mask_png(path, self.masks[0])]
        return [writers.write_mask_png(class_path(path, k), mask) for k, mask in enumerate(self.masks)]

    def _arrays(self, probabilities: bool) -> dict[str, np.ndarray]:
        arrays = {"classes": np.array([label.name for label in self.classes])}
        decision = self.recipe.decode.decision
        if isinstance(decision, Saliency):
            arrays["saliency"] = self.saliency
        else:
            arrays |= {"labels": self.labels, "masks": self.masks}
        if probabilities:
            arrays["probabilities"] = self.probabilities
        return arrays


def class_path(path: Path, index: int) -> Path:
    """``<folder>/<class index>/<name>``: where one of several independent classes is kept."""
    return path.parent / str(index) / path.name
