"""U²-NetP as other tools write it: ONNX files like those that rembg's users have."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

NUMBERS = tuple(str(number) for number in range(1959, 1966))


@contextmanager
def _quiet():
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(
    network: nn.Module,
    path: Path,
    size: tuple[int, int] = (64, 64),
    *,
    outputs: Sequence[str] = NUMBERS,
    free: Sequence[int] = (),
    opset: int = 11,
) -> Path:
    """Export with PyTorch's older exporter: shapes computed inside the graph, names that mean nothing.

    ``free`` are the input's axes that are left open.
    """
    names = [f"out{index}" for index in range(len(outputs))]
    axes = {name: {axis: f"axis{axis}" for axis in free} for name in ("x", *names)} if free else None
    with _quiet():
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, *size),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=names,
            dynamic_axes=axes,
        )
    # That exporter takes no numbers for names, which the files about have.
    model = onnx.load(path)
    mapping = {**dict(zip(names, outputs, strict=True)), "x": "input.1"}
    for node in model.graph.node:
        for field in (node.input, node.output):
            renamed = [mapping.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    for value in (*model.graph.input, *model.graph.output):
        value.name = mapping.get(value.name, value.name)
    onnx.save(model, path)
    return path
