"""nnU-Net's networks: v2's names and shapes from the plans alone, v1's outputs from v1's own files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segship.errors import SourceError
from segship.families import checkpoint
from segship.families.nnunet_plans import read_labels, read_plan, resolve
from segship.families.nnunet_v1 import architecture_of, canonical_keys, check_trainer, mirror_axes
from segship.networks.nnunet import PlannedUNet

V2 = ["2d", "3d", "aniso", "cascade", "png", "regions", "torchres"]


@pytest.mark.parametrize("case", V2)
def test_the_plans_build_upstreams_network(case: str, reference_case: Callable[[str], Any]) -> None:
    about, _ = reference_case(f"nnunet_v2_{case}")
    plan = read_plan(about["plans"], about["dataset"], about["configuration"])
    network = PlannedUNet(plan.architecture)
    wanted = {key: shape for key, shape in about["state_dict"].items() if key not in about["aliases"]}
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == wanted
    assert sum(parameter.numel() for parameter in network.parameters()) == about["parameters"]
    assert plan.architecture.input_channels == about["input_channels"]
    assert plan.architecture.output_channels == about["output_channels"]


@pytest.mark.parametrize(("case", "fold"), [("nnunet_v1_2d", "fold_0"), ("nnunet_v1_3d", "all")])
def test_every_head_of_v1_gives_what_v1_gave(
    case: str, fold: str, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(case)
    file = shared / "reference" / f"{case}_model" / fold / "model_final_checkpoint.model"
    state = canonical_keys(checkpoint.open_checkpoint(file).state_dict)
    network = PlannedUNet(architecture_of(state)).eval()
    network.load_state_dict(state)
    assert sum(parameter.numel() for parameter in network.parameters()) == about["parameters"]
    heads = [arrays[name] for name in sorted(arrays) if name.startswith("forward_ds")]
    shape = (1, network.arch.input_channels, *heads[0].shape[1:])
    x = np.random.Generator(np.random.PCG64(5)).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        outputs = network.all_heads(torch.from_numpy(x))
        alone = network(torch.from_numpy(x))
    assert torch.equal(alone, outputs[0])
    for got, wanted in zip(outputs, heads, strict=False):
        assert np.abs(got[0].numpy() - wanted).max() <= 1e-4


def test_without_biases_the_transposed_convolutions_have_none_either(reference_case: Callable[[str], Any]) -> None:
    """As upstream's decoder takes the encoder's setting; the heads always have theirs."""
    about = copy.deepcopy(reference_case("nnunet_v2_regions")[0])
    for configuration in about["plans"]["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["arch_kwargs"]["conv_bias"] = False
    plan = read_plan(about["plans"], about["dataset"], about["configuration"])
    keys = PlannedUNet(plan.architecture).state_dict()
    assert not [key for key in keys if key.endswith("conv.bias") or ("transpconvs" in key and "bias" in key)]
    assert any("seg_layers" in key and key.endswith("bias") for key in keys)


def test_a_configuration_inherits_key_by_key() -> None:
    plans = {
        "configurations": {"a": {"x": 1, "y": 2}, "b": {"inherits_from": "a", "y": 3}, "c": {"inherits_from": "b"}}
    }
    assert {k: v for k, v in resolve(plans, "c").items() if k in "xy"} == {"x": 1, "y": 3}
    plans["configurations"]["a"]["inherits_from"] = "c"  # type: ignore[index]
    with pytest.raises(SourceError, match="in a circle: c -> b -> a -> c"):
        resolve(plans, "c")
    with pytest.raises(SourceError, match="no configuration 'd'; it has: a, b, c"):
        resolve(plans, "d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessor_name": "MyPreprocessor"}, "preprocessor 'MyPreprocessor' is custom"),
        ({"normalization_schemes": ["HistogramNormalization"]}, "normalization 'HistogramNormalization' is unknown"),
        ({"normalization_schemes": []}, "names 1 channels, plans.json has 0 normalization schemes"),
        ({"resampling_fn_data": "my_resampling"}, "resampling_fn_data 'my_resampling' is custom"),
        ({"patch_size": [8, 8]}, "does not fit a 3D network"),
    ],
)
def test_what_a_plan_may_not_say(change: dict[str, Any], message: str, reference_case: Callable[[str], Any]) -> None:
    about, _ = reference_case("nnunet_v2_3d")
    plans = copy.deepcopy(about["plans"])
    plans["configurations"][about["configuration"]].update(change)
    with pytest.raises(SourceError, match=message):
        read_plan(plans, about["dataset"], about["configuration"])


def test_a_transformer_is_refused_by_name(reference_case: Callable[[str], Any]) -> None:
    about, _ = reference_case("nnunet_v2_3d")
    plans = copy.deepcopy(about["plans"])
    own = plans["configurations"][about["configuration"]]["architecture"]
    own["network_class_name"] = "dynamic_network_architectures.architectures.primus.PrimusM"
    with pytest.raises(SourceError, match=r"primus.PrimusM'.*PlainConvUNet and ResidualEncoderUNet"):
        read_plan(plans, about["dataset"], about["configuration"])


def test_labels_keep_the_files_order_and_ignore_has_no_channel() -> None:
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    labels = read_labels({"labels": regions, "regions_class_order": [1, 2]})
    assert [entry.name for entry in labels.foreground] == ["whole", "core"]
    assert (labels.outputs, labels.ignore, labels.foreground_ids) == (2, 3, (1, 2))
    plain = read_labels({"labels": {"b": 2, "background": 0, "a": 1, "ignore": 3}})
    assert [entry.name for entry in plain.entries] == ["background", "a", "b"]
    assert plain.outputs == 3
    assert [entry.name for entry in read_labels({"labels": {"0": "background", "1": "heart"}}).entries][1] == "heart"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": 1}, "background must be 0"),
        ({"background": 0, "a": 2}, "without gaps"),
        ({"background": 0, "a": 1, "ignore": 5}, "must be the largest, 2"),
        ({"background": 0, "a": [1, 2], "b": [2]}, "lacks 'regions_class_order'"),
    ],
)
def test_labels_that_contradict_themselves(labels: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_labels({"labels": labels})


def test_v1_trainers() -> None:
    assert mirror_axes("nnUNetTrainerV2", 3) == (0, 1, 2)
    assert mirror_axes("nnUNetTrainerV2_noMirroring", 2) == ()
    assert check_trainer("nnUNetTrainerV2", False) == []
    assert "not one of nnU-Net's own" in check_trainer("FLARE_Small", False)[0]
    with pytest.raises(SourceError, match="changes the network"):
        check_trainer("nnUNetTrainerV2_ReLU", False)
    assert check_trainer("nnUNetTrainerV2_ReLU", True)
