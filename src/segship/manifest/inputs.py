"""How a picture or a volume is read: `Input`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segship.manifest.values import Strict


class Channel(Strict):
    name: str = Field(description="what the channel holds: B, G, R, CT, T1 …")


class ImageInput(Strict):
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


class VolumeInput(Strict):
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
