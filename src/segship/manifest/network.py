"""What the graph takes and gives, and how it is led over inputs larger than its window."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segship.manifest.values import PositiveInt, Strict


class Output(Strict):
    name: str
    channels: PositiveInt
    values: Literal["logits", "probabilities"]
    stride: PositiveInt = Field(default=1, description="input size / output size")


class Network(Strict):
    """What the graph takes and gives. One graph per ensemble member stands in each variant."""

    architecture: str
    parameters: PositiveInt
    input_name: str
    layout: Literal["NCHW", "NCDHW"]
    input_channels: PositiveInt
    size: tuple[PositiveInt, ...] | None = Field(description="fixed spatial size; None when it may vary")
    size_multiple: tuple[PositiveInt, ...] = Field(description="every spatial size must be a multiple of this")
    check_size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="pictures of any size: (height, width) that the golden sample is brought to where the package is proved "
        "and verified, because the size that it works at would take minutes",
    )
    outputs: tuple[Output, ...] = Field(min_length=1, description="the first is the answer; others are for inspection")
    members: tuple[str, ...] = Field(
        min_length=1, description="ensemble members by name: ('model',) or ('fold0', 'fold1')"
    )
    member_average: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="after")
    def _spatial_axes(self) -> Network:
        axes = len(self.layout) - 2
        if len(self.size_multiple) != axes or (self.size is not None and len(self.size) != axes):
            raise ValueError(f"{self.layout} has {axes} spatial axes; size and size_multiple must match")
        return self


class Tiling(Strict):
    """A sliding window. The window is part of the model: its size is what the network saw in training."""

    window: tuple[PositiveInt, ...]
    step: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="in pixels or voxels; with 'even-spread' the largest step allowed, which need not be whole"
    )
    positions: Literal["even-spread", "flush-last", "stride-multiple"]
    weighting: Literal["uniform", "gaussian", "gaussian-centred"] = Field(
        description="gaussian: nnU-Net's, around window // 2; gaussian-centred: MLPerf's, around the middle"
    )
    gaussian_sigma_scale: float | None = Field(default=None, gt=0, description="standard deviation / window side")
    gaussian_single_tile: bool = Field(default=True, description="weight even when there is only one tile")
    pad_mode: Literal["constant", "edge", "none"]
    pad_value: float = 0.0
    crop_remainder_below: int = Field(default=0, description="MLPerf's compatibility rule: cut short remainders away")
    mirror_axes: tuple[int, ...] = Field(default=(), description="spatial axes for test-time mirroring, all subsets")
    average: Literal["logits", "probabilities"]
    accumulator: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _complete(self) -> Tiling:
        if len(self.step) != len(self.window):
            raise ValueError("window and step must have one entry per axis each")
        if self.weighting != "uniform" and self.gaussian_sigma_scale is None:
            raise ValueError("a Gaussian weighting needs gaussian_sigma_scale")
        if any(not 0 <= axis < len(self.window) for axis in self.mirror_axes):
            raise ValueError(f"mirror axes are 0 to {len(self.window) - 1}")
        return self


class Augmentation(Strict):
    """Views of a picture whose probabilities are averaged where test-time augmentation is asked for."""

    ratios: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="sizes of the views")
    mirror: bool = Field(description="each size also mirrored left to right")
