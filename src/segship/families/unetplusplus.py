"""UNet++ and U-Net as 4uiiurz1/pytorch-nested-unet trains them (and the Ascend ModelZoo port of it).

A checkpoint of this world does not say how it was trained: the upsampling, the input normalisation and the
input size are options here, taken from the run folder's side files where those know, and recorded in the
manifest with where each came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segship.errors import SourceError, UsageError
from segship.families import Alternative, OptionValue, Source, parse_size
from segship.families.checkpoint import Checkpoint
from segship.families.common import contradictions, fill_network, package_name, parameter_count, read_yaml
from segship.families.unetplusplus_options import BGR_IMAGENET, INPUTS, RGB, UPSAMPLINGS
from segship.families.unetplusplus_options import OPTIONS as OPTIONS
from segship.families.unetplusplus_recipe import Choices, Shape, build_recipe
from segship.networks.unetplusplus import NestedUNet, UNet
from segship.networks.unetplusplus_choices import DEPTH, Upsampling

NAME = "unetplusplus"
TITLE = "pytorch-nested-unet (filters 32 … 512)"
LOOKS_FOR = "conv0_4.conv1.weight and conv0_0.bn1.running_var (NestedUNet or UNet of pytorch-nested-unet)"
DEFAULT_SIZE = (96, 96)

BGR_BELOW, RGB_ABOVE, UNTRAINED_ABOVE = 1e-4, 1e-3, 0.25
"""bounds on q (see ``input_statistic``): normalised inputs give about 8e-6, plain ones about 2.5e-2, and more
than a quarter cannot come from inputs in 0..1 that resemble images: there the initial value 1.0 still stands"""
SETTLED_STEPS = 150
"""momentum 0.1: after so many steps the initial running variance of 1.0 has shrunk to 1e-7"""


def recognise(checkpoint: Checkpoint) -> bool:
    """By the two keys that every checkpoint of this world has and no other."""
    return {"conv0_4.conv1.weight", "conv0_0.bn1.running_var"} <= checkpoint.state_dict.keys()


def load(checkpoint: Checkpoint, options: Mapping[str, OptionValue], *, force: bool = False) -> Source:
    """Network and recipe of a checkpoint. ``force`` turns a contradiction with the weights into a warning.

    Raises SourceError for tensors that are not this network's, UsageError for options that do not fit it.
    """
    shape = _read_shape(checkpoint)
    choices = _choose(checkpoint, options, shape)
    head = _head(options.get("head"), shape, bool(options.get("all_outputs")))
    network = _build(shape, choices.upsample, head)
    warnings = [*choices.warnings, *fill_network(network, checkpoint, _all_keys(checkpoint), TITLE)]
    warnings += _check_choices(checkpoint, choices, force)
    said = choices.config.get("name")
    name = package_name(checkpoint, None if said is None else str(said))
    recipe = build_recipe(name, shape, choices, head, options, parameter_count(network))
    return Source(
        network=_ordered(network, head).eval(),
        recipe=recipe,
        input_example_shape=(shape.channels, *choices.size),
        provenance={
            "framework": "PyTorch, 4uiiurz1/pytorch-nested-unet",
            "checkpoint": checkpoint.record(),
            "found_in": choices.found_in,
            "config": choices.config,
            "training": _training_record(checkpoint),
            "input_statistic_q": input_statistic(checkpoint.state_dict),
        },
        warnings=tuple(warnings),
        alternatives=_alternatives(checkpoint, options, choices.upsample),
    )


def tiny() -> Source:
    """The first head of a small seeded network (103 041 parameters) at 32×32, for tests that run every engine."""
    network = NestedUNet(1, deep_supervision=True, head=1)
    generator = torch.Generator().manual_seed(41)
    state = {}
    for key, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("running_var"):
            # The inputs are ±0.01, so a trained first layer works below batch norm's eps; so does this one.
            state[key] = (1 + 0.2 * noise.abs()) * (4e-5 if key.startswith("conv0_0.bn1") else 1.0)
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif value.ndim == 4:
            state[key] = noise * (2.0 / value[0].numel()) ** 0.5
        else:
            first = key.startswith(("conv0_0.conv1.bias", "conv0_0.bn1.running_mean"))
            scale = key.endswith("weight")
            state[key] = scale * 1.0 + (0.002 if first else 0.1) * noise
    # Leaves a twentieth of a picture above zero, so that both answers occur and few pixels are close calls.
    state["final1.bias"] = torch.full((1,), 1.2)
    network.load_state_dict(state)
    shape = Shape(architecture="NestedUNet", deep_supervision=True, channels=3, classes=1)
    choices = Choices(upsample="bilinear", input=BGR_IMAGENET, size=(32, 32), found_in={}, config={}, warnings=())
    recipe = build_recipe("tiny-unetplusplus", shape, choices, 1, {}, parameter_count(network))
    return Source(
        network=network.eval(), recipe=recipe, input_example_shape=(3, 32, 32),
        provenance={"framework": "seeded weights, not trained"},
    )  # fmt: skip


def input_statistic(state_dict: Mapping[str, Tensor]) -> float:
    """q: median over the first filters of running_var / Σw². It estimates the input's variance, and so its scale."""
    variance = state_dict["conv0_0.bn1.running_var"].double()
    weight = state_dict["conv0_0.conv1.weight"].double()
    power = weight.flatten(1).square().sum(1).clamp_min(1e-30)
    return float((variance / power).median())


