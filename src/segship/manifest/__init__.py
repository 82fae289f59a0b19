"""The contract between a package and whoever runs it: ``manifest.json``, version 1.

Everything that changes an answer stands here as data: how a file is read, each preprocessing step, the
tiling, how logits become labels and how labels find their way back onto the input's own grid. There are
no defaults for channel order, interpolation or axis order: whoever writes a manifest must say.

Volumes are ``(C, z, y, x)`` and spacings ``(z, y, x)`` in millimetres; images are ``(H, W, C)`` through all steps and
``(C, H, W)`` for the network. Unknown keys are refused everywhere.

`Recipe` and `Manifest` below hold its parts in the order of their use: `inputs`, `steps`, `network`, `decoding`, and one
`variants` a precision. All names are imported from here.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from segship.errors import PackageError, PackageTooNew
from segship.manifest.decoding import (
    Argmax,
    Decision,
    Decode,
    FillHoles,
    Instances,
    KeepLargest,
    Label,
    Metric,
    Postprocess,
    PreviousStage,
    Regions,
    RemoveSmall,
    Saliency,
    SmoothMask,
    Threshold,
)
from segship.manifest.inputs import Channel, ImageInput, Input, VolumeInput
from segship.manifest.network import Augmentation, Network, Output, Tiling
from segship.manifest.steps import (
    Channels,
    Clip,
    CropToNonzero,
    Divide,
    DivideByMaximum,
    Mirror,
    Normalize,
    Pad,
    PreviousStageChannels,
    ReplaceNonFinite,
    Resample,
    RescaleMinMax,
    Resize,
    ResizeByFactor,
    ResizeKeepRatio,
    Step,
    Transpose,
    ZScore,
)
from segship.manifest.values import ImageResize, PositiveInt, Precision, RelativePath, Sha256, Strict, VolumeResample
from segship.manifest.variants import Drop, Executed, Fidelity, Quantization, Variant

__all__ = [
    "MANIFEST_VERSION",
    "Argmax",
    "Augmentation",
    "Channel",
    "Channels",
    "Clip",
    "CropToNonzero",
    "Decision",
    "Decode",
    "Divide",
    "DivideByMaximum",
    "Drop",
    "Executed",
    "Fidelity",
    "FillHoles",
    "ImageInput",
    "ImageResize",
    "Input",
    "Instances",
    "KeepLargest",
    "Label",
    "Manifest",
    "Metric",
    "Mirror",
    "Network",
    "Normalize",
    "Output",
    "Pad",
    "PositiveInt",
    "Postprocess",
    "Precision",
    "PreviousStage",
    "PreviousStageChannels",
    "Quantization",
    "Recipe",
    "Regions",
    "RelativePath",
    "RemoveSmall",
    "ReplaceNonFinite",
    "Resample",
    "RescaleMinMax",
    "Resize",
    "ResizeByFactor",
    "ResizeKeepRatio",
    "Saliency",
    "Sha256",
    "SmoothMask",
    "Step",
    "Threshold",
    "Tiling",
    "Transpose",
    "Variant",
    "VolumeInput",
    "VolumeResample",
    "ZScore",
    "dump_manifest",
    "manifest_json_schema",
    "parse_manifest",
]

MANIFEST_VERSION: Literal[1] = 1


class Recipe(Strict):
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
