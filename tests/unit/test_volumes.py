"""Volumes as read and as written back: against nibabel, SimpleITK and scikit-image, in space and in the header."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_files import (
    AFFINES,
    affine,
    by_nibabel,
    by_nibabel_reoriented,
    by_simpleitk,
    volume_input,
    write_nifti,
)

from segship.errors import InputError, OutputError, UsageError
from segship.inference.images import DEFAULT_LIMITS, Limits
from segship.inference.volumes import (
    Volume,
    label_bytes,
    read_labels,
    read_volume,
    sample_volume,
    write_labels,
)

REORIENTED = ("simpleitk-reorient", "nibabel-reorient")
HEADER_OF_LABELS = {"dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_min", "cal_max"}


def labels_for(volume: Volume, dtype: type = np.uint8) -> np.ndarray:
    """Labels that are the case's own values, so that a place that moved shows."""
    return volume.channels[0].astype(dtype)


# --------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", ">i2"])
def test_nibabels_readers(tmp_path: Path, kind: str, dtype: str) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", kind, dtype=dtype)
    for reader, ours in (("nibabel", by_nibabel), ("nibabel-reorient", by_nibabel_reoriented)):
        array, spacing = ours(path)
        volume = read_volume(path, volume_input(reader))
        assert volume.channels.dtype == np.float32
        assert volume.channels.flags.c_contiguous
        assert np.array_equal(volume.channels, array)
        assert list(volume.spacing) == spacing


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("slope", [None, (0.37, -1024.0), (1.0, -5.0)])
def test_simpleitks_readers(tmp_path: Path, kind: str, slope: tuple[float, float] | None) -> None:
    pytest.importorskip("SimpleITK")
    path = write_nifti(tmp_path / "a.nii.gz", kind, slope=slope)
    for reader, orientation in (("simpleitk", None), ("simpleitk-reorient", "RAS")):
        array, spacing = by_simpleitk(path, orientation)
        volume = read_volume(path, volume_input(reader))
        assert np.array_equal(volume.channels, array)
        assert volume.spacing == pytest.approx(spacing, abs=0)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4, 1), (6, 5, 4, 1, 1), (6, 5, 4, 3)])
def test_simpleitk_and_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pytest.importorskip("SimpleITK")
    path = write_nifti(tmp_path / "a.nii.gz", shape=shape)
    array, spacing = by_simpleitk(path)
    volume = read_volume(path, volume_input("simpleitk"))
    assert np.array_equal(volume.channels, array)
    assert list(volume.spacing) == spacing


@pytest.mark.parametrize("unit", ["micron", "meter", "mm", "unknown"])
def test_simpleitk_minds_the_unit_of_length(tmp_path: Path, unit: str) -> None:
    pytest.importorskip("SimpleITK")
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine("anisotropic"))
    image.header.set_xyzt_units(unit)
    nib.save(image, path := tmp_path / "a.nii.gz")
    assert list(read_volume(path, volume_input("simpleitk")).spacing) == pytest.approx(by_simpleitk(path)[1], rel=1e-15)
    assert list(read_volume(path, volume_input("nibabel")).spacing) == by_nibabel(path)[1]


@pytest.mark.parametrize("fields", [{"pixdim": [1, 9, 8, 7, 1, 1, 1, 1]}, {"sform_code": 0}, {"qform_code": 0}])
@pytest.mark.parametrize("kind", ["plain", "flipped"])
def test_headers_that_disagree_with_themselves(tmp_path: Path, kind: str, fields: dict[str, object]) -> None:
    pytest.importorskip("SimpleITK")
    path = write_nifti(tmp_path / "a.nii.gz", kind, **fields)
    for reader, ours in (
        ("nibabel", by_nibabel),
        ("nibabel-reorient", by_nibabel_reoriented),
        ("simpleitk", by_simpleitk),
    ):
        array, spacing = ours(path)
        volume = read_volume(path, volume_input(reader))
        assert np.array_equal(volume.channels, array), reader
        assert list(volume.spacing) == spacing, reader


