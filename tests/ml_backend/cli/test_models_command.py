"""`labelloop models add` says how the model is read, at the moment it is added."""

import json

import onnx
from onnx import TensorProto, helper

from ml_backend.cli.models import models_add


def test_a_classifier_whose_pixels_are_assumed_is_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["images"], ["logits"])], "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 1, 1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"names": json.dumps(["cat", "dog", "cow"])})
    onnx.save(model, tmp_path / "model.onnx")
    models_add(tmp_path / "model.onnx")
    said = capsys.readouterr().out
    assert "Layout classifier: one value for each of 3 classes; how it is shown images is assumed" in said
