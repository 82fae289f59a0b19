"""An nnU-Net plan as the manifest's steps. v1 and v2 differ in order and rules, not in the kinds of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from segship.families.common import COLORS
from segship.families.nnunet_plans import ChannelRule, Plan, Resampling
from segship.manifest import (
    Argmax,
    Channel,
    Clip,
    CropToNonzero,
    Decode,
    Divide,
    KeepLargest,
    Label,
    Metric,
    Network,
    Output,
    PreviousStage,
    PreviousStageChannels,
    Recipe,
    Regions,
    ReplaceNonFinite,
    Resample,
    RescaleMinMax,
    Step,
    Tiling,
    Transpose,
    VolumeInput,
    ZScore,
)

GAUSSIAN_SIGMA_SCALE = 1 / 8
ANISOTROPY = 3.0
_METHODS: dict[str, Literal["skimage:edge", "torch:trilinear"]] = {"spline": "skimage:edge", "torch": "torch:trilinear"}


def build_recipe(
    plan: Plan,
    *,
    name: str,
    parameters: int,
    members: Sequence[str],
    mirror_axes: Sequence[int],
    step_size: float = 0.5,
    options: dict[str, str | int | float | bool | None],
    compat: Sequence[str] = (),
    postprocess: Sequence[KeepLargest] = (),
    previous_stage: PreviousStage | None = None,
    description: str = "",
) -> Recipe:
    """The whole chain of one configuration; ``members`` name the folds."""
    return Recipe(
        name=name,
        family="nnunet",
        description=description,
        options=options,
        input=VolumeInput(
            reader=plan.reader,  # type: ignore[arg-type]
            channels=tuple(Channel(name=channel) for channel in plan.channels),
            file_ending=plan.file_ending,
            channel_files="one-file" if _one_file(plan) else "suffix-0000",
        ),
        preprocess=tuple(_v1_steps(plan, compat) if plan.version == 1 else _v2_steps(plan)),
        network=_network(plan, parameters, members),
        tiling=_tiling(plan, mirror_axes, step_size, compat),
        decode=_decode(plan),
        postprocess=tuple(postprocess),
        previous_stage=previous_stage,
        labels=_labels(plan),
        metric=Metric(
            name="Dice",
            scorer="nnunet",
            higher_is_better=True,
            grid="input",
            options={"ignore": plan.labels.ignore} if plan.labels.ignore is not None else {},
        ),
    )


def _one_file(plan: Plan) -> bool:
    return plan.reader == "image-2d" and len(plan.channels) in (3, 4)


def _v2_steps(plan: Plan) -> list[Step]:
    steps: list[Step] = [Transpose(axes=plan.transpose), CropToNonzero(fill_holes=True)]
    for index, rule in enumerate(plan.rules):
        steps += _normalise_v2(index, rule)
    steps += _resample(plan)
    if plan.previous_stage is not None:
        steps.append(PreviousStageChannels(labels=plan.labels.foreground_ids, crop=True))
    return steps


def _v1_steps(plan: Plan, compat: Sequence[str]) -> list[Step]:
    steps: list[Step] = [CropToNonzero(fill_holes=True), Transpose(axes=plan.transpose)]
    if plan.architecture.axes == 3:
        steps.insert(0, ReplaceNonFinite(value=0.0))
    steps += _resample(plan)
    for index, rule in enumerate(plan.rules):
        steps += _normalise_v1(index, rule)
    if plan.previous_stage is not None:
        crop = "v1-cascade" not in compat
        steps.append(PreviousStageChannels(labels=plan.labels.foreground_ids, crop=crop, resampling="half"))
    return steps


def _normalise_v2(channel: int, rule: ChannelRule) -> list[Step]:
    if rule.scheme == "ct":
        return [
            Clip(low=rule.low, high=rule.high, channel=channel),
            _zscore(channel, rule.mean, rule.std, rule="maximum", mask="none"),
        ]
    if rule.scheme == "zscore":
        return [_zscore(channel, None, None, rule="maximum", mask="nonzero" if rule.use_mask else "none")]
    if rule.scheme == "rescale01":
        return [RescaleMinMax(channel=channel, epsilon=1e-8)]
    return [Divide(by=255.0, channel=channel)] if rule.scheme == "rgb01" else []


def _normalise_v1(channel: int, rule: ChannelRule) -> list[Step]:
    outside: Literal["keep", "zero"] = "zero" if rule.use_mask else "keep"
    if rule.scheme == "none":
        return []
    if rule.scheme == "zscore":
        mask: Literal["none", "nonzero"] = "nonzero" if rule.use_mask else "none"
        return [_zscore(channel, None, None, rule="add", mask=mask, outside=outside)]
    clip = Clip(low=rule.low, high=rule.high, channel=channel)
    if rule.scheme == "ct2":
        between = (rule.low, rule.high)
        return [clip, _zscore(channel, None, None, rule="none", mask="none", outside=outside, between=between)]
    return [clip, _zscore(channel, rule.mean, rule.std, rule="none", mask="none", outside=outside)]


def _zscore(
    channel: int,
    mean: float | None,
    std: float | None,
    *,
    rule: Literal["maximum", "add", "none"],
    mask: Literal["none", "nonzero"],
    outside: Literal["keep", "zero"] = "keep",
    between: tuple[float, float] | None = None,
) -> ZScore:
    return ZScore(
        channel=channel,
        mean=mean,
        std=std,
        epsilon=0.0 if rule == "none" else 1e-8,
        epsilon_rule="maximum" if rule == "maximum" else "add",
        mask=mask,
        outside_mask=outside,
        between=between,
    )


def _resample(plan: Plan) -> list[Step]:
    how = plan.data
    if how.kind == "none":
        return []
    return [
        Resample(
            spacing_mm_zyx=plan.spacing,  # type: ignore[arg-type]
            shape_rule="round-half-even",
            method=_METHODS[how.kind],
            order=how.order,
            order_z=how.order_z,
            separate_z=how.separate_z,
            anisotropy_threshold=ANISOTROPY,
        )
    ]


def _network(plan: Plan, parameters: int, members: Sequence[str]) -> Network:
    arch = plan.architecture
    names = {"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}
    return Network(
        architecture="Generic_UNet" if plan.version == 1 else names[arch.kind],
        parameters=parameters,
        input_name="input",
        layout="NCHW" if arch.axes == 2 else "NCDHW",
        input_channels=arch.input_channels,
        size=plan.patch,
        size_multiple=arch.size_multiple,
        outputs=(Output(name="logits", channels=arch.output_channels, values="logits"),),
        members=tuple(members),
        member_average="probabilities" if plan.version == 1 else "logits",
    )


def _tiling(plan: Plan, mirror_axes: Sequence[int], step_size: float, compat: Sequence[str]) -> Tiling:
    return Tiling(
        window=plan.patch,
        step=tuple(side * step_size for side in plan.patch),
        positions="even-spread",
        weighting="gaussian",
        gaussian_sigma_scale=GAUSSIAN_SIGMA_SCALE,
        gaussian_single_tile=plan.version == 2,
        pad_mode="constant",
        mirror_axes=tuple(mirror_axes),
        average="probabilities" if plan.version == 1 else "logits",
        accumulator="float16" if "fp16-accumulators" in compat else "float32",
    )


def _decode(plan: Plan) -> Decode:
    regions = plan.labels.regions_order
    how: Resampling = plan.probabilities
    if how.kind == "none":
        how = Resampling(kind="spline", order=1, order_z=0, separate_z="never")
    return Decode(
        activation="softmax" if regions is None else "sigmoid",
        decision=Argmax() if regions is None else Regions(threshold=0.5, order=regions),
        restore_what="probabilities" if plan.version == 1 else "logits",
        restore_method=_METHODS[how.kind],
        restore_order=how.order,
        restore_order_z=how.order_z,
        restore_separate_z=how.separate_z,
        anisotropy_threshold=ANISOTROPY,
    )


def _labels(plan: Plan) -> tuple[Label, ...]:
    out = []
    place = 0
    for entry in plan.labels.entries:
        if entry.ids == (0,):
            out.append(Label(id=0, name=entry.name, color=(0, 0, 0)))
            continue
        written = plan.labels.regions_order[place] if plan.labels.regions_order is not None else entry.ids[0]
        out.append(Label(id=written, name=entry.name, color=COLORS[place % len(COLORS)], ids=entry.ids))
        place += 1
    return tuple(out)
