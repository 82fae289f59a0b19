"""Small checkpoints of MMSegmentation's world and their configurations in both dialects."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from segship.families.mmseg import build_network
from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_resnet import ResNetShape
from segship.networks.mmseg_segmentor import HeadShape, NetworkShape
from segship.networks.mmseg_unet import UNetShape

State = dict[str, torch.Tensor]
NAMES = ("ground", "wall", "tree")
COLORS = ((10, 20, 30), (200, 0, 0), (0, 200, 0))


def unet_shape(classes: int = 3, base: int = 4, stages: int = 3) -> NetworkShape:
    backbone = UNetShape(base=base, encoder=(2,) * stages, decoder=(2,) * (stages - 1))
    head = HeadShape(kind="fcn", inputs=base, channels=base, classes=classes, maps=(stages - 1,))
    return NetworkShape(backbone=backbone, heads=(head,))


def hrnet_shape(width: int = 2, classes: int = 3) -> NetworkShape:
    backbone = HRNetShape(width=width, first_blocks=1, modules=(1, 1, 1), blocks=(1, 1, 1))
    common = {"inputs": 15 * width, "classes": classes, "maps": (0, 1, 2, 3)}
    first = HeadShape(kind="fcn", channels=15 * width, kernel=1, **common)
    return NetworkShape(backbone=backbone, heads=(first, HeadShape(kind="ocr", channels=8, inner=4, **common)))


def resnet_shape(classes: int = 3, depth: int = 18) -> NetworkShape:
    backbone = ResNetShape(depth=depth, stem="v1c", base=4, stem_channels=8)
    inputs = backbone.channels[3]
    dilations = (1, 12, 24, 36)
    head = HeadShape(kind="aspp", inputs=inputs, channels=8, classes=classes, maps=(3,), dilations=dilations)
    return NetworkShape(backbone=backbone, heads=(head,))


def seeded(shape: NetworkShape, seed: int = 0, gain: float = 2.0) -> State:
    """Weights that look trained, without training."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in build_network(shape).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(100)
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * noise.abs()
        elif value.ndim == 4:
            state[key] = noise * (gain / value[0].numel()) ** 0.5
        else:
            state[key] = (1.0 if ".bn" in key and key.endswith("weight") else 0.0) + 0.1 * noise
    return state


def auxiliary(classes: int = 3, inputs: int = 8) -> State:
    """The tensors of an auxiliary FCN head."""
    norm = {
        f"auxiliary_head.convs.0.bn.{name}": torch.ones(4) for name in ("weight", "bias", "running_mean", "running_var")
    }
    return norm | {
        "auxiliary_head.convs.0.conv.weight": torch.ones(4, inputs, 3, 3),
        "auxiliary_head.conv_seg.weight": torch.ones(classes, 4, 1, 1),
        "auxiliary_head.conv_seg.bias": torch.ones(classes),
    }


BACKBONES = {
    "unet": "dict(type='UNet', in_channels=3, base_channels=4, num_stages=3, strides=(1, 1, 1), norm_cfg=norm_cfg)",
    "hrnet": "dict(type='HRNet', norm_cfg=norm_cfg)",
    "d8": "dict(type='ResNetV1c', depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)",
    "d16": "dict(type='ResNetV1c', depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2))",
}
HEADS = {
    "unet": "dict(type='FCNHead', in_channels=4, in_index=2, channels=4, num_convs=1, num_classes={n}, align_corners={a})",
    "hrnet": "[dict(type='FCNHead', in_index=(0, 1, 2, 3), input_transform='resize_concat', kernel_size=1, channels=30, "
    "num_classes={n}, align_corners={a}), dict(type='OCRHead', in_index=(0, 1, 2, 3), input_transform='resize_concat', "
    "channels=8, ocr_channels=4, num_classes={n}, align_corners={a})]",
    "d8": "dict(type='ASPPHead', in_index=3, channels=8, dilations=(1, 12, 24, 36), num_classes={n}, align_corners={a})",
    "d16": "dict(type='ASPPHead', in_index=3, channels=8, dilations=(1, 6, 12, 18), num_classes={n}, align_corners={a})",
}
WHOLE = "dict(mode='whole')"


def new_config(
    kind: str = "unet",
    *,
    classes: int = 3,
    test: str = WHOLE,
    align: bool = False,
    scale: str = "(64, 32)",
    more: str = "",
) -> str:
    """The text of a configuration of 1.x."""
    segmentor = "CascadeEncoderDecoder" if kind == "hrnet" else "EncoderDecoder"
    return f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_val=0,
    seg_pad_val=255, size=(32, 32))
model = dict(
    type='{segmentor}', data_preprocessor=data_preprocessor, pretrained=None,
    backbone={BACKBONES[kind]},
    decode_head={HEADS[kind].format(n=classes, a=align)},
    train_cfg=dict(), test_cfg={test})
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale={scale}, keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_dataloader = dict(batch_size=1, dataset=dict(
    type='BaseSegDataset', metainfo=dict(classes={NAMES[:classes]!r}, palette={[list(c) for c in COLORS[:classes]]!r}),
    pipeline=test_pipeline))
{more}
"""


def old_config(
    kind: str = "unet", *, classes: int = 3, test: str = WHOLE, align: bool = False, scale: str = "(64, 32)"
) -> str:
    """The same settings in the words of 0.x."""
    segmentor = "CascadeEncoderDecoder" if kind == "hrnet" else "EncoderDecoder"
    return f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='{segmentor}', pretrained=None,
    backbone={BACKBONES[kind]},
    decode_head={HEADS[kind].format(n=classes, a=align)},
    train_cfg=dict(), test_cfg={test})
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale={scale}, flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
data = dict(samples_per_gpu=2, test=dict(
    type='CustomDataset', classes={NAMES[:classes]!r}, palette={[list(c) for c in COLORS[:classes]]!r}, pipeline=test_pipeline))
"""


def save(path: Path, state: State, meta: dict[str, Any] | None = None, **beside: Any) -> Path:
    torch.save({"meta": meta or {}, "state_dict": state, **beside}, path)
    return path


def save_training_checkpoint(path: Path, state: State, meta: dict[str, Any]) -> Path:
    """As mmengine's runner leaves it: beside the weights objects of its own classes, which are gone when it is read."""
    name = "mmengine.logging.history_buffer"
    modules = {part: ModuleType(part) for part in ("mmengine", "mmengine.logging", name)}
    history = type("HistoryBuffer", (), {"__module__": name})
    modules[name].HistoryBuffer = history
    kept = {part: sys.modules.get(part) for part in modules}
    sys.modules.update(modules)
    try:
        buffer = history()
        buffer.values = np.arange(3.0)
        hub = {"log_scalars": {"loss": buffer}, "runtime_info": {"iter": 7}}
        torch.save({"meta": meta, "state_dict": state, "message_hub": hub, "optimizer": {"state": {}}}, path)
    finally:
        for part, module in kept.items():
            if module is None:
                del sys.modules[part]
            else:
                sys.modules[part] = module
    return path
