"""Small graphs, made once: UNet++ of both upsamplings in every precision that a package may hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the test graphs are made with PyTorch")
onnx = pytest.importorskip("onnx", reason="the test graphs are ONNX")

from segship.networks import unetplusplus  # noqa: E402

SIZE = 32
CHANNELS = 3
FILTERS = (16, 16, 32, 32, 32)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """A network and its graphs; bf16 is the fp32 graph, executed differently."""

    network: Any
    files: dict[str, Path]

    def reference(self, x: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(np.array(x)))
        return [o.numpy() for o in (outputs if isinstance(outputs, list) else [outputs])]


def images(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, size, size)).astype(np.float32)


def export(network: Any, path: Path, example: tuple[int, ...], dynamic: dict[int, Any], opset: int = 18) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.randn(example),),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    program.save(str(path))


def store_weights_in_16_bits(source: Path, target: Path) -> None:
    """float32 weights as float16 initialisers, each followed by a Cast back."""
    model = onnx.load(str(source))
    casts = []
    for weight in [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) == 4]:
        array = onnx.numpy_helper.to_array(weight).astype(np.float16)
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{weight.name}_16"))
        casts.append(onnx.helper.make_node("Cast", [f"{weight.name}_16"], [weight.name], to=onnx.TensorProto.FLOAT))
    for cast in casts:
        model.graph.node.insert(0, cast)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def quantize_to_8_bits(source: Path, target: Path) -> None:
    nncf = pytest.importorskip("nncf", reason="8-bit graphs are made with NNCF")
    data = nncf.Dataset([images(1, seed) for seed in range(4)], lambda x: {"input": x})
    onnx.save(nncf.quantize(onnx.load(str(source)), data, subset_size=4), str(target))


def quantize_to_16_bits(source: Path, target: Path) -> None:
    """Every convolution's input and weight through 16-bit Quantize and Dequantize nodes (ONNX opset 21)."""
    model = onnx.version_converter.convert_version(onnx.load(str(source)), 21)
    graph = model.graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    nodes = []
    for node in graph.node:
        for k, name in enumerate(node.input[:2] if node.op_type == "Conv" else ()):
            scale = float(np.abs(weights[name]).max()) / 32767 if name in weights else 20 / 32767
            parts = [f"{node.name}_{k}_{part}" for part in ("scale", "zero", "q", "dq")]
            graph.initializer.append(onnx.numpy_helper.from_array(np.float32(scale), parts[0]))
            graph.initializer.append(onnx.numpy_helper.from_array(np.int16(0), parts[1]))
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, *parts[:2]], [parts[2]]))
            nodes.append(onnx.helper.make_node("DequantizeLinear", [parts[2], *parts[:2]], [parts[3]]))
            node.input[k] = parts[3]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(target))


def make_graphs(folder: Path, upsample: str) -> Graphs:
    """UNet++ with deep supervision and few filters: four outputs, every operator of the real one."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unetplusplus, "FILTERS", FILTERS)
        network = unetplusplus.NestedUNet(2, CHANNELS, deep_supervision=True, upsample=upsample)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 0.6)
    network.eval()
    files = {precision: folder / f"{upsample}_{precision}.onnx" for precision in ("fp32", "fp16", "int8", "int16")}
    export(network, files["fp32"], (2, CHANNELS, SIZE, SIZE), {0: torch.export.Dim("batch", min=1, max=64)})
    store_weights_in_16_bits(files["fp32"], files["fp16"])
    quantize_to_8_bits(files["fp32"], files["int8"])
    quantize_to_16_bits(files["fp32"], files["int16"])
    return Graphs(network=network, files={**files, "bf16": files["fp32"]})