def test_version_2_and_files_without_compression(tmp_path: Path) -> None:
    for name, version in (("a.nii", 1), ("b.nii", 2), ("c.nii.gz", 2)):
        path = write_nifti(tmp_path / name, "oblique", version=version)
        volume = read_volume(path, volume_input())
        assert np.array_equal(volume.channels, by_nibabel(path)[0])
        (back := tmp_path / f"labels_{name}").write_bytes(label_bytes(labels_for(volume), volume, path.name[1:]))
        assert np.array_equal(np.asarray(nib.load(back).dataobj), nib.load(path).get_fdata())
        assert type(nib.load(back)) is type(nib.load(path))


def test_extensions_between_header_and_voxels(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine("plain"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"words " * 400))
    nib.save(image, path := tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(path, volume_input()).channels, by_nibabel(path)[0])


def test_the_stored_order_and_an_orientation_of_ones_own(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", "flipped")
    image = nib.load(path)
    stored = read_volume(path, volume_input("nibabel-stored"))
    assert np.array_equal(stored.channels[0], image.get_fdata())
    assert list(stored.spacing) == [float(z) for z in image.header.get_zooms()]
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("IPL"))
    )
    assert nib.aff2axcodes(turned.affine) == ("I", "P", "L")
    volume = read_volume(path, volume_input("nibabel-stored", orientation="IPL"))
    assert np.array_equal(volume.channels[0], turned.get_fdata())
    assert list(volume.spacing) == [float(z) for z in turned.header.get_zooms()]


def test_the_spacing_of_the_reference_cases(shared: Path) -> None:
    cases = sorted((shared / "reference").glob("nnunet_v*.json"))
    seen = set()
    for case in cases:
        about = json.loads(case.read_text())
        readers = {
            "NibabelIO": "nibabel", "NibabelIOWithReorient": "nibabel-reorient", "SimpleITKIO": "simpleitk",
            "NaturalImage2DIO": "image-2d", None: "simpleitk",
        }  # fmt: skip
        reader = readers[about.get("plans", {}).get("image_reader_writer")]
        files = [shared.parent / name for name in about["inputs"]]
        if reader == "image-2d":
            spec = volume_input(reader, 3, file_ending=".png", channel_files="one-file")
        else:
            spec = volume_input(reader, len(files))
        volume = read_volume(files, spec)
        properties = about["properties"]
        assert list(volume.spacing) == list(properties.get("spacing") or properties["original_spacing"]), case.name
        if "original_size_of_raw_data" in properties:
            assert list(volume.shape) == properties["original_size_of_raw_data"]
        assert volume.name == files[0].name.removesuffix(".nii.gz").removesuffix(".png").removesuffix("_0000")
        seen.add(reader)
    assert seen == {"nibabel", "nibabel-reorient", "simpleitk", "image-2d"}


def test_real_scans(shared: Path, tmp_path: Path) -> None:
    """Oblique, flipped, anisotropic and plain: as the libraries read them, and every voxel back to its place."""
    pytest.importorskip("SimpleITK")
    scans = [
        *sorted((shared / "data/ct").glob("*.nii.gz")),
        *sorted((shared / "reference/nnunet_inputs").glob("*.nii.gz")),
    ]
    assert len(scans) >= 10
    for path in scans:
        given = nib.load(path)
        for reader, (array, spacing) in {
            "nibabel": by_nibabel(path),
            "nibabel-reorient": by_nibabel_reoriented(path),
            "simpleitk": by_simpleitk(path),
            "simpleitk-reorient": by_simpleitk(path, "RAS"),
        }.items():
            volume = read_volume(path, volume_input(reader))
            assert np.array_equal(volume.channels, array), (path.name, reader)
            assert list(volume.spacing) == spacing, (path.name, reader)
            labels = (volume.channels[0] > volume.channels.mean()).astype(np.uint8)
            write_labels(written := tmp_path / "labels.nii.gz", labels, volume)
            again = nib.load(written)
            mean = np.float32(volume.channels.mean())
            assert np.array_equal(np.asarray(again.dataobj), np.float32(given.get_fdata()) > mean), (path.name, reader)
            assert np.array_equal(again.affine, given.affine)


