"""Where the fuzzers begin: one small file of each kind in DIR/{package,manifest,nifti,volume,image}.

python cpp/fuzz/seeds.py cpp/build/fuzz/corpus
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.extend([str(Path(__file__).parents[2] / "tests" / name) for name in ("cpp", "unit")])

from cpp_cases import big_endian, packed_twice, picture, picture_package, volume_package, write_volume


def packages(root: Path) -> None:
    """Two packages of one convolution each, one of them compressed, and their manifests."""
    for make, name in ((picture_package, "picture"), (volume_package, "volume")):
        path = root / "package" / name
        made = make(path)
        (root / "manifest" / name).write_bytes(made.read("manifest.json"))
        with zipfile.ZipFile(path) as plain, zipfile.ZipFile(root / "package" / f"{name}-packed", "w") as packed:
            for entry in plain.namelist():
                packed.writestr(entry, plain.read(entry), zipfile.ZIP_DEFLATED)


def volumes(folder: Path) -> None:
    shape = (5, 4, 3)
    plain = write_volume(folder / "plain.nii", shape)
    packed = write_volume(folder / "packed.nii.gz", shape)
    big_endian(folder / "big.nii", plain)
    packed_twice(folder / "twice.nii.gz", packed)
    write_volume(folder / "second.nii", shape, version=2, dtype="f4")
    write_volume(folder / "scaled.nii", shape, slope=(2.0, -1.0))


def arrays(folder: Path) -> None:
    """The other kinds of volumes: NRRD and MetaImage, packed and plain, and numpy's."""
    voxels = (np.arange(60) % 7).astype("<i2")
    shape = "5 4 3"
    nrrd = f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {shape}\n"
    nrrd += "space directions: (1,0,0) (0,1.5,0) (0,0,2)\nkinds: domain domain domain\nendian: little\nencoding: "
    (folder / "raw.nrrd").write_bytes(f"{nrrd}raw\nspace origin: (1,-2,3)\n\n".encode() + voxels.tobytes())
    (folder / "gzip.nrrd").write_bytes(f"{nrrd}gzip\nspacings: 1 2 nan\n\n".encode() + gzip.compress(voxels.tobytes()))
    meta = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nDimSize = {shape}\n"
    meta += "ElementSpacing = 1 1.5 2\nOffset = 1 2 3\nElementType = MET_SHORT\nCompressedData = "
    (folder / "raw.mha").write_bytes(f"{meta}False\nElementDataFile = LOCAL\n".encode() + voxels.tobytes())
    packed = zlib.compress(voxels.tobytes())
    (folder / "zlib.mha").write_bytes(f"{meta}True\nElementDataFile = LOCAL\n".encode() + packed)
    for name, array in (
        ("c", voxels.reshape(1, 3, 4, 5)),
        ("f", np.asfortranarray(voxels.reshape(3, 4, 5).astype(">f4"))),
    ):
        np.save(folder / f"{name}.npy", array)


def images(folder: Path) -> None:
    pixels = Image.fromarray(picture(9, 12))
    kinds = {
        "PNG": (pixels, pixels.convert("L"), pixels.quantize(8), pixels.convert("RGBA"), pixels.convert("1")),
        "JPEG": (pixels, pixels.convert("L"), pixels.convert("CMYK")),
        "BMP": (pixels, pixels.convert("L")),
        "TIFF": (pixels, pixels.convert("L")),
        "WEBP": (pixels,),
    }
    for kind, forms in kinds.items():
        for number, form in enumerate(forms):
            buffer = io.BytesIO()
            form.save(buffer, kind)
            (folder / f"{number}.{kind.lower()}").write_bytes(buffer.getvalue())
    (folder / "wide.png").write_bytes(cv2.imencode(".png", picture(9, 12).astype("u2") * 257)[1].tobytes())


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in ("package", "manifest", "nifti", "volume", "image"):
        (root / name).mkdir(parents=True, exist_ok=True)
    packages(root)
    volumes(root / "nifti")
    arrays(root / "volume")
    images(root / "image")
