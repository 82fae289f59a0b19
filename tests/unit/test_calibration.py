"""Calibration pictures: every source, the package's own preprocessing, and no overlap with the evaluation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from packages import manifest_data
from tiny_branches import branches_package

from segship.convert.calibration import load_calibration, without_overlap
from segship.datasets import open_dataset
from segship.engines.fake import FakeSession
from segship.errors import DatasetError, InputError, UsageError
from segship.inference.images import read_image
from segship.inference.predictor import Predictor
from segship.inference.preprocess import prepare
from segship.manifest import Manifest, Recipe
from segship.package import update_package


@pytest.fixture
def recipe() -> Recipe:
    return Manifest.model_validate(manifest_data()).recipe


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "training" / "deeper").mkdir(parents=True)
    for index in range(5):
        name = "deeper/4.bmp" if index == 4 else f"{index}.png"
        cv2.imwrite(str(tmp_path / "training" / name), picture(index))
    (tmp_path / "training" / "notes.txt").write_text("not a picture")
    return tmp_path / "training"


def test_a_folder_is_searched_and_prepared_as_prediction_does(folder: Path, recipe: Recipe) -> None:
    found = load_calibration(folder, recipe)
    assert found.names == ("0.png", "1.png", "2.png", "3.png", "4.bmp")
    assert found.inputs.shape == (5, 3, 32, 32)
    assert found.inputs.dtype == np.float32
    assert recipe.input.kind == "image"
    assert np.array_equal(found.inputs[4], prepare(read_image(folder / "deeper/4.bmp", recipe.input), recipe).x)
    assert any("fewer than 64" in warning for warning in found.warnings)
    record = found.record()
    assert (record["images"], record["available"], len(record["pixel_sha256"])) == (5, 5, 5)
    # the identity is of the set, not of its order or names
    assert record["sha256"] == load_calibration(folder, recipe).sha256


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_colours_are_calibrated_in_the_order_of_inference(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A red picture: what calibration hands the quantiser is what a prediction hands the engine, channel by channel."""
    pytest.importorskip("onnx")
    package = branches_package(tmp_path / "net.segship")
    if order == "bgr":
        source = package.manifest.input.model_copy(update={"reader": "opencv:color", "channel_order": "bgr"})
        package = update_package(package, manifest=package.manifest.model_copy(update={"input": source}))
    red = np.zeros((30, 40, 3), np.uint8)
    red[..., 2] = 250
    cv2.imwrite(str(tmp_path / "red.png"), red)
    np.savez(tmp_path / "red.npz", red=red[..., ::-1])
    seen: list[np.ndarray] = []
    run = FakeSession.run
    monkeypatch.setattr(FakeSession, "run", lambda self, x: (seen.append(x.copy()), run(self, x))[1])
    with Predictor.open(package, engine="fake") as predictor:
        predictor(tmp_path / "red.png")
    for file in ("red.png", "red.npz"):
        found = load_calibration(tmp_path / file, package.manifest.recipe).inputs
        np.testing.assert_array_equal(found, seen[0])
        assert not np.array_equal(found, seen[0][:, ::-1]), "the other order is another input"
    bright, dark = (0, 2) if order == "rgb" else (2, 0)
    assert found[0, bright].min() > 1 > -1 > found[0, dark].max()


def test_pictures_are_held_out_evenly_and_not_calibrated_on(folder: Path, recipe: Recipe) -> None:
    found = load_calibration(folder, recipe, hold_out=True)
    assert [name for name, _ in found.held_out] == ["0.png"]
    assert found.names == ("1.png", "2.png", "3.png", "4.bmp")
    assert found.available == 5
    for seed in range(20, 120):
        cv2.imwrite(str(folder / f"{seed}.png"), picture(seed, 8, 8))
    many = load_calibration(folder, recipe, hold_out=True, subset=10)
    assert len(many.held_out) == 16
    assert len(many.names) == 10
    assert not {name for name, _ in many.held_out} & set(many.names)
    assert load_calibration(folder / "0.png", recipe, hold_out=True).held_out == ()
    assert load_calibration(folder, recipe).held_out == ()


def test_a_list_is_relative_to_its_folder(folder: Path, recipe: Recipe) -> None:
    listing = folder / "list.txt"
    listing.write_text(f"# training\n2.png\n\n  deeper/4.bmp  \n{folder / '0.png'}\n")
    assert load_calibration(listing, recipe).names == ("2.png", "4.bmp", "0.png")
    listing.write_text("none.png\n")
    with pytest.raises(UsageError, match=r"none\.png, which is not there"):
        load_calibration(listing, recipe)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="list of pictures"):
        load_calibration(listing, recipe)
    listing.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no picture"):
        load_calibration(listing, recipe)


