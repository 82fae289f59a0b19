"""Comparing U²-Net's recipes with upstream's released masks, as anybody with the released weights would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil
from seeded import State
from u2net_files import write_onnx

from segship.cli import run
from segship.convert.checks import temporary_package
from segship.convert.onnx_graph import serialise
from segship.convert.source_graph import FP32, first_manifest, to_onnx
from segship.families import load_source
from segship.inference.predictor import Predictor
from segship.networks.u2net import U2NETP

RECIPES = ("upstream", "upstream-0.14", "rembg")
PHOTOS = {"girl": "girl.png", "whisk": "whisk.png"}


@pytest.fixture(scope="module")
def folders(
    shared: Path, fill: Callable[..., State], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """A folder of released masks and one of maps for each recipe (seeded weights, a small input); the maps by recipe."""
    root = tmp_path_factory.mktemp("released")
    with np.load(shared / "reference" / "u2net_released_masks.npz") as released:
        _write(root / "released", {photo: released[f"{photo}_u2netp"] for photo in PHOTOS})
    network = U2NETP()
    network.load_state_dict(fill(network.state_dict(), 2.0))
    file = write_onnx(network, root / "seeded.onnx", (64, 64))
    graph = serialise(to_onnx(load_source(file)))
    maps = {}
    for name in RECIPES:
        recipe = load_source(file, options={"recipe": name}).recipe
        manifest = first_manifest(recipe, graph, None, ["onnxruntime"], ())
        with (
            temporary_package(manifest, {FP32: graph}) as package,
            Predictor.open(package, engine="onnxruntime") as predictor,
        ):
            maps[name] = {p: predictor(shared / "data" / "photos" / file).saliency for p, file in PHOTOS.items()}
        _write(root / name, maps[name])
    return root, maps


def _write(folder: Path, maps: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    for photo, grey in maps.items():
        Pil.fromarray(grey).save(folder / f"{photo}.png")


def test_score_prints_the_mae_of_each_photo_and_recipe(
    folders: tuple[Path, dict[str, dict[str, np.ndarray]]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, maps = folders
    assert run(["score", "sod", str(root / "released"), *(str(root / name) for name in RECIPES)]) == 0
    text = capsys.readouterr().out
    block = next(part for part in text.split("\n\n") if part.startswith("MAE_raw "))
    assert block.splitlines()[0].split()[1:] == list(RECIPES)
    for photo in PHOTOS:
        printed = re.search(rf"^{photo} +([\d. ]+)$", block, re.M)
        assert printed is not None
        released = np.asarray(Pil.open(root / "released" / f"{photo}.png"), np.float64)
        wanted = [np.abs(maps[name][photo] - released).mean() / 255 for name in RECIPES]
        assert [float(value) for value in printed[1].split()] == pytest.approx(wanted, abs=6e-5)
    assert len({maps[name]["girl"].tobytes() for name in RECIPES}) == 3, "the recipes' masks differ"


def test_the_right_maps_score_zero(
    folders: tuple[Path, dict[str, dict[str, np.ndarray]]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = folders
    assert run(["score", "sod", str(root / "rembg"), str(root / "rembg"), "--json"]) == 0
    assert '"MAE_raw": 0.0' in capsys.readouterr().out
