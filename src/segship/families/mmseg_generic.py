"""Networks of mmseg that segship does not define itself: built by mmseg from the config's ``model``, weights from the checkpoint.

Needs mmseg, mmengine and mmcv or mmcv-lite; they are imported when `build` is called. What is exported ends at the decode
head's logits, as with the networks that are defined here; the resizes after them belong to the runtime.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segship.errors import SourceError
from segship.families import Source
from segship.families.common import parameter_count
from segship.families.mmcv_stub import install_stub
from segship.manifest import Pad, Resize, ResizeByFactor, ResizeKeepRatio, Step

INSTALL = "pip install mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 ftfy regex (extra: segship[mmseg])"
NOT_RUN = ("auxiliary_head.",)
"""parts of a checkpoint that only training uses"""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
TRIED = ((97, 131), (417, 545))
"""least heights and widths to run at; the second for networks that pool large squares (LRASPP)"""
STRIDES = (1, 2, 4, 8, 16, 32, 64, *range(3, 64))
OF_ANY_NETWORK = 1e-3
"""of the logits' spread: how far an engine may lie from PyTorch. What rounding does to a network that no one has looked at is
not known; graphs that are wrong at other sizes are off by ten times that and more"""
SAME = 1e-4
"""of the logits' spread: how far the head's resized logits may lie from what mmseg itself infers"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network and what can be learnt of it by running it."""

    network: nn.Module
    """(N, C, h, w) normalised to the head's logits (N, K, h / stride, w / stride), rounded up"""
    architecture: str
    """'FCNHead on HRNet'"""
    in_channels: int
    channels: int
    num_classes: int
    align_corners: bool
    threshold: float | None
    """of a network of one channel"""
    stride: int
    size_multiple: int
    parameters: int
    test_cfg: dict[str, Any]


def missing() -> str | None:
    """What is not installed, or None where mmseg can be imported."""
    import importlib.util

    absent = [name for name in ("mmseg", "mmengine", "mmcv") if importlib.util.find_spec(name) is None]
    return ", ".join(absent) or None


def build(model: Mapping[str, Any], state_dict: Mapping[str, Tensor], *, name: str) -> Built:
    """The segmentor that a config's ``model`` describes, with a checkpoint's weights.

    Raises SourceError where mmseg is not installed, does not build the config, the weights are another network's, or the
    network cannot stand as one graph (``name`` names the source in messages).
    """
    absent = missing()
    if absent is not None:
        raise SourceError(f"this network is none that segship defines, and mmseg can only build it where it is installed "
                          f"({absent} missing): {INSTALL}")  # fmt: skip
    segmentor = _segmentor(model, name)
    _load(segmentor, state_dict, name)
    backbone = model.get("backbone") or {}
    channels = int(backbone.get("in_channels", 3)) if isinstance(backbone, Mapping) else 3
    network, stride, multiple = _one_graph(_exportable(segmentor), channels, name)
    head: Any = segmentor.decode_head[-1] if isinstance(segmentor.decode_head, nn.ModuleList) else segmentor.decode_head
    return Built(
        network=network,
        architecture=f"{type(head).__name__} on {type(segmentor.backbone).__name__}",
        in_channels=channels,
        channels=int(segmentor.out_channels),
        num_classes=int(segmentor.num_classes),
        align_corners=bool(segmentor.align_corners),
        threshold=float(head.threshold) if segmentor.out_channels == 1 else None,
        stride=stride,
        size_multiple=multiple,
        parameters=parameter_count(network),
        test_cfg=dict(model.get("test_cfg") or {}),
    )


def classes_of(dataset: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]] | None:
    """Class names and colours of one of mmseg's data set classes, 'ADE20KDataset'; None where mmseg is not there or has none."""
    if missing() is not None:
        return None
    install_stub()
    import mmseg.datasets

    about = getattr(getattr(mmseg.datasets, dataset, None), "METAINFO", {})
    names, palette = about.get("classes"), about.get("palette")
    if not names:
        return None
    return tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in palette or ())


# ------------------------------------------------------------------------------------------------ building


def _segmentor(model: Mapping[str, Any], name: str) -> Any:
    try:
        install_stub()
        from mmengine.config import ConfigDict
        from mmengine.model.utils import revert_sync_batchnorm
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules
    except Exception as error:  # ImportError, and AssertionError for versions that do not go together
        raise SourceError(f"mmseg cannot be imported here ({_line(error)}); {INSTALL}") from error
    try:
        with _quiet():
            register_all_modules(init_default_scope=True)
            built = MODELS.build(ConfigDict(without_training(model)))
            return revert_sync_batchnorm(built).eval()
    except Exception as error:  # mmseg raises whatever its parts raise
        raise SourceError(
            f"mmseg cannot build the config of {name} ({_line(error)}); check it with mmseg itself"
        ) from error


