"""Facts about MMSegmentation's own data sets and released Cityscapes networks, as short configurations of its 1.x form.

Class names and colours: open-mmlab/mmsegmentation: datasets/*.py. Settings: its configs/{ocrnet,deeplabv3,unet}. A released
network's settings follow from its name: method, backbone and dilation, size of the training crop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]
Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Classes:
    names: tuple[str, ...]
    palette: Colors
    reduce_zero_label: bool = False


CITYSCAPES = Classes(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
        "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip
VESSELS = Classes(names=("background", "vessel"), palette=((120, 120, 120), (6, 230, 230)))
AERIAL = Classes(
    names=("impervious_surface", "building", "low_vegetation", "tree", "car", "clutter"),
    palette=((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
    reduce_zero_label=True,
)
LOVEDA = Classes(
    names=("background", "building", "road", "water", "barren", "forest", "agricultural"),
    palette=((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
    reduce_zero_label=True,
)
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def voc_color(index: int) -> tuple[int, int, int]:
    """The Pascal VOC colour of a class: its bits dealt to red, green and blue in turn, the highest place first."""
    found = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            found[channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
    return found[0], found[1], found[2]


DATASETS: dict[str, Classes] = {
    "CityscapesDataset": CITYSCAPES,
    "DarkZurichDataset": CITYSCAPES,
    "NightDrivingDataset": CITYSCAPES,
    "PascalVOCDataset": Classes(names=VOC_NAMES, palette=tuple(voc_color(k) for k in range(21))),
    "DRIVEDataset": VESSELS,
    "STAREDataset": VESSELS,
    "ChaseDB1Dataset": VESSELS,
    "HRFDataset": VESSELS,
    "PotsdamDataset": AERIAL,
    "ISPRSDataset": AERIAL,
    "LoveDADataset": LOVEDA,
}
"""those of MMSegmentation's data set classes whose names are written down here"""


# ------------------------------------------------------------------------------------- released networks

_NET = r"hr18s|hr18|hr48|r18b|r50b|r101b|r18|r50|r101"
_OLD = re.compile(
    rf"^(?P<method>ocrnet|deeplabv3)_(?P<net>{_NET})(?P<tail>-d8|-d16-mg124)?(_fp16)?_(?P<crop>\d+x\d+)_\d+k(_b\d+)?_cityscapes$"
)
_NEW = re.compile(
    rf"^(?P<method>ocrnet|deeplabv3)_(?P<net>{_NET})(?P<tail>-d8|-d16-mg124)?_\d+xb\d+-(amp-)?\d+k_cityscapes-(?P<crop>\d+x\d+)$"
)
_SHORT = re.compile(rf"^(?P<method>ocrnet|deeplabv3)_(?P<net>{_NET})(?P<tail>-d8|-d16-mg124)?(_(?P<crop>\d+x\d+))?$")
_UNET = re.compile(
    r"^(fcn_unet_s5-d16(_4x4)?(_512x1024)?(_160k_cityscapes)?|unet-s5-d16_fcn(_4xb4-160k_cityscapes-512x1024)?)$"
)
_RELEASED = re.compile(r"^(?P<config>.+)_(?P<date>\d{8}_\d{6})-(?P<hash>[0-9a-f]{8})$")
UNET = "fcn_unet_s5-d16_512x1024"
RESNETS = ("r18", "r18b", "r50", "r50b", "r101", "r101b")
KNOWN: tuple[str, ...] = (
    *(f"ocrnet_{net}_512x1024" for net in ("hr18", "hr18s", "hr48", "r101-d8")),
    *(f"deeplabv3_{net}-d8_{crop}" for net in RESNETS for crop in ("512x1024", "769x769")),
    "deeplabv3_r101-d16-mg124_512x1024",
    UNET,
)
"""the names that `known_config` takes: method, backbone, crop"""


@dataclass(frozen=True, kw_only=True)
class ReleasedName:
    config: str
    sha256_start: str


