"""nnU-Net, v2 and v1: a trained model folder (or its zip) as a network, or several folds of it, with the whole chain.

The plans say nearly everything; what they do not (which configuration, folds and checkpoint, v1's mirroring) are
options here, and are recorded in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segship.errors import SourceError, UsageError
from segship.families import OptionValue, Source, nnunet_v1
from segship.families.checkpoint import Checkpoint, open_pickle, restricted_load
from segship.families.common import fill_network, manifest_name
from segship.families.nnunet_cascade import previous_stage
from segship.families.nnunet_folder import ModelFolder, file_sha256, looks_like, opened, read_json
from segship.families.nnunet_options import COMPATS
from segship.families.nnunet_options import OPTIONS as OPTIONS
from segship.families.nnunet_plans import Plan, read_plan
from segship.families.nnunet_postprocessing import find_postprocessing
from segship.families.nnunet_recipe import build_recipe
from segship.families.nnunet_validation import validation_cases
from segship.manifest import KeepLargest, Recipe
from segship.networks.nnunet import Architecture, PlannedUNet

NAME = "nnunet"
LOOKS_FOR = "a folder with plans.json (v2) or plans.pkl (v1) and folds beside it, or its zip"


def recognise_path(path: Path) -> bool:
    """By the folder's layout; weights are not opened."""
    return looks_like(path)


def recognise(checkpoint: Checkpoint) -> bool:
    """Never: a checkpoint without its plans does not say what to do with it."""
    return False


def load(checkpoint: Checkpoint, options: Mapping[str, OptionValue], force: bool = False) -> Source:
    """Raises SourceError: see `recognise`."""
    raise SourceError(
        f"{checkpoint.path} lies in no nnU-Net model folder, and without plans.json or plans.pkl its preprocessing is "
        "unknown; give the whole folder"
    )


def load_path(
    path: Path, options: Mapping[str, OptionValue], *, trust_pickle: bool = False, force: bool = False
) -> Source:
    """A model folder, fold, checkpoint in a fold, or zip. Raises SourceError, UnsafePickle, UsageError."""
    text = {name: str(value) for name, value in options.items() if isinstance(value, str)}
    with opened(
        path,
        configuration=text.get("configuration"),
        folds=_folds(text.get("folds")),
        checkpoint=text.get("checkpoint"),
    ) as model:
        return _load(model, path, options, trust_pickle)


def _load(model: ModelFolder, given: Path, options: Mapping[str, OptionValue], trust: bool) -> Source:
    read = [_read_fold(model, fold, trust) for fold in model.folds]
    states = [state for state, _ in read]
    first = read[0][1]
    trainer = str(first.get("trainer_name") or model.trainer)
    plan, warnings = _plan(model, states[0], first, trainer, options)
    mirror = _mirror_axes(model, first, trainer, plan, options)
    networks: dict[str, torch.nn.Module] = {}
    for fold, state in zip(model.folds, states, strict=True):
        network = PlannedUNet(plan.architecture).eval()
        warnings += fill_network(network, _checkpoint(model, fold, given, state), set(state), "nnU-Net's plans")
        networks[_member(fold)] = network
    postprocess, about = _postprocess(model, options)
    if plan.previous_stage is not None:
        about += (
            f"a cascade: predict runs the package of {plan.previous_stage} first, or takes --prev-stage-predictions",
        )
    recipe = _recipe(model, plan, networks, mirror, postprocess, options, trainer)
    return Source(
        network=next(iter(networks.values())),
        members=networks,
        recipe=recipe,
        input_example_shape=(plan.architecture.input_channels, *plan.patch),
        provenance=_provenance(model, trainer, given),
        warnings=tuple(dict.fromkeys(warnings)),
        notes=(f"nnU-Net v{model.version}: {plan.dataset or model.dataset}, {plan.configuration}, {trainer}", *about),
    )


def _member(fold: str) -> str:
    return f"fold_{fold}"


# -------------------------------------------------------------------------------------------------- weights


