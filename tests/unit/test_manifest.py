from __future__ import annotations

import json
from pathlib import Path

import pytest
from packages import manifest_data

from segship.errors import PackageError, PackageTooNew
from segship.manifest import Manifest, dump_manifest, manifest_json_schema, parse_manifest


def test_dumped_manifest_parses_to_the_same_and_dumps_to_the_same_bytes():
    manifest = Manifest.model_validate(manifest_data())
    data = dump_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert dump_manifest(parse_manifest(data)) == data


@pytest.mark.parametrize(
    "path", [(), ("input",), ("network",), ("decode",), ("decode", "decision"), ("metric",), ("preprocess", 0)]
)
def test_unknown_key_is_refused_at_every_level(path):
    data = manifest_data()
    place = data
    for part in path:
        place = place[part]
    place["surprise"] = 1
    with pytest.raises(PackageError, match="surprise"):
        parse_manifest(json.dumps(data))


@pytest.mark.parametrize("missing", ["channel_order", "reader", "exif_rotation"])
def test_what_changes_an_answer_has_no_default(missing):
    data = manifest_data()
    del data["input"][missing]
    with pytest.raises(PackageError, match=missing):
        parse_manifest(json.dumps(data))


def test_a_later_version_says_update():
    with pytest.raises(PackageTooNew, match="pip install -U segship"):
        parse_manifest(json.dumps(manifest_data(manifest_version=2)))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_one_line(text):
    with pytest.raises(PackageError) as caught:
        parse_manifest(text)
    assert "\n" not in str(caught.value)


def test_two_variants_of_one_precision_are_refused():
    data = manifest_data()
    data["variants"] *= 2
    with pytest.raises(PackageError, match="same precision"):
        parse_manifest(json.dumps(data))


def test_fp32_must_be_there():
    data = manifest_data()
    data["variants"][0]["precision"] = "int8"
    with pytest.raises(PackageError, match="fp32"):
        parse_manifest(json.dumps(data))


def test_path_that_leaves_the_package_is_refused():
    for name in ("../x.onnx", "/x.onnx", "graphs/../../x", "graphs//x", ".hidden"):
        data = manifest_data()
        data["variants"][0]["graphs"]["model"] = name
        with pytest.raises(PackageError):
            parse_manifest(json.dumps(data))


def test_other_worlds_fit_version_1():
    """What cascades, regions, sliding windows and saliency need is in version 1 already."""
    volume = manifest_data(
        input={
            "kind": "volume",
            "reader": "simpleitk",
            "channels": [{"name": "CT"}],
            "file_ending": ".nii.gz",
            "channel_files": "suffix-0000",
        },
        preprocess=[
            {"step": "transpose", "axes": [0, 1, 2]},
            {"step": "crop_to_nonzero", "fill_holes": True},
            {"step": "clip", "low": -79, "high": 304, "channel": 0},
            {
                "step": "zscore",
                "channel": 0,
                "mean": 101.0,
                "std": 76.9,
                "epsilon": 1e-8,
                "epsilon_rule": "maximum",
                "mask": "none",
            },
            {
                "step": "resample",
                "spacing_mm_zyx": [1.6, 1.2, 1.2],
                "shape_rule": "round-half-even",
                "method": "skimage:edge",
                "order": 3,
                "order_z": 0,
                "separate_z": "auto",
                "anisotropy_threshold": 3.0,
            },
            {"step": "previous_stage_channels", "labels": [1, 2], "crop": True},
        ],
        network={
            **manifest_data()["network"],
            "layout": "NCDHW",
            "input_channels": 3,
            "size": [128, 128, 128],
            "size_multiple": [32, 32, 32],
            "outputs": [{"name": "y", "channels": 3, "values": "logits"}],
        },
        tiling={
            "window": [128, 128, 128],
            "step": [64, 64, 64],
            "positions": "even-spread",
            "weighting": "gaussian",
            "gaussian_sigma_scale": 0.125,
            "pad_mode": "constant",
            "mirror_axes": [0, 1, 2],
            "average": "logits",
        },
        decode={
            "activation": "sigmoid",
            "decision": {"rule": "regions", "threshold": 0.5, "order": [1, 2, 3]},
            "restore_what": "logits",
            "restore_method": "skimage:edge",
        },
        postprocess=[
            {"rule": "keep_largest", "labels": [1], "joint": False, "minimum_mm3": 10.0, "connectivity": "face"}
        ],
        previous_stage={"file": "lowres.segship"},
    )
    parse_manifest(json.dumps(volume))
    saliency = manifest_data()
    saliency["decode"] = {
        "activation": "none",
        "decision": {"rule": "saliency", "min_max": True, "polarity": "inverted", "to_uint8": "truncate"},
        "restore_what": "decision",
        "restore_method": "pillow:bilinear",
    }
    parse_manifest(json.dumps(saliency))


def test_schema_in_docs_is_the_code_s():
    written = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
    assert json.loads(written.read_text()) == manifest_json_schema(), "run `make docs` to write it again"
