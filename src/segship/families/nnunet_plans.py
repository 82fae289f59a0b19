"""What an nnU-Net model folder says, in one form for v2 and v1: a `Plan`. This file reads v2's plans and dataset files.

Source: MIC-DKFZ/nnUNet tag v2.8.1: nnunetv2/utilities/plans_handling/plans_handler.py, label_handling/label_handling.py.
Only the keys that decide the answer are read; whatever is missing or unknown is a SourceError naming file and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segship.errors import SourceError
from segship.families.nnunet_architecture import need, read_architecture
from segship.networks.nnunet import Architecture, Axes

Scheme = Literal["ct", "ct2", "zscore", "none", "rescale01", "rgb01"]
Spacing = tuple[float | None, ...]

READERS = {
    "SimpleITKIO": "simpleitk",
    "SimpleITKIOWithReorient": "simpleitk-reorient",
    "NibabelIO": "nibabel",
    "NibabelIOWithReorient": "nibabel-reorient",
    "NaturalImage2DIO": "image-2d",
    "Tiff3DIO": "tiff-3d",
}
_READER_ORDER = ("NaturalImage2DIO", "SimpleITKIO", "Tiff3DIO", "NibabelIO", "NibabelIOWithReorient")
_ENDINGS = {
    "NaturalImage2DIO": (".png", ".bmp", ".tif"),
    "SimpleITKIO": (".nii.gz", ".nrrd", ".mha", ".gipl"),
    "Tiff3DIO": (".tif", ".tiff"),
    "NibabelIO": (".nii", ".nii.gz"),
    "NibabelIOWithReorient": (".nii", ".nii.gz"),
}
_SCHEMES: dict[str, Scheme] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale01",
    "RGBTo01Normalization": "rgb01",
}


@dataclass(frozen=True, kw_only=True)
class ChannelRule:
    """How one input channel is normalised; the numbers are the training set's."""

    scheme: Scheme
    use_mask: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """One of the three resamplings that a configuration names."""

    kind: Literal["spline", "torch", "none"]
    order: int
    order_z: int
    separate_z: Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """A label, or a region that joins several; in the file's order."""

    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Labels:
    entries: tuple[LabelSpec, ...]
    """all but ``ignore``, background included"""
    regions_order: tuple[int, ...] | None
    """with regions: the label that each foreground entry writes"""
    ignore: int | None

    @property
    def foreground(self) -> tuple[LabelSpec, ...]:
        return tuple(entry for entry in self.entries if entry.ids != (0,))

    @property
    def foreground_ids(self) -> tuple[int, ...]:
        """Every label but background and ignore, ascending."""
        return tuple(sorted({i for entry in self.entries for i in entry.ids} - {0}))

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.foreground) if self.regions_order is not None else len(self.entries)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One configuration, resolved."""

    version: Literal[1, 2]
    configuration: str
    dataset: str
    plans: str
    architecture: Architecture
    reader: str
    """as the manifest names it"""
    file_ending: str
    channels: tuple[str, ...]
    rules: tuple[ChannelRule, ...]
    transpose: tuple[int, int, int]
    spacing: Spacing
    """(z, y, x) in transposed order; None keeps the volume's own"""
    patch: Axes
    data: Resampling
    segmentation: Resampling
    probabilities: Resampling
    labels: Labels
    previous_stage: str | None = None


