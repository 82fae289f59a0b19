"""Logits back on the picture's grid, band by band, against torch's interpolation of whole arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segship.inference import bands
from segship.inference.bands import restored_bands, restored_stream
from segship.inference.decode import labels_on_grid
from segship.inference.preprocess import Frame, Geometry, restore
from segship.manifest import Argmax, Decode

METHODS = {"torch:bilinear": False, "torch:bilinear-align-corners": True}
sides = st.integers(1, 40)


def interpolate(x: np.ndarray, size: tuple[int, int], aligned: bool) -> np.ndarray:
    return functional.interpolate(torch.from_numpy(x.copy())[None], size=size, mode="bilinear", align_corners=aligned)[
        0
    ].numpy()


def framed(original: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int], mirror: bool) -> Frame:
    steps = [
        Geometry(kind="resize", before_hw=original, after_hw=resized),
        *([Geometry(kind="mirror", before_hw=resized, after_hw=resized)] if mirror else []),
        Geometry(kind="pad", before_hw=resized, after_hw=padded),
    ]
    kept = tuple(step for step in steps if step.before_hw != step.after_hw or step.kind == "mirror")
    return Frame(name="x", original_hw=original, prepared_hw=padded, geometry=kept)


def upstream(raw: np.ndarray, frame: Frame, resized: tuple[int, int], mirror: bool, aligned: bool) -> np.ndarray:
    """mmseg's order: to the network's input size, padding off, mirrored back, to the picture's size."""
    out = interpolate(raw, frame.prepared_hw, aligned)[:, : resized[0], : resized[1]]
    return interpolate(np.ascontiguousarray(out[:, :, ::-1] if mirror else out), frame.original_hw, aligned)


@settings(deadline=None, max_examples=60)
@given(
    original=st.tuples(sides, sides), resized=st.tuples(sides, sides), more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    stride=st.sampled_from([1, 4, 8, 16]), mirror=st.booleans(), method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 99), rows=st.sampled_from([1, 50, 1 << 15]),
)  # fmt: skip
def test_bands_are_mmsegs_two_interpolations(original, resized, more, stride, mirror, method, seed, rows) -> None:
    padded = (resized[0] + more[0], resized[1] + more[1])
    frame = framed(original, resized, padded, mirror)
    raw = (
        np.random.default_rng(seed)
        .normal(size=(3, -(-padded[0] // stride), -(-padded[1] // stride)))
        .astype(np.float32)
    )
    expected = upstream(raw, frame, resized, mirror, METHODS[method])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_PIXELS", rows)
        found = np.concatenate([part.copy() for _, part in restored_bands(raw, frame, method, "by-input-size")], axis=1)
        decode = Decode(
            activation="softmax",
            decision=Argmax(),
            restore_what="logits",
            restore_method=method,
            restore_path="by-input-size",
        )
        labels = labels_on_grid(raw, frame, decode)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(restore(raw, frame, method, "by-input-size"), expected, atol=2e-5)
    best = np.sort(expected, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert np.array_equal(labels[clear], expected.argmax(0)[clear])


@settings(deadline=None, max_examples=60)
@given(
    original=st.tuples(sides, sides), resized=st.tuples(sides, sides), more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    mirror=st.booleans(), method=st.sampled_from([*sorted(METHODS), "opencv:nearest"]), seed=st.integers(0, 99),
    rows=st.sampled_from([1, 50, 1 << 15]), cuts=st.sets(sides),
)  # fmt: skip
def test_planes_that_come_in_bands_give_the_same_bits(
    original, resized, more, mirror, method, seed, rows, cuts
) -> None:
    padded = (resized[0] + more[0], resized[1] + more[1])
    frame = framed(original, resized, padded, mirror)
    raw = np.random.default_rng(seed).normal(size=(3, *padded)).astype(np.float32)
    ends = [*sorted(cut for cut in cuts if cut < padded[0]), padded[0]]
    pieces = [(slice(low, high), raw[:, low:high].copy()) for low, high in zip([0, *ends], ends, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_PIXELS", rows)
        whole = [(part, found.copy()) for part, found in restored_bands(raw, frame, method, "direct")]
        stream = [(part, found.copy()) for part, found in restored_stream(pieces, padded, frame, method, "direct")]
    assert [part.start for part, _ in stream] == [0, *(part.stop for part, _ in stream)][:-1]
    assert stream[-1][0].stop == original[0]
    together = [np.concatenate([found for _, found in parts], axis=1) for parts in (whole, stream)]
    np.testing.assert_array_equal(*together)


def test_the_first_of_equals_wins_and_classes_may_be_many() -> None:
    frame = framed((9, 7), (9, 7), (9, 7), False)
    decode = Decode(activation="none", decision=Argmax(), restore_what="logits", restore_method="torch:bilinear")
    same = np.zeros((300, 3, 3), np.float32)
    assert labels_on_grid(same, frame, decode).max() == 0
    same[299] = 1
    found = labels_on_grid(same, frame, decode)
    assert (found.dtype, found.min()) == (np.uint16, 299)


def test_direct_and_by_input_size_differ() -> None:
    frame = framed((20, 20), (33, 33), (33, 33), False)
    raw = np.random.default_rng(0).normal(size=(1, 9, 9)).astype(np.float32)
    direct = restore(raw, frame, "torch:bilinear", "direct")
    np.testing.assert_allclose(direct, interpolate(raw, (20, 20), False), atol=1e-5)
    assert np.abs(direct - restore(raw, frame, "torch:bilinear", "by-input-size")).max() > 1e-3
    parts = [part for _, part in restored_bands(raw, frame, "torch:bilinear", "direct")]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), direct, atol=1e-5)


def test_labels_of_a_street_scene_need_no_full_size_logits() -> None:
    frame = framed((1024, 2048), (1024, 2048), (1024, 2048), False)
    raw = np.random.default_rng(0).normal(size=(19, 256, 512)).astype(np.float32)
    decode = Decode(
        activation="softmax", decision=Argmax(), restore_what="logits", restore_method="torch:bilinear",
        restore_path="by-input-size",
    )  # fmt: skip
    tracemalloc.start()
    labels = labels_on_grid(raw, frame, decode)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.shape == (1024, 2048)
    assert peak < 40e6  # the logits would be 159 MB
