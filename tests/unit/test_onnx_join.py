"""Convolutions over joined channels become sums, and give the same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from segship.convert import onnx_graph
from segship.convert.onnx_join import join_again, split_joined, sums
from segship.convert.quantize import QuantizeOptions, quantize


class Joins(nn.Module):
    """A skip from the start joined behind a transposed convolution, as U-Nets do; ``more`` reads the joined map too."""

    def __init__(self, axes: int, more: bool = False, groups: int = 1) -> None:
        super().__init__()
        conv, up = (nn.Conv3d, nn.ConvTranspose3d) if axes == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        self.first = conv(2, 4, 3, padding=1)
        self.down = conv(4, 6, 3, stride=2, padding=1)
        self.up = up(6, 8, 2, 2)
        self.joined = conv(12, 4, 3, padding=1, groups=groups)
        self.last = conv(12 if more else 4, 3, 1)
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = nn.functional.leaky_relu(self.first(x), 0.01)
        both = torch.cat((self.up(self.down(skip)), skip), 1)
        out: torch.Tensor = self.last(both if self.more else self.joined(both))
        return out


def graph_of(
    network: nn.Module, shape: tuple[int, ...], size_multiple: tuple[int, int] | None = None
) -> onnx.ModelProto:
    return onnx_graph.from_torch(
        network, shape, input_name="input", output_names=["logits"], size_multiple=size_multiple
    )


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


@pytest.mark.parametrize("axes", [2, 3])
def test_the_sum_is_the_convolution_over_both(axes: int) -> None:
    torch.manual_seed(axes)
    shape = (2, *(8, 6, 10)[:axes])
    plain = graph_of(Joins(axes), shape)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    wanted = answer(plain, x)
    split = split_joined(onnx_graph.copy_of(plain))
    made = Counter(node.op_type for node in split.graph.node)
    assert made["Concat"] == 0
    assert made["Conv"] == Counter(node.op_type for node in plain.graph.node)["Conv"] + 1
    assert np.abs(answer(split, x) - wanted).max() <= 1e-5
    assert {node.name for node in split.graph.node} >= {"joined.0", "joined.1"}
    assert not {one.name for one in split.graph.initializer} & {"joined.weight"}
    assert sums(plain) == []
    assert sums(split) == ["joined.sum1"]


class Shared(nn.Module):
    """A map beside enlarged sums of others, as OCRNet's heads take them; ``wide`` is how many channels a reader makes."""

    def __init__(self, wide: int = 5, other: bool = False) -> None:
        super().__init__()
        self.fine = nn.Conv2d(2, 6, 3, padding=1)
        self.coarse = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.again = nn.Conv2d(8, 8, 1)
        self.one = nn.Conv2d(14, wide, 1)
        self.two = nn.Conv2d(14, 3, 3, padding=1, bias=False)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        coarse = torch.relu(self.again(coarse) + coarse)
        size = fine.shape[2:]
        enlarged = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        both = torch.cat((torch.relu(fine + fine.mean(dim=(2, 3), keepdim=True)), enlarged), 1)
        found = torch.cat((self.one(both), self.two(both)), 1)
        return torch.cat((found, both), 1) if self.other else found


@pytest.mark.parametrize("free", [False, True])
def test_all_convolutions_over_one_join_are_split(free: bool) -> None:
    """Through enlargements and sums, of which no convolution tells the channels; also at sizes that are free."""
    torch.manual_seed(5)
    plain = graph_of(Shared(), (2, 8, 12), size_multiple=(2, 2) if free else None)
    split = split_joined(onnx_graph.copy_of(plain))
    assert sums(split) == ["one.sum1", "two.sum1"]
    for side in (8, 14) if free else (8,):
        x = np.random.default_rng(1).normal(size=(2, 2, side, 12)).astype(np.float32)
        assert np.abs(answer(split, x) - answer(plain, x)).max() <= 1e-5


@pytest.mark.parametrize("network", [Shared(), Joins(2)])
def test_joined_again_the_graph_is_what_it_was(network: nn.Module) -> None:
    plain = graph_of(network, (2, 8, 12))
    before = plain.SerializeToString(deterministic=True)
    assert join_again(plain).SerializeToString(deterministic=True) == before
    again = join_again(split_joined(onnx_graph.copy_of(plain)))
    assert Counter(node.op_type for node in again.graph.node) == Counter(node.op_type for node in plain.graph.node)
    assert {node.name for node in again.graph.node if node.op_type == "Conv"} == set(
        onnx_graph.convolution_names(plain)
    )
    kept, found = ({one.name: one.raw_data for one in model.graph.initializer} for model in (plain, again))
    assert found == kept
    x = np.random.default_rng(4).normal(size=(2, 2, 8, 12)).astype(np.float32)
    np.testing.assert_array_equal(answer(again, x), answer(plain, x))


@pytest.mark.parametrize("changes", [{"other": True}, {"wide": 15}])
def test_a_join_stays_whole_for_all_where_one_reader_needs_it(changes: dict[str, int]) -> None:
    """Something else that reads it; or a sum that would be written at more channels than were joined."""
    plain = graph_of(Shared(**changes), (2, 8, 12))  # type: ignore[arg-type]
    before = plain.SerializeToString(deterministic=True)
    assert split_joined(plain).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("changes", [{"more": True}, {"groups": 2}])
def test_what_cannot_be_split_stays(changes: dict[str, int]) -> None:
    model = graph_of(Joins(2, **changes), (2, 8, 6))  # type: ignore[arg-type]
    before = model.SerializeToString(deterministic=True)
    split = split_joined(model)
    if "groups" in changes:
        assert split.SerializeToString(deterministic=True) == before
    else:  # the last convolution alone reads the joined map: it is split, and the one that was not used is not there
        assert Counter(node.op_type for node in split.graph.node)["Concat"] == 0


def test_the_same_graph_gives_the_same_bytes() -> None:
    torch.manual_seed(1)
    network = Joins(3)
    first, second = (split_joined(graph_of(network, (2, 8, 6, 4))) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_int8_rounds_nothing_between_the_parts_of_a_sum() -> None:
    torch.manual_seed(3)
    model = split_joined(graph_of(Joins(3), (2, 8, 6, 4)))
    inputs = np.random.default_rng(2).normal(size=(4, 2, 8, 6, 4)).astype(np.float32)
    made = quantize(model, inputs, QuantizeOptions(keep_in_float=()))
    from_ = {output: node for node in made.graph.node for output in node.output}
    total = next(node for node in made.graph.node if node.name == "joined.sum1")
    assert [from_[name].op_type for name in total.input] == ["Conv", "Conv"]
    assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)


def test_a_layer_that_runs_twice_has_two_names() -> None:
    """Engines refuse a graph with two nodes of one name; mmseg's CCNet runs its attention twice with the same weights."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.again(torch.relu(self.again(x)))
            return out

    network = Twice().eval()
    model = graph_of(network, (3, 8, 8))
    assert onnx_graph.convolution_names(model) == ["again", "again.2"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"input": x})[0], network(torch.from_numpy(x)).numpy(), atol=1e-5)
