"""nnU-Net v1's folders in v2's terms: the plan from its pickled plans, the network from the weights' own shapes.

Source: MIC-DKFZ/nnUNet tag v1.7.1: nnunet/network_architecture/generic_UNet.py, training/network_training/nnUNetTrainerV2.py,
preprocessing/preprocessing.py. Custom v1 trainers cut stages and widths without telling the plans, so where the two
differ the weights are believed and the difference is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segship.errors import SourceError
from segship.families.nnunet_architecture import need
from segship.families.nnunet_plans import ChannelRule, Labels, LabelSpec, Plan, Resampling, Scheme
from segship.networks.nnunet import Architecture, Axes

State = Mapping[str, Tensor]

_SCHEMES: dict[str, Scheme] = {"CT": "ct", "CT2": "ct2", "noNorm": "none"}
_CHANGED = ("ReLU", "GeLU", "Mish", "BN", "GN", "FRN", "convReLUIN", "Resenc", "ResencUNet", "DDP_noNorm")
"""parts of trainer names whose networks differ from Generic_UNet without a trace in the keys"""
_PLAIN = ("nnUNetTrainerV2", "nnUNetTrainerV2_DDP", "nnUNetTrainerV2_noMirroring", "nnUNetTrainerV2_noDA")


def is_v1_state(state: State) -> bool:
    return "conv_blocks_context.0.blocks.0.conv.weight" in state and "tu.0.weight" in state


def canonical_keys(state: State) -> dict[str, Tensor]:
    """The state dict under v2's names. Raises SourceError for a key that Generic_UNet does not have."""
    pools = _count(state, r"tu\.(\d+)\.weight")
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        out[_canonical(key, state, pools)] = value
    return out


def _canonical(key: str, state: State, pools: int) -> str:
    if match := re.fullmatch(r"tu\.(\d+)\.(weight|bias)", key):
        return f"decoder.transpconvs.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"seg_outputs\.(\d+)\.(weight|bias)", key):
        return f"decoder.seg_layers.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"conv_blocks_context\.(\d+)\.blocks\.(\d+)\.(.+)", key):
        return f"encoder.stages.{match[1]}.0.convs.{match[2]}.{_part(match[3])}"
    if match := re.fullmatch(r"conv_blocks_context\.(\d+)\.([01])\.blocks\.(\d+)\.(.+)", key):
        first = _count(state, rf"conv_blocks_context\.{pools}\.0\.blocks\.(\d+)\.conv\.weight")
        index = int(match[3]) + (first if match[2] == "1" else 0)
        return f"encoder.stages.{match[1]}.0.convs.{index}.{_part(match[4])}"
    if match := re.fullmatch(r"conv_blocks_localization\.(\d+)\.([01])\.blocks\.(\d+)\.(.+)", key):
        first = _count(state, rf"conv_blocks_localization\.{match[1]}\.0\.blocks\.(\d+)\.conv\.weight")
        index = int(match[3]) + (first if match[2] == "1" else 0)
        return f"decoder.stages.{match[1]}.convs.{index}.{_part(match[4])}"
    raise SourceError(f"the checkpoint's '{key}' belongs to no Generic_UNet; a custom v1 network cannot be shipped")


def _part(name: str) -> str:
    return name.replace("instnorm.", "norm.")


def architecture_of(state: State) -> Architecture:
    """The network that v1's weights make up, from their shapes alone. ``state`` has v2's names."""
    pools = _count(state, r"decoder\.transpconvs\.(\d+)\.weight")
    if pools == 0:
        raise SourceError("the checkpoint has no transposed convolution; this is no U-Net of nnU-Net v1")
    first = _shape(state, "encoder.stages.0.0.convs.0.conv.weight")
    axes = len(first) - 2
    if axes not in (2, 3):
        raise SourceError(f"the checkpoint's convolutions have {axes} spatial axes; networks have 2 or 3")
    strides: list[Axes] = [(1,) * axes]
    strides += [_shape(state, f"decoder.transpconvs.{u}.weight")[2:] for u in reversed(range(pools))]
    stages = [f"encoder.stages.{s}.0.convs" for s in range(pools + 1)]
    steps = [f"decoder.stages.{u}.convs" for u in range(pools)]
    return Architecture(
        kind="plain",
        axes=2 if axes == 2 else 3,
        input_channels=first[1],
        output_channels=_shape(state, f"decoder.seg_layers.{pools - 1}.weight")[0],
        features=tuple(_shape(state, f"{stage}.0.conv.weight")[0] for stage in stages),
        kernels=tuple(_shape(state, f"{stage}.0.conv.weight")[2:] for stage in stages),
        strides=tuple(strides),
        encoder_convs=tuple(_count(state, rf"{re.escape(stage)}\.(\d+)\.conv\.weight") for stage in stages),
        decoder_convs=tuple(_count(state, rf"{re.escape(step)}\.(\d+)\.conv\.weight") for step in steps),
        decoder_kernels=tuple(_shape(state, f"{step}.0.conv.weight")[2:] for step in steps),
        conv_bias=f"{stages[0]}.0.conv.bias" in state,
        transposed_bias="decoder.transpconvs.0.bias" in state,
        head_bias="decoder.seg_layers.0.bias" in state,
        norm="batch" if any(key.endswith("running_mean") for key in state) else "instance",
    )


