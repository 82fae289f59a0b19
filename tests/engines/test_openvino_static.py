"""A graph compiled for one batch size answers as the graph of any batch size does."""

from __future__ import annotations

import numpy as np
import pytest
from engine_graphs import Graphs, images

from segship.engines import SessionOptions, open_session

pytest.importorskip("openvino")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_static_and_dynamic_answers_are_equal_bit_for_bit_also_in_a_filled_up_batch(
    bilinear: Graphs, precision: str, count: int
):
    graph = bilinear.files[precision]
    x = images(count)
    filled = np.concatenate([x, np.repeat(x[-1:], 4 - count, axis=0)])
    dynamic = open_session("openvino", graph, SessionOptions(precision=precision))
    static = open_session("openvino", graph, SessionOptions(precision=precision, static_shape=filled.shape))
    for one, other in zip(dynamic.run(x), static.run(filled), strict=True):
        assert np.array_equal(one, other[:count])
