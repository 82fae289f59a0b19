"""The network that a v2 configuration plans: from its ``architecture`` block, or from the keys of 2023's plans.

Source: MIC-DKFZ/nnUNet tag v2.8.1: nnunetv2/utilities/get_network_from_plans.py; tag v2.1: the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from segship.errors import SourceError
from segship.networks.nnunet import Architecture, Axes

_NETWORKS = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}


def read_architecture(resolved: Mapping[str, Any], inputs: int, outputs: int) -> Architecture:
    """The network of a configuration, from the ``architecture`` block or from the keys of 2023's plans."""
    block = resolved.get("architecture")
    if block is None:
        return _old_architecture(resolved, inputs, outputs)
    name = str(need(block, "network_class_name", "plans.json: architecture"))
    kind = network_kind(name)
    kwargs = dict(need(block, "arch_kwargs", "plans.json: architecture"))
    axes = _axes_of(str(need(kwargs, "conv_op", "plans.json: arch_kwargs")))
    stages = int(need(kwargs, "n_stages", "plans.json: arch_kwargs"))
    convs = "n_blocks_per_stage" if kind == "residual" else "n_conv_per_stage"
    if kwargs.get("pool") not in (None, "conv") or kwargs.get("squeeze_excitation"):
        raise SourceError("plans.json: arch_kwargs asks for pooling or squeeze-excitation, which planners never write")
    norm_kwargs = kwargs.get("norm_op_kwargs") or {}
    return _architecture(
        kind=kind,
        axes=axes,
        inputs=inputs,
        outputs=outputs,
        features=_per_stage(kwargs, "features_per_stage", stages),
        kernels=_axes_per_stage(kwargs, "kernel_sizes", stages, axes),
        strides=_axes_per_stage(kwargs, "strides", stages, axes),
        encoder_convs=_per_stage(kwargs, convs, stages),
        decoder_convs=_per_stage(kwargs, "n_conv_per_stage_decoder", stages - 1),
        conv_bias=bool(kwargs.get("conv_bias", False)),
        transposed_bias=bool(kwargs.get("conv_bias", False)),
        norm=_norm_of(kwargs.get("norm_op")),
        norm_epsilon=float(norm_kwargs.get("eps", 1e-5)),
        norm_affine=bool(norm_kwargs.get("affine", False)),
        slope=_slope_of(kwargs),
        nonlin_first=bool(kwargs.get("nonlin_first", False)),
        stem_channels=kwargs.get("stem_channels"),
        bottleneck_channels=_bottleneck(kwargs, stages),
    )


def network_kind(name: str) -> Literal["plain", "residual"]:
    """'plain' or 'residual' from a class path; the last part decides, as modules were renamed over time."""
    last = name.rsplit(".", 1)[-1]
    if last not in _NETWORKS:
        raise SourceError(
            f"plans.json: network '{name}' is defined outside nnU-Net's plans (a transformer or custom network); segship "
            "builds PlainConvUNet and ResidualEncoderUNet. Export such a network to ONNX with its own code"
        )
    return "plain" if _NETWORKS[last] == "plain" else "residual"


def _old_architecture(resolved: Mapping[str, Any], inputs: int, outputs: int) -> Architecture:
    where = "plans.json (2023's form, without an architecture block)"
    kind = network_kind(str(need(resolved, "UNet_class_name", where)))
    kernels = need(resolved, "conv_kernel_sizes", where)
    strides = need(resolved, "pool_op_kernel_sizes", where)
    convs = need(resolved, "n_conv_per_stage_encoder", where)
    base, most = (
        int(need(resolved, "UNet_base_num_features", where)),
        int(need(resolved, "unet_max_num_features", where)),
    )
    axes: Literal[2, 3] = 2 if len(kernels[0]) == 2 else 3
    return _architecture(
        kind=kind,
        axes=axes,
        inputs=inputs,
        outputs=outputs,
        features=tuple(min(base * 2**i, most) for i in range(len(convs))),
        kernels=tuple(tuple(int(v) for v in kernel) for kernel in kernels),
        strides=tuple(tuple(int(v) for v in stride) for stride in strides),
        encoder_convs=tuple(int(v) for v in convs),
        decoder_convs=tuple(int(v) for v in need(resolved, "n_conv_per_stage_decoder", where)),
    )


def _architecture(*, inputs: int, outputs: int, kernels: tuple[Axes, ...], **rest: Any) -> Architecture:
    steps = len(kernels) - 1
    try:
        return Architecture(
            input_channels=inputs,
            output_channels=outputs,
            kernels=kernels,
            decoder_kernels=tuple(kernels[steps - 1 - u] for u in range(steps)),
            **rest,
        )
    except ValueError as error:
        raise SourceError(f"plans.json: the architecture contradicts itself: {error}") from None


def _axes_of(conv_op: str) -> Literal[2, 3]:
    last = conv_op.rsplit(".", 1)[-1]
    if last not in ("Conv2d", "Conv3d"):
        raise SourceError(f"plans.json: convolution '{conv_op}' is neither Conv2d nor Conv3d")
    return 2 if last == "Conv2d" else 3


def _norm_of(name: Any) -> Literal["instance", "batch", "none"]:
    if name is None:
        return "none"
    last = str(name).rsplit(".", 1)[-1]
    if last.startswith("InstanceNorm"):
        return "instance"
    if last.startswith("BatchNorm"):
        return "batch"
    raise SourceError(f"plans.json: normalisation layer '{name}' is neither InstanceNorm nor BatchNorm")


def _slope_of(kwargs: Mapping[str, Any]) -> float:
    last = str(kwargs.get("nonlin", "LeakyReLU")).rsplit(".", 1)[-1]
    if last == "LeakyReLU":
        return float((kwargs.get("nonlin_kwargs") or {}).get("negative_slope", 0.01))
    if last == "ReLU":
        return 0.0
    raise SourceError(f"plans.json: activation '{kwargs['nonlin']}' is neither LeakyReLU nor ReLU")


def _bottleneck(kwargs: Mapping[str, Any], stages: int) -> tuple[int, ...] | None:
    if kwargs.get("bottleneck_channels") is None:
        return None
    if "Bottleneck" not in str(kwargs.get("block", "")):
        return None
    return _per_stage(kwargs, "bottleneck_channels", stages)


def _per_stage(kwargs: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    """A whole number a stage; a single number counts for every stage."""
    value = need(kwargs, key, "plans.json: arch_kwargs")
    values = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),) * count
    if len(values) != count:
        raise SourceError(f"plans.json: {key} has {len(values)} entries, the network needs {count}")
    return values


def _axes_per_stage(kwargs: Mapping[str, Any], key: str, stages: int, axes: int) -> tuple[Axes, ...]:
    value = need(kwargs, key, "plans.json: arch_kwargs")
    entries = list(value) if isinstance(value, Sequence) else [value] * stages
    out = tuple(tuple(int(v) for v in e) if isinstance(e, Sequence) else (int(e),) * axes for e in entries)
    if len(out) != stages or any(len(entry) != axes for entry in out):
        raise SourceError(f"plans.json: {key} must have {stages} entries of {axes} numbers")
    return out


def need(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise SourceError(f"{where} lacks '{key}'; the model folder is incomplete or was not written by nnU-Net")
    return mapping[key]