def read_plan(plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str) -> Plan:
    """The named configuration of a v2 plans.json. Raises SourceError naming what is missing, unknown or contradictory."""
    resolved = resolve(plans, configuration)
    channels = channel_names(dataset)
    labels = read_labels(dataset)
    previous = resolved.get("previous_stage")
    inputs = len(channels) + (len(labels.foreground_ids) if previous else 0)
    architecture = read_architecture(resolved, inputs, labels.outputs)
    spacing = tuple(float(v) for v in need(resolved, "spacing", "plans.json"))
    patch = tuple(int(v) for v in need(resolved, "patch_size", "plans.json"))
    if len(patch) != architecture.axes:
        raise SourceError(f"plans.json: patch_size {list(patch)} does not fit a {architecture.axes}D network")
    if resolved.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise SourceError(
            f"plans.json: preprocessor '{resolved['preprocessor_name']}' is custom code outside nnU-Net; only DefaultPreprocessor can be shipped"
        )
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        raise SourceError(
            f"plans.json: label manager '{plans['label_manager']}' is custom code; only LabelManager is known"
        )
    return Plan(
        version=2,
        configuration=configuration,
        dataset=str(plans.get("dataset_name", "")),
        plans=str(plans.get("plans_name", "nnUNetPlans")),
        architecture=architecture,
        reader=read_reader(plans, dataset),
        file_ending=file_ending(dataset),
        channels=channels,
        rules=_read_rules(plans, resolved, len(channels)),
        transpose=_transpose(plans.get("transpose_forward", (0, 1, 2))),
        spacing=spacing if len(spacing) == 3 else (None, *spacing),
        patch=patch,
        data=_resampling(resolved, "data", order=3),
        segmentation=_resampling(resolved, "seg", order=1),
        probabilities=_resampling(resolved, "probabilities", order=1),
        labels=labels,
        previous_stage=str(previous) if previous else None,
    )


