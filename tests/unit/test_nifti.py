"""NIfTI files that are damaged, cut short, or not what they say."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_files import volume_input, write_nifti

from segship.errors import InputError
from segship.inference.images import Limits
from segship.inference.nifti import read_nifti
from segship.inference.volumes import read_volume

LIMITS = Limits()


def plain(tmp_path: Path) -> bytes:
    return write_nifti(tmp_path / "a.nii", "oblique").read_bytes()


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = plain(tmp_path)
    packed = gzip.compress(whole)
    for data, step in ((whole, 7), (packed, 5)):
        for end in range(0, len(data), step):
            with pytest.raises(InputError, match=r"a\.nii"):
                read_nifti(data[:end], LIMITS, "a.nii")
    assert read_nifti(whole, LIMITS, "a.nii")[1].shape == (6, 5, 4)


def test_a_voxel_that_changed_fails_the_check_sum(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(plain(tmp_path), compresslevel=0))
    packed[-20] ^= 1
    with pytest.raises(InputError, match=r"cannot be unpacked .* copy or download"):
        read_nifti(bytes(packed), LIMITS, "a.nii.gz")


def test_a_header_that_declares_more_than_there_is(tmp_path: Path) -> None:
    whole = bytearray(plain(tmp_path))
    whole[40:56] = struct.pack("<8h", 3, 600, 500, 400, 1, 1, 1, 1)
    for data in (bytes(whole), gzip.compress(bytes(whole))):
        with pytest.raises(InputError, match=r"declares (240,000,352|240,000,000) bytes"):
            read_nifti(data, LIMITS, "a.nii.gz")
    whole[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    with pytest.raises(InputError, match=r"27,000,000,000,000 voxels, the limit is 250,000,000"):
        read_nifti(gzip.compress(bytes(whole)), LIMITS, "a.nii.gz")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a small volume: refused after 64 MiB, which are never kept."""
    parts = [gzip.compress(plain(tmp_path))]
    block = gzip.compress(bytes(1 << 26))
    parts += [block] * 16
    bomb = b"".join(parts)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="far more than its header declares"):
            read_nifti(bomb, LIMITS, "a.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_what_follows_the_voxels_is_left_alone(tmp_path: Path) -> None:
    whole = plain(tmp_path)
    for data in (whole + bytes(1000), gzip.compress(whole + bytes(1000))):
        assert np.array_equal(read_nifti(data, LIMITS, "a")[1], read_nifti(whole, LIMITS, "a")[1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("datatype", 128, "colours"),
        ("datatype", 32, "complex"),
        ("datatype", 9999, "damaged NIfTI header"),
        ("magic", b"ni1\0", "another file"),
        ("scl_inter", np.inf, "damaged NIfTI header"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    header = nib.Nifti1Header(plain(tmp_path)[:348], check=False)
    header.structarr["scl_slope"] = 1
    header.structarr[field] = value
    if field == "datatype":
        header.structarr["bitpix"] = {128: 24, 32: 64}.get(value, 16)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=message):
        read_nifti(bytes(header.binaryblock) + bytes(4000), LIMITS, "a.nii")


def test_other_files_are_not_taken_for_nifti(tmp_path: Path) -> None:
    for content in (b"", b"\x89PNG\r\n\x1a\n" + bytes(600), b"\x1f\x8b\x08\x00 garbage", b"text\n" * 200):
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.nii\.gz"):
            read_volume(tmp_path / "a.nii.gz", volume_input())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 351), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_never_a_crash(tmp_path: Path, where: int, value: int) -> None:
    data = bytearray(plain(tmp_path))
    data[where] = value
    message = "a.nii"
    try:
        header, array = read_nifti(bytes(data), LIMITS, "a.nii")
        assert array.shape == header.shape
    except InputError as error:
        message = str(error)
    assert "a.nii" in message
    assert "\n" not in message