def _shape(state: State, key: str) -> tuple[int, ...]:
    if key not in state:
        raise SourceError(f"the checkpoint lacks {key} (v2's name for it); it is incomplete or a custom network")
    return tuple(state[key].shape)


def _count(state: State, pattern: str) -> int:
    found = {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}
    return max(found) + 1 if found else 0


def read_plan(
    plans: Mapping[Any, Any],
    architecture: Architecture,
    *,
    stage: int | None,
    configuration: str,
    task: str,
    regions_order: tuple[int, ...] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> tuple[Plan, list[str]]:
    """A v1 plan in v2's terms, and warnings where plans and weights differ. Keys may be numbers or their text.

    Raises SourceError naming a missing or contradictory entry.
    """
    stages = _by_number(need(plans, "plans_per_stage", "plans.pkl"))
    chosen = stage if stage is not None else next(iter(stages)) if len(stages) == 1 else None
    if chosen not in stages:
        raise SourceError(f"plans.pkl has the stages {sorted(stages)}, the checkpoint belongs to stage {stage}")
    own = stages[chosen]
    patch = tuple(int(v) for v in need(own, "patch_size", "plans.pkl"))
    spacing = tuple(float(v) for v in need(own, "current_spacing", "plans.pkl"))
    two_dimensional = architecture.axes == 2
    if len(patch) != architecture.axes or len(spacing) != 3:
        raise SourceError(f"plans.pkl: patch {patch} and spacing {spacing} do not fit a {architecture.axes}D network")
    modalities = _by_number(plans.get("modalities", {}))
    count = int(need(plans, "num_modalities", "plans.pkl"))
    order = tuple(int(v) for v in plans.get("transpose_forward", (0, 1, 2)))
    warnings = _differences(own, plans, architecture)
    plan = Plan(
        version=1,
        configuration=configuration,
        dataset=task,
        plans=str(plans.get("data_identifier", "nnUNetPlansv2.1")),
        architecture=architecture,
        reader="simpleitk",
        file_ending=".nii.gz",
        channels=tuple(str(modalities.get(c, f"channel {c}")) for c in range(count)),
        rules=tuple(_rule(plans, c) for c in range(count)),
        transpose=(order[0], order[1], order[2]),
        spacing=(None, *spacing[1:]) if two_dimensional else spacing,
        patch=patch,
        data=_resampling(plans, 3),
        segmentation=_resampling(plans, 1),
        probabilities=_export_resampling(plans),
        labels=_labels(plans, architecture, regions_order, label_names or {}),
        previous_stage="3d_lowres" if configuration == "3d_cascade_fullres" else None,
    )
    return plan, warnings


def _by_number(mapping: Mapping[Any, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in mapping.items()}


def _rule(plans: Mapping[Any, Any], channel: int) -> ChannelRule:
    schemes = _by_number(need(plans, "normalization_schemes", "plans.pkl"))
    masks = _by_number(plans.get("use_mask_for_norm") or {})
    scheme = _SCHEMES.get(str(schemes.get(channel)), "zscore")
    use_mask = bool(masks.get(channel, False))
    if scheme not in ("ct", "ct2"):
        return ChannelRule(scheme=scheme, use_mask=use_mask)
    everything = need(plans, "dataset_properties", "plans.pkl").get("intensityproperties") or {}
    stats = _by_number(everything).get(channel)
    if stats is None:
        raise SourceError(f"plans.pkl: intensityproperties lack channel {channel}, which CT normalisation needs")
    return ChannelRule(
        scheme=scheme,
        use_mask=use_mask,
        mean=float(stats["mean"]),
        std=float(stats["sd"]),
        low=float(stats["percentile_00_5"]),
        high=float(stats["percentile_99_5"]),
    )


def _resampling(plans: Mapping[Any, Any], order: int) -> Resampling:
    name = str(plans.get("preprocessor_name", "GenericPreprocessor"))
    if name not in ("GenericPreprocessor", "PreprocessorFor2D"):
        raise SourceError(
            f"plans.pkl: preprocessor '{name}' is custom code; known are GenericPreprocessor and PreprocessorFor2D"
        )
    return Resampling(kind="spline", order=order, order_z=0, separate_z="auto")


def _export_resampling(plans: Mapping[Any, Any]) -> Resampling:
    given = plans.get("segmentation_export_params") or {}
    forced = given.get("force_separate_z")
    order, order_z = int(given.get("interpolation_order", 1)), int(given.get("interpolation_order_z", 0))
    if order not in (0, 1, 3) or order_z != 0:
        raise SourceError(
            f"plans.pkl: segmentation_export_params asks for orders {order} and {order_z}; offered are 0, 1, 3 and 0"
        )
    return Resampling(
        kind="spline", order=order, order_z=order_z,
        separate_z="auto" if forced is None else "always" if forced else "never",
    )  # fmt: skip


def _labels(
    plans: Mapping[Any, Any], architecture: Architecture, regions: tuple[int, ...] | None, names: Mapping[int, str]
) -> Labels:
    classes = int(need(plans, "num_classes", "plans.pkl"))
    if regions is not None:
        if len(regions) != architecture.output_channels:
            raise SourceError(f"--regions-order needs {architecture.output_channels} labels, one an output channel")
        # region i holds label order[i] and every label that is written over it later
        entries = [
            LabelSpec(name=names.get(label, f"region {label}"), ids=regions[i:]) for i, label in enumerate(regions)
        ]
        return Labels(entries=(LabelSpec(name="background", ids=(0,)), *entries), regions_order=regions, ignore=None)
    if architecture.output_channels != classes + 1:
        raise SourceError(
            f"plans.pkl counts {classes} classes, the network gives {architecture.output_channels} outputs (classes + background); "
            "for a trainer with overlapping regions give --regions-order 1,2,3"
        )
    entries = [LabelSpec(name=names.get(i, f"label {i}"), ids=(i,)) for i in range(1, classes + 1)]
    return Labels(entries=(LabelSpec(name="background", ids=(0,)), *entries), regions_order=None, ignore=None)


def _differences(own: Mapping[str, Any], plans: Mapping[Any, Any], architecture: Architecture) -> list[str]:
    pools = own.get("pool_op_kernel_sizes")
    planned = {
        "number of poolings": len(pools) if pools is not None else None,
        "features of the first stage": int(plans["base_num_features"]) if "base_num_features" in plans else None,
    }
    built = {
        "number of poolings": len(architecture.strides) - 1,
        "features of the first stage": architecture.features[0],
    }
    return [
        f"plans.pkl says {what}: {value}, the weights say {built[what]}; the weights are believed"
        for what, value in planned.items()
        if value is not None and value != built[what]
    ]


def check_trainer(name: str, assume_default: bool) -> list[str]:
    """Warnings for a v1 trainer. Raises SourceError for one whose network differs without a trace in the keys."""
    rest = name.removeprefix("nnUNetTrainerV2").removeprefix("nnUNetTrainer")
    changed = [part for part in _CHANGED if re.search(rf"(^|_){part}(_|$)", rest)]
    if changed and not assume_default:
        raise SourceError(
            f"trainer {name} changes the network ({changed[0]}) in a way that the weights do not show; "
            "--assume-default-architecture exports it as Generic_UNet if you know that it is one"
        )
    if name not in _PLAIN:
        return [f"trainer {name} is not one of nnU-Net's own; its network is taken as Generic_UNet"]
    return []


def mirror_axes(trainer: str, axes: int) -> tuple[int, ...]:
    """Test-time mirroring, which v1 files do not state: all spatial axes, none for trainers that never mirrored."""
    return () if re.search(r"noMirroring|noDA", trainer) else tuple(range(axes))