def resolve(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits: the parent's keys, updated with its own."""
    known = need(plans, "configurations", "plans.json")
    chain: list[str] = []
    name: str | None = configuration
    parts: list[Mapping[str, Any]] = []
    while name is not None:
        if name not in known:
            where = f" (which {chain[-1]} inherits from)" if chain else ""
            raise SourceError(f"plans.json has no configuration '{name}'{where}; it has: {', '.join(known)}")
        if name in chain:
            raise SourceError(f"plans.json: configurations inherit in a circle: {' -> '.join([*chain, name])}")
        chain.append(name)
        parts.append(known[name])
        name = known[name].get("inherits_from")
    out: dict[str, Any] = {}
    for part in reversed(parts):
        out.update(part)
    return out


def channel_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    names = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(names, Mapping) or not names:
        raise SourceError('dataset.json lacks \'channel_names\'; it must name the input channels: {"0": "CT"}')
    return tuple(str(names[key]) for key in sorted(names, key=int))


def read_labels(dataset: Mapping[str, Any]) -> Labels:
    """Labels in the order of the file: regions are numbered in that order, so it must not be sorted."""
    given = need(dataset, "labels", "dataset.json")
    if not isinstance(given, Mapping):
        raise SourceError("dataset.json: 'labels' must be {name: number}")
    if given and all(str(key).lstrip("-").isdigit() for key in given):  # v1 and MSD wrote {"1": "name"}
        given = {str(value): int(key) for key, value in given.items()}
    entries, ignore = [], None
    for name, value in given.items():
        ids = (
            tuple(int(v) for v in value)
            if isinstance(value, Sequence) and not isinstance(value, str)
            else (int(value),)
        )
        if name == "ignore":
            ignore = ids[0]
            continue
        entries.append(LabelSpec(name=str(name), ids=ids))
    background = [entry.name for entry in entries if 0 in entry.ids]
    if background != ["background"] and (0,) not in [entry.ids for entry in entries]:
        raise SourceError("dataset.json: no label is 0; nnU-Net's background must be 0")
    regions = any(len(entry.ids) > 1 for entry in entries)
    top = max(i for entry in entries for i in entry.ids)
    if ignore is not None and ignore != top + 1:
        raise SourceError(f"dataset.json: the ignore label is {ignore}; it must be the largest, {top + 1}")
    if not regions:
        entries.sort(key=lambda entry: entry.ids[0])
        if [entry.ids[0] for entry in entries] != list(range(len(entries))):
            raise SourceError(f"dataset.json: labels must be 0, 1, 2 … without gaps, got {[e.ids[0] for e in entries]}")
        return Labels(entries=tuple(entries), regions_order=None, ignore=ignore)
    order = tuple(int(v) for v in need(dataset, "regions_class_order", "dataset.json"))
    labels = Labels(entries=tuple(entries), regions_order=order, ignore=ignore)
    if len(order) != len(labels.foreground):
        raise SourceError(
            f"dataset.json: regions_class_order has {len(order)} entries for {len(labels.foreground)} foreground regions"
        )
    return labels


def file_ending(dataset: Mapping[str, Any]) -> str:
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if ending not in {e for endings in _ENDINGS.values() for e in endings}:
        raise SourceError(f"dataset.json: file_ending '{ending}' is read by none of nnU-Net's readers")
    return ending


def read_reader(plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    """The reader by the manifest's name: the data set's own choice, else the plans', else the first for the ending."""
    name = dataset.get("overwrite_image_reader_writer") or plans.get("image_reader_writer")
    if not name or name == "None":
        ending = file_ending(dataset)
        name = next(reader for reader in _READER_ORDER if ending in _ENDINGS[reader])
    if name not in READERS:
        raise SourceError(f"plans.json: image reader '{name}' is unknown; known are {', '.join(READERS)}")
    return READERS[str(name)]


def _read_rules(plans: Mapping[str, Any], resolved: Mapping[str, Any], count: int) -> tuple[ChannelRule, ...]:
    schemes = need(resolved, "normalization_schemes", "plans.json")
    masks = resolved.get("use_mask_for_norm", [False] * count)
    if len(schemes) != count or len(masks) != count:
        raise SourceError(
            f"dataset.json names {count} channels, plans.json has {len(schemes)} normalization schemes and {len(masks)} use_mask_for_norm"
        )
    key = "foreground_intensity_properties_per_channel"
    stats = plans.get(key, plans.get("foreground_intensity_properties_by_modality", {}))
    rules = []
    for index, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in _SCHEMES:
            raise SourceError(f"plans.json: normalization '{scheme}' is unknown; known are {', '.join(_SCHEMES)}")
        if _SCHEMES[scheme] != "ct":
            rules.append(ChannelRule(scheme=_SCHEMES[scheme], use_mask=bool(mask)))
            continue
        if str(index) not in stats:
            raise SourceError(f"plans.json: {key} lacks channel {index}, which CTNormalization needs")
        own = stats[str(index)]
        numbers = {
            k: float(need(own, k, f"plans.json: {key}")) for k in ("mean", "std", "percentile_00_5", "percentile_99_5")
        }
        rules.append(
            ChannelRule(
                scheme="ct", mean=numbers["mean"], std=numbers["std"],
                low=numbers["percentile_00_5"], high=numbers["percentile_99_5"],
            )
        )  # fmt: skip
    return tuple(rules)


def _resampling(resolved: Mapping[str, Any], what: str, order: int) -> Resampling:
    name = resolved.get(f"resampling_fn_{what}", "resample_data_or_seg_to_shape")
    kwargs = resolved.get(f"resampling_fn_{what}_kwargs") or {}
    forced = kwargs.get("force_separate_z")
    separate: Literal["auto", "always", "never"] = "auto" if forced is None else "always" if forced else "never"
    if name == "resample_data_or_seg_to_shape":
        orders = int(kwargs.get("order", order)), int(kwargs.get("order_z", 0))
        if orders[0] not in (0, 1, 3) or orders[1] != 0:
            raise SourceError(
                f"plans.json: resampling_fn_{what}_kwargs asks for order {orders[0]} and order_z {orders[1]}; "
                "segship resamples with order 0, 1 or 3 in the plane and 0 along a separate axis"
            )
        return Resampling(kind="spline", order=orders[0], order_z=orders[1], separate_z=separate)
    if name == "resample_torch_fornnunet":
        return Resampling(kind="torch", order=1, order_z=0, separate_z=separate)
    if name == "no_resampling_hack":
        return Resampling(kind="none", order=0, order_z=0, separate_z="never")
    raise SourceError(
        f"plans.json: resampling_fn_{what} '{name}' is custom code; known are resample_data_or_seg_to_shape, "
        "resample_torch_fornnunet and no_resampling_hack"
    )


def _transpose(value: Any) -> tuple[int, int, int]:
    axes = tuple(int(v) for v in value)
    if sorted(axes) != [0, 1, 2]:
        raise SourceError(f"plans.json: transpose_forward {list(axes)} is no order of the three axes")
    return axes[0], axes[1], axes[2]
