"""A package whose network names the class of the nearest colour, and toy street scenes painted in those colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tiny_parts import convolution, picture_input, picture_network, variants, write_tiny

from segship.datasets.cityscapes_labels import cityscapes_labels
from segship.manifest import Argmax, Decode, Label, Manifest, Metric, Normalize, Output
from segship.package import Package

LABELS = cityscapes_labels()
VAL = ("frankfurt_000000_000294", "frankfurt_000001_000538", "lindau_000000_000019", "munster_000173_000019")
TRAIN = (
    "aachen_000000_000019",
    "aachen_000001_000019",
    "bochum_000000_000313",
    "ulm_000010_000019",
    "ulm_000011_000019",
)


def graph(labels: Sequence[Label], noise: float = 0.0) -> bytes:
    """ONNX bytes: logit k = 20·(2·c_k·x − |c_k|²), largest where the BGR picture (0..1) is nearest to colour k."""
    colors = np.array([label.color[::-1] for label in labels], np.float32) / 255
    colors += noise * np.random.default_rng(1).normal(size=colors.shape).astype(np.float32)
    weight = (40 * colors)[..., None, None]
    bias = -20 * np.square(colors).sum(axis=1)
    return convolution(weight, bias, name="nearest")


def label_package(
    path: Path, labels: Sequence[Label] = LABELS, *, int8: bool = True, options: Mapping[str, str | int | bool] = {}
) -> Package:
    """fp32, and a slightly wrong 'int8' to compare with it; scored by mIoU."""
    graphs = {"fp32": graph(labels)} | ({"int8": graph(labels, noise=0.06)} if int8 else {})
    manifest = Manifest(
        name="nearest-colour",
        family="test",
        input=picture_input("opencv:color", "bgr", "apply"),
        preprocess=(Normalize(subtract=(0, 0, 0), multiply=(1 / 255,) * 3),),
        network=picture_network(
            Output(name="y", channels=len(labels), values="logits"),
            architecture="nearest colour",
            parameters=4 * len(labels),
        ),
        decode=Decode(
            activation="softmax",
            decision=Argmax(),
            restore_what="logits",
            restore_method="torch:bilinear",
        ),
        labels=tuple(labels),
        metric=Metric(name="mIoU", scorer="mmseg", higher_is_better=True, grid="input", options=dict(options)),
        variants=variants(graphs),
    )
    return write_tiny(path, manifest, graphs, sample=("street.png", scene(99)[0]), source={"file": "nearest"})


def scene(
    seed: int, height: int = 48, width: int = 96, labels: Sequence[Label] = LABELS, noise: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """(BGR uint8 (H, W, 3), class numbers uint8 (H, W), 255 where nothing is said)."""
    random = np.random.default_rng(seed)
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 3] = 10 % len(labels)  # sky over road
    for _ in range(24):
        kind = int(random.integers(0, len(labels)))
        x, y = int(random.integers(0, width - 6)), int(random.integers(0, height - 6))
        truth[y : y + int(random.integers(4, 14)), x : x + int(random.integers(4, 18))] = kind
    colors = np.array([label.color[::-1] for label in labels], np.float32)
    picture = colors[truth] + random.normal(0, noise, (height, width, 3))
    truth[-3:] = 255  # the car's own bonnet
    return picture.clip(0, 255).astype(np.uint8), truth


def label_ids(truth: np.ndarray) -> np.ndarray:
    """Train ids as Cityscapes' label ids; void is id 1 (ego vehicle)."""
    table = np.full(256, 1, np.uint8)
    table[: len(LABELS)] = [label.file_value for label in LABELS]
    return table[truth]


def write_scene(root: Path, split: str, name: str, seed: int, *, train_ids: bool = True, ids: bool = False) -> None:
    picture, truth = scene(seed, 48 + 4 * (seed % 2), 96)
    city = name.split("_")[0]
    images, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(images / f"{name}_leftImg8bit.png"), picture)
    if train_ids:
        cv2.imwrite(str(labels / f"{name}_gtFine_labelTrainIds.png"), truth)
    if ids:
        cv2.imwrite(str(labels / f"{name}_gtFine_labelIds.png"), label_ids(truth))


def cityscapes_tree(root: Path, *, train_ids: bool = True, ids: bool = False) -> Path:
    """4 pictures of val (train ids), 5 of train, 1 of test without labels."""
    for place, name in enumerate(VAL):
        write_scene(root, "val", name, place, train_ids=train_ids, ids=ids)
    for place, name in enumerate(TRAIN):
        write_scene(root, "train", name, 20 + place, train_ids=train_ids, ids=ids)
    write_scene(root, "test", "berlin_000000_000019", 50, train_ids=False, ids=ids)
    return root