# ------------------------------------------------------------------------------------ channels of a case


def test_channels_lie_on_one_grid(tmp_path: Path) -> None:
    first, second = (write_nifti(tmp_path / f"case_000{k}.nii.gz", "oblique", seed=k) for k in range(2))
    volume = read_volume([first, second], volume_input(channels=2))
    assert volume.channels.shape == (2, 4, 5, 6)
    assert volume.name == "case"
    assert volume.notes == ()
    for k, path in enumerate((first, second)):
        assert np.array_equal(volume.channels[k : k + 1], by_nibabel(path)[0])
    elsewhere = affine("oblique")
    elsewhere[0, 3] += 1
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), elsewhere), moved := tmp_path / "moved.nii.gz")
    assert "first one's place is kept" in read_volume([first, moved], volume_input(channels=2)).notes[0]
    other = write_nifti(tmp_path / "other.nii.gz", "oblique", shape=(6, 5, 3))
    with pytest.raises(
        InputError, match=r"other\.nii\.gz has \(3, 5, 6\) voxels .* case_0000\.nii\.gz has \(4, 5, 6\)"
    ):
        read_volume([first, other], volume_input(channels=2))
    coarse = write_nifti(tmp_path / "coarse.nii.gz", "anisotropic")
    with pytest.raises(InputError, match=r"5\.0, 0\.8, 0\.8.* one grid"):
        read_volume([first, coarse], volume_input(channels=2))


def test_arrays_need_their_spacing(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    volume = read_volume((array, (5, 1, 0.5)), volume_input(), name="mine")
    assert volume.channels.shape == (1, 2, 3, 4)
    assert volume.spacing == (5.0, 1.0, 0.5)
    assert volume.name == "mine"
    (written := tmp_path / "a.nii.gz").write_bytes(label_bytes(labels_for(volume), volume, ".nii.gz"))
    again = nib.load(written)
    assert np.array_equal(np.asarray(again.dataobj).T, array)
    assert again.header.get_zooms() == (0.5, 1.0, 5.0)
    for wrong in ((array, 3), (array, (1, 2)), (np.zeros((2, 2)), (1, 1, 1)), (array.astype(complex), (1, 1, 1))):
        with pytest.raises(InputError):
            read_volume(wrong, volume_input())
    for wrong in (7, [], [3], {"a": 1}):
        with pytest.raises(InputError, match="give a file, a list of files"):
            read_volume(wrong, volume_input())


# ----------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("reader", ["nibabel", "nibabel-reorient", "nibabel-stored", "simpleitk", "simpleitk-reorient"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_come_back_to_their_own_voxels_under_their_own_header(
    tmp_path: Path, kind: str, reader: str, dtype: type
) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", kind, slope=(2.0, 1.0))
    volume = read_volume(path, volume_input(reader))
    (written := tmp_path / "labels.nii.gz").write_bytes(label_bytes(labels_for(volume, dtype), volume, ".nii.gz"))
    before, after = nib.load(path), nib.load(written)
    assert after.get_data_dtype() == dtype
    assert np.array_equal(np.asarray(after.dataobj), before.get_fdata())
    assert np.array_equal(after.affine, before.affine)
    for field in before.header.structarr.dtype.names:
        if field not in HEADER_OF_LABELS:
            assert before.header.structarr[field].tobytes() == after.header.structarr[field].tobytes(), field


def test_big_endian_files_stay_so(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (4, 5, 6)).astype(">i2")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(values, affine("oblique"), header), path := tmp_path / "a.nii.gz")
    volume = read_volume(path, volume_input())
    assert np.array_equal(volume.channels[0].T, values)
    (written := tmp_path / "labels.nii.gz").write_bytes(label_bytes(labels_for(volume, np.uint16), volume, ".nii.gz"))
    after = nib.load(written)
    assert after.header.endianness == ">"
    assert np.array_equal(np.asarray(after.dataobj), values)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 1), (6, 5, 4, 3)])
