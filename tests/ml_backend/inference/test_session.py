"""Files that ONNX Runtime does not open are refused with what they are, and the fix."""

import numpy as np
import onnx
import pytest
from onnx import helper

from ml_backend.errors import ModelBroken
from ml_backend.inference.session import Engine

OTHER_FILES = {
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page", "Download the file itself"),
    "PyTorch": (b"PK\x03\x04archive/data.pkl", "PyTorch", "Export the model to ONNX"),
    "an old checkpoint": (b"\x80\x02}q\x00.", "PyTorch", "Export the model to ONNX"),
    "Keras": (b"\x89HDF\r\n\x1a\n", "Keras", "tf2onnx"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite", "tf2onnx"),
    "nothing": (b"", "the file is empty", "Copy or export it again"),
    "noise": (b"\xff" * 100, "Protobuf parsing failed", "damaged or incomplete"),
}


@pytest.mark.parametrize(("content", "what", "fix"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_files_of_another_kind_are_named(content, what, fix, tmp_path):
    (tmp_path / "best.onnx").write_bytes(content)
    with pytest.raises(ModelBroken, match=what) as error:
        Engine(tmp_path / "best.onnx")
    assert fix in error.value.fix


@pytest.mark.parametrize("dtype", ["INT8", "UINT16", "BFLOAT16", "BOOL"])
def test_types_of_inputs_that_are_not_supported_are_named(dtype, make_onnx):
    path = make_onnx({"output": np.zeros((1, 4, 6))}, dtype=getattr(onnx.TensorProto, dtype))
    with pytest.raises(ModelBroken, match=rf"takes tensor\({dtype.lower()}\), and float16, float32") as error:
        Engine(path)
    assert "float32 or uint8" in error.value.fix


def test_a_model_of_something_else_than_an_image_names_the_fix(make_onnx):
    for shape in ((1, 128), (1, 3, 8, 64, 96)):
        with pytest.raises(ModelBroken, match="exactly one image input") as error:
            Engine(make_onnx({"output": np.zeros((1, 3))}, shape=shape))
        assert "text, sound, video or several images are not served" in error.value.fix


def other_opset(model):
    model.opset_import[0].version = 99


def newer_format(model):
    model.ir_version = 99


def custom_operator(model):
    model.graph.node[0].op_type = "DeformConvOfSomebody"
    model.graph.node[0].domain = "mmcv"
    model.opset_import.append(helper.make_opsetid("mmcv", 1))


def missing_weights(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.append(onnx.StringStringEntryProto(key="location", value="best.onnx.data"))


CHANGES = {
    "opset": (other_opset, "lower opset"),
    "format": (newer_format, "lower opset"),
    "custom operator": (custom_operator, "operators of ONNX alone"),
    "missing weights": (missing_weights, "file with its weights next to it"),
}


@pytest.mark.parametrize(("change", "fix"), CHANGES.values(), ids=CHANGES)
def test_graphs_that_are_not_opened_name_the_fix(change, fix, make_onnx):
    path = make_onnx({"output": np.zeros((1, 4, 6))})
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelBroken) as error:
        Engine(path)
    assert fix in error.value.fix
