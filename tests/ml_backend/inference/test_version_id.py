"""The version string is equal everywhere for one model, and differs between models."""

import pytest

from ml_backend.errors import ModelMissing
from ml_backend.inference.version_id import model_version


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "my model (v2).onnx"
    file.write_bytes(b"weights")
    return file


def test_version_is_independent_of_the_folder(model, tmp_path):
    version = model_version(model)
    assert version.startswith("my-model-v2-")
    other = tmp_path / "elsewhere"
    other.mkdir()
    copy = other / model.name
    copy.write_bytes(b"weights")
    assert model_version(copy) == version == model_version(model)


CHANGES = {
    "the file": lambda model: model.write_bytes(b"other weights"),
    "external weights": lambda model: model.with_name(f"{model.name}.data").write_bytes(b"more"),
    "name sidecar": lambda model: model.with_suffix(".names").write_text("cat\n"),
    "shared names": lambda model: model.with_name("names.txt").write_text("cat\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_version_changes_with_predictions(model, change):
    before = model_version(model)
    change(model)
    assert model_version(model) != before


def test_version_changes_with_a_forced_layout(model):
    assert len({model_version(model), model_version(model, layout="yolox"), model_version(model, layout="b")}) == 3


def test_missing_file_reports_path_and_option(tmp_path):
    with pytest.raises(ModelMissing, match=r"gone\.onnx.*--model PATH"):
        model_version(tmp_path / "gone.onnx")
