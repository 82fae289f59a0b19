"""gzip on all threads against the library that defines it."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.inference import deflate
from segship.inference.deflate import gzip_bytes


def labels(seed: int, size: int, empty: float) -> np.ndarray:
    """Runs of labels with empty stretches between them."""
    rng = np.random.default_rng(seed)
    runs = rng.integers(0, 9, max(1, size // 7)).astype(np.uint8)
    runs[rng.random(len(runs)) < empty] = 0
    return np.resize(runs.repeat(7), size)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(0, 400_000), empty=st.sampled_from([0.0, 0.7, 1.0]))
def test_unpacks_to_what_was_packed(seed: int, size: int, empty: float) -> None:
    data, head = labels(seed, size, empty), bytes(range(256)) + b"head"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deflate, "_PIECE", 50_000)
        packed = gzip_bytes(head, data)
    assert gzip.decompress(packed) == head + data.tobytes()


def test_empty_space_between_labels_is_packed_once_and_comes_back() -> None:
    data = np.zeros((5, 1 << 20), np.uint8)
    data[0, 17], data[4, 5] = 3, 200
    packed = gzip_bytes(b"", data)
    assert gzip.decompress(packed) == data.tobytes()
    assert len(packed) < 2 * len(zlib.compress(data, 6))


def test_16_bits_and_one_thread_or_many_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labels(4, 3_000_001, 0.5).astype(np.uint16)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(deflate, "helper_threads", lambda count=threads: count)
        found.append(gzip_bytes(b"x", data))
    assert found[0] == found[1]
    assert gzip.decompress(found[0]) == b"x" + data.tobytes()


def test_is_hardly_larger_than_from_one_thread() -> None:
    data = labels(5, 4_000_000, 0.3)
    assert len(gzip_bytes(b"", data)) < 1.02 * len(gzip.compress(data.tobytes(), deflate.LEVEL))