# --------------------------------------------------------------------------------------------- the tensors


def _read_shape(checkpoint: Checkpoint) -> Shape:
    tensors = checkpoint.state_dict
    deep = "final4.weight" in tensors
    first, last = tensors.get("conv0_0.conv1.weight"), tensors.get("final4.weight" if deep else "final.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        raise SourceError(
            f"{checkpoint.path} looks like UNet++ but lacks conv0_0.conv1.weight or final.weight/final4.weight; "
            "save the whole state_dict"
        )
    if not (1 <= first.shape[1] <= 1024 and 1 <= last.shape[0] <= 4096):
        raise SourceError(
            f"{checkpoint.path}: {first.shape[1]} input channels and {last.shape[0]} classes are no real network's"
        )
    return Shape(
        architecture="NestedUNet" if "conv0_1.conv1.weight" in tensors else "UNet",
        deep_supervision=deep,
        channels=int(first.shape[1]),
        classes=int(last.shape[0]),
    )


def _head(value: OptionValue, shape: Shape, all_outputs: bool) -> int | None:
    """1..4, or None for every head (with deep supervision) or the only one (without)."""
    if not shape.deep_supervision:
        if value not in (None, "4"):
            raise UsageError(
                f"--head {value} needs a network trained with deep supervision; this one has a single head"
            )
        return None
    if all_outputs and value not in (None, "all"):
        raise UsageError(f"--all-outputs keeps every head and --head {value} one of them; give one of the two")
    if value == "all" or all_outputs:
        return None
    return DEPTH if value is None else int(str(value))


def _build(shape: Shape, upsample: Upsampling, head: int | None) -> nn.Module:
    if shape.architecture == "UNet":
        return UNet(shape.classes, shape.channels, upsample=upsample)
    return NestedUNet(shape.classes, shape.channels, shape.deep_supervision, upsample=upsample, head=head)


