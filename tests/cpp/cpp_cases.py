"""Packages of one small convolution with any chain around it, and files to run them on.

The convolution's weights are random and nothing in it is symmetric: a flip that is not undone, two channels exchanged or a
picture one pixel off shows in every answer.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from volume_files import volume_input

from segship.manifest import (
    Argmax,
    Channel,
    Decode,
    Divide,
    ImageInput,
    Label,
    Manifest,
    Metric,
    Network,
    Output,
    Resize,
    Step,
    Threshold,
    Tiling,
    Variant,
    VolumeInput,
)
from segship.package import Package, write_package

METRIC = Metric(name="Dice", scorer="nnunet", higher_is_better=True, grid="input")
SIGMOID = Decode(
    activation="sigmoid",
    decision=Threshold(threshold=0.5),
    restore_what="probabilities",
    restore_method="opencv:linear",
)
ARGMAX = Decode(activation="softmax", decision=Argmax(), restore_what="logits", restore_method="opencv:linear")
VOLUME_ARGMAX = ARGMAX.model_copy(update={"restore_method": "skimage:edge"})


# -------------------------------------------------------------------------------------------------- networks


def graph(
    inputs: int = 3, outputs: int = 1, *, axes: int = 2, stride: int = 1, seed: int = 0, gain: float = 4.0,
    sizes: Sequence[int | str] | None = None, activation: str | None = None,
) -> bytes:  # fmt: skip
    """ONNX bytes of one 3×3(×3) convolution for inputs of about 0..1; ``activation`` such as "Sigmoid" ends the graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    weights = random.normal(0, gain / np.sqrt(inputs * 3**axes), (outputs, inputs, *[3] * axes)).astype(np.float32)
    # Half of what a class sees on the way is its threshold, so that all classes occur.
    bias = (-0.5 * weights.reshape(outputs, -1).sum(axis=1)).astype(np.float32)
    strides = {"strides": [stride] * axes} if stride > 1 else {}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["logits"], pads=[1] * 2 * axes, **strides)]
    if activation is not None:
        nodes.append(helper.make_node(activation, ["logits"], ["y"]))
    sides = list(sizes) if sizes is not None else [f"side{axis}" for axis in range(axes)]
    out = "y" if activation else "logits"
    made = helper.make_graph(
        nodes,
        "one_convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs, *sides])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", outputs, *[f"o{axis}" for axis in range(axes)]])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def labels(count: int, background: bool = True) -> tuple[Label, ...]:
    first = 0 if background else 1
    return tuple(
        Label(id=first + k, name=f"class{k}", color=(40 * k % 256, 255 - 30 * k, 90), ids=(first + k,))
        for k in range(count)
    )


def variant(graphs: dict[str, bytes], precision: str = "fp32", **changes: Any) -> Variant:
    fields: dict[str, Any] = {
        "precision": precision,
        "graphs": {member: f"graphs/{precision}.{member}.onnx" for member in graphs},
        "sha256": {member: hashlib.sha256(data).hexdigest() for member, data in graphs.items()},
        "shapes": "dynamic",
        "batches": (1,),
        "engines": ("openvino",),
    }
    return Variant(**(fields | changes))


def written(
    path: Path, recipe: dict[str, Any], graphs: dict[str, bytes], files: dict[str, bytes] | None = None
) -> Package:
    manifest = Manifest(**recipe, variants=(variant(graphs),))
    named = {f"graphs/fp32.{member}.onnx": data for member, data in graphs.items()}
    return write_package(path, manifest, named | (files or {}), {"source": {}})


# -------------------------------------------------------------------------------------------------- pictures

COLOR = ImageInput(
    reader="opencv:color", channels=tuple(Channel(name=n) for n in "RGB"), channel_order="rgb", exif_rotation="apply"
)
GREY = ImageInput(reader="opencv:grey", channels=(Channel(name="grey"),), channel_order="grey", exif_rotation="apply")
SKIMAGE = COLOR.model_copy(update={"reader": "skimage", "exif_rotation": "ignore", "grey": "keep"})
PILLOW = COLOR.model_copy(update={"reader": "pillow:rgb"})


def picture_package(
    path: Path,
    *steps: Step,
    decode: Decode = SIGMOID,
    classes: int = 1,
    spec: ImageInput = COLOR,
    planes: int | None = None,
    members: Sequence[str] = ("model",),
    stride: int = 1,
    multiple: int = 1,
    values: str = "logits",
    graph_activation: str | None = None,
    gain: float = 4.0,
    **changes: Any,
) -> Package:
    """A package for pictures; without ``steps`` they are only divided by 255. ``planes``: channels of the network."""
    inputs = planes or len(spec.channels)
    graphs = {
        member: graph(inputs, classes, stride=stride, seed=5 + k, activation=graph_activation, gain=gain)
        for k, member in enumerate(members)
    }
    exclusive = decode.decision.rule == "argmax"
    fields: dict[str, Any] = {
        "name": "picture",
        "family": "test",
        "input": spec,
        "preprocess": steps or (Divide(by=255),),
        "network": Network(
            architecture="one convolution", parameters=27 * classes + classes, input_name="x", layout="NCHW",
            input_channels=inputs, size=None, size_multiple=(multiple, multiple), members=tuple(members),
            outputs=(Output(name="y" if graph_activation else "logits", channels=classes, values=values, stride=stride),),  # type: ignore[arg-type]
        ),
        "decode": decode,
        "labels": labels(classes, background=exclusive),
        "metric": METRIC,
    }  # fmt: skip
    return written(path, fields | changes, graphs)


