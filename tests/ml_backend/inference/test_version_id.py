"""The version string: the same everywhere for the same model, another for another."""

import pytest

from ml_backend.errors import ModelMissing
from ml_backend.inference.version_id import model_version


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "my model (v2).onnx"
    file.write_bytes(b"weights")
    return file


def test_it_is_readable_and_the_same_for_the_same_bytes_in_another_folder(model, tmp_path):
    version = model_version(model)
    assert version.startswith("my-model-v2-")
    other = tmp_path / "elsewhere"
    other.mkdir()
    copy = other / model.name
    copy.write_bytes(b"weights")
    assert model_version(copy) == version == model_version(model)


CHANGES = {
    "the file": lambda model: model.write_bytes(b"other weights"),
    "weights beside it": lambda model: model.with_name(f"{model.name}.data").write_bytes(b"more"),
    "names beside it": lambda model: model.with_suffix(".names").write_text("cat\n"),
    "shared names": lambda model: model.with_name("names.txt").write_text("cat\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_changes_with_everything_that_changes_predictions(model, change):
    before = model_version(model)
    change(model)
    assert model_version(model) != before


def test_it_changes_with_a_forced_layout(model):
    assert len({model_version(model), model_version(model, layout="yolox"), model_version(model, layout="b")}) == 3


def test_a_missing_file_names_the_path_and_the_option(tmp_path):
    with pytest.raises(ModelMissing, match=r"gone\.onnx.*--model PATH"):
        model_version(tmp_path / "gone.onnx")
