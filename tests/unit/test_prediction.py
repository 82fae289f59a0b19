"""Logits to masks, labels and files: every decision rule, both grids, every writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import manifest_data
from PIL import Image as Pil

from segship.errors import EngineError, OutputError, PackageError, UsageError
from segship.inference.decode import argmax, sigmoid, softmax
from segship.inference.images import Image
from segship.inference.prediction import Prediction, decode
from segship.inference.preprocess import Frame, Geometry
from segship.manifest import Manifest

RNG = np.random.default_rng(11)
LABELS = [
    {"id": 0, "name": "background", "color": [0, 0, 0]},
    {"id": 1, "name": "road", "color": [128, 64, 128]},
    {"id": 7, "name": "car", "color": [0, 0, 142]},
]


def frame(small: tuple[int, int] = (8, 8), original: tuple[int, int] = (20, 30)) -> Frame:
    moved = Geometry(kind="resize", before_hw=original, after_hw=small)
    geometry = () if small == original else (moved,)
    return Frame(name="cell", original_hw=original, prepared_hw=small, geometry=geometry)


def manifest(
    rule: dict[str, Any],
    *,
    channels: int = 1,
    labels: list[dict[str, Any]] | None = None,
    postprocess: tuple[dict[str, Any], ...] = (),
    **decode_changes: Any,
) -> Manifest:
    data = manifest_data(postprocess=list(postprocess))
    data["network"]["outputs"] = [{"name": "y", "channels": channels, "values": "logits"}]
    data["decode"] |= {"decision": rule, **decode_changes}
    if labels is not None:
        data["labels"] = labels
    return Manifest.model_validate(data)


THRESHOLD = {"rule": "threshold", "threshold": 0.5}
NUCLEI = manifest(THRESHOLD)
TWO = manifest(THRESHOLD, channels=2, labels=LABELS)
STREET = manifest({"rule": "argmax"}, channels=3, labels=LABELS, activation="softmax", restore_what="logits")


def predict(raw: np.ndarray, recipe: Manifest, grid: Any = "input", **options: Any) -> Prediction:
    original = options.pop("original", (20, 30))
    return decode([raw.astype(np.float32)], frame(raw.shape[1:], original), recipe, grid=grid, **options)


# ------------------------------------------------------------------------------------------- activations


def test_sigmoid_is_stable_and_exact() -> None:
    x = np.array([-1e4, -100, -88.8, -1, 0, 1, 88.8, 100, 1e4, np.finfo(np.float32).max], np.float32)
    with np.errstate(all="raise", under="ignore"):
        y = sigmoid(x)
    assert y.dtype == np.float32
    assert np.abs(y - 1 / (1 + np.exp(-x.clip(-500, 500).astype(np.float64)))).max() < 1e-7
    assert y[4] == 0.5


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=8))
def test_activations_stay_in_range_and_keep_order(values: list[float]) -> None:
    x = np.array(values, np.float32)
    with np.errstate(under="ignore"):
        y, p = sigmoid(x), softmax(x[:, None, None])[:, 0, 0]
    assert ((y >= 0) & (y <= 1)).all()
    assert (np.diff(y[np.argsort(x)]) >= 0).all()
    assert abs(p.sum() - 1) < 1e-5
    clear = np.abs(x) > 1e-6
    assert ((y > 0.5) == (x > 0))[clear].all()


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 99))
def test_argmax_is_numpys_with_the_first_maximum(k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, (k, 7, 5)).astype(np.float32)
    assert (argmax(scores) == scores.argmax(axis=0)).all()


def test_argmax_of_many_classes_is_16_bit() -> None:
    scores = np.zeros((300, 2, 2), np.float32)
    scores[299] = 1
    assert argmax(scores).dtype == np.uint16
    assert (argmax(scores) == 299).all()


# --------------------------------------------------------------------------------------------- threshold


def test_probabilities_travel_back_before_the_decision() -> None:
    raw = RNG.normal(size=(1, 8, 8)).astype(np.float32) * 4
    found = predict(raw, NUCLEI)
    expected = cv2.resize(sigmoid(raw)[0], (30, 20), interpolation=cv2.INTER_LINEAR)
    assert found.size_hw == (20, 30)
    assert (found.probabilities[0] == expected).all()
    assert (found.masks[0] == (expected > 0.5)).all()
    assert found.masks.dtype == np.bool_
    assert found.labels.dtype == np.uint8
    assert (found.labels == found.masks[0]).all()
    assert (found.logits == raw).all()


def test_network_grid() -> None:
    raw = RNG.normal(size=(1, 8, 8)).astype(np.float32)
    found = predict(raw, NUCLEI, grid="network")
    assert found.size_hw == (8, 8)
    assert (found.masks == (raw > 0)).all()
    assert repr(found) == f"Prediction({found.name!r}, 8x8, {len(NUCLEI.labels)} labels, grid='network')", "no pixels"
    assert found.on_grid("network") is found
    assert found.on_grid("input").masks.shape == (1, 20, 30)
    for call in (lambda: found.on_grid("world"), lambda: predict(raw, NUCLEI, grid="world")):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="input, network"):
            call()


def test_exactly_half_is_not_above() -> None:
    assert not predict(np.zeros((1, 8, 8)), NUCLEI, original=(8, 8)).masks.any()


def test_where_the_answer_travels_changes_it() -> None:
    raw = np.full((1, 8, 8), -9.0)
    raw[0, 4, 4] = 2.0
    masks = {}
    for what in ("logits", "probabilities", "decision"):
        recipe = manifest(THRESHOLD, restore_what=what)
        masks[what] = int(predict(raw, recipe).masks.sum())
        assert (predict(raw, recipe, grid="network").masks == (raw > 0)).all()
    assert masks["logits"] < masks["probabilities"] < masks["decision"]


def test_overlapping_classes_keep_their_masks() -> None:
    raw = np.full((2, 8, 8), -5.0)
    raw[0, :5] = 5
    raw[1, 3:] = 5
    found = predict(raw, TWO, original=(8, 8))
    assert found.masks.sum(axis=0).max() == 2
    assert [label.name for label in found.classes] == ["road", "car"]
    assert np.unique(found.labels).tolist() == [1, 7]
    assert (found.labels[3:5] == 7).all()


def test_an_ensemble_that_averaged_probabilities_is_not_activated_twice() -> None:
    p = RNG.random((1, 8, 8), dtype=np.float32)
    found = predict(p, NUCLEI, original=(8, 8), activated=True)
    assert (found.probabilities == p).all()
    with pytest.raises(UsageError, match="probabilities, not logits"):
        _ = found.logits


# ------------------------------------------------------------------------------------- argmax and regions


def test_argmax_of_enlarged_logits() -> None:
    raw = RNG.normal(size=(3, 8, 8)).astype(np.float32)
    found = predict(raw, STREET)
    large = np.stack([cv2.resize(plane, (30, 20), interpolation=cv2.INTER_LINEAR) for plane in raw])
    ids = np.array([0, 1, 7])[large.argmax(axis=0)]
    assert (found.labels == ids).all()
    assert found.masks.shape == (3, 20, 30)
    assert (found.masks.sum(axis=0) == 1).all()
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert (found.probabilities.argmax(axis=0) == large.argmax(axis=0)).mean() > 0.999
    assert (predict(raw, STREET, grid="network").labels == np.array([0, 1, 7])[raw.argmax(axis=0)]).all()


def test_argmax_of_enlarged_probabilities_and_of_decisions() -> None:
    raw = RNG.normal(size=(3, 8, 8)).astype(np.float32)
    rule = {"rule": "argmax"}
    soft = manifest(rule, channels=3, labels=LABELS, activation="softmax", restore_what="probabilities")
    large = np.stack([cv2.resize(p, (30, 20)) for p in softmax(raw)])
    assert (predict(raw, soft).labels == np.array([0, 1, 7])[large.argmax(axis=0)]).all()
    hard = manifest(
        rule, channels=3, labels=LABELS, activation="softmax", restore_what="decision", restore_method="opencv:nearest"
    )
    small = raw.argmax(axis=0).astype(np.uint8)
    expected = cv2.resize(small, (30, 20), interpolation=cv2.INTER_NEAREST)
    assert (predict(raw, hard).labels == np.array([0, 1, 7])[expected]).all()
    wrong = manifest(rule, channels=3, labels=LABELS, activation="softmax", restore_what="decision")
    with pytest.raises(PackageError, match="only nearest"):
        _ = predict(raw, wrong).labels


def test_regions_are_written_in_order() -> None:
    raw = np.full((2, 8, 8), -5.0)
    raw[0, :6] = 5
    raw[1, 2:4] = 5
    rule = {"rule": "regions", "threshold": 0.5, "order": [2, 1]}
    labels = [{"id": 1, "name": "whole", "color": [1, 1, 1]}, {"id": 2, "name": "core", "color": [2, 2, 2]}]
    found = predict(raw, manifest(rule, channels=2, labels=labels), original=(8, 8))
    assert found.labels[:, 0].tolist() == [2, 2, 1, 1, 2, 2, 0, 0]
    assert found.masks.shape == (2, 8, 8)
    assert found.decoded is found.labels


# ---------------------------------------------------------------------------------------------- saliency


def saliency(**changes: Any) -> Manifest:
    rule = {"rule": "saliency", "min_max": True, "polarity": "as-is", "to_uint8": "truncate"} | changes
    return manifest(rule, activation="none", restore_what="decision", restore_method="pillow:bilinear")


def test_saliency_is_a_map() -> None:
    raw = RNG.random((1, 8, 8)) * 0.5 + 0.2
    found = predict(raw, saliency())
    assert found.saliency.shape == (20, 30)
    assert found.saliency.dtype == np.uint8
    assert found.probabilities.shape == (1, 20, 30)
    small = predict(raw, saliency(), grid="network").saliency
    assert (small.min(), small.max()) == (0, 255)
    values = raw[0].astype(np.float32)
    expected = ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
    assert (small == expected).all()
    enlarged = np.asarray(Pil.fromarray(expected).resize((30, 20), Pil.Resampling.BILINEAR))
    assert (found.saliency == enlarged).all()
    with pytest.raises(UsageError, match="no threshold"):
        _ = found.labels
    with pytest.raises(UsageError, match="not a saliency map"):
        _ = predict(raw, NUCLEI).saliency


def test_saliency_options() -> None:
    raw = np.array([[[0.0, 0.25], [0.5, 1.0]]])
    at = {"original": (2, 2)}
    assert predict(raw, saliency(to_uint8="round"), **at).saliency.tolist() == [[0, 64], [128, 255]]
    assert predict(raw, saliency(polarity="inverted"), **at).saliency.tolist() == [[255, 191], [127, 0]]
    floats = predict(raw, saliency(to_uint8="none", min_max=False), **at).saliency
    assert floats.dtype == np.float32
    assert (floats == raw[0]).all()
    flat = predict(np.full((1, 2, 2), 0.7), saliency(), **at)
    assert (flat.saliency == 0).all()
    decided = predict(raw, saliency(threshold=0.4), **at)
    assert decided.labels.tolist() == [[0, 0], [1, 1]]
    assert decided.masks.tolist() == [[[False, False], [True, True]]]


# ------------------------------------------------------------------------------------------- what is refused


def test_wrong_channels_and_nan() -> None:
    with pytest.raises(PackageError, match="manifest says 1 channel"):
        predict(np.zeros((2, 8, 8)), NUCLEI)
    for bad in (np.nan, np.inf, -np.inf):
        raw = np.zeros((1, 8, 8))
        raw[0, 3, 3] = bad
        with pytest.raises(EngineError, match=r"cell.*--precision fp32"):
            predict(raw, NUCLEI)


def test_labels_that_do_not_match_the_channels() -> None:
    with pytest.raises(PackageError, match="3 labels for 5 output channels"):
        _ = predict(np.zeros((5, 8, 8)), manifest(THRESHOLD, channels=5, labels=LABELS)).classes


# ------------------------------------------------------------------------------------------ postprocessing


def test_postprocessing_rules_are_applied() -> None:
    raw = np.full((1, 8, 8), -5.0)
    raw[0, 1:5, 1:5] = 5
    raw[0, 7, 7] = 5
    rules = ({"rule": "remove_small", "minimum_pixels": 4, "connectivity": "face"},)
    found = predict(raw, manifest(THRESHOLD, postprocess=rules), original=(8, 8))
    assert found.masks.sum() == 16
    assert predict(raw, NUCLEI, original=(8, 8)).masks.sum() == 17
    kept = {"rule": "keep_largest", "labels": [1], "joint": False, "connectivity": "full"}
    both = np.concatenate([raw, raw])
    cleaned = predict(both, manifest(THRESHOLD, channels=2, labels=LABELS, postprocess=(kept,)), original=(8, 8))
    assert cleaned.masks.sum(axis=(1, 2)).tolist() == [16, 17]


def test_instances_are_numbered() -> None:
    raw = np.full((1, 8, 8), -5.0)
    raw[0, 0:2, 0:2] = 5
    raw[0, 2, 2] = 5  # touches by a corner only
    found = predict(raw, NUCLEI, original=(8, 8))
    assert found.instances().max() == 2
    assert found.instances("full").max() == 1
    assert found.instances().dtype == np.uint16
    assert predict(np.concatenate([raw, raw]), TWO, original=(8, 8)).instances().shape == (2, 8, 8)
    street = np.zeros((3, 8, 8))
    street[1, 0] = 1
    assert predict(street, STREET, original=(8, 8)).instances().shape == (2, 8, 8)


# ----------------------------------------------------------------------------------------------- files


def read_png(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_one_class_is_0_and_255(tmp_path: Path) -> None:
    found = predict(RNG.normal(size=(1, 8, 8)), NUCLEI)
    path = tmp_path / "deep" / "mask.png"
    assert found.save(path) == [path]
    assert (read_png(path) == found.masks[0] * 255).all()
    assert list(path.parent.iterdir()) == [path]


def test_several_classes_go_into_folders(tmp_path: Path) -> None:
    found = predict(RNG.normal(size=(2, 8, 8)), TWO)
    assert found.save(tmp_path / "m.png") == [tmp_path / "0/m.png", tmp_path / "1/m.png"]
    assert (read_png(tmp_path / "1/m.png") == found.masks[1] * 255).all()


def test_labels_and_palettes(tmp_path: Path) -> None:
    found = predict(RNG.normal(size=(3, 8, 8)), STREET)
    found.save(tmp_path / "ids.png")
    assert (read_png(tmp_path / "ids.png") == found.labels).all()
    found.save(tmp_path / "shown.png", palette=True)
    with Pil.open(tmp_path / "shown.png") as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == found.labels).all()
        shown = np.asarray(picture.convert("RGB"))
    assert (shown[found.labels == 7] == (0, 0, 142)).all()
    wide = manifest(THRESHOLD, labels=[{"id": 900, "name": "x", "color": [1, 2, 3]}])
    with pytest.raises(OutputError, match="255"):
        predict(np.ones((1, 8, 8)), wide).save(tmp_path / "wide.png", palette=True)
    assert predict(np.ones((1, 8, 8)), wide).labels.dtype == np.uint16


def test_npz_holds_everything(tmp_path: Path) -> None:
    found = predict(RNG.normal(size=(2, 8, 8)), TWO)
    found.save(tmp_path / "r.npz", probabilities=True)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["classes", "labels", "masks", "probabilities"]
        assert arrays["classes"].tolist() == ["road", "car"]
        assert (arrays["masks"] == found.masks).all()
        assert arrays["probabilities"].dtype == np.float32
    predict(RNG.random((1, 8, 8)), saliency()).save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["classes", "saliency"]


def test_saliency_files(tmp_path: Path) -> None:
    found = predict(RNG.random((1, 8, 8)), saliency())
    found.save(tmp_path / "s.png")
    assert (read_png(tmp_path / "s.png") == found.saliency).all()
    floats = predict(RNG.random((1, 8, 8)), saliency(to_uint8="none"), original=(8, 8))
    floats.save(tmp_path / "f.png")
    assert (read_png(tmp_path / "f.png") == np.rint(floats.saliency * 255)).all()


def test_lossy_suffixes_are_refused(tmp_path: Path) -> None:
    for name in ("m.jpg", "m", "m.txt"):
        with pytest.raises(OutputError, match="lossless"):
            predict(np.zeros((1, 8, 8)), NUCLEI).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = predict(np.ones((1, 8, 8)), NUCLEI)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        found.save(tmp_path / "file" / "m.png")
    found.save(tmp_path / "m.png")
    before = (tmp_path / "m.png").read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left on device.*-o"):
        predict(-np.ones((1, 8, 8)), NUCLEI).save(tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.png"]


def test_overlay_tints_the_picture() -> None:
    pixels = np.full((20, 30, 3), 100, np.uint8)
    image = Image(pixels=pixels, name="cell", channel_order="bgr")
    raw = np.full((1, 8, 8), -9.0)
    raw[0, 2:6, 2:6] = 9
    found = predict(raw, NUCLEI, image=image)
    shown = found.overlay()
    assert shown.shape == (20, 30, 3)
    assert (shown[0, 0] == 100).all()
    assert shown[10, 15, 0] > 100
    assert shown[10, 15, 2] < 100
    assert (pixels == 100).all()
    street = np.zeros((3, 8, 8))
    street[0] = 1
    assert (predict(street, STREET, image=image).overlay() == 100).all()
    with pytest.raises(UsageError, match="keep_images"):
        predict(raw, NUCLEI).overlay()