def test_arrays_are_decoded_pictures(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    stack = np.stack([picture(index) for index in range(3)])
    np.savez(tmp_path / "a.npz", stack=stack, one=picture(7, 20, 20))
    found = load_calibration(tmp_path / "a.npz", recipe, array_order="bgr")
    assert found.names == ("stack[0]", "stack[1]", "stack[2]", "one")
    # what OpenCV wrote as a file is the same picture, whatever its container
    assert found.pixel_sha256[:3] == load_calibration(folder, recipe).pixel_sha256[:3]
    assert load_calibration(tmp_path / "a.npz", recipe).pixel_sha256 != found.pixel_sha256
    np.savez(tmp_path / "b.npz", x=stack.astype(np.float32))
    with pytest.raises(UsageError, match="float32; give decoded pictures"):
        load_calibration(tmp_path / "b.npz", recipe)
    np.savez(tmp_path / "c.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read as arrays"):
        load_calibration(tmp_path / "c.npz", recipe)
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 2, 3, 4, 5), np.uint8))
    with pytest.raises(UsageError, match="shape"):
        load_calibration(tmp_path / "d.npz", recipe)


def test_one_picture_and_a_subset(folder: Path, recipe: Recipe) -> None:
    assert load_calibration(folder / "0.png", recipe).names == ("0.png",)
    assert load_calibration(folder, recipe, subset=3).names == ("0.png", "2.png", "4.bmp")
    assert load_calibration(folder, recipe, subset=3).available == 5
    with pytest.raises(UsageError, match="at least 1"):
        load_calibration(folder, recipe, subset=0)


def test_bad_sources(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="no calibration data"):
        load_calibration(tmp_path / "none", recipe)
    with pytest.raises(UsageError, match="holds no image"):
        load_calibration(tmp_path, recipe)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"a\.png"):
        load_calibration(tmp_path, recipe)
    with pytest.raises(UsageError, match="plain folder"):
        load_calibration(tmp_path, recipe, split="default")


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in (3, 8, 9):
        cv2.imwrite(str(tmp_path / "data/images" / f"case{index}.png"), picture(index))
        cv2.imwrite(str(tmp_path / "data/masks" / f"case{index}.png"), np.uint8(255) * (picture(index)[..., 0] > 99))
    return tmp_path / "data"


def test_a_data_sets_masks_are_not_calibrated_on(paired: Path, recipe: Recipe) -> None:
    assert load_calibration(paired, recipe).names == ("case3", "case8", "case9")


def test_pictures_of_the_evaluation_are_refused_under_any_name_and_size(
    folder: Path, paired: Path, recipe: Recipe
) -> None:
    dataset = open_dataset(paired)
    calibration = load_calibration(folder, recipe)
    with pytest.raises(DatasetError, match=r"1 calibration picture.*3\.png"):
        without_overlap(calibration, dataset, recipe, drop=False)
    left = without_overlap(calibration, dataset, recipe, drop=True)
    assert left.names == ("0.png", "1.png", "2.png", "4.bmp")
    assert len(left.inputs) == len(left.pixel_sha256) == len(left.input_sha256) == 4
    assert any("left out 1" in warning for warning in left.warnings)
    assert without_overlap(calibration, None, recipe, drop=False) is calibration
    # a case of the evaluation itself is no copy: the wrong split was named
    with pytest.raises(DatasetError, match=r"3 calibration pictures are evaluation cases.*--calibrate-split"):
        without_overlap(load_calibration(paired, recipe), dataset, recipe, drop=True)
    # a copy that was already brought to the network's size
    small = folder.parent / "small"
    small.mkdir()
    cv2.imwrite(str(small / "x.png"), cv2.resize(picture(8), (32, 32), interpolation=cv2.INTER_LINEAR))
    with pytest.raises(DatasetError, match=r"x\.png"):
        without_overlap(load_calibration(small, recipe), dataset, recipe, drop=True)


def test_copies_are_warned_of(folder: Path, recipe: Recipe) -> None:
    cv2.imwrite(str(folder / "copy.png"), picture(0))
    assert any("copies" in warning for warning in load_calibration(folder, recipe).warnings)