def test_labels_of_files_with_other_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", shape=shape)
    volume = read_volume(path, volume_input("simpleitk"))
    (written := tmp_path / "labels.nii.gz").write_bytes(label_bytes(labels_for(volume), volume, ".nii.gz"))
    values = np.asarray(nib.load(written).dataobj)
    assert values.shape == shape[:3]
    wanted = nib.load(path).get_fdata()
    assert np.array_equal(values, wanted if len(shape) == 2 else wanted[..., 0])


def test_simpleitk_sees_labels_where_the_case_is(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    for kind in AFFINES:
        path = write_nifti(tmp_path / f"{kind}.nii.gz", kind)
        case = itk.ReadImage(str(path))
        for reader in ("simpleitk", "simpleitk-reorient"):
            volume = read_volume(path, volume_input(reader))
            for ending in (".nii.gz", ".nrrd", ".mha"):
                written = tmp_path / f"labels_{kind}{ending}"
                assert write_labels(written, labels_for(volume), volume) == [written]
                labels = itk.ReadImage(str(written))
                assert labels.GetSpacing() == pytest.approx(case.GetSpacing(), abs=1e-6)
                assert labels.GetOrigin() == pytest.approx(case.GetOrigin(), abs=1e-5)
                assert labels.GetDirection() == pytest.approx(case.GetDirection(), abs=1e-6)
                assert np.array_equal(itk.GetArrayFromImage(labels), itk.GetArrayFromImage(case))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("reader", ["simpleitk", "simpleitk-reorient"])
def test_files_that_only_simpleitk_reads(tmp_path: Path, ending: str, reader: str) -> None:
    itk = pytest.importorskip("SimpleITK")
    image = itk.ReadImage(str(write_nifti(tmp_path / "a.nii.gz", "flipped")))
    itk.WriteImage(image, str(path := tmp_path / f"a{ending}"), True)
    volume = read_volume(path, volume_input(reader, file_ending=ending))
    array, spacing = by_simpleitk(path, "RAS" if reader in REORIENTED else None)
    assert np.array_equal(volume.channels, array)
    assert list(volume.spacing) == spacing
    for written in (tmp_path / f"labels{ending}", tmp_path / "labels.nii.gz"):
        write_labels(written, labels_for(volume), volume)
        again = itk.ReadImage(str(written))
        assert np.array_equal(itk.GetArrayFromImage(again), itk.GetArrayFromImage(image))
        assert again.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-6)
        assert again.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-5)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_volume(path, volume_input(reader, file_ending=ending))
    with pytest.raises(InputError, match="120 voxels, the limit is 100"):
        read_volume(written, volume_input(reader), Limits(max_pixels=100))


def test_equal_labels_are_equal_files(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", "oblique"), volume_input())
    assert label_bytes(labels_for(volume), volume, ".nii.gz") == label_bytes(labels_for(volume), volume, ".nii.gz")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz"), volume_input())
    with pytest.raises(OutputError, match=r"shape \(4, 5, 5\), the case \(4, 5, 6\)"):
        label_bytes(labels_for(volume)[..., :5], volume, ".nii.gz")
    with pytest.raises(OutputError, match="uint8 or uint16, not int64"):
        label_bytes(labels_for(volume, np.int64), volume, ".nii.gz")
    with pytest.raises(OutputError, match="4 slices"):
        label_bytes(labels_for(volume), volume, ".png")
    with pytest.raises(UsageError, match=r"not written as '\.dcm'"):
        label_bytes(labels_for(volume), volume, ".dcm")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz"), volume_input())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_labels(tmp_path / "file" / "labels.nii.gz", labels_for(volume), volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "file"]


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    reader=st.sampled_from(["nibabel", "nibabel-reorient", "simpleitk-reorient", "nibabel-stored"]),
)
def test_any_of_the_48_orientations_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    signs: tuple[int, ...],
    shape: tuple[int, ...],
    reader: str,
) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) * signs)[order] * [1.0, 2.0, 3.0]
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path_factory.mktemp("any") / "a.nii.gz"
    nib.save(nib.Nifti1Image(values, matrix), path)
    orientation = "IPL" if reader == "nibabel-stored" else None
    volume = read_volume(path, volume_input(reader, orientation=orientation))
    if reader == "nibabel-reorient":
        assert np.array_equal(volume.channels, by_nibabel_reoriented(path)[0])
    written = path.with_name("labels.nii.gz")
    write_labels(written, labels_for(volume), volume)
    assert np.array_equal(np.asarray(nib.load(written).dataobj), values)


