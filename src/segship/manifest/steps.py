"""What is done to an input before the network, in the order of the manifest's ``preprocess``: `Step`, one model a step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segship.manifest.values import ImageResize, PositiveInt, Strict, VolumeResample


class Resize(Strict):
    """Resize an image to a fixed (height, width); the aspect ratio is not kept."""

    step: Literal["resize"] = "resize"
    height: PositiveInt
    width: PositiveInt
    method: ImageResize


class ResizeKeepRatio(Strict):
    """Resize an image so that it fits (long_side, short_side); sides round half up (mmseg's rule)."""

    step: Literal["resize_keep_ratio"] = "resize_keep_ratio"
    long_side: PositiveInt
    short_side: PositiveInt
    method: ImageResize


class ResizeByFactor(Strict):
    """Resize an image to ``factor`` times its size; sides round half up.

    ``keep_ratio``: what results is a size to fit into with the ratio kept, which may take a pixel off one side (mmcv's rule).
    """

    step: Literal["resize_by_factor"] = "resize_by_factor"
    factor: float = Field(gt=0)
    keep_ratio: bool
    method: ImageResize


class Mirror(Strict):
    """Mirror an image left to right; its answers are mirrored back."""

    step: Literal["mirror"] = "mirror"


class Normalize(Strict):
    """``(x - subtract[c]) * multiply[c]`` per channel, subtraction first, one rounding each.

    Where a picture has fewer planes than there are constants (grey kept as one plane), the first constants hold;
    planes beyond them (alpha) stay as they are.
    """

    step: Literal["normalize"] = "normalize"
    subtract: tuple[float, ...]
    multiply: tuple[float, ...]
    dtype: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _same_length(self) -> Normalize:
        if len(self.subtract) != len(self.multiply):
            raise ValueError("subtract and multiply must have one entry per channel each")
        return self


class Divide(Strict):
    """Divide every value by a constant, float32."""

    step: Literal["divide"] = "divide"
    by: float = Field(gt=0)
    channel: int | None = Field(default=None, ge=0, description="one channel only; all without it")


class DivideByMaximum(Strict):
    """Divide by the picture's own maximum over all planes, or by ``floor`` where that is larger."""

    step: Literal["divide_by_maximum"] = "divide_by_maximum"
    floor: float = Field(gt=0)
    dtype: Literal["float32", "float64"]


class Channels(Strict):
    """Keep the first ``count`` planes of a picture; a single plane is used ``count`` times."""

    step: Literal["channels"] = "channels"
    count: PositiveInt


class Clip(Strict):
    step: Literal["clip"] = "clip"
    low: float
    high: float
    channel: int | None = Field(default=None, ge=0, description="one channel only; all without it")


class ZScore(Strict):
    """``(x - mean) / max(std, eps)`` or ``/ (std + eps)``; statistics of the volume itself where not given.

    ``mask`` nonzero: statistics and change are limited to what is not zero: in a volume to the hole-filled mask of the
    step crop_to_nonzero, in a picture to the channel's own pixels.
    """

    step: Literal["zscore"] = "zscore"
    channel: int = Field(ge=0)
    mean: float | None
    std: float | None
    epsilon: float = Field(ge=0)
    epsilon_rule: Literal["maximum", "add"]
    mask: Literal["none", "nonzero"]
    outside_mask: Literal["keep", "zero"] = Field(
        default="keep",
        description="zero: what lies outside the non-zero mask becomes 0 afterwards, whatever `mask` says",
    )
    between: tuple[float, float] | None = Field(
        default=None, description="statistics over values strictly between these two only"
    )


class RescaleMinMax(Strict):
    """``(x - min) / max(max - min, eps)`` of one channel's own range."""

    step: Literal["rescale_min_max"] = "rescale_min_max"
    channel: int = Field(ge=0)
    epsilon: float = Field(ge=0)


class Transpose(Strict):
    """Reorder the spatial axes of a volume; spacing follows."""

    step: Literal["transpose"] = "transpose"
    axes: tuple[int, int, int]


class CropToNonzero(Strict):
    """Crop to the bounding box of the voxels that are non-zero in any channel."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"
    fill_holes: bool


class Resample(Strict):
    """Resample a volume to a spacing (z, y, x) in millimetres; an entry None keeps that axis."""

    step: Literal["resample"] = "resample"
    spacing_mm_zyx: tuple[float | None, float | None, float | None]
    shape_rule: Literal["round-half-even", "truncate"]
    method: VolumeResample
    order: int = Field(ge=0, le=5)
    order_z: int = Field(ge=0, le=5)
    separate_z: Literal["auto", "always", "never"]
    anisotropy_threshold: float = Field(gt=1)


class Pad(Strict):
    """Pad every spatial axis to a minimum size and to a multiple; ``where`` says on which side."""

    step: Literal["pad"] = "pad"
    minimum: tuple[PositiveInt, ...] | None = None
    multiple_of: PositiveInt = 1
    where: Literal["both", "end"]
    mode: Literal["constant", "edge", "reflect"]
    value: float = 0.0


class ReplaceNonFinite(Strict):
    """Replace NaN and infinities; without this step such an input is refused."""

    step: Literal["replace_non_finite"] = "replace_non_finite"
    value: float


class PreviousStageChannels(Strict):
    """Append one 0/1 channel per label of the previous stage's segmentation, resampled like the image."""

    step: Literal["previous_stage_channels"] = "previous_stage_channels"
    labels: tuple[int, ...] = Field(min_length=1)
    crop: bool = Field(description="crop the segmentation like the image first; false is v1's misalignment")
    resampling: Literal["largest", "half"] = Field(
        default="largest", description="which label wins a voxel: the largest share, or each that has at least half"
    )


Step = Annotated[
    Resize
    | ResizeKeepRatio
    | ResizeByFactor
    | Mirror
    | Normalize
    | Divide
    | DivideByMaximum
    | Channels
    | Clip
    | ZScore
    | RescaleMinMax
    | Transpose
    | CropToNonzero
    | Resample
    | Pad
    | ReplaceNonFinite
    | PreviousStageChannels,
    Field(discriminator="step"),
]
