"""DSB2018: layouts, preparation, splits, and what is said when something is wrong with them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from segship.datasets import dsb2018
from segship.errors import DatasetError, OutputError, UsageError


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def raw_case(root: Path, case_id: str, size_hw: tuple[int, int] = (40, 50), seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    height, width = size_hw
    image = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    image[..., 3] = 255
    write_png(root / case_id / "images" / f"{case_id}.png", image)
    for k in range(2):
        mask = np.zeros((height, width), np.uint8)
        mask[5 + 15 * k : 15 + 15 * k, 8:30] = 255
        write_png(root / case_id / "masks" / f"nucleus{k}.png", mask)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for seed, case_id in enumerate(("b", "a", "c")):
        raw_case(root, case_id, seed=seed)
    return root


@pytest.fixture
def prepared(raw: Path, tmp_path: Path) -> Path:
    dsb2018.prepare(raw, tmp_path / "prepared", size=32)
    return tmp_path / "prepared"


# --- the real archive -------------------------------------------------------------------------------------


def test_preparation_of_the_archive_gives_the_published_hashes_and_resumes(shared: Path, tmp_path: Path) -> None:
    published = json.loads((shared / "reference/dsb2018_splits.json").read_text())["prepared_96"]
    source = shared / "data/dsb2018/stage1_train.zip"
    done = dsb2018.prepare(source, tmp_path / "out")
    assert (done.cases, done.written) == (664, 664)
    if cv2.__version__ == "4.14.0":
        assert (done.sha256_images, done.sha256_masks) == (published["sha256_images"], published["sha256_masks"])
        assert done.as_published is True
        assert "equal to the published set" in str(done)
    # an interrupted preparation: one file gone, one cut off
    ids = dsb2018.open_dataset(source).ids
    (tmp_path / "out/images" / f"{ids[3]}.png").unlink()
    (tmp_path / "out/masks/0" / f"{ids[7]}.png").write_bytes(b"\x89PNG cut")
    again = dsb2018.prepare(source, tmp_path / "out")
    assert again.written == 2
    assert (again.sha256_images, again.sha256_masks) == (done.sha256_images, done.sha256_masks)
    prepared = dsb2018.open_dataset(tmp_path / "out")
    assert prepared.layout == "prepared"
    assert prepared.ids == ids


def test_prepared_arrays_equal_the_reference_cases(shared: Path) -> None:
    facts = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())
    arrays = np.load(shared / "reference/dsb2018_pipeline.npz")
    dataset = dsb2018.open_dataset(shared / "data/dsb2018/stage1_train.zip")
    for place, case in enumerate(dataset.select(facts["ids"])):
        image, mask = dsb2018.prepared_image(case, (96, 96)), dsb2018.prepared_masks(case, (96, 96))
        assert list(dsb2018.read_image(case).shape[:2]) == facts["source_size_hw"][place]
        assert np.abs(image.astype(int) - arrays["image"][place]).max() <= facts["tolerance"]["image"]
        assert np.abs(mask[0].astype(int) - arrays["mask"][place]).max() <= facts["tolerance"]["mask"]


def test_named_splits_of_the_archive_have_the_published_ids(shared: Path) -> None:
    published = json.loads((shared / "reference/dsb2018_splits.json").read_text())
    ids = dsb2018.open_dataset(shared / "data/dsb2018/stage1_train.zip").ids
    assert dsb2018.ids_hash(ids) == published["archive"]["sha256_of_sorted_ids"]
    default = dsb2018.split(reversed_order := ids[::-1])
    assert reversed_order != ids  # the order in which ids are found must not matter
    assert list(default.validation) == published["default"]["validation"]
    assert list(default.training[:3]) == published["default"]["first_three_training"]
    assert default.sha256 == published["default"]["sha256_validation_sorted"]
    assert dsb2018.ids_hash(default.training) == published["default"]["sha256_training_sorted"]
    ascend = dsb2018.split(ids, "ascend")
    assert ascend.sha256 == published["ascend"]["sha256_usable_sorted"]
    assert len(ascend.validation) == 133
    assert [i[:8] for i in ascend.absent] == ["74a77855"]
    assert not set(ascend.training) & set(ascend.validation)
    assert len(set(default.validation) & set(ascend.validation)) == 21


def test_carried_facts_equal_the_reference(shared: Path) -> None:
    published = json.loads((shared / "reference/dsb2018_splits.json").read_text())
    facts = dsb2018.facts()
    assert facts["ascend"]["validation"] == published["ascend"]["validation"]
    assert dsb2018.ids_hash(facts["ascend"]["validation"]) == facts["ascend"]["sha256_validation"]
    assert facts["stage1_train"]["known_absent"] == published["absent_from_archive"]


# --- layouts ----------------------------------------------------------------------------------------------


def test_raw_folder_and_zip_and_nested_zip_read_alike(raw: Path, tmp_path: Path) -> None:
    flat, nested = tmp_path / "flat.zip", tmp_path / "nested.zip"
    with zipfile.ZipFile(flat, "w") as a, zipfile.ZipFile(nested, "w") as b:
        for path in sorted(raw.rglob("*.png")):
            a.write(path, path.relative_to(raw).as_posix())
            b.write(path, "stage1_train/" + path.relative_to(raw).as_posix())
    found = [dsb2018.open_dataset(source) for source in (raw, flat, nested)]
    assert [d.ids for d in found] == [["a", "b", "c"]] * 3
    hashes = {dsb2018.prepared_hash(d, 32) for d in found}
    assert len(hashes) == 1
    assert found[0].cases[0].image_path == raw / "a/images/a.png"
    assert found[1].cases[0].image_path is None
    assert found[1].cases[0].image_bytes() == found[0].cases[0].image_bytes()


def test_union_mask_and_soft_preparation(raw: Path) -> None:
    case = dsb2018.open_dataset(raw).cases[0]
    image, masks = dsb2018.read_image(case), dsb2018.read_masks(case)
    assert image.shape == (40, 50, 3)
    assert masks.shape == (1, 40, 50)
    assert set(np.unique(masks)) == {0, 255}
    assert masks[0, 10, 10] == masks[0, 25, 10] == 255
    small = dsb2018.prepared_masks(case, (32, 32))
    expected = (cv2.resize((masks[0] > 0).astype(np.float64), (32, 32)) * 255).astype(np.uint8)
    assert np.array_equal(small[0], expected)
    assert ((small > 0) & (small < 255)).any()


def test_grey_reading_has_three_equal_channels(raw: Path) -> None:
    case = dsb2018.open_dataset(raw).cases[0]
    grey = dsb2018.prepared_image(case, (32, 32), grey=True)
    assert grey.shape == (32, 32, 3)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_prepared_folder_gives_back_what_preparation_computed(raw: Path, prepared: Path) -> None:
    before, after = dsb2018.open_dataset(raw), dsb2018.open_dataset(prepared)
    assert dsb2018.prepared_hash(before, 32) == dsb2018.prepared_hash(after, 32)
    case = after.cases[1]
    shrunk = dsb2018.prepared_masks(case, (16, 16))
    assert set(np.unique(shrunk)) <= set(np.unique(dsb2018.read_masks(case)))  # nearest neighbour invents no value


def test_several_classes_are_read_in_their_folders_order(prepared: Path) -> None:
    for path in (prepared / "masks/0").iterdir():
        write_png(prepared / "masks/1" / path.name, 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    case = dsb2018.open_dataset(prepared).cases[0]
    masks = dsb2018.read_masks(case)
    assert masks.shape == (2, 32, 32)
    assert np.array_equal(masks[1], 255 - masks[0])
    assert len(dsb2018.open_dataset(prepared, num_classes=1).cases[0].mask_names) == 1
    with pytest.raises(DatasetError, match="masks/2"):
        dsb2018.open_dataset(prepared, num_classes=3)


def test_prepare_reports_progress_and_leaves_no_temporary_file(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    done = dsb2018.prepare(raw, tmp_path / "out", size=48, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]
    assert done.as_published is None
    assert (
        sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
        == ["a.png"] * 2 + ["b.png"] * 2 + ["c.png"] * 2
    )
    again = dsb2018.prepare(raw, tmp_path / "out", size=32)  # another size is written anew, not kept
    assert again.written == 3


# --- what can be wrong ------------------------------------------------------------------------------------


def test_wrong_places_are_named(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DatasetError, match="no data set at"):
        dsb2018.open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no case"):
        dsb2018.open_dataset(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(DatasetError, match="neither a folder nor a zip"):
        dsb2018.open_dataset(tmp_path / "text.zip")
    (tmp_path / "noimages/images").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"holds no \.png"):
        dsb2018.open_dataset(tmp_path / "noimages")
    with pytest.raises(DatasetError, match=r"holds no \.tif"):
        dsb2018.open_dataset(prepared, image_suffix=".tif")
    with pytest.raises(DatasetError, match="prepared already"):
        dsb2018.prepare(prepared, tmp_path / "x")


def test_missing_and_broken_files_are_named(raw: Path, prepared: Path, tmp_path: Path) -> None:
    (prepared / "masks/0/b.png").unlink()
    with pytest.raises(DatasetError, match=r"image b\.png has no mask .*masks/0/b\.png"):
        dsb2018.open_dataset(prepared)
    (raw / "b/images/b.png").write_bytes(b"\x89PNG\r\n not really")
    with pytest.raises(DatasetError, match=r"b/images/b\.png \(case b\)"):
        dsb2018.read_image(dsb2018.open_dataset(raw).cases[1])
    with pytest.raises(DatasetError, match="1 of 3 cases were not prepared: b/images"):
        dsb2018.prepare(raw, tmp_path / "out")
    assert (tmp_path / "out/images/c.png").is_file()  # the others are done
    (raw / "b/images/b.png").unlink()
    with pytest.raises(DatasetError, match=r"case b .* has 0 images"):
        dsb2018.open_dataset(raw)
    for path in (raw / "c/masks").iterdir():
        path.unlink()
    raw_case(raw, "b")
    with pytest.raises(DatasetError, match=r"case c .* has no masks"):
        dsb2018.open_dataset(raw)


def test_a_truncated_entry_of_a_zip_is_a_dataset_error(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(raw.rglob("*.png")):
            archive.write(file, file.relative_to(raw).as_posix())
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)  # inside the first image's data
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="cannot be read"):
        dsb2018.read_image(dsb2018.open_dataset(path).cases[0])


def test_masks_of_zeros_and_ones_are_refused_with_the_reason(prepared: Path) -> None:
    mask = cv2.imread(str(prepared / "masks/0/a.png"), cv2.IMREAD_GRAYSCALE)
    write_png(prepared / "masks/0/a.png", (mask > 127).astype(np.uint8))
    with pytest.raises(DatasetError, match=r"only 0 and 1.*multiply them by 255"):
        dsb2018.read_masks(dsb2018.open_dataset(prepared).cases[0])
    write_png(prepared / "masks/0/a.png", np.zeros((32, 32), np.uint8))  # an empty mask is no such thing
    assert not dsb2018.read_masks(dsb2018.open_dataset(prepared).cases[0]).any()


def test_masks_of_different_sizes_are_refused(raw: Path) -> None:
    write_png(raw / "a/masks/nucleus1.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DatasetError, match="masks of case a differ in size"):
        dsb2018.read_masks(dsb2018.open_dataset(raw).cases[0])


def test_a_folder_of_other_images_is_not_mixed_with_a_preparation(raw: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "out/images/stranger.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DatasetError, match="another data set"):
        dsb2018.prepare(raw, tmp_path / "out")


def test_an_unwritable_place_is_an_output_error(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="writable"):
        dsb2018.prepare(raw, tmp_path / "file")


# --- splits -----------------------------------------------------------------------------------------------


def test_default_split_is_a_permutation_and_rounds_up() -> None:
    ids = [f"{i:02d}" for i in range(11)]
    found = dsb2018.split(ids)
    assert len(found.validation) == 3  # ⌈11/5⌉
    assert sorted(found.training + found.validation) == ids
    assert list(found.validation) == [ids[i] for i in np.random.RandomState(41).permutation(11)[:3]]


def test_split_from_a_file_of_ids(tmp_path: Path) -> None:
    listed = tmp_path / "val.txt"
    listed.write_text("c\n\n a \nzz\n")
    found = dsb2018.split(["a", "b", "c"], listed)
    assert (found.name, found.validation, found.training, found.absent) == ("file", ("c", "a"), ("b",), ("zz",))


@pytest.mark.parametrize(
    ("text", "message"), [("", "lists no ids"), ("a\na\n", "twice"), (None, "no split named .*default, ascend")]
)
def test_unusable_lists_are_usage_errors(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "val.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        dsb2018.split(["a", "b"], tmp_path / "val.txt")


def test_splits_that_hold_out_nothing_are_refused() -> None:
    with pytest.raises(DatasetError, match="none of the 134 ids"):
        dsb2018.split(["a", "b"], "ascend")
    with pytest.raises(DatasetError, match="fewer than 2"):
        dsb2018.split(["a"])
    with pytest.raises(DatasetError, match="twice"):
        dsb2018.split(["a", "a"])


def test_overlap_is_refused_and_named() -> None:
    with pytest.raises(DatasetError, match=r"1 ids are used for calibration and for evaluation .b."):
        dsb2018.refuse_overlap(["a", "b"], ["b", "c"], "calibration")
    dsb2018.refuse_overlap(["a"], ["b"], "training")


def test_ids_that_are_not_there_are_named(raw: Path) -> None:
    with pytest.raises(DatasetError, match="no case x"):
        dsb2018.open_dataset(raw).select(["a", "x"])