# --------------------------------------------------------------------------------------- pictures and TIFF


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        *((".png", kind) for kind in ("grey", "grey16", "rgb", "rgba", "palette")),
        *((".tif", kind) for kind in ("grey", "grey16", "rgb", "rgba")),
        *((".bmp", kind) for kind in ("grey", "rgb")),
    ],
)
def test_pictures_as_scikit_image_reads_them(tmp_path: Path, kind: str, ending: str) -> None:
    skimage = pytest.importorskip("skimage.io")
    pil = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    path = tmp_path / f"case_0000{ending}"
    channels = {"rgb": 3, "rgba": 4}.get(kind)
    shape = (7, 9) if channels is None else (7, 9, channels)
    picture = pil.fromarray(random.integers(0, 60000 if kind == "grey16" else 255, shape).astype(
        np.uint16 if kind == "grey16" else np.uint8))  # fmt: skip
    if kind == "palette":
        picture = pil.fromarray(random.integers(0, 255, (7, 9, 3), dtype=np.uint8)).quantize(16)
    picture.save(path)
    wanted = skimage.imread(path)
    volume = read_volume(path, volume_input("image-2d", channels or 1, file_ending=ending, channel_files="one-file"))
    assert np.array_equal(volume.channels[:, 0], wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1))
    assert volume.spacing == (999.0, 1.0, 1.0)
    assert volume.name == "case"


@pytest.mark.parametrize(
    ("ending", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".bmp", np.uint8), (".tif", np.uint16)]
)
def test_labels_of_a_picture(tmp_path: Path, ending: str, dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 200, (7, 9), dtype=np.uint8)
    cv2.imwrite(str(path := tmp_path / "case_0000.png"), values)
    volume = read_volume(path, volume_input("image-2d", file_ending=".png", channel_files="one-file"))
    assert write_labels(tmp_path / f"case{ending}", labels_for(volume, dtype), volume) == [tmp_path / f"case{ending}"]
    again = cv2.imread(str(tmp_path / f"case{ending}"), cv2.IMREAD_UNCHANGED)
    assert again.dtype == dtype
    assert np.array_equal(again, values)


def test_pictures_that_are_no_pictures(tmp_path: Path) -> None:
    spec = volume_input("image-2d", file_ending=".png", channel_files="one-file")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    with pytest.raises(InputError, match="cut short"):
        read_volume(tmp_path / "a.png", spec)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((20, 30), np.uint8))
    with pytest.raises(InputError, match="600 pixels, the limit is 500"):
        read_volume(tmp_path / "b.png", spec, Limits(max_pixels=500))


def test_tiff_of_three_axes_with_its_spacing_beside_it(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 250, (3, 4, 5), dtype=np.uint8)
    tifffile.imwrite(path := tmp_path / "case_0000.tif", values, photometric="minisblack")
    spec = volume_input("tiff-3d", file_ending=".tif")
    bare = read_volume(path, spec)
    assert bare.spacing == (1.0, 1.0, 1.0)
    assert bare.notes == ("no case.json with its spacing; 1 mm is assumed",)
    (tmp_path / "case.json").write_text('{"spacing": [2.5, 0.5, 0.25]}')
    volume = read_volume(path, spec)
    assert np.array_equal(volume.channels[0], values)
    assert volume.spacing == (2.5, 0.5, 0.25)
    out = tmp_path / "out"
    assert write_labels(out / "case.tif", values, volume) == [out / "case.tif", out / "case.json"]
    assert np.array_equal(tifffile.imread(out / "case.tif"), values)
    assert json.loads((out / "case.json").read_text()) == {"spacing": [2.5, 0.5, 0.25]}
    with pytest.raises(InputError, match="the limit is 20"):
        read_volume(path, spec, Limits(max_pixels=20))
    (tmp_path / "case.json").write_text('{"spacing": 3}')
    with pytest.raises(InputError, match=r"case\.json does not hold"):
        read_volume(path, spec)
    tifffile.imwrite(tmp_path / "flat_0000.tif", values[0])
    with pytest.raises(InputError, match="2 axes"):
        read_volume(tmp_path / "flat_0000.tif", spec)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError):
        read_volume(path, spec)


