"""A ready-made ONNX file as the source of a package: read without trusting it, run as the truth to compare with.

A family that takes such files provides, beside what ``families`` asks of it,

    LOOKS_FOR_ONNX: str                        what it looks for in a graph, in words, for the error that lists it
    recognise_onnx(file) -> bool               by the graph, never by the file's or a tensor's name
    load_onnx(file, options, force=False) -> Source    with ``OnnxNetwork(file, …)`` as its network
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from segship.engines import Session, SessionOptions, open_session
from segship.errors import SourceError

ENGINE = "onnxruntime"
"""runs the original file; the package's engines are compared with it"""
MAX_BYTES = 2 << 30
"""protobuf's own limit for one message"""
MIN_OPSET = 9
HALF_PIXEL_OPSET = 11
"""before it, enlarging knew one rule for positions, not the one that networks are trained with"""
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph; a side that is free, or that the file does not say, is None."""

    name: str
    shape: tuple[int | None, ...]
    type: str

    def __str__(self) -> str:
        return f"{self.name} {self.type}({', '.join('?' if side is None else str(side) for side in self.shape)})"


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX file: one float32 input, standard operators only, all weights inside."""

    path: Path
    sha256: str
    md5: str
    model: onnx.ModelProto
    input: Port
    outputs: tuple[Port, ...]
    opset: int

    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.model.graph.node)

    def kernels(self) -> list[tuple[int, ...]]:
        """Shapes of the convolutions' weights in graph order; () for one that is computed, not stored."""
        stored = stored_shapes(self.model.graph)
        return [stored.get(node.input[1], ()) for node in self.model.graph.node if node.op_type == "Conv"]

    def parameters(self) -> int:
        """Stored float values."""
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
        return sum(int(np.prod(t.dims)) for t in _tensors(self.model.graph) if t.data_type in floats)

    def record(self) -> dict[str, Any]:
        """For provenance: content and what wrote it, no path of this machine."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "md5": self.md5,
            "bytes": self.path.stat().st_size,
            "opset": self.opset,
            "producer": f"{self.model.producer_name} {self.model.producer_version}".strip(),
            "input": str(self.input),
            "outputs": [str(port) for port in self.outputs],
            "read_by": "ONNX graph",
        }

    def describe(self) -> str:
        """What is in it, for an error message."""
        most = ", ".join(f"{count} {name}" for name, count in self.operators().most_common(4))
        ports = [str(port) for port in self.outputs[:3]]
        more = f" and {len(self.outputs) - 3} more" if len(self.outputs) > 3 else ""
        return f"input {self.input}, output {', '.join(ports)}{more}, nodes {most}"


class OnnxNetwork:
    """The original graph as a function on arrays: (N, C, H, W) float32 in, the chosen outputs out.

    A graph whose batch is fixed is run piece by piece. The session is opened on first use.
    """

    def __init__(self, file: OnnxFile, outputs: Sequence[int], layer_names: Sequence[str] = ()) -> None:
        self.file = file
        self.outputs = tuple(outputs)
        self.layer_names = tuple(layer_names)
        """of the convolutions in graph order, where the family knows them"""
        self._session: Session | None = None

    @property
    def model(self) -> onnx.ModelProto:
        return self.file.model

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width that the graph takes; None where free."""
        return self.file.input.shape[2], self.file.input.shape[3]

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Raises EngineMissing without ONNX Runtime, EngineError where it cannot run the graph."""
        if self._session is None:
            self._session = self._open()
        step = self.file.input.shape[0] or len(x)
        parts = []
        for start in range(0, len(x), step):
            part = np.ascontiguousarray(x[start : start + step], dtype=np.float32)
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            found = self._session.run(filled)
            parts.append([np.asarray(found[index])[: len(part)] for index in self.outputs])
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _open(self) -> Session:
        # From the bytes that were checked, not from the file: it might be another by now.
        with tempfile.TemporaryDirectory(prefix="segship-") as folder:
            path = Path(folder) / "source.onnx"
            path.write_bytes(self.model.SerializeToString())
            return open_session(ENGINE, path, SessionOptions(precision="fp32"))


def is_onnx(path: Path) -> bool:
    """By the suffix, or by how a serialised model begins: field 1, a small version number."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".onnx":
        return True
    try:
        with path.open("rb") as stream:
            start = stream.read(3)
    except OSError:
        return False
    return len(start) == 3 and start[0] == 0x08 and start[1] < 0x20 and start[2] in (0x12, 0x3A)