def _read_fold(model: ModelFolder, fold: str, trust: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(canonical state dict, everything else that the fold's files say)."""
    path = model.weights(fold)
    loaded, _ = open_pickle(path, trust_pickle=trust)
    key = "network_weights" if model.version == 2 else "state_dict"
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get(key), Mapping):
        raise SourceError(f"{path} has no '{key}'; it was not written by nnU-Net v{model.version}")
    state = _without_prefix({str(k): v for k, v in loaded[key].items() if isinstance(v, Tensor)})
    if model.version == 1:
        about = _side_file(path.with_name(path.name + ".pkl"))
        return nnunet_v1.canonical_keys(state), about
    return _canonical_v2(state, path), {k: v for k, v in loaded.items() if k in ("trainer_name", MIRROR)}


MIRROR = "inference_allowed_mirroring_axes"


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _canonical_v2(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """v2 files name each tensor up to four times; one name is kept and the others must hold the same."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
        if match := re.fullmatch(r"(.+)\.all_modules\.(\d+)\.(.+)", name):
            name = f"{match[1]}.{'conv' if match[2] == '0' else 'norm'}.{match[3]}"
        if name in out and not torch.equal(out[name], value):
            raise SourceError(f"{path}: {key} and {name} should be one tensor and differ; the file was tampered with")
        out.setdefault(name, value)
    return out


def _side_file(path: Path) -> dict[str, Any]:
    """v1's ``.model.pkl``."""
    if not path.is_file():
        raise SourceError(f"{path} is missing; v1 keeps the plans of a checkpoint in it, copy the whole folder")
    loaded = restricted_load(path)
    if not isinstance(loaded, Mapping) or "plans" not in loaded:
        raise SourceError(f"{path} holds no plans; it was not written by nnU-Net v1")
    return {"plans": loaded["plans"], "init": loaded.get("init", ()), "trainer_name": loaded.get("name")}


def _checkpoint(model: ModelFolder, fold: str, given: Path, state: dict[str, Tensor]) -> Checkpoint:
    path = model.weights(fold)
    return Checkpoint(
        path=path, given=given, sha256="", state_dict=state, wrapper="", prefix="", read_by="", side_files={}
    )


# ----------------------------------------------------------------------------------------------------- plan


def _plan(
    model: ModelFolder,
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
    trainer: str,
    options: Mapping[str, OptionValue],
) -> tuple[Plan, list[str]]:
    if model.version == 2:
        plan = read_plan(
            read_json(model.path / "plans.json"), read_json(model.path / "dataset.json"), model.configuration
        )
        return replace(plan, architecture=_with_norm(plan.architecture, state)), []
    warnings = nnunet_v1.check_trainer(trainer, bool(options.get("assume_default_architecture")))
    init = about["init"]
    stage = init[5] if isinstance(init, Sequence) and len(init) > 5 else None
    architecture = nnunet_v1.architecture_of(state)
    plan, differences = nnunet_v1.read_plan(
        about["plans"],
        architecture,
        stage=None if stage is None else int(stage),
        configuration=model.configuration or ("2d" if architecture.axes == 2 else "3d_fullres"),
        task=model.dataset,
        regions_order=_numbers(options.get("regions_order"), "--regions-order"),
    )
    return plan, warnings + differences


def _with_norm(architecture: Architecture, state: Mapping[str, Tensor]) -> Architecture:
    """Batch norm leaves running means; its trainer does not write it into the plans."""
    batch = any(key.endswith("norm.running_mean") for key in state)
    return replace(architecture, norm="batch", norm_epsilon=1e-5) if batch else architecture


def _mirror_axes(
    model: ModelFolder, about: Mapping[str, Any], trainer: str, plan: Plan, options: Mapping[str, OptionValue]
) -> tuple[int, ...]:
    given = options.get("mirror_axes")
    axes = plan.architecture.axes
    if given is not None:
        chosen = () if str(given) == "none" else _numbers(given, "--mirror-axes") or ()
    elif model.version == 2:
        chosen = tuple(int(axis) for axis in about.get(MIRROR) or ())
    else:
        chosen = nnunet_v1.mirror_axes(trainer, axes)
    if any(not 0 <= axis < axes for axis in chosen) or len(set(chosen)) != len(chosen):
        raise UsageError(f"mirror axes {chosen} do not fit a {axes}D network; they are 0 to {axes - 1}")
    return tuple(sorted(chosen))


def _recipe(
    model: ModelFolder,
    plan: Plan,
    networks: Mapping[str, torch.nn.Module],
    mirror: tuple[int, ...],
    postprocess: Sequence[KeepLargest],
    options: Mapping[str, OptionValue],
    trainer: str,
) -> Recipe:
    steps = options.get("step_size")
    step = float(steps[0]) if isinstance(steps, tuple) else 0.5
    if not 0 < step <= 1:
        raise UsageError(f"--step-size is a part of the patch, above 0 and up to 1, not {step}")
    compat = tuple(part.strip() for part in str(options.get("compat") or "").split(",") if part.strip())
    unknown = [name for name in compat if name not in COMPATS]
    if unknown:
        raise UsageError(f"--compat knows {', '.join(COMPATS)}, not '{unknown[0]}'")
    first = next(iter(networks.values()))
    dataset = plan.dataset or model.dataset
    recorded: dict[str, str | int | float | bool | None] = {
        "version": model.version,
        "configuration": plan.configuration,
        "trainer": trainer,
        "plans": model.plans,
        "folds": " ".join(model.folds),
        "checkpoint": model.checkpoint,
        "compat": ",".join(compat) or None,
        "mirror_axes": ",".join(map(str, mirror)) or "none",
    }
    return build_recipe(
        plan,
        name=manifest_name(f"{dataset}_{plan.configuration}"),
        parameters=sum(p.numel() for p in first.parameters()),
        members=tuple(networks),
        mirror_axes=mirror,
        step_size=step,
        options=recorded,
        compat=compat,
        postprocess=postprocess,
        previous_stage=previous_stage(plan.previous_stage, plan.labels.foreground_ids, options.get("previous_stage")),
        description=f"nnU-Net v{model.version} {dataset} {plan.configuration}",
    )


def _postprocess(
    model: ModelFolder, options: Mapping[str, OptionValue]
) -> tuple[tuple[KeepLargest, ...], tuple[str, ...]]:
    choice = str(options.get("postprocessing") or ("auto" if model.version == 1 else "none"))
    found = find_postprocessing(model, None if choice in ("auto", "none") else Path(choice))
    if found is None:
        return (), ()
    if choice == "none":
        return (), (f"{found.file} is left out, as nnU-Net's own predict does; --postprocessing auto takes it in",)
    return found.rules, (f"postprocessing from {found.file}: {len(found.rules)} rule(s)",)


def _provenance(model: ModelFolder, trainer: str, given: Path) -> dict[str, Any]:
    names = ("plans.json", "dataset.json", "plans.pkl", "postprocessing.json")
    files = [model.path / name for name in names if (model.path / name).is_file()]
    for fold in model.folds:
        files.append(model.weights(fold))
        side = model.weights(fold).with_name(model.checkpoint + ".pkl")
        if side.is_file():
            files.append(side)
    return {
        "framework": f"nnU-Net v{model.version}",
        "trainer": trainer,
        "validation": validation_cases(model),
        "source": given.name,
        "files": {str(path.relative_to(model.path)): file_sha256(path) for path in files},
    }


def _folds(text: str | None) -> list[str] | None:
    if text is None or text == "auto":
        return None
    names = re.split(r"[\s,]+", text.strip())
    if not all(re.fullmatch(r"\d+|all", name) for name in names):
        raise UsageError(f"--folds takes numbers such as '0 1 2', 'all' or 'auto', not '{text}'")
    return list(dict.fromkeys(names))


def _numbers(value: OptionValue, flag: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in re.split(r"[\s,]+", str(value).strip()))
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers separated by commas, not '{value}'") from None


def tiny() -> Source:
    """A 3D network with two folds of seeded weights and every step of v2's chain, for the contract suite."""
    from segship.families.nnunet_plans import ChannelRule, Labels, LabelSpec, Resampling

    one, two = (1, 1, 1), (2, 2, 2)
    kernels = ((3, 3, 3),) * 2
    architecture = Architecture(
        kind="plain", axes=3, input_channels=1, output_channels=3, features=(4, 6), kernels=kernels,
        strides=(one, two), encoder_convs=(1, 1), decoder_convs=(1,), decoder_kernels=kernels[:1],
    )  # fmt: skip
    linear = Resampling(kind="spline", order=1, order_z=0, separate_z="auto")
    names = ("background", "organ", "lesion")
    plan = Plan(
        version=2, configuration="3d_fullres", dataset="Tiny", plans="nnUNetPlans", architecture=architecture,
        reader="nibabel", file_ending=".nii.gz", channels=("CT",),
        rules=(ChannelRule(scheme="ct", mean=100.0, std=80.0, low=0.0, high=255.0),), transpose=(0, 1, 2),
        spacing=(2.0, 1.5, 1.5), patch=(8, 16, 16), data=replace(linear, order=3), segmentation=linear,
        probabilities=linear,
        labels=Labels(
            entries=tuple(LabelSpec(name=name, ids=(i,)) for i, name in enumerate(names)), regions_order=None, ignore=None
        ),
    )  # fmt: skip
    networks: dict[str, torch.nn.Module] = {}
    for fold in ("0", "1"):
        torch.manual_seed(int(fold))
        networks[_member(fold)] = PlannedUNet(architecture).eval()
    recipe = build_recipe(
        plan, name="tiny-nnunet", parameters=sum(p.numel() for p in networks["fold_0"].parameters()),
        members=tuple(networks), mirror_axes=(0, 1), options={"version": 2},
    )  # fmt: skip
    return Source(
        network=networks["fold_0"], members=networks, recipe=recipe, input_example_shape=(1, *plan.patch),
        provenance={"framework": "nnU-Net v2", "trainer": "seeded"},
    )  # fmt: skip


__all__ = ["LOOKS_FOR", "NAME", "OPTIONS", "load", "load_path", "recognise", "recognise_path", "tiny"]
