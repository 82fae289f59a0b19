"""From a normalised picture to logits on its own grid, as mmseg's segmentors give them, with a package's graph in the middle.

mmseg reads, resizes, pads and normalises before this and resizes once more after it, so only what stands between is done
here: the network, the resize of its logits to its input's size, and the sliding window (open-mmlab/mmsegmentation:
mmseg/models/segmentors/encoder_decoder.py). Nothing here imports mmseg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segship.errors import PackageError, UsageError
from segship.inference.tiling import cut, window_starts
from segship.manifest import Manifest, Normalize, Threshold, Tiling

Float = NDArray[np.float32]
DEFAULT_THRESHOLD = 0.3
"""mmseg's own for a network of one class (mmseg/models/decode_heads/decode_head.py)"""


class Network(Protocol):
    def network(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a package's manifest says of the part that mmseg leaves to the network."""

    channels: int
    align_corners: bool
    threshold: float
    order: str
    """'rgb', 'bgr' or 'grey'"""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    """(mean, std) of each channel; None where the graph normalises"""
    tiling: Tiling | None
    multiple: tuple[int, int]
    size: tuple[int, int] | None


def read_chain(manifest: Manifest) -> Chain:
    """Raises PackageError for a package of another kind of network than mmseg's."""
    spec, network, decode = manifest.input, manifest.network, manifest.decode
    if spec.kind != "image" or network.layout != "NCHW" or network.outputs[0].values != "logits":
        raise PackageError(
            f"package '{manifest.name}' is no network that gives logits for pictures; mmseg cannot score it"
        )
    steps = [step for step in manifest.preprocess if isinstance(step, Normalize)]
    if len(steps) > 1:
        raise PackageError(
            f"package '{manifest.name}' normalises more than once; mmseg's preprocessor cannot do the same"
        )
    normalisation = None
    if steps:
        normalisation = steps[0].subtract, tuple(float(1 / value) for value in steps[0].multiply)
    size = network.size
    return Chain(
        channels=network.outputs[0].channels,
        align_corners=decode.restore_method.endswith("align-corners"),
        threshold=decode.decision.threshold if isinstance(decode.decision, Threshold) else DEFAULT_THRESHOLD,
        order=spec.channel_order,
        normalisation=normalisation,
        tiling=manifest.tiling,
        multiple=(network.size_multiple[0], network.size_multiple[1]),
        size=None if size is None else (size[0], size[1]),
    )


def check_preprocessor(chain: Chain, constants: tuple[Sequence[float], Sequence[float]] | None, swaps: bool) -> bool:
    """Whether mmseg's preprocessor is to normalise. ``constants`` are its (mean, std), None where it has none.

    ``swaps``: it turns the BGR that mmseg reads into RGB. Raises UsageError where it does otherwise than the package's own
    chain: then this config and this package are not of one network.
    """
    if chain.order in ("rgb", "bgr") and swaps != (chain.order == "rgb"):
        raise UsageError(
            f"the config gives the network {'RGB' if swaps else 'BGR'} and the package's takes {chain.order.upper()}; they are "
            "not of one network"
        )
    if chain.normalisation is None:
        return False
    mean, std = chain.normalisation
    given = constants or ([0.0] * len(mean), [1.0] * len(std))
    for ours, theirs in ((mean, given[0]), (std, given[1])):
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-5, atol=1e-5):
            raise UsageError(
                f"the config normalises with mean {list(given[0])} and std {list(given[1])}, the package with {list(mean)} and "
                f"{[round(value, 6) for value in std]}; they are not of one network"
            )
    return True


def head_logits(network: Network, chain: Chain, x: Float) -> Float:
    """x (C, h, w) to logits (K, h, w); windows are averaged where the package has them."""
    if chain.tiling is None:
        return window_logits(network, chain, x)
    sums = np.zeros((chain.channels, *x.shape[1:]), np.float32)
    seen = np.zeros(x.shape[1:], np.float32)
    for start in window_starts(x.shape[1:], chain.tiling):
        part = cut(x, start, chain.tiling)
        box = tuple(slice(s, s + n) for s, n in zip(start, part.shape[1:], strict=True))
        sums[(slice(None), *box)] += window_logits(network, chain, part)
        seen[box] += 1
    return np.divide(sums, seen, out=sums)


def window_logits(network: Network, chain: Chain, x: Float) -> Float:
    """One pass of the network over x (C, h, w), its logits resized to h × w.

    A size that the network does not take is filled up with zeros at the right and below, as mmseg's size_divisor does.
    """
    import torch

    height, width = x.shape[1:]
    missing = [-side % step for side, step in zip((height, width), chain.multiple, strict=True)]
    padded = np.pad(x, [(0, 0), (0, missing[0]), (0, missing[1])]) if any(missing) else np.ascontiguousarray(x)
    if chain.size is not None and padded.shape[1:] != chain.size:
        raise UsageError(
            f"the package is made for {chain.size[0]}x{chain.size[1]} alone and the config's pipeline gives {height}x{width}; "
            f"export with --shape dynamic, or set the pipeline's Resize to scale=({chain.size[1]}, {chain.size[0]})"
        )
    logits = torch.from_numpy(network.network(padded[None]))
    if logits.shape[2:] != padded.shape[1:]:
        logits = torch.nn.functional.interpolate(
            logits, size=padded.shape[1:], mode="bilinear", align_corners=chain.align_corners
        )
    found: Float = logits[0, :, :height, :width].numpy()
    return found
