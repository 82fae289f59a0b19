"""An engine for segship in a package of its own: OpenCV's DNN module, on the processor, in float32."""

import threading

import numpy as np

from segship.engines import Device, common

NAME, INSTALL = "opencv", "pip install segship-engine-example"
PRECISIONS, TOLERANCE = ("fp32",), {"fp32": 1e-3}


def _import():
    return common.needs(NAME, INSTALL, "cv2", "onnx")  # onnx tells the shape of a graph's input, OpenCV does not


def availability():
    cpu = Device(name="cpu", description="OpenCV's DNN module", precisions=PRECISIONS)
    return common.available(NAME, INSTALL, lambda: (_import()[0].__version__, [cpu]))


def open_session(graph, options):
    common.check_options(NAME, PRECISIONS, options)
    common.check_graph(graph)
    if options.device.lower() not in ("cpu", "auto"):
        raise common.no_device(NAME, options.device, ["cpu"])
    return OpenCvSession(graph, options)


class OpenCvSession:
    engine, device = NAME, "CPU"

    def __init__(self, graph, options):
        cv2, onnx = _import()
        self.options, self.version, self._lock = options, cv2.__version__, threading.Lock()
        try:
            model = onnx.load(str(graph)).graph
            self._net = cv2.dnn.readNetFromONNX(str(graph))
        except Exception as error:
            raise common.unreadable(NAME, graph, error) from None
        shapes = [tuple(d.dim_value or None for d in i.type.tensor_type.shape.dim) for i in model.input]
        self._shape = common.input_shape(NAME, graph, shapes, options)
        self._outputs = [value.name for value in model.output]

    def run(self, x):
        if self._net is None:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._shape)
        try:
            with self._lock:  # a net has one set of buffers: other threads wait
                self._net.setInput(x)
                return [np.array(y, np.float32) for y in self._net.forward(self._outputs)]
        except Exception as error:
            raise common.run_failed(NAME, x, error) from None

    def executed(self, x):
        self.run(x)
        return common.executed_record(self, {"f32": 1.0}, "settings")

    def close(self):
        self._net = None
