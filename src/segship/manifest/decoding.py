"""From the network's outputs to labels on the input's own grid: decision, clean-up, what labels mean, how they are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segship.manifest.values import ImageResize, PositiveInt, Sha256, Strict, VolumeResample


class Threshold(Strict):
    """Independent classes: a class is present where its probability is strictly above the threshold."""

    rule: Literal["threshold"] = "threshold"
    threshold: float


class Argmax(Strict):
    """One class per pixel; the first maximum wins."""

    rule: Literal["argmax"] = "argmax"


class Regions(Strict):
    """Overlapping regions, written one over the other: where region i is above the threshold, label order[i]."""

    rule: Literal["regions"] = "regions"
    threshold: float
    order: tuple[int, ...] = Field(min_length=1)


class Saliency(Strict):
    """A map of 0..1, not a decision. min-max per image; a constant map becomes zeros."""

    rule: Literal["saliency"] = "saliency"
    min_max: bool
    polarity: Literal["as-is", "inverted"]
    to_uint8: Literal["truncate", "round", "none"]
    threshold: float | None = None


Decision = Annotated[Threshold | Argmax | Regions | Saliency, Field(discriminator="rule")]


class Decode(Strict):
    """activation → (restore) → decision → (restore): `restore_what` says what travels back to the input's grid."""

    activation: Literal["sigmoid", "softmax", "none"]
    decision: Decision
    restore_what: Literal["logits", "probabilities", "decision"]
    restore_method: ImageResize | VolumeResample
    restore_path: Literal["direct", "by-input-size"] = Field(
        default="direct",
        description="pictures, where the output is coarser than the input. direct: to the picture's own size at once. "
        "by-input-size: to the network's input size first, then on (mmseg's two interpolations)",
    )
    restore_order: int = Field(default=1, ge=0, le=5)
    restore_order_z: int = Field(default=0, ge=0, le=5, description="volumes: along a separate axis")
    restore_separate_z: Literal["auto", "always", "never"] = Field(
        default="auto", description="volumes: whether the coarsest axis is resampled apart"
    )
    anisotropy_threshold: float = Field(default=3.0, gt=1, description="volumes: what counts as coarse for 'auto'")


class KeepLargest(Strict):
    """Per label group keep the largest component(s); drop others below `minimum_mm3` (or all, without it)."""

    rule: Literal["keep_largest"] = "keep_largest"
    labels: tuple[int, ...] = Field(min_length=1)
    joint: bool
    minimum_mm3: float | None = None
    connectivity: Literal["face", "full"]


class RemoveSmall(Strict):
    rule: Literal["remove_small"] = "remove_small"
    minimum_pixels: PositiveInt
    connectivity: Literal["face", "full"]


class FillHoles(Strict):
    rule: Literal["fill_holes"] = "fill_holes"


class SmoothMask(Strict):
    """Opening with a 3×3 cross, Gaussian, threshold at 127 (rembg's mask clean-up)."""

    rule: Literal["smooth_mask"] = "smooth_mask"
    sigma: float = Field(gt=0)


class Instances(Strict):
    """Number the connected components 1, 2, 3 …"""

    rule: Literal["instances"] = "instances"
    connectivity: Literal["face", "full"]


Postprocess = Annotated[KeepLargest | RemoveSmall | FillHoles | SmoothMask | Instances, Field(discriminator="rule")]


class Label(Strict):
    id: int = Field(ge=0, le=65535)
    name: str
    color: tuple[int, int, int] = Field(description="RGB, 0..255")
    ids: tuple[int, ...] = Field(default=(), description="for a region: the labels it joins")
    file_value: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="the number of this class in its data set's own label files where that is not `id`: Cityscapes' "
        "label ids beside its train ids",
    )


class PreviousStage(Strict):
    """A cascade's first package, found beside this one unless the user says where."""

    file: str
    sha256: Sha256 | None = None


class Metric(Strict):
    name: str = Field(description="the field's name: iou, Dice, mIoU, maxF …")
    scorer: str = Field(description="which of segship.metrics scores it: nuclei, sod, nnunet, mmseg, kits19")
    higher_is_better: bool
    grid: Literal["network", "input"]
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
