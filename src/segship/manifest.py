"""The contract between a package and whoever runs it: ``manifest.json``, version 1.

Everything that changes an answer stands here as data: how a file is read, each preprocessing step, the
tiling, how logits become labels and how labels find their way back onto the input's own grid. There are
no defaults for channel order, interpolation or axis order: whoever writes a manifest must say.

Volumes are ``(C, z, y, x)`` and spacings ``(z, y, x)`` in millimetres; images are ``(H, W, C)`` until the
``to_channels_first`` that ends every image chain. Unknown keys are refused everywhere.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segship.errors import PackageError, PackageTooNew

MANIFEST_VERSION: Literal[1] = 1

Precision = Literal["fp32", "fp16", "bf16", "int8", "int16"]
ImageResize = Literal[
    "opencv:linear",
    "opencv:nearest",
    "opencv:area",
    "pillow:bilinear",
    "pillow:lanczos",
    "skimage:linear",
    "skimage:linear-antialias",
    "torch:bilinear",
    "torch:bilinear-align-corners",
]
VolumeResample = Literal[
    "skimage:edge",
    "torch:trilinear",
    "torch:trilinear-align-corners",
    "torch:nearest",
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[
    str, Field(pattern=r"^(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)
]
PositiveInt = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- input


class Channel(_Strict):
    name: str = Field(description="what the channel holds: B, G, R, CT, T1 …")


class ImageInput(_Strict):
    """A 2D picture from a file or an array."""

    kind: Literal["image"] = "image"
    reader: Literal["opencv:color", "opencv:grey", "skimage", "pillow:rgb"] = Field(
        description="whose reading rules hold. opencv: 8 bits, alpha dropped, palette and grey expanded, EXIF rotation "
        "applied. skimage: bit depth kept, EXIF ignored. pillow:rgb: 8-bit RGB, alpha dropped"
    )
    channels: tuple[Channel, ...] = Field(min_length=1, description="in the order the network takes them")
    channel_order: Literal["bgr", "rgb", "grey"]
    exif_rotation: Literal["apply", "ignore"]
    grey: Literal["expand", "keep"] = Field(
        default="expand",
        description="a grey picture where colours are taken. expand: every channel the same. keep: one plane, until a "
        "step `channels` repeats it",
    )
    alpha: Literal["drop", "keep"] = Field(
        default="drop", description="keep: a fourth plane behind R, G, B, until a step `channels` drops it"
    )


class VolumeInput(_Strict):
    """A 3D volume; arrays are (z, y, x) per channel."""

    kind: Literal["volume"] = "volume"
    reader: Literal[
        "simpleitk", "simpleitk-reorient", "nibabel", "nibabel-reorient", "nibabel-stored", "image-2d", "tiff-3d"
    ]
    channels: tuple[Channel, ...] = Field(min_length=1)
    file_ending: str = Field(description="'.nii.gz', '.png' …")
    channel_files: Literal["suffix-0000", "one-file"] = Field(
        description="case_0000.nii.gz a channel, or all in one file"
    )
    orientation: str | None = Field(
        default=None, pattern=r"^[RLAPIS]{3}$", description="reorient to this before all else"
    )
    folder_file: str | None = Field(
        default=None,
        description="what the image is called where a case is a folder: imaging.nii.gz in case_00000; the folder's name is "
        "the case's",
    )


Input = Annotated[ImageInput | VolumeInput, Field(discriminator="kind")]

# --------------------------------------------------------------------------------- preprocessing steps


class Resize(_Strict):
    """Resize an image to a fixed (height, width); the aspect ratio is not kept."""

    step: Literal["resize"] = "resize"
    height: PositiveInt
    width: PositiveInt
    method: ImageResize


class ResizeKeepRatio(_Strict):
    """Resize an image so that it fits (long_side, short_side); sides round half up (mmseg's rule)."""

    step: Literal["resize_keep_ratio"] = "resize_keep_ratio"
    long_side: PositiveInt
    short_side: PositiveInt
    method: ImageResize


class ResizeByFactor(_Strict):
    """Resize an image to ``factor`` times its size; sides round half up.

    ``keep_ratio``: what results is a size to fit into with the ratio kept, which may take a pixel off one side (mmcv's rule).
    """

    step: Literal["resize_by_factor"] = "resize_by_factor"
    factor: float = Field(gt=0)
    keep_ratio: bool
    method: ImageResize


class Mirror(_Strict):
    """Mirror an image left to right; its answers are mirrored back."""

    step: Literal["mirror"] = "mirror"


class Normalize(_Strict):
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


class Divide(_Strict):
    """Divide every value by a constant, float32."""

    step: Literal["divide"] = "divide"
    by: float = Field(gt=0)
    channel: int | None = Field(default=None, ge=0, description="one channel only; all without it")


class DivideByMaximum(_Strict):
    """Divide by the picture's own maximum over all planes, or by ``floor`` where that is larger."""

    step: Literal["divide_by_maximum"] = "divide_by_maximum"
    floor: float = Field(gt=0)
    dtype: Literal["float32", "float64"]


class Channels(_Strict):
    """Keep the first ``count`` planes of a picture; a single plane is used ``count`` times."""

    step: Literal["channels"] = "channels"
    count: PositiveInt


class Clip(_Strict):
    step: Literal["clip"] = "clip"
    low: float
    high: float
    channel: int | None = Field(default=None, ge=0, description="one channel only; all without it")


class ZScore(_Strict):
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


class RescaleMinMax(_Strict):
    """``(x - min) / max(max - min, eps)`` of one channel's own range."""

    step: Literal["rescale_min_max"] = "rescale_min_max"
    channel: int = Field(ge=0)
    epsilon: float = Field(ge=0)


class Transpose(_Strict):
    """Reorder the spatial axes of a volume; spacing follows."""

    step: Literal["transpose"] = "transpose"
    axes: tuple[int, int, int]


class CropToNonzero(_Strict):
    """Crop to the bounding box of the voxels that are non-zero in any channel."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"
    fill_holes: bool


class Resample(_Strict):
    """Resample a volume to a spacing (z, y, x) in millimetres; an entry None keeps that axis."""

    step: Literal["resample"] = "resample"
    spacing_mm_zyx: tuple[float | None, float | None, float | None]
    shape_rule: Literal["round-half-even", "truncate"]
    method: VolumeResample
    order: int = Field(ge=0, le=5)
    order_z: int = Field(ge=0, le=5)
    separate_z: Literal["auto", "always", "never"]
    anisotropy_threshold: float = Field(gt=1)


class Pad(_Strict):
    """Pad every spatial axis to a minimum size and to a multiple; ``where`` says on which side."""

    step: Literal["pad"] = "pad"
    minimum: tuple[PositiveInt, ...] | None = None
    multiple_of: PositiveInt = 1
    where: Literal["both", "end"]
    mode: Literal["constant", "edge", "reflect"]
    value: float = 0.0


class ReplaceNonFinite(_Strict):
    """Replace NaN and infinities; without this step such an input is refused."""

    step: Literal["replace_non_finite"] = "replace_non_finite"
    value: float


class PreviousStageChannels(_Strict):
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

# ------------------------------------------------------------------------------------------ the network


class Output(_Strict):
    name: str
    channels: PositiveInt
    values: Literal["logits", "probabilities"]
    stride: PositiveInt = Field(default=1, description="input size / output size")


class Network(_Strict):
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


class Tiling(_Strict):
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


# ---------------------------------------------------------------------------------------- logits to labels


class Threshold(_Strict):
    """Independent classes: a class is present where its probability is strictly above the threshold."""

    rule: Literal["threshold"] = "threshold"
    threshold: float


class Argmax(_Strict):
    """One class per pixel; the first maximum wins."""

    rule: Literal["argmax"] = "argmax"


class Regions(_Strict):
    """Overlapping regions, written one over the other: where region i is above the threshold, label order[i]."""

    rule: Literal["regions"] = "regions"
    threshold: float
    order: tuple[int, ...] = Field(min_length=1)


class Saliency(_Strict):
    """A map of 0..1, not a decision. min-max per image; a constant map becomes zeros."""

    rule: Literal["saliency"] = "saliency"
    min_max: bool
    polarity: Literal["as-is", "inverted"]
    to_uint8: Literal["truncate", "round", "none"]
    threshold: float | None = None


Decision = Annotated[Threshold | Argmax | Regions | Saliency, Field(discriminator="rule")]


class Decode(_Strict):
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


class Augmentation(_Strict):
    """Views of a picture whose probabilities are averaged where test-time augmentation is asked for."""

    ratios: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="sizes of the views")
    mirror: bool = Field(description="each size also mirrored left to right")


class KeepLargest(_Strict):
    """Per label group keep the largest component(s); drop others below `minimum_mm3` (or all, without it)."""

    rule: Literal["keep_largest"] = "keep_largest"
    labels: tuple[int, ...] = Field(min_length=1)
    joint: bool
    minimum_mm3: float | None = None
    connectivity: Literal["face", "full"]


class RemoveSmall(_Strict):
    rule: Literal["remove_small"] = "remove_small"
    minimum_pixels: PositiveInt
    connectivity: Literal["face", "full"]


class FillHoles(_Strict):
    rule: Literal["fill_holes"] = "fill_holes"


class SmoothMask(_Strict):
    """Opening with a 3×3 cross, Gaussian, threshold at 127 (rembg's mask clean-up)."""

    rule: Literal["smooth_mask"] = "smooth_mask"
    sigma: float = Field(gt=0)


class Instances(_Strict):
    """Number the connected components 1, 2, 3 …"""

    rule: Literal["instances"] = "instances"
    connectivity: Literal["face", "full"]


Postprocess = Annotated[KeepLargest | RemoveSmall | FillHoles | SmoothMask | Instances, Field(discriminator="rule")]


class Label(_Strict):
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


class PreviousStage(_Strict):
    """A cascade's first package, found beside this one unless the user says where."""

    file: str
    sha256: Sha256 | None = None


class Metric(_Strict):
    name: str = Field(description="the field's name: iou, Dice, mIoU, maxF …")
    scorer: str = Field(description="which of segship.metrics scores it: nuclei, sod, nnunet, mmseg, kits19")
    higher_is_better: bool
    grid: Literal["network", "input"]
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)


# --------------------------------------------------------------------------------------------- variants


class Executed(_Strict):
    """What an engine really ran, read back from it. `convolution_share` adds up to 1 over number types."""

    engine: str
    version: str
    device: str
    processor: str
    convolution_share: dict[str, float] = Field(
        description="share of convolution time by type: {'i8': 0.97, 'f32': 0.03}"
    )
    evidence: Literal["profile", "settings"]
    rounding: Literal["activations and weights", "weights"] | None = Field(
        default=None, description="int16: what is rounded to 16 bits; the arithmetic in between is `convolution_share`"
    )
    elsewhere: str | None = Field(
        default=None, description="what did not run on `device`: '2 of 41 convolutions on CPUExecutionProvider'"
    )

    @property
    def rounded(self) -> str:
        """Of int16, what the engine's graph really rounds; '' for other precisions."""
        if self.rounding is None:
            return ""
        return "weights alone rounded to int16" if self.rounding == "weights" else f"{self.rounding} rounded to int16"

    @property
    def text(self) -> str:
        """'i8 97 % f32 3 %' of convolution time; of int16 also what was rounded; what ran on another device."""
        parts = sorted(self.convolution_share.items(), key=lambda item: -item[1])
        shares = " ".join(f"{kind} {share:.0%}" for kind, share in parts)
        if self.rounded:
            shares += f", {self.rounded}"
        return shares if self.elsewhere is None else f"{shares}; {self.elsewhere}"


class Fidelity(_Strict):
    """How far this variant's maps are from fp32's on the network's grid, measured without ground truth; 0..1.

    The mean |difference| of two maps is also the most that their MAE against any ground truth can differ by.
    """

    measure: Literal["mask MAE"] = "mask MAE"
    value: float = Field(description="mean over pictures")
    worst: float
    worst_picture: str
    pictures: PositiveInt
    source: Literal["validate", "held out", "golden sample"] = Field(
        description="pictures given for it, kept out of the calibration folder, or the package's own sample alone"
    )
    pictures_sha256: Sha256 = Field(description="over the sorted hashes of the decoded pixels")
    engine: str
    limit: float
    forced: bool = Field(default=False, description="written although the limit was missed, because the user insisted")

    @property
    def text(self) -> str:
        origin = {"validate": "given", "held out": "held out of calibration", "golden sample": "golden sample"}
        number = f"{self.pictures} picture{'s' if self.pictures > 1 else ''}"
        found = f"{self.measure} to fp32 {self.value:.5f} over {number} ({origin[self.source]})"
        found += f", worst {self.worst:.5f} ({self.worst_picture}), allowed {self.limit:g}"
        return f"{found}; written by --force" if self.forced else found


class Drop(_Strict):
    """Accuracy of this variant against fp32 on the same cases. Positive `drop` is a loss."""

    metric: str
    fp32: float
    value: float
    drop: float
    interval95: tuple[float, float] = Field(description="paired bootstrap over cases")
    worst_case: str
    worst_drop: float
    cases: PositiveInt
    dataset_sha256: Sha256
    engine: str


class Quantization(_Strict):
    """How an integer variant was made."""

    preset: Literal["performance", "mixed"]
    algorithm: Literal["min-max", "percentile"] = "min-max"
    weights: Literal["per-channel", "per-tensor"]
    activations: Literal["symmetric", "asymmetric"]
    bias_correction: Literal["fast", "accurate", "none"]
    calibration_images: PositiveInt
    calibration_sha256: Sha256
    kept_in_float: tuple[str, ...] = Field(default=(), description="layers restored to float by the accuracy search")


class Variant(_Strict):
    precision: Precision
    graphs: dict[str, RelativePath] = Field(description="member name -> graph file; two variants may share one graph")
    sha256: dict[str, Sha256]
    shapes: Literal["static", "dynamic"]
    batches: tuple[PositiveInt, ...] = Field(description="batch sizes it was compiled and checked for")
    engines: tuple[str, ...] = Field(description="engines it was checked on, best first")
    executed: tuple[Executed, ...] = ()
    quantization: Quantization | None = None
    drop: Drop | None = None
    fidelity: Fidelity | None = Field(default=None, description="saliency maps only")


class Recipe(_Strict):
    """All of the manifest but its variants: what a family knows about a trained network before it is converted."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    family: str = Field(description="who wrote this manifest; the runtime never looks at it")
    description: str = ""
    options: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="what the weights did not say and an option or side file did"
    )
    input: Input
    preprocess: tuple[Step, ...]
    network: Network
    tiling: Tiling | None = None
    augmentation: Augmentation | None = Field(default=None, description="never used unless it is asked for")
    decode: Decode
    postprocess: tuple[Postprocess, ...] = ()
    previous_stage: PreviousStage | None = None
    labels: tuple[Label, ...] = Field(min_length=1)
    metric: Metric

    @model_validator(mode="after")
    def _input_fits_network(self) -> Recipe:
        kinds = {"image": "NCHW", "volume": "NCDHW"}
        two_dimensional_volume = self.input.kind == "volume" and self.network.layout == "NCHW"
        if kinds[self.input.kind] != self.network.layout and not two_dimensional_volume:
            raise ValueError(f"{self.input.kind} input cannot feed a network of layout {self.network.layout}")
        if len(self.input.channels) > self.network.input_channels:
            raise ValueError("the input has more channels than the network takes")
        if self.tiling is not None and len(self.tiling.window) != len(self.network.layout) - 2:
            raise ValueError("the tiling window must have one entry per spatial axis")
        return self


class Manifest(Recipe):
    """The whole of ``manifest.json``."""

    manifest_version: Literal[1] = MANIFEST_VERSION
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _variants_complete(self) -> Manifest:
        precisions = [variant.precision for variant in self.variants]
        if len(set(precisions)) != len(precisions):
            raise ValueError("two variants have the same precision")
        if "fp32" not in precisions:
            raise ValueError("the fp32 variant is missing; every package has one")
        for variant in self.variants:
            if set(variant.graphs) != set(self.network.members) or set(variant.sha256) != set(self.network.members):
                raise ValueError(
                    f"variant {variant.precision} must name one graph and one hash for each ensemble member"
                )
        return self

    @property
    def recipe(self) -> Recipe:
        """The same without variants."""
        return Recipe.model_validate(self.model_dump(exclude={"variants", "manifest_version"}))

    def variant(self, precision: str) -> Variant | None:
        return next((v for v in self.variants if v.precision == precision), None)


def parse_manifest(text: str | bytes) -> Manifest:
    """Manifest from JSON. Raises ``PackageTooNew`` for a later version, else ``PackageError`` naming the first bad field."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"manifest.json is not JSON ({error}); the package is damaged, export it again") from None
    if isinstance(data, dict):
        version = data.get("manifest_version")
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise PackageTooNew(
                f"the package has manifest version {version}, this segship reads up to {MANIFEST_VERSION}; "
                "update with `pip install -U segship`"
            )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise PackageError(
            f"manifest.json: {where}: {first['msg']}; the package was not written by segship {MANIFEST_VERSION}.x or was edited by hand"
        ) from None


def dump_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes: sorted keys, two-space indent, final newline, so that equal content is an equal file."""
    data = manifest.model_dump(mode="json")
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def manifest_json_schema() -> dict[str, Any]:
    """JSON Schema of the manifest, as written to docs/manifest.schema.json."""
    return Manifest.model_json_schema()