class _FourthFirst(nn.Module):
    """All four heads, the answer first, as a manifest wants its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = self.network(x)
        return (heads[-1], *heads[:-1])


def _ordered(network: nn.Module, head: int | None) -> nn.Module:
    all_heads = head is None and getattr(network, "deep_supervision", False)
    return _FourthFirst(network) if all_heads else network


def _all_keys(checkpoint: Checkpoint) -> set[str]:
    """Keys of the unpruned network, so that those a chosen head leaves out do not count as unknown."""
    with torch.device("meta"):
        return set(_build(_read_shape(checkpoint), "bilinear", None).state_dict())


# ------------------------------------------------------------------------------------------ what is not there


def _choose(checkpoint: Checkpoint, options: Mapping[str, OptionValue], shape: Shape) -> Choices:
    """Options first, then the run folder's side files and a TorchScript program, then upstream's newest defaults."""
    config, warnings = _read_config(checkpoint, shape)
    ours = read_yaml(checkpoint.side_files["segship.yml"]) if "segship.yml" in checkpoint.side_files else {}
    found: dict[str, str] = {}

    def pick(name: str, *candidates: tuple[str, Any]) -> Any:
        for where, value in (("option", options.get(name)), *candidates):
            if value is not None:
                found[name] = where
                return value
        raise AssertionError("the last candidate is a default")

    if ours.get("upsample") not in (None, *UPSAMPLINGS):
        raise SourceError(
            f"segship.yml beside {checkpoint.path} names an unknown upsampling {ours['upsample']!r}; correct it"
        )
    upsample = pick(
        "upsample", ("segship.yml", ours.get("upsample")), ("TorchScript program", _script_upsampling(checkpoint.code)),
        ("default", "bilinear"),
    )  # fmt: skip
    old = RGB if "args.pkl" in checkpoint.side_files and "config.yml" not in checkpoint.side_files else None
    kind = pick(
        "input", ("config.yml", BGR_IMAGENET if "config.yml" in checkpoint.side_files else None),
        ("args.pkl", old), ("default", BGR_IMAGENET),
    )  # fmt: skip
    size = pick("input_size", ("config.yml", _config_size(config, checkpoint)), ("default", DEFAULT_SIZE))
    if "config.yml" not in checkpoint.side_files and found["upsample"] == "default":
        warnings.append(
            f"no config.yml beside {checkpoint.path.name} and no --upsample: took upsample {upsample} and input {kind} "
            f"at {size[0]}x{size[1]}; the weights load just as well the other way ({_others(upsample, kind)}) and then "
            "give other masks, so name --upsample and --input if you know them, or compare with --validate DIR"
        )
    return Choices(upsample=upsample, input=kind, size=size, found_in=found, config=config, warnings=tuple(warnings))


def _others(upsample: str, kind: str) -> str:
    first = next(u for u in UPSAMPLINGS if u != upsample)
    return f"--upsample {first}, --input {next(k for k in INPUTS if k != kind)}"


def _script_upsampling(code: str) -> str | None:
    """TorchScript keeps the program, so there the upsampling is written down."""
    if "upsample_nearest2d" in code:
        return "nearest"
    return "bilinear" if "upsample_bilinear2d" in code else None


_CONFIG_KEYS = (
    "arch",
    "dataset",
    "deep_supervision",
    "input_channels",
    "input_h",
    "input_w",
    "loss",
    "name",
    "num_classes",
)


def _read_config(checkpoint: Checkpoint, shape: Shape) -> tuple[dict[str, Any], list[str]]:
    """The entries of config.yml that matter here, and warnings where they contradict the tensors, which win."""
    if "config.yml" not in checkpoint.side_files:
        return {}, []
    loaded = read_yaml(checkpoint.side_files["config.yml"])
    config = {key: loaded[key] for key in _CONFIG_KEYS if isinstance(loaded.get(key), str | int | bool)}
    said = {
        "arch": shape.architecture,
        "deep_supervision": shape.deep_supervision,
        "input_channels": shape.channels,
        "num_classes": shape.classes,
    }
    return config, contradictions(config, said, "config.yml")


def _training_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which images the network was trained on, as far as a run folder of `segship train` says."""
    if "segship.yml" not in checkpoint.side_files:
        return {}
    ours = read_yaml(checkpoint.side_files["segship.yml"])
    if not isinstance(ours.get("split"), str):
        return {}
    left_out = ours.get("exclude") or ()
    return {
        "split": ours["split"],
        "exclude": [str(name) for name in left_out] if isinstance(left_out, list | tuple) else [],
        "own_list": ours.get("train_list") is not None,
    }


def _config_size(config: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[int, int] | None:
    if "input_h" not in config or "input_w" not in config:
        return None
    try:
        return parse_size((config["input_h"], config["input_w"]), "config.yml's input_h, input_w")
    except UsageError as error:
        raise SourceError(f"{checkpoint.path}: {error}") from None


def _check_choices(checkpoint: Checkpoint, choices: Choices, force: bool) -> list[str]:
    """Hold the choices against what the file lets on. SourceError for a contradiction, unless forced."""
    complaints, warnings = [], []
    q = input_statistic(checkpoint.state_dict)
    told = BGR_IMAGENET if q < BGR_BELOW else RGB if RGB_ABOVE < q <= UNTRAINED_ABOVE else None
    steps = int(checkpoint.state_dict.get("conv0_0.bn1.num_batches_tracked", torch.tensor(0)))
    if 0 < steps < SETTLED_STEPS:
        warnings.append(f"only {steps} training steps: the weights do not tell yet which input they were trained on")
    elif told is None:
        why = "as if never trained" if q > UNTRAINED_ABOVE else "between the two kinds"
        warnings.append(
            f"the weights do not tell which input they were trained on (q = {q:.1e}, {why}); took {choices.input}, "
            "name --input if you know it"
        )
    elif told != choices.input:
        complaints.append(
            f"input {choices.input} ({choices.found_in['input']}) contradicts the weights: q = {q:.1e}, so they were "
            f"trained on {told}; use --input {told}"
        )
    scripted = _script_upsampling(checkpoint.code)
    if scripted not in (None, choices.upsample):
        complaints.append(
            f"upsample {choices.upsample} ({choices.found_in['upsample']}) contradicts the TorchScript program, which uses "
            f"{scripted}; use --upsample {scripted}"
        )
    if complaints and not force:
        raise SourceError(f"{checkpoint.path}: {complaints[0]}, or --force to keep yours")
    return warnings + [f"forced: {complaint}" for complaint in complaints]


def _alternatives(checkpoint: Checkpoint, options: Mapping[str, OptionValue], chosen: str) -> tuple[Alternative, ...]:
    def loader(upsample: str) -> Any:
        return lambda: load(checkpoint, {**options, "upsample": upsample}, force=True)

    return tuple(Alternative(name=f"upsample={u}", chosen=u == chosen, load=loader(u)) for u in UPSAMPLINGS)
