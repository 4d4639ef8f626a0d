"""Class names are parsed, never evaluated, and never guessed."""

import pytest

from ml_backend.errors import ModelBroken, NamesMissing
from ml_backend.names import find_names, parse_names

GOOD = {
    "a JSON list": '["cat", "dog"]',
    "a JSON map": '{"0": "cat", "1": "dog"}',
    "Ultralytics' Python dict": "{0: 'cat', 1: 'dog'}",
    "a Python list": "['cat', 'dog']",
    "a map in another order": "{1: 'dog', 0: 'cat'}",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_names_are_read_in_every_form_that_exporters_write(text):
    assert parse_names(text) == ("cat", "dog")


BAD = {
    "code": "__import__('os').system('touch /tmp/evaluated')",
    "a call": "dict(a=1)",
    "a number": "7",
    "a gap": "{0: 'cat', 2: 'dog'}",
    "words for keys": "{'zero': 'cat'}",
    "nested": "[['cat']]",
    "too deep to parse": "(" * 5000,
    "nothing": "",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_anything_else_is_refused_without_being_run(text):
    with pytest.raises(ValueError):
        parse_names(text)


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.onnx"
    file.touch()
    return file


def test_a_sidecar_of_the_model_wins_over_its_metadata(model):
    model.with_name("m.names").write_text("katze\nhund\n")
    found = find_names(model, {"names": '["cat", "dog"]'}, 2)
    assert found.names == ("katze", "hund")
    assert found.source == "m.names"


def test_a_shared_file_is_used_where_its_count_fits_and_nothing_else_names_them(model):
    model.with_name("names.txt").write_text("cat\ndog\n\n")
    assert find_names(model, {}, 2).names == ("cat", "dog")
    assert find_names(model, {"names": '["a", "b", "c"]'}, 3).source == "metadata"
    with pytest.raises(NamesMissing):
        find_names(model, {}, 3)


def test_another_count_names_both_counts(model):
    model.with_name("m.onnx.names").write_text("cat\n")
    with pytest.raises(NamesMissing, match=r"2 classes.*m\.onnx\.names names 1"):
        find_names(model, {}, 2)
    model.with_name("m.onnx.names").unlink()
    with pytest.raises(NamesMissing, match=r"metadata names 1"):
        find_names(model, {"names": '["cat"]'}, 2)


def test_metadata_that_cannot_be_parsed_says_so(model):
    with pytest.raises(ModelBroken, match="`names` cannot be read"):
        find_names(model, {"names": "os.system('x')"}, 2)


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(model):
    model.with_name("m.names").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert find_names(model, {}, 2).names == ("cat", "dog")
