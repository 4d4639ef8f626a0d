"""Class names are parsed, never evaluated, and never guessed."""

import pytest

from ml_backend.detection.class_names import Names, class_places, find_names, parse_names, point_names
from ml_backend.errors import ModelBroken, NamesMissing

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


FILES = {
    "Ultralytics' data.yaml": ("m.yaml", "path: x\nnames:\n  0: cat\n  1: dog\n"),
    "a YAML list": ("m.yaml", "names: [cat, dog]\n"),
    "transformers' config.json": ("m.json", '{"id2label": {"0": "cat", "1": "dog"}, "model_type": "detr"}'),
    "a JSON list": ("m.json", '["cat", "dog"]'),
    "a shared config.json": ("config.json", '{"id2label": {"0": "cat", "1": "dog"}}'),
}


@pytest.mark.parametrize("case", FILES)
def test_names_are_read_from_the_files_that_exporters_leave_beside_a_model(case, model):
    name, text = FILES[case]
    model.with_name(name).write_text(text)
    assert find_names(model, {}, 2) == Names(("cat", "dog"), name)


def test_a_file_that_the_user_names_wins_over_all(model, tmp_path):
    model.with_name("m.names").write_text("katze\nhund\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("names: [chat, chien]")
    assert find_names(model, {"names": '["cat", "dog"]'}, 2, given=mine).names == ("chat", "chien")
    with pytest.raises(ModelBroken, match=r"gone\.txt"):
        find_names(model, {}, 2, given=tmp_path / "gone.txt")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['x']", "names: 5", "- [a]", "{"])
def test_a_yaml_file_without_names_is_refused_without_being_run(text, model):
    model.with_name("m.yaml").write_text(text)
    with pytest.raises(ModelBroken, match="names cannot be read"):
        find_names(model, {}, 2)


PLACES = {
    # classes of the outputs, what may be spare, names -> place of each number
    "as many": (2, "any", ("a", "b"), None),
    "the last is left over": (3, "any", ("a", "b"), (0, 1, -1)),
    "the first is the background": (3, "first", ("a", "b"), (-1, 0, 1)),
    "the outputs do not say, the background first": (None, "first", ("a", "b"), (-1, 0, 1)),
    "the background is named": (None, "first", ("__background__", "a"), None),
    "the outputs do not say": (None, "none", ("a", "b"), None),
}


@pytest.mark.parametrize("case", PLACES)
def test_numbers_of_the_outputs_find_their_names(case):
    classes, spare, names, expected = PLACES[case]
    assert class_places(names, classes, spare) == expected


def test_names_that_fit_in_no_way_are_refused():
    with pytest.raises(ValueError):
        class_places(("a", "b"), 3, "none")
    with pytest.raises(ValueError):
        class_places(("a", "b"), 5, "any")


KEYPOINTS = {
    "told": ({"kpt_names": "{0: ['head', 'tail']}"}, 2, ("head", "tail")),
    "a list": ({"kpt_names": "['head', 'tail']"}, 2, ("head", "tail")),
    "another count": ({"kpt_names": "['head']"}, 2, ("0", "1")),
    "none told": ({}, 3, ("0", "1", "2")),
}


@pytest.mark.parametrize("case", KEYPOINTS)
def test_keypoints_have_names(case):
    metadata, points, expected = KEYPOINTS[case]
    assert point_names(metadata, points) == expected
    assert point_names({}, 17)[0] == "nose"
