"""Published numbers of Cityscapes' validation split, to stand beside measured ones.

Means of the 500 pictures at 2048 × 1024, whole-image inference. ``fp32``, ``fp16`` and ``int8`` are those of a vendor's
port of mmseg 0.x (Cambricon/magicmind_cloud: buildin/cv/segmentation/mmsegmentation, README; its int8 is
qint8_mixed_float16), ``published`` and ``ms+flip`` those of mmseg's own model index. The port's README also has a table
by class under the name DeepLabV3 (aAcc 94.78, mIoU 72.14, mAcc 80.7): it contradicts the same page's 96.07 / 78.36 /
85.56 and belongs to some other network, so it is no reference here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segship.datasets.cases import Dataset
from segship.datasets.cityscapes import COUNTS, is_val
from segship.manifest import Recipe
from segship.measure.tables import columns
from segship.metrics.mmseg_tables import percent

NAMES = ("aAcc", "mIoU", "mAcc")
Means = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One network's row."""

    name: str
    architecture: str
    """how a manifest's architecture begins"""
    parameters: frozenset[int]
    """with and without the auxiliary head"""
    stride: int
    """of the logits: DeepLabV3-R101 with stride 8 has the same weights' shapes and is another network"""
    published: float
    ms_flip: float
    means: Mapping[str, Means]
    """precision -> aAcc, mIoU, mAcc in percent"""


REFERENCES = (
    Reference(
        name="OCRNet-HR18 160k",
        architecture="OCRNet",
        parameters=frozenset({12_080_036}),
        stride=4,
        published=79.47,
        ms_flip=80.91,
        means={"fp32": (96.4, 79.45, 86.75), "fp16": (96.4, 79.44, 86.74), "int8": (96.27, 78.93, 87.32)},
    ),
    Reference(
        name="DeepLabV3-R101-D16-MG124 80k",
        architecture="DeepLabV3",
        parameters=frozenset({87_105_158, 84_740_467}),
        stride=16,
        published=78.36,
        ms_flip=79.84,
        means={"fp32": (96.07, 78.36, 85.56), "fp16": (96.07, 78.36, 85.56), "int8": (95.99, 77.73, 84.9)},
    ),
    Reference(
        name="FCN-UNet-S5-D16 160k",
        architecture="FCN-UNet",
        parameters=frozenset({29_062_886, 28_987_795}),
        stride=1,
        published=69.1,
        ms_flip=71.05,
        means={"fp32": (94.91, 69.1, 76.76), "fp16": (94.91, 69.1, 76.76), "int8": (94.81, 68.82, 76.14)},
    ),
)


def references_for(recipe: Recipe) -> tuple[Reference, ...]:
    """The row of this network where it is one of them; else all rows."""
    network = recipe.network
    own = tuple(
        row
        for row in REFERENCES
        if network.architecture.startswith(row.architecture)
        and network.parameters in row.parameters
        and network.outputs[0].stride == row.stride
    )
    return own or REFERENCES


def rows(recipe: Recipe, measured: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """(network, precision, where from, aAcc, mIoU, mAcc): the references, then what was measured (0..1) here."""
    found = [
        [row.name, precision, "reference", *(f"{value:.2f}" for value in means)]
        for row in references_for(recipe)
        for precision, means in row.means.items()
    ]
    here = [
        [recipe.name, precision, "measured", *(_cell(values.get(name)) for name in NAMES)]
        for precision, values in measured.items()
    ]
    return [*found, *here]


def applies(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether measured numbers may stand beside these: a network that mmseg scores, on Cityscapes val."""
    return recipe.metric.scorer == "mmseg" and is_val(dataset)


def beside(recipe: Recipe, dataset: Dataset, measured: Mapping[str, Mapping[str, float]]) -> str | None:
    """The table of references and measured numbers as text; None where it does not apply."""
    if not applies(recipe, dataset):
        return None
    table = columns(["network", "precision", "", *NAMES], rows(recipe, measured))
    return "\n".join(
        ["Cityscapes val, whole images of 2048 × 1024, percent:", table, remark(len(dataset.cases), recipe)]
    )


def remark(cases: int, recipe: Recipe) -> str:
    """What keeps the two from being compared, and the published numbers."""
    own = references_for(recipe)
    published = "; ".join(f"{row.name} {row.published:.2f}, ms+flip {row.ms_flip:.2f}" for row in own)
    few = "" if cases == COUNTS["val"] else f"Measured on {cases} of the reference's {COUNTS['val']} pictures. "
    return f"{few}mIoU that mmseg publishes: {published}."


def columns_of(data: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """The rows with names, for JSON and the report."""
    keys = ("network", "precision", "kind", *NAMES)
    return [dict(zip(keys, row, strict=True)) for row in data]


def _cell(value: float | None) -> str:
    return "-" if value is None or value != value else f"{percent(value):.2f}"
