"""The torch networks of U²-Net: upstream's names, upstream's numbers, any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from seeded import State
from torch import nn

from segship.networks.u2net import U2NET, U2NETP

CASES = [("u2netp", U2NETP), ("u2net", U2NET)]


@pytest.mark.parametrize(("case", "network"), CASES)
def test_what_the_original_gives(
    case: str, network: type[U2NET], reference_case: Callable[[str], Any], fill: Callable[..., State]
) -> None:
    about, arrays = reference_case(case)
    net = network().eval()
    state = net.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == about["state_dict"]
    assert list(state) == list(about["state_dict"])
    assert sum(parameter.numel() for parameter in net.parameters()) == about["parameters"]
    net.load_state_dict(fill(state, about["gain"]))
    with torch.inference_mode():
        outputs = net(torch.from_numpy(arrays["input"]))
    assert len(outputs) == 7
    for index in (0, 6):
        assert np.abs(outputs[index].numpy() - arrays[f"output{index}"]).max() <= 1e-4


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 47), (97, 131)])
def test_any_size_gives_maps_of_that_size(size: tuple[int, int]) -> None:
    net = U2NETP().eval()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        outputs = net(x)
        alone = net(x[1:])
    assert [tuple(output.shape) for output in outputs] == [(2, 1, *size)] * 7
    assert all(bool(torch.isfinite(output).all()) for output in outputs)
    assert float((outputs[0][1:] - alone[0]).abs().max()) <= 1e-5


def test_pooling_rounds_up_which_only_odd_sizes_notice() -> None:
    net = U2NETP().eval()
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        before, odd = net(x)[0], net(x[..., :95, :])[0]
        for module in net.modules():
            if isinstance(module, nn.MaxPool2d):
                assert module.ceil_mode
                module.ceil_mode = False
        assert torch.equal(net(x)[0], before)
        assert not torch.allclose(net(x[..., :95, :])[0], odd)


def test_the_fused_map_alone() -> None:
    net = U2NETP(all_outputs=False).eval()
    both = U2NETP().eval()
    both.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(net(x), both(x)[0])