def released_name(stem: str) -> ReleasedName | None:
    """The parts of a file name as the model zoo gives it: ``<config>_<date>_<time>-<8 hex>``; None for any other."""
    found = _RELEASED.match(stem)
    return ReleasedName(config=found["config"], sha256_start=found["hash"]) if found else None


def short_name(text: str) -> str | None:
    """One of KNOWN for a configuration's name of either version, or for a short name; None for others.

    A short name may leave out the crop where only one is released.
    """
    text = text.strip().lower().removesuffix(".py")
    if _UNET.match(text):
        return UNET
    found = _OLD.match(text) or _NEW.match(text) or _SHORT.match(text)
    if found is None:
        return None
    start = f"{found['method']}_{found['net']}{found['tail'] or ''}_"
    fitting = [name for name in KNOWN if name.startswith(start) and found["crop"] in (None, name.rsplit("_", 1)[1])]
    return fitting[0] if len(fitting) == 1 else None


def known_config(name: str) -> Values:
    """The settings of one of KNOWN, as a configuration of MMSegmentation 1.x."""
    method, net = name.split("_")[:2]
    large = name.endswith("_769x769")
    scale = (2049, 1025) if large else (2048, 1024)
    test = {"mode": "slide", "crop_size": (769, 769), "stride": (513, 513)} if large else {"mode": "whole"}
    if name == UNET:
        backbone: Values = {"type": "UNet", "base_channels": 64, "num_stages": 5}
        heads: Any = _head("FCNHead", 64, 64, large, in_index=4, num_convs=1, concat_input=False)
    elif net.startswith("hr"):
        backbone, heads = {"type": "HRNet"}, _hrnet_heads(large)
    else:
        depth = int(net.split("-")[0].lstrip("r").rstrip("b"))
        backbone = _resnet(depth, net.split("-")[0].endswith("b"), "d16" in net)
        heads = _resnet_heads(method, depth, "d16" in net, large)
    cascade = isinstance(heads, list)
    return {
        "model": {
            "type": "CascadeEncoderDecoder" if cascade else "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
                "bgr_to_rgb": True, "pad_val": 0,
            },
            "backbone": backbone, "decode_head": heads, "test_cfg": test,
        },
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "scale": scale, "keep_ratio": True},
            {"type": "PackSegInputs"},
        ],
        "dataset_type": "CityscapesDataset",
    }  # fmt: skip


def _head(kind: str, inputs: int, channels: int, align_corners: bool, **rest: Any) -> Values:
    return {
        "type": kind, "in_channels": inputs, "channels": channels, "num_classes": 19, "align_corners": align_corners, **rest,
    }  # fmt: skip


def _hrnet_heads(large: bool) -> list[Values]:
    joined = {"in_index": (0, 1, 2, 3), "input_transform": "resize_concat"}
    # Widths follow the weights; what counts here are the maps that are joined.
    first = {"type": "FCNHead", "num_classes": 19, "align_corners": large, "kernel_size": 1, "num_convs": 1, **joined}
    second = {"type": "OCRHead", "num_classes": 19, "align_corners": large, **joined}
    return [first, second]


def _resnet(depth: int, plain: bool, coarse: bool) -> Values:
    found: Values = {
        "type": "ResNet" if plain else "ResNetV1c", "depth": depth, "style": "pytorch", "contract_dilation": True,
        "strides": (1, 2, 2, 1) if coarse else (1, 2, 1, 1), "dilations": (1, 1, 1, 2) if coarse else (1, 1, 2, 4),
    }  # fmt: skip
    return {**found, "multi_grid": (1, 2, 4)} if coarse else found


def _resnet_heads(method: str, depth: int, coarse: bool, large: bool) -> Any:
    if method == "ocrnet":
        first = _head("FCNHead", 1024, 256, large, in_index=2, num_convs=1, concat_input=False)
        return [first, _head("OCRHead", 2048, 512, large, in_index=3, ocr_channels=256)]
    dilations = (1, 6, 12, 18) if coarse else (1, 12, 24, 36)
    small = depth in (18, 34)
    return _head("ASPPHead", 512 if small else 2048, 128 if small else 512, large, in_index=3, dilations=dilations)
