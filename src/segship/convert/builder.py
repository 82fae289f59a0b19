"""The graphs of one variant: built once from the fp32 graphs, then varied cheaply while the gate searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from segship.convert import checks, int16, layers, onnx_graph, quantize
from segship.convert.base import Base
from segship.convert.calibration import Calibration
from segship.convert.quantize import QuantizeOptions
from segship.manifest import Manifest, Precision, Quantization, Variant
from segship.package import sha256_bytes

Progress = Callable[[int, int, str], None]
GRAPH = "graphs/{precision}.onnx"
ORDER = ("fp32", "fp16", "bf16", "int8", "int16")


class Builder:
    """Makes the variant's graphs, and candidates with further layers in float32 without quantising again."""

    def __init__(
        self,
        base: Base,
        precision: Precision,
        calibration: Calibration | None,
        options: QuantizeOptions | None,
        progress: Progress | None,
    ) -> None:
        self.base = base
        self.precision: Precision = precision
        self.calibration = calibration
        self.options = options
        self.kept: tuple[str, ...] = options.keep_in_float if options else ()
        if progress is not None:
            progress(0, 1, f"building {precision}")
        self._ranges: dict[str, dict[str, float]] = {}
        if precision == "int16":
            assert calibration is not None
            engine = checks.checking_engines(None, "fp32")[0]
            self._ranges = {
                member: int16.activation_ranges(graph, calibration.inputs, engine)
                for member, graph in base.graphs.items()
            }
        self._built = {member: self._build(member, graph) for member, graph in base.graphs.items()}

    def _build(self, member: str, graph: onnx.ModelProto) -> onnx.ModelProto:
        if self.precision == "fp16":
            return onnx_graph.to_fp16_storage(graph)
        if self.precision == "int16":
            return int16.quantize(graph, self._ranges[member], self.kept)
        if self.options is None:
            return graph
        assert self.calibration is not None
        return quantize.quantize(graph, self.calibration.inputs, self.options)

    def graphs(self, kept: tuple[str, ...] | None = None) -> dict[str, onnx.ModelProto]:
        """One graph a member; ``kept`` names all layers that are to be float32."""
        kept = self.kept if kept is None else kept
        further = set(kept) - set(self.options.keep_in_float if self.options else ())
        if not further:
            return self._built
        if self.precision == "int16":
            return {
                member: int16.quantize(graph, self._ranges[member], kept) for member, graph in self.base.graphs.items()
            }
        return {
            member: onnx_graph.restore_float(graph, self.base.graphs[member], further)
            for member, graph in self._built.items()
        }

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Blocks that can be put back to float32; none but for int8 and int16."""
        if self.options is None:
            return {}
        member = next(iter(self.base.graphs))
        return layers.search_groups(self.base.graphs[member], self.options.keep_in_float)

    def files(self, graphs: dict[str, onnx.ModelProto]) -> dict[str, tuple[str, bytes]]:
        """member -> (name in the package, bytes). bf16 and fp32 share the graph that is there."""
        stored = "fp32" if self.precision == "bf16" else self.precision
        several = len(graphs) > 1
        return {
            member: (
                GRAPH.format(precision=f"{stored}.{member}" if several else stored),
                onnx_graph.serialise(graph),
            )
            for member, graph in graphs.items()
        }

    def variant(self, files: dict[str, tuple[str, bytes]], **more: Any) -> Variant:
        quantization = None
        if self.options is not None and self.calibration is not None:
            quantization = Quantization(
                preset=self.options.preset,
                algorithm=self.options.algorithm,
                weights=self.options.weights,
                activations=self.options.activations,
                bias_correction=self.options.bias_correction,
                calibration_images=len(self.calibration.names),
                calibration_sha256=self.calibration.sha256,
                kept_in_float=self.kept,
            )
        return Variant(
            precision=self.precision,
            graphs={member: name for member, (name, _) in files.items()},
            sha256={member: sha256_bytes(data) for member, (_, data) in files.items()},
            quantization=quantization,
            **more,
        )


def with_variant(manifest: Manifest, variant: Variant) -> Manifest:
    """The manifest with this variant added, or put in the place of one of the same precision."""
    others = [v for v in manifest.variants if v.precision != variant.precision]
    variants = sorted([*others, variant], key=lambda v: ORDER.index(v.precision))
    return Manifest(**manifest.recipe.model_dump(), variants=tuple(variants))
