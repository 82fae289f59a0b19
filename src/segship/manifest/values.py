"""Types that several parts of the manifest share, and the names of resizing rules and precisions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