# ------------------------------------------------------------------------------------------------ the rest


def test_labels_are_read_by_the_same_rules(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", "flipped")
    labels = read_labels(path, volume_input("nibabel-reorient"))
    assert labels.dtype == np.int32
    assert np.array_equal(labels, by_nibabel_reoriented(path)[0][0])
    broken = write_nifti(tmp_path / "b.nii.gz", slope=(0.5, 0.0))
    with pytest.raises(InputError, match=r"b\.nii\.gz does not hold whole numbers"):
        read_labels(broken, volume_input())


def test_the_golden_sample_is_an_array(tmp_path: Path) -> None:
    channels = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    np.savez(tmp_path / "a.npz", channels=channels, spacing=[3.0, 2.0, 1.0])
    volume, previous = sample_volume((tmp_path / "a.npz").read_bytes())
    assert np.array_equal(volume.channels, channels)
    assert volume.spacing == (3.0, 2.0, 1.0)
    assert previous is None
    np.savez(tmp_path / "b.npz", channels=channels, spacing=[3.0, 2.0, 1.0], previous=channels[0].astype(np.uint8))
    again = sample_volume((tmp_path / "b.npz").read_bytes())[1]
    assert again is not None
    assert np.array_equal(again, channels[0])
    with pytest.raises(InputError, match="sample cannot be read"):
        sample_volume(b"no archive")


def test_limits_for_pictures_are_not_those_for_volumes(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz")
    assert read_volume(path, volume_input(), DEFAULT_LIMITS).shape == (4, 5, 6)
    with pytest.raises(InputError, match=r"a\.nii\.gz has 120 voxels, the limit is 100"):
        read_volume(path, volume_input(), Limits(max_pixels=100))
    with pytest.raises(InputError, match="bytes, the limit is 50"):
        read_volume(path, volume_input(), Limits(max_bytes=50))


@pytest.mark.parametrize(
    ("reader", "name", "message"),
    [
        ("nibabel", "a.nrrd", r"does not end in \.nii, \.nii\.gz"),
        ("simpleitk", "a.txt", r"does not end in \.nii, \.nii\.gz, \.nrrd"),
        ("nibabel", "missing.nii.gz", "cannot be read: No such file"),
        ("simpleitk", "missing.nrrd", "cannot be read: No such file"),
    ],
)
def test_files_that_are_not_for_this_reader(tmp_path: Path, reader: str, name: str, message: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"something")
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / name, volume_input(reader))


@pytest.mark.parametrize(
    ("reader", "shape"),
    [("nibabel", (6, 5)), ("nibabel", (3, 3, 3, 2)), ("simpleitk", (2, 2, 2, 2, 2)), ("simpleitk-reorient", (6, 5))],
)
def test_numbers_of_axes_that_a_reader_refuses(tmp_path: Path, reader: str, shape: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", shape=shape)
    with pytest.raises(InputError, match=r"a\.nii\.gz has (two|\d) axes"):
        read_volume(path, volume_input(reader))


def test_a_sheared_grid_is_read_and_said(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[0, 1] = 0.3
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), matrix), path := tmp_path / "a.nii.gz")
    assert "right angles" in read_volume(path, volume_input("simpleitk")).notes[0]
    assert read_volume(path, volume_input("nibabel")).notes == ()
