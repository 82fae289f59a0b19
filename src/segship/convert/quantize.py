"""int8 by NNCF's ONNX backend: a portable QDQ graph that every engine opens.

Only convolutions matter here, so no transformer handling is asked for. Weights are always symmetric; the
``performance`` preset makes activations symmetric too, ``mixed`` makes them asymmetric.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segship.convert import onnx_graph, onnx_join, qdq, rounding
from segship.convert.layers import check_layers
from segship.errors import EngineMissing, UsageError

if TYPE_CHECKING:
    import onnx

Weights = Literal["per-channel", "per-tensor"]
Activations = Literal["symmetric", "asymmetric"]
Algorithm = Literal["min-max", "percentile"]
BiasCorrection = Literal["fast", "accurate", "none"]


INT8_LARGEST = 127
FLAT = 0.25
"""standard deviation of a map with a clear object on 7 % of its pixels; one of less contrast counts as flat"""


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How an int8 or int16 graph is made. ``keep_in_float`` names convolutions that stay float32."""

    weights: Weights = "per-channel"
    activations: Activations = "asymmetric"
    algorithm: Algorithm = "min-max"
    bias_correction: BiasCorrection = "none"
    """NNCF's correction of shifted means. On trained UNet++ networks the fast one made int8 worse in every run (logit
    error 0.025 against 0.020 of their spread with 300 images, 0.035 against 0.022 with 64); accurate made no difference"""
    input_range: tuple[float, float] | None = None
    """range of the quantiser on the network's input, in the units of the network's input; None: all of the data's"""
    keep_in_float: tuple[str, ...] = ()

    @property
    def preset(self) -> Literal["performance", "mixed"]:
        return "performance" if self.activations == "symmetric" else "mixed"


class _Samples:
    """Calibration inputs one at a time, as NNCF's Dataset wants an iterable with a length."""

    def __init__(self, inputs: np.ndarray) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (x[None] for x in self._inputs)


def quantize(model: onnx.ModelProto, inputs: np.ndarray, options: QuantizeOptions) -> onnx.ModelProto:
    """An int8 (QDQ) copy of a float32 graph, calibrated on ``inputs`` (N, C, H, W) float32 as the network takes them.

    Raises EngineMissing when nncf or onnxruntime is not installed, UsageError for a layer that is not there.
    """
    nncf = _nncf()
    check_layers(model, options.keep_in_float)
    dataset = nncf.Dataset(_Samples(inputs), lambda x: {model.graph.input[0].name: x})
    folded = [node.name for node in model.graph.node if node.name.startswith(f"{onnx_graph.NORMALISE}.")]
    ignored = [*options.keep_in_float, *folded, *onnx_join.sums(model)]
    source = type(model)()
    source.CopyFrom(model)  # NNCF edits the graph it is given
    with onnx_graph.quiet():
        quantized: onnx.ModelProto = nncf.quantize(
            source,
            dataset,
            preset=nncf.QuantizationPreset(options.preset),
            subset_size=len(inputs),
            fast_bias_correction=options.bias_correction != "accurate",
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
            advanced_parameters=_advanced(nncf, options),
        )
    _clean(quantized)
    if options.bias_correction == "none":  # else the biases make up for NNCF's own rounding already
        _round_weights(quantized, model)
    if onnx_graph.input_range(quantized) is not None:
        # NNCF averages the extremes of single pictures, which cuts off the brightest ones; the input's range is known.
        low, high = options.input_range or _data_range(model, inputs)
        quantized = onnx_graph.set_input_range(quantized, low, high)
    elif options.input_range is not None:
        raise UsageError("--dynamic-range has nothing to set: the layer that reads the input stays in float32")
    return qdq.round_joined(quantized)


def _data_range(model: onnx.ModelProto, inputs: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value that reaches the network, behind a normalisation inside the graph."""
    x = onnx_graph.apply_normalisation(model, inputs)
    return float(x.min()), float(x.max())


def _nncf() -> Any:
    # NNCF reports each use to its makers unless this is set before it is imported; a converter should not.
    os.environ.setdefault("NNCF_CI", "1")
    missing = [name for name in ("nncf", "onnxruntime") if find_spec(name) is None]
    if missing:  # NNCF runs ONNX graphs with onnxruntime while it calibrates
        raise EngineMissing(f"int8 needs {' and '.join(missing)}; type: pip install 'segship[convert,onnxruntime]'")
    import nncf

    return nncf


def _advanced(nncf: Any, options: QuantizeOptions) -> Any:
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
    from nncf.quantization.range_estimator import AggregatorType as Over
    from nncf.quantization.range_estimator import RangeEstimatorParameters, StatisticsCollectorParameters
    from nncf.quantization.range_estimator import StatisticsType as Of

    ranges = RangeEstimatorParameters()
    if options.algorithm == "percentile":
        # NNCF's own quantile preset looks at the upper end alone, which cuts a symmetric range's negative half off.
        upper = Of.ABS_QUANTILE if options.activations == "symmetric" else Of.QUANTILE
        ranges = RangeEstimatorParameters(
            min=StatisticsCollectorParameters(statistics_type=Of.QUANTILE, aggregator_type=Over.MEAN),
            max=StatisticsCollectorParameters(statistics_type=upper, aggregator_type=Over.MEAN),
        )
    return AdvancedQuantizationParameters(
        disable_bias_correction=options.bias_correction == "none",
        # Intel processors without VNNI saturate u8×s8 sums; the full range is right wherever int8 gains anything.
        overflow_fix=nncf.OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(per_channel=options.weights == "per-channel"),
        activations_range_estimator_params=ranges,
    )


def _round_weights(quantized: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Round the weights again, at NNCF's scales, so that their errors cancel."""
    from onnx import numpy_helper

    constants = {i.name: i for i in quantized.graph.initializer}
    before = {i.name: i for i in original.graph.initializer}
    layers = {node.name: node for node in original.graph.node if node.op_type == "Conv"}
    stored = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    done: set[str] = set()
    for node in quantized.graph.node:
        source = stored.get(node.input[1]) if node.op_type == "Conv" else None
        if source is None or source.input[0] not in constants or source.input[0] in done:
            continue
        done.add(source.input[0])
        whole = constants[source.input[0]]
        scale = numpy_helper.to_array(constants[source.input[1]]).astype(np.float64)
        weights = numpy_helper.to_array(before[layers[node.name].input[1]])
        scaled = weights / (scale.reshape(-1, *[1] * (weights.ndim - 1)) if scale.ndim else scale)
        whole.CopyFrom(numpy_helper.from_array(rounding.to_integers(scaled, INT8_LARGEST).astype(np.int8), whole.name))


def _clean(model: onnx.ModelProto) -> None:
    model.ClearField("metadata_props")
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.doc_string = ""
    model.graph.ClearField("value_info")


def relative_error(values: np.ndarray, reference: np.ndarray, *, probabilities: bool = False) -> float:
    """Root mean square difference as a share of the reference's standard deviation.

    ``probabilities``: 0..1 is what such an output may span, so a nearly constant map (all but saturated) is measured
    against ``FLAT`` of it; its own tiny spread would turn rounding in the last digit into a large error.
    """
    spread = float(np.std(reference, dtype=np.float64))
    spread = max(spread, FLAT) if probabilities else spread or 1.0
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64) - reference)))) / spread


def spread_evenly(items: Sequence[Any] | np.ndarray, count: int) -> list[Any]:
    """At most ``count`` items, evenly spread over the sequence."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]