def without_training(model: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config's ``model`` that fetches no weights and has no part that only training uses."""
    found = _no_initialisation(copy.deepcopy(dict(model)))
    assert isinstance(found, dict)
    found.pop("auxiliary_head", None)
    return found | {"train_cfg": None, "data_preprocessor": {"type": "SegDataPreProcessor"}}


def _no_initialisation(value: Any) -> Any:
    if isinstance(value, Mapping):
        fetched = ("init_cfg", "pretrained")
        return {key: None if key in fetched else _no_initialisation(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_no_initialisation(item) for item in value)
    return value


def _load(segmentor: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> None:
    """The weights into the network. SourceError naming what differs."""
    given = {key: value for key, value in state_dict.items() if not key.startswith(NOT_RUN)}
    own = segmentor.state_dict()
    # SyncBN and others count batches; a checkpoint without the counters is as good.
    absent = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in own]
    shapes = [key for key in own if key in given and own[key].shape != given[key].shape]
    told = [f"{len(keys)} {what} ({keys[0]})" for keys, what in ((absent, "missing"), (unknown, "unknown")) if keys]
    if shapes:
        sizes = f"{shapes[0]}: {tuple(given[shapes[0]].shape)}, not {tuple(own[shapes[0]].shape)}"
        told.append(f"{len(shapes)} of another shape ({sizes})")
    if told:
        raise SourceError(
            f"{name} is no checkpoint of this config's network: {', '.join(told)}; give the config it was trained with"
        )
    segmentor.load_state_dict(given, strict=False)


class ScaledUpsample(nn.Module):
    """mmseg's Upsample with its factor left in the graph.

    mmseg computes whole output sizes in Python, and an exporter writes those of its example into the graph: at any other
    size the result is resized to the example's size first and is wrong without a word.
    """

    def __init__(self, factor: float | tuple[float, ...], mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=self.align_corners)


class AveragedBins(nn.Module):
    """nn.AdaptiveAvgPool2d to a few bins a side, as two products with matrices that the graph makes of the map's size.

    ONNX has no such pooling: where the bins do not divide the map, an exporter refuses or writes the example's bins into the
    graph, which is right at the example's size alone. Bin i of k over n values is floor(i n / k) to ceil((i + 1) n / k).
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        down, across = (_averages(count, x.shape[axis], x) for count, axis in zip(self.bins, (2, 3), strict=True))
        return down @ (x @ across.transpose(0, 1))


def _averages(bins: int, side: int, like: Tensor) -> Tensor:
    """(bins, side): row i averages what lies in bin i."""
    number = torch.arange(bins, device=like.device)
    first, behind = (number * side) // bins, ((number + 1) * side + bins - 1) // bins
    place = torch.arange(side, device=like.device)
    inside = (place >= first[:, None]) & (place < behind[:, None])
    return inside.to(like.dtype) / (behind - first)[:, None].to(like.dtype)


def _exportable(segmentor: nn.Module) -> nn.Module:
    """The segmentor with every layer replaced that an exporter would fix to its example's size; in place."""
    from mmseg.models.utils import Upsample

    for parent in list(segmentor.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, Upsample) and not child.size and child.scale_factor:
                setattr(parent, key, ScaledUpsample(child.scale_factor, child.mode, child.align_corners))
            elif isinstance(child, nn.AdaptiveAvgPool2d) and (bins := _bins(child)) not in (None, (1, 1)):
                setattr(parent, key, AveragedBins(bins))
    return segmentor


def _bins(pooling: nn.AdaptiveAvgPool2d) -> tuple[int, int] | None:
    """(down, across); None where a side keeps its size."""
    size: Any = pooling.output_size
    down, across = size if isinstance(size, tuple | list) else (size, size)
    return None if down is None or across is None else (int(down), int(across))


class _HeadLogits(nn.Module):
    """From a normalised picture to the last decode head's logits, at the head's own stride."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x: Tensor) -> Tensor:
        found = self.segmentor(x, mode="tensor")
        while isinstance(found, list | tuple):  # a head with further outputs for its loss gives the logits first
            found = found[0]
        logits: Tensor = found
        return logits


class _Inferred(nn.Module):
    """From a normalised picture to what mmseg infers of it whole: logits of the picture's size."""

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.segmentor.encode_decode(x, [_whole(x.shape[2:])])
        return logits


def _whole(size: Any) -> dict[str, Any]:
    """What mmseg wants to know of a picture that is inferred whole, without padding."""
    return {"img_shape": size, "ori_shape": size, "pad_shape": size, "padding_size": [0, 0, 0, 0]}


def _one_graph(segmentor: Any, channels: int, name: str) -> tuple[nn.Module, int, int]:
    """(network, stride, multiple): the head's logits where they are what mmseg infers, else all of its inference.

    Raises SourceError, the head's, where neither runs.
    """
    refused: SourceError | None = None
    for make in (_HeadLogits, _Inferred):
        network = make(segmentor).eval()
        try:
            stride, multiple, size = _probe(network, channels, name)
            _same_as_mmseg(network, segmentor, (channels, *size), name)
            return network, stride, multiple
        except SourceError as error:
            refused = refused or error
    assert refused is not None
    raise refused


# -------------------------------------------------------------------------------------------- at one size


def at_one_size(source: Source) -> Source:
    """The same network with its size fixed, for graphs that hold at one size alone; the notes say what that changes.

    In slide mode every window gets the window's size; else pictures are resized to the size that the test pipeline fits them
    into. Raises SourceError where a window is no size that the network takes.
    """
    recipe, (down, across) = source.recipe, source.recipe.network.size_multiple
    resizes = [step for step in recipe.preprocess if isinstance(step, Resize | ResizeKeepRatio | ResizeByFactor)]
    steps: tuple[Step, ...]
    if recipe.tiling is not None:
        height, width = recipe.tiling.window
        if height % down or width % across:
            raise SourceError(
                f"{recipe.name}: windows of {height}x{width} are no multiple of {down}x{across}, which the network takes"
            )
        fill = Pad(minimum=(height, width), where="end", mode="constant", value=0.0)
        steps = (*(step for step in recipe.preprocess if not isinstance(step, Pad)), fill)
        change = f"pictures smaller than a window of {height}x{width} are filled up to it"
    else:
        height, width = _fitted(resizes, recipe.network.check_size)
        height, width = -(-height // down) * down, -(-width // across) * across
        others = (step for step in recipe.preprocess if not isinstance(step, Pad) and step not in resizes)
        steps = (Resize(height=height, width=width, method="opencv:linear"), *others)
        change = f"pictures are resized to {height}x{width} whatever their ratio"
    network = recipe.network.model_copy(update={"size": (height, width), "check_size": None})
    return replace(
        source,
        recipe=recipe.model_copy(update={"network": network, "preprocess": steps}),
        input_example_shape=(recipe.network.input_channels, height, width),
        warnings=(*source.warnings, f"the network's graph holds at {height}x{width} alone: {change}"),
        at_one_size=None,
    )


def _fitted(resizes: list[Any], otherwise: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of a landscape picture that fills what the pipeline fits pictures into."""
    for step in resizes:
        if isinstance(step, Resize):
            return step.height, step.width
        if isinstance(step, ResizeKeepRatio):
            return step.short_side, step.long_side
    assert otherwise is not None
    return otherwise


# ------------------------------------------------------------------------------------------- learning of it


def _probe(network: nn.Module, channels: int, name: str) -> tuple[int, int, tuple[int, int]]:
    """(stride, multiple, size): the smallest multiple of both sides that the network takes and answers at one stride, and
    the (height, width) at which it did."""
    reason = "no size was taken"
    for leasts, multiple in itertools.product(TRIED, MULTIPLES):
        height, width = (multiple * _odd(least, multiple) for least in leasts)
        try:
            with torch.inference_mode(), _quiet():
                shape = network(torch.zeros(1, channels, height, width)).shape
        except Exception as error:  # whatever the network's own size checks raise
            reason = _line(error)
            continue
        stride = next((s for s in STRIDES if tuple(shape[2:]) == (-(-height // s), -(-width // s))), None)
        if len(shape) == 4 and stride is not None:
            return stride, multiple, (height, width)
        reason = f"{height}x{width} gives {tuple(shape)}"
    raise SourceError(
        f"the network of {name} does not run at any size that was tried ({reason}); check it with mmseg itself"
    )


def _odd(least: int, multiple: int) -> int:
    """The odd factor that brings ``multiple`` to ``least`` or a little more, so that no larger multiple is tried by chance."""
    return -(-least // multiple) | 1


def _same_as_mmseg(network: nn.Module, segmentor: Any, shape: tuple[int, int, int], name: str) -> None:
    """Hold the head's resized logits against mmseg's own inference. SourceError where one graph cannot say the same."""
    size = shape[1:]
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode(), _quiet():
            theirs = segmentor.encode_decode(x, [_whole(size)])
            again = segmentor.encode_decode(x, [_whole(size)])
            ours = functional.interpolate(
                network(x), size=theirs.shape[2:], mode="bilinear", align_corners=bool(segmentor.align_corners)
            )
    except Exception as error:
        raise SourceError(
            f"mmseg cannot run the network of {name} ({_line(error)}); check it with mmseg itself"
        ) from error
    spread = max(float(theirs.std()), 1e-6)
    if float((theirs - again).abs().max()) > SAME * spread:
        raise SourceError(
            f"the network of {name} draws random numbers and answers differently each time; no graph can hold it"
        )
    if ours.shape != theirs.shape or float((theirs - ours).abs().max()) > SAME * spread:
        raise SourceError(
            f"in {name} mmseg does more in inference than the head's logits hold (a loop or a rule of its own); no single graph "
            "can stand for it"
        )


def _quiet() -> warnings.catch_warnings[None]:
    """mmseg's warnings about losses and initialisation say nothing to who exports."""
    return warnings.catch_warnings(action="ignore")


def _line(error: BaseException) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next((line for line in lines if line), '')[:200]}"
