"""Networks with other settings than the released ones, against MMSegmentation 1.2.2's own logits of the same seeded weights.

Weights follow from each entry's name, so a name that upstream does not have would change the answer.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from segship.families.mmseg_config import Config
from segship.families.mmseg_keys import recognise
from segship.families.mmseg_native import complete
from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_resnet import ResNetShape
from segship.networks.mmseg_segmentor import Backbone, HeadShape, NetworkShape, Segmentor
from segship.networks.mmseg_unet import EnlargeShape, UNetShape

Values = dict[str, Any]
BN: Values = {"type": "SyncBN"}
JOINED: Values = {"input_transform": "resize_concat"}


def fill(key: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return torch.zeros_like(value)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    noise = torch.from_numpy(draw.standard_normal(tuple(value.shape) or (1,)).astype(np.float32))
    if key.endswith("running_var"):
        return 1 + 0.2 * noise.abs()
    if value.ndim == 4:
        return noise * (2 / noise[0].numel()) ** 0.5
    return 0.1 * noise if key.endswith(("running_mean", "bias")) else 1 + 0.1 * noise


def picture() -> torch.Tensor:
    """(1, 3, 32, 48) float32: waves."""
    y, x = np.mgrid[0:32, 0:48].astype(np.float32)
    return torch.from_numpy(
        np.stack([np.sin(x / 3 + k) * np.cos(y / (2 + k)) for k in range(3)])[None].astype(np.float32)
    )


def unet(**other: Any) -> Values:
    return {
        "type": "UNet",
        "base_channels": 4,
        "num_stages": 3,
        "strides": (1, 1, 1),
        "norm_cfg": BN | {"eps": 1e-3},
    } | other


def unet_shape(stages: int = 3, **other: Any) -> UNetShape:
    return UNetShape(base=4, encoder=(2,) * stages, decoder=(2,) * (stages - 1), **other)


def resnet(**other: Any) -> Values:
    return {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 6, "norm_cfg": BN} | other


def hrnet(planes: int, widths: tuple[int, ...]) -> Values:
    stages = {f"stage{k}": {"num_modules": 1, "num_channels": widths[:k]} for k in (2, 3, 4)}
    return {"type": "HRNet", "extra": {"stage1": {"num_channels": (planes,)}, **stages}, "norm_cfg": BN}


def fcn(inputs: int, *maps: int, **other: Any) -> HeadShape:
    values: Values = {"channels": 5, **other}
    return HeadShape(kind="fcn", inputs=inputs, classes=3, maps=maps, **values)


def interpolated(**about: Any) -> Values:
    return unet(upsample_cfg={"type": "InterpConv", **about})


RESNET: Values = {"depth": 18, "stem": "plain", "base": 4, "stem_channels": 6}
HRNET: Values = {"first_blocks": 1, "modules": (1, 1, 1), "blocks": (1, 1, 1)}
LAST: Values = {"in_index": -1}
FIRST_PIXEL_OF_0, LAST_OF_1, ONE_OF_2, SPREAD = range(4)
CASES: dict[str, tuple[Backbone, HeadShape, Values, Values, tuple[float, float, float, float]]] = {
    "unet_dilated": (
        unet_shape(encoder_dilations=(2, 1, 3), decoder_dilations=(1, 2)), fcn(4, 2),
        unet(enc_dilations=(2, 1, 3), dec_dilations=(1, 2)), LAST, (-0.191085, -0.144341, -0.533613, 0.23246),
    ),
    "unet_strided": (
        unet_shape(shrinks=("none", "stride", "pool")), fcn(4, 2), unet(strides=(1, 2, 1)), LAST,
        (-0.332827, -0.095055, -0.657005, 0.24419),
    ),
    "unet_first_strided": (
        unet_shape(shrinks=("stride", "pool", "stride")), fcn(4, 2), unet(strides=(2, 1, 2)), LAST,
        (-0.265144, -0.079179, -0.394504, 0.285697),
    ),
    "unet_not_halved": (
        unet_shape(4, shrinks=("none", "pool", "none", "pool")), fcn(4, 3),
        unet(num_stages=4, strides=(1, 1, 1, 1), downsamples=(True, False, True)), LAST,
        (-0.304305, -0.097842, -0.482428, 0.261288),
    ),
    "unet_deconvolved": (
        unet_shape(enlarge=EnlargeShape(kind="deconvolve", kernel=4)), fcn(4, 2),
        unet(upsample_cfg={"type": "DeconvModule"}), LAST, (-0.266009, -0.087012, -0.534867, 0.377716),
    ),
    "unet_deconvolved_2": (
        unet_shape(enlarge=EnlargeShape(kind="deconvolve", kernel=2)), fcn(4, 2),
        unet(upsample_cfg={"type": "DeconvModule", "kernel_size": 2}), LAST, (-0.30108, -0.127236, -0.808729, 0.343356),
    ),
    "unet_convolved_first": (
        unet_shape(enlarge=EnlargeShape(kernel=3, convolve_first=True)), fcn(4, 2),
        interpolated(conv_first=True, kernel_size=3, padding=1), LAST, (-0.336288, -0.210829, -0.187225, 0.152246),
    ),
    "unet_repeated": (
        unet_shape(enlarge=EnlargeShape(mode="nearest")), fcn(4, 2),
        interpolated(upsample_cfg={"scale_factor": 2, "mode": "nearest"}), LAST,
        (-0.337257, -0.100835, -0.370473, 0.249544),
    ),
    "unet_aligned": (
        unet_shape(enlarge=EnlargeShape(align_corners=True)), fcn(4, 2),
        interpolated(upsample_cfg={"scale_factor": 2, "mode": "bilinear", "align_corners": True}), LAST,
        (-0.327157, -0.096963, -0.426691, 0.254435),
    ),
    "head_without_norm": (
        unet_shape(), fcn(4, 2, concat_input=True, norm=False), unet(), LAST,
        (-0.079159, -0.018087, 0.065471, 0.192862),
    ),
    "head_without_convolutions": (
        unet_shape(), fcn(4, 2, channels=4, convs=0, kernel=0), unet(), {"kernel_size": 1, **LAST},
        (-0.087247, 0.036479, 0.000202, 0.157703),
    ),
    "head_joined_only": (
        unet_shape(), fcn(4, 2, channels=4, convs=0, concat_input=True), unet(), LAST,
        (-0.566393, -0.105734, 0.155821, 0.277778),
    ),
    "resnet_three_stages": (
        ResNetShape(stages=3, strides=(1, 2, 1), dilations=(1, 1, 2), multi_grid=(2, 3), **RESNET), fcn(16, 2),
        resnet(num_stages=3, out_indices=(0, 1, 2), strides=(1, 2, 1), dilations=(1, 1, 2), multi_grid=(2, 3)), LAST,
        (-0.158044, -0.021825, 0.007092, 0.179032),
    ),
    "resnet_some_maps": (
        ResNetShape(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, **RESNET),
        fcn(40, 1, 3, align_corners=True),
        resnet(out_indices=(1, 3), contract_dilation=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        {"in_index": (0, 1), "align_corners": True, **JOINED}, (-0.839662, -0.407179, 0.454693, 0.701481),
    ),
    "aspp_without_norm": (
        ResNetShape(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **RESNET),
        HeadShape(kind="aspp", inputs=32, channels=5, classes=3, maps=(3,), dilations=(1, 2, 3), norm=False),
        resnet(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)), {"type": "ASPPHead", "in_index": 3, "dilations": (1, 2, 3)},
        (-0.077192, -0.142049, 0.559403, 0.265747),
    ),
    "hrnet_narrow": (
        HRNetShape(width=4, widths=(4, 6, 10, 12), first_planes=8, **HRNET | {"first_blocks": 2}), fcn(32, 0, 1, 2, 3),
        hrnet(8, (4, 6, 10, 12)), {"in_index": (0, 1, 2, 3), **JOINED}, (-0.294343, 0.594694, 1.363171, 2.278771),
    ),
    "hrnet_basic": (
        HRNetShape(width=3, first_planes=16, first_basic=True, **HRNET), fcn(9, 0, 1), hrnet(16, (3, 6, 12, 24)),
        {"in_index": (0, 1), **JOINED}, (0.223159, -1.565973, 8.940757, 3.928005),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_are_upstreams(name: str) -> None:
    backbone, head, about, head_about, expected = CASES[name]
    eps = about["norm_cfg"].get("eps", 1e-5)
    shape = NetworkShape(backbone=backbone, heads=(head,), eps=eps)
    state = {key: fill(key, value) for key, value in Segmentor(shape).state_dict().items()}
    norm = {"norm_cfg": {"type": "mmengine.SyncBN"}} if head.norm else {}
    values = {"type": "FCNHead", "channels": head.channels, "num_classes": 3, **norm, **head_about}
    config = Config(values={"model": {"type": "EncoderDecoder", "backbone": about, "decode_head": values}}, origin="c")
    found = complete(recognise(state).shape, config)
    assert found == shape
    network = Segmentor(found).eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        logits = network(picture())[0]
    height, width = logits.shape[1:]
    assert (height, width) == (-(-32 // found.stride), -(-48 // found.stride))
    points = (logits[0, 0, 0], logits[1, -1, -1], logits[2, height // 2, width // 3], logits.std())
    assert [float(value) for value in points] == pytest.approx(expected, abs=2e-5 * max(1, expected[SPREAD]))


def test_sizes_that_a_network_takes() -> None:
    """Every halving that is undone on the way up asks for an even side; the first stage's own does not."""
    shrinks: dict[tuple[Any, ...], int] = {
        (): 4,
        ("none", "stride", "none"): 2,
        ("none", "none", "none"): 1,
        ("stride", "none", "none"): 1,
        ("stride", "pool", "none"): 4,
    }
    for each, multiple in shrinks.items():
        assert unet_shape(shrinks=each).multiple == multiple


def test_depths_of_one_layout_without_the_third_stage() -> None:
    """Two stages of ResNet-50, -101 and -34 have 3 and 4 blocks; 50 and 101 are one network, 34 has other blocks."""
    shape = NetworkShape(backbone=ResNetShape(stages=2, depth=50, stem="plain", base=4), heads=(fcn(32, 1),))
    state = {key: fill(key, value) for key, value in Segmentor(shape).state_dict().items()}
    about = resnet(depth=101, num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1))
    head = {"type": "FCNHead", "channels": 5, "num_classes": 3, "norm_cfg": BN, **LAST}
    config = Config(values={"model": {"type": "EncoderDecoder", "backbone": about, "decode_head": head}}, origin="c")
    found = complete(recognise(state).shape, config).backbone
    assert isinstance(found, ResNetShape)
    assert (found.depth, found.stages, found.blocks) == (101, 2, (3, 4))
