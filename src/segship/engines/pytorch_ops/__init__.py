"""Operators of the ONNX specification (github.com/onnx/onnx: docs/Operators.md) in torch, for engines/pytorch.py.

Written here because no kept library does it: onnx2torch 1.5.15 ends at opset 16, knows no Resize of opset 18 and no
QuantizeLinear, and needs torchvision. Those that the exports of segship's families use are here; an unknown one is
an EngineError that names it. Imported only when the PyTorch engine opens a graph.
"""
