"""A small YOLOX for the tests of fine-tuning: three levels, a stem and two towers each, a fixed batch of 1."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.ml_backend.training.test_feature_export import yolox


def small_yolox(path, *, classes=3, half=False):
    """The YOLOX of the refit, with x * sigmoid(x) for tanh; `half` stores weights in float16, cast on load."""
    model = onnx.load(yolox(path, classes=classes))
    graph = model.graph
    nodes = []
    for node in graph.node:
        if node.op_type == "Tanh":
            [source], [output] = node.input, node.output
            nodes.append(helper.make_node("Sigmoid", [source], [f"{output}.gate"]))
            nodes.append(helper.make_node("Mul", [source, f"{output}.gate"], [output]))
        else:
            nodes.append(node)
    for tensor in graph.initializer:
        if tensor.name.startswith("stem"):  # pixels are 0..255
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 100, tensor.name))
    if half:
        stored = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
        for tensor in stored:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
            nodes.insert(0, helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for tensor in graph.initializer:
        if tensor.name.endswith(".shape"):  # as exporters write it: the batch is fixed to 1
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, 5 + classes, -1]), tensor.name))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path