def open_onnx(path: Path | str) -> OnnxFile:
    """Read and check an ONNX file. Nothing beside it is opened. Raises SourceError with what to do instead."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SourceError(
                f"{path} has {size >> 30} GiB; an ONNX file holds 2 GiB at most, so it is another kind of file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    if not data:
        raise SourceError(f"{path} is empty; copy or download it again")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise SourceError(
            f"{path} is no readable ONNX file: it is cut short or damaged; copy or download it again"
        ) from None
    _check(model, path)
    inputs = _inputs(model.graph)
    return OnnxFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        model=model,
        input=inputs[0],
        outputs=tuple(_port(value) for value in model.graph.output),
        opset=_opset(model),
    )


def stored_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of initializers and Constant nodes by name."""
    found = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is not None:
            found[node.output[0]] = tuple(value.dims)
    return found


# ------------------------------------------------------------------------------------------------- checks


def _check(model: onnx.ModelProto, path: Path) -> None:
    graph = model.graph
    if not graph.node or not graph.output:
        raise SourceError(
            f"{path} is no ONNX graph: it has no nodes or no outputs; it is damaged or another kind of file"
        )
    outside = next((t for t in _tensors(graph) if t.data_location == TensorProto.EXTERNAL), None)
    if outside is not None:
        file = next((entry.value for entry in outside.external_data if entry.key == "location"), "another file")
        raise SourceError(
            f"{path} keeps its weights in {Path(file).name}; join them first: "
            "onnx.save(onnx.load(path), 'one.onnx', save_as_external_data=False)"
        )
    _check_operators(model, path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises several kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{path} is no valid ONNX graph ({line[:160]}); export it again") from None
    inputs = _inputs(graph)
    if len(inputs) != 1 or inputs[0].type != "float32" or len(inputs[0].shape) != 4:
        found = ", ".join(map(str, inputs)) or "none"
        raise SourceError(f"{path} should take one float32 input (N, C, H, W), it takes {found}; export it so")


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise SourceError(
                f"{path} uses operator {node.domain}.{node.op_type}, which is not part of ONNX itself; "
                "export it with standard operators only"
            )
        if node.op_type in _QUANTISED:
            raise SourceError(
                f"{path} is quantised already ({node.op_type}); give the float32 graph and use segship compile"
            )
    if model.functions:
        raise SourceError(
            f"{path} defines operators of its own ({model.functions[0].name}); export it without functions"
        )
    if _opset(model) < MIN_OPSET:
        raise SourceError(
            f"{path} is ONNX opset {_opset(model)}; {MIN_OPSET} and later are read, so export it again with a later opset"
        )


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _inputs(graph: onnx.GraphProto) -> list[Port]:
    stored = {tensor.name for tensor in graph.initializer}
    return [_port(value) for value in graph.input if value.name not in stored]


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    try:
        name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, TypeError):
        name = f"type {kind.elem_type}"
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Port(name=value.name, shape=shape, type=name)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loop bodies too."""
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            yield node
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and tensors in attributes."""
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from attribute.g.initializer
            for inner in attribute.graphs:
                yield from inner.initializer


def is_finite(model: onnx.ModelProto) -> bool:
    """Whether every stored float is a number."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return all(
        bool(np.isfinite(numpy_helper.to_array(t)).all()) for t in _tensors(model.graph) if t.data_type in floats
    )