def resized(height: int, width: int, method: str = "opencv:linear") -> tuple[Step, ...]:
    return Resize(height=height, width=width, method=method), Divide(by=255)  # type: ignore[arg-type]


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8: smooth shapes with fine noise, every channel another."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 7), max(2, width // 7), channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    noisy = smooth.astype(np.float32) + random.normal(0, 6, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


SIZES = ((80, 100), (33, 47), (200, 31), (64, 64), (1, 1), (7, 150))


def write_pictures(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES, channels: int = 3) -> list[Path]:
    """A PNG of each size: p80x100.png …"""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for seed, (height, width) in enumerate(sizes):
        path = folder / f"p{height}x{width}.png"
        cv2.imwrite(str(path), picture(height, width, seed, channels))
        made.append(path)
    return made


# --------------------------------------------------------------------------------------------------- volumes


def tiling(window: tuple[int, ...] = (8, 12, 10), **changes: Any) -> Tiling:
    """nnU-Net's windows: evenly spread, half a window apart, Gaussian."""
    fields: dict[str, Any] = {
        "window": window, "step": tuple(side / 2 for side in window), "positions": "even-spread", "weighting": "gaussian",
        "gaussian_sigma_scale": 1 / 8, "pad_mode": "constant", "average": "logits",
    }  # fmt: skip
    return Tiling(**(fields | changes))


def volume_package(
    path: Path,
    *steps: Step,
    decode: Decode = VOLUME_ARGMAX,
    classes: int = 3,
    spec: VolumeInput | None = None,
    planes: int | None = None,
    windows: Tiling | None = None,
    members: Sequence[str] = ("model",),
    scale: float = 1 / 150,
    file: str = "volume",
    **changes: Any,
) -> Package:
    """A package for volumes of values up to about 150, which the network's weights bring to 0..1."""
    spec, windows = spec or volume_input(), windows or tiling()
    inputs, axes = planes or len(spec.channels), len(windows.window)
    graphs = {
        member: graph(inputs, classes, axes=axes, seed=20 + k, gain=9.0, sizes=windows.window)
        for k, member in enumerate(members)
    }
    exclusive = decode.decision.rule == "argmax"
    fields: dict[str, Any] = {
        "name": file,
        "family": "test",
        "input": spec,
        "preprocess": (*steps, Divide(by=1 / scale)),
        "network": Network(
            architecture="one convolution", parameters=100, input_name="x",
            layout="NCHW" if axes == 2 else "NCDHW", input_channels=inputs, size=windows.window,
            size_multiple=(1,) * axes, members=tuple(members),
            outputs=(Output(name="logits", channels=classes, values="logits"),),
        ),
        "tiling": windows,
        "decode": decode,
        "labels": labels(classes, background=exclusive),
        "metric": METRIC,
    }  # fmt: skip
    return written(path, fields | changes, graphs)


def values(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """float32 0..150: smooth blobs in a dark margin of zeros."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 1.5)
    smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-6) * 150
    inner = np.zeros(shape, bool)
    inner[tuple(slice(side // 8, side - side // 10) for side in shape)] = True
    return np.where(inner, smooth, 0).astype(np.float32)


def affine(kind: str = "plain", zooms: tuple[float, float, float] = (1.5, 1.2, 2.0)) -> np.ndarray:
    """plain, oblique, flipped (axes exchanged), mirrored."""
    out = np.eye(4)
    out[:3, :3] = np.diag(zooms)
    if kind == "oblique":
        c, s = np.cos(0.3), np.sin(0.3)
        out[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(zooms)
    elif kind == "flipped":
        out[:3, :3] = np.array([[0, 0, -zooms[2]], [-zooms[0], 0, 0], [0, -zooms[1], 0]])
    elif kind == "mirrored":
        out[:3, :3] = np.diag((-zooms[0], -zooms[1], zooms[2]))
    out[:3, 3] = (-12.5, 40.25, 7.0)
    return out


def write_volume(
    path: Path, shape: tuple[int, ...] = (21, 26, 17), *, kind: str = "plain", dtype: str = "i2", seed: int = 0,
    zooms: tuple[float, float, float] = (1.5, 1.2, 2.0), slope: tuple[float, float] | None = None, version: int = 1,
    **header: Any,
) -> Path:  # fmt: skip
    """A NIfTI file with axes (x, y, z[, channels])."""
    array = values(shape, seed).astype(dtype)
    made = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(array, affine(kind, zooms), dtype=array.dtype)
    made.header.set_xyzt_units("mm", "sec")
    made.header["descrip"] = b"made for a test"
    if slope is not None:
        made.header.set_slope_inter(*slope)
    for name, value in header.items():
        made.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(made, path)
    return path


def big_endian(path: Path, source: Path) -> Path:
    """The same NIfTI file with its bytes the other way round."""
    image = nibabel.load(source)
    swapped = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))
    nibabel.save(swapped, path)
    return path


def packed_twice(path: Path, source: Path) -> Path:
    """A .nii.gz in two gzip members, as some writers make them."""
    whole = gzip.decompress(source.read_bytes())
    path.write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]))
    return path
