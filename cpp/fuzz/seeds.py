"""Where the fuzzers begin: one small file of each kind in DIR/{package,manifest,nifti,image}.

    python cpp/fuzz/seeds.py cpp/build/fuzz/corpus
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import cv2
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "cpp"))

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
    for name in ("package", "manifest", "nifti", "image"):
        (root / name).mkdir(parents=True, exist_ok=True)
    packages(root)
    volumes(root / "nifti")
    images(root / "image")
