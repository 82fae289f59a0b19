"""A made-up chest and a network that knows its grey values, for tests and pictures: nobody's scan.

    python tests/end_to_end/phantom.py docs

takes the documentation's pictures of the page for volumes: serve-volume.png and serve-volume-phone.png.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

SHAPE = (128, 104, 80)
"""x to the left, y to the back, z to the head"""
SPACING = (2.8, 2.8, 4.0)
GREYS = {"air": 0, "lung": 45, "soft": 110, "heart": 165, "bone": 225}
COLORS = {"lung": (70, 150, 255), "heart": (235, 70, 90), "bone": (255, 205, 70)}
WINDOW = (32, 64, 64)


def chest(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """uint8 (x, y, z) of grey values with a little texture; the heart lies to the left."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    grey = np.full(shape, GREYS["air"], np.float32)
    body = (x / 0.92) ** 2 + (y / 0.8) ** 2
    grey[body < 1] = GREYS["soft"]
    for side in (-1, 1):
        lung = ((x - side * 0.42) / 0.33) ** 2 + ((y + 0.02) / 0.52) ** 2 + ((z + 0.05) / 0.82) ** 2 < 1
        grey[lung] = GREYS["lung"]
    heart = ((x - 0.14) / 0.3) ** 2 + ((y + 0.28) / 0.3) ** 2 + ((z + 0.3) / 0.4) ** 2 < 1
    grey[heart] = GREYS["heart"]
    spine = (x / 0.12) ** 2 + ((y - 0.56) / 0.13) ** 2 < 1
    disc = np.mod(z, 0.22) < 0.05
    ring = (body > 0.8) & (body < 0.9) & (np.mod(z + 0.25 * y, 0.26) < 0.1) & (y > -0.62)
    grey[(spine & ~disc) | (ring & (np.abs(z) < 0.9))] = GREYS["bone"]
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    return np.clip(grey + noise + 4 * np.sin(9 * x + 5 * z) * (grey > 0), 0, 255).astype(np.uint8)


def write_chest(path: Path, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Path:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    # stored the other way round in two axes, as many files are
    there = np.diag([SPACING[0], SPACING[1], SPACING[2], 1.0])
    there[:2, 3] = [-SPACING[0] * shape[0] / 2, -SPACING[1] * shape[1] / 2]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(chest(shape, seed)[::-1, ::-1]), there), path)
    return path


def graph() -> bytes:
    """ONNX bytes: the nearest of the grey values wins; air and soft tissue are the background."""
    from onnx import helper
    from tiny_parts import onnx_bytes

    order = ("air", "soft", "lung", "heart", "bone")
    grey = np.array([GREYS[name] for name in order], np.float32)
    z, y, x = WINDOW
    return onnx_bytes(
        [
            helper.make_node("Conv", ["input", "w", "b"], ["each"]),
            helper.make_node("Split", ["each", "parts"], ["air", "soft", "rest"], axis=1),
            helper.make_node("Max", ["air", "soft"], ["ground"]),
            helper.make_node("Concat", ["ground", "rest"], ["logits"], axis=1),
        ],
        {"input": ["n", 1, z, y, x]},
        {"logits": ["n", 4, z, y, x]},
        {
            "w": (2 * grey / 1000).reshape(-1, 1, 1, 1, 1),
            "b": -(grey**2) / 1000,
            "parts": np.array([1, 1, 3], np.int64),
        },
    )


def chest_package(path: Path, *, step: int = 2) -> Path:
    """A package of the network above; ``step``: its windows' parts that a step is."""
    from tiny_parts import variants, write_tiny
    from volume_recipes import volume_recipe

    from segship.manifest import Label, Manifest, Output

    recipe = volume_recipe()
    assert recipe.tiling is not None
    recipe = volume_recipe(
        name="chest-phantom",
        description="A made-up chest: four grey values told apart, to show the page",
        network=recipe.network.model_copy(
            update={
                "architecture": "grey values", "parameters": 10, "size": WINDOW,
                "outputs": (Output(name="logits", channels=4, values="logits"),),
            }
        ),
        tiling=recipe.tiling.model_copy(
            update={"window": WINDOW, "step": tuple(side / step for side in WINDOW), "mirror_axes": (2,)}
        ),
        labels=(
            Label(id=0, name="background", color=(0, 0, 0)),
            *(Label(id=k, name=name, color=color) for k, (name, color) in enumerate(COLORS.items(), 1)),
        ),
    )  # fmt: skip
    graphs = {"fp32": graph()}
    return write_tiny(path, Manifest(**recipe.model_dump(), variants=variants(graphs)), graphs).path


SHOWN = "document.querySelectorAll('#planes canvas[data-shown]').length === 3"


def take_pictures(folder: Path) -> None:
    """The page with the chest: on a desk (light) and on a phone (dark), at most 256 colours each."""
    import io
    import tempfile

    from chromium import Page
    from PIL import Image
    from test_serve_process import serving

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        here = Path(name)
        case = write_chest(here / "chest_0000.nii.gz")
        with serving(chest_package(here / "chest.segship")) as (address, _), Page(here / "profile", here) as page:
            for file, how in {
                "serve-volume.png": {"width": 1180, "height": 760},
                "serve-volume-phone.png": {"width": 390, "height": 844, "phone": True, "dark": True},
            }.items():
                page.open("about:blank")
                page.open(address, **how)  # type: ignore[arg-type]
                page.wait("document.getElementById('list').children.length > 0")
                page.drop(case, x=150, y=250)
                page.wait(SHOWN)
                bottom = page.run("document.getElementById('controls').getBoundingClientRect().bottom + scrollY")
                time.sleep(0.5)
                with Image.open(page.picture(folder / file)) as picture:
                    scale = picture.width / how["width"]
                    shown = picture.convert("RGB")
                if how.get("phone"):  # what is below is the same as on a desk
                    shown = shown.crop((0, 0, shown.width, round((bottom + 12) * scale))).reduce(2)
                small = io.BytesIO()
                few = shown.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(small, "PNG", optimize=True)
                (folder / file).write_bytes(small.getvalue())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
    take_pictures(Path(sys.argv[1]))
