"""Class names are parsed, never evaluated, and never guessed."""

import pytest

from ml_backend.detection.class_names import ClassNames, class_indices, find_names, keypoint_names, parse_names
from ml_backend.errors import ModelBroken, NamesMissing

GOOD = {
    "a JSON list": '["cat", "dog"]',
    "a JSON map": '{"0": "cat", "1": "dog"}',
    "Ultralytics' Python dict": "{0: 'cat', 1: 'dog'}",
    "a Python list": "['cat', 'dog']",
    "a map in another order": "{1: 'dog', 0: 'cat'}",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_names_of_all_exporters_are_parsed(text):
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
def test_other_text_is_rejected_without_evaluation(text):
    with pytest.raises(ValueError):
        parse_names(text)


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.onnx"
    file.touch()
    return file


def test_sidecar_takes_precedence_over_metadata(model):
    model.with_name("m.names").write_text("katze\nhund\n")
    names = find_names(model, {"names": '["cat", "dog"]'}, 2)
    assert names.names == ("katze", "hund")
    assert names.source == "m.names"


def test_shared_file_of_matching_count_is_the_last_resort(model):
    model.with_name("names.txt").write_text("cat\ndog\n\n")
    assert find_names(model, {}, 2).names == ("cat", "dog")
    assert find_names(model, {"names": '["a", "b", "c"]'}, 3).source == "metadata"
    with pytest.raises(NamesMissing):
        find_names(model, {}, 3)


def test_wrong_count_reports_both_counts(model):
    model.with_name("m.onnx.names").write_text("cat\n")
    with pytest.raises(NamesMissing, match=r"2 classes.*m\.onnx\.names names 1"):
        find_names(model, {}, 2)
    model.with_name("m.onnx.names").unlink()
    with pytest.raises(NamesMissing, match=r"metadata names 1"):
        find_names(model, {"names": '["cat"]'}, 2)


def test_unparsable_metadata_raises(model):
    with pytest.raises(ModelBroken, match="`names` cannot be read"):
        find_names(model, {"names": "os.system('x')"}, 2)


def test_bom_and_crlf_are_accepted(model):
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
def test_sidecars_of_all_exporters_are_read(case, model):
    name, text = FILES[case]
    model.with_name(name).write_text(text)
    assert find_names(model, {}, 2) == ClassNames(("cat", "dog"), name)


def test_user_file_takes_precedence(model, tmp_path):
    model.with_name("m.names").write_text("katze\nhund\n")
    names_file = tmp_path / "custom.yaml"
    names_file.write_text("names: [chat, chien]")
    assert find_names(model, {"names": '["cat", "dog"]'}, 2, names_file=names_file).names == ("chat", "chien")
    with pytest.raises(ModelBroken, match=r"gone\.txt"):
        find_names(model, {}, 2, names_file=tmp_path / "gone.txt")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['x']", "names: 5", "- [a]", "{"])
def test_yaml_without_names_is_rejected_without_evaluation(text, model):
    model.with_name("m.yaml").write_text(text)
    with pytest.raises(ModelBroken, match="names cannot be read"):
        find_names(model, {}, 2)


PLACES = {
    # number of classes, background position, names -> index of each class number
    "as many": (2, "any", ("a", "b"), None),
    "the last is left over": (3, "any", ("a", "b"), (0, 1, -1)),
    "the first is the background": (3, "first", ("a", "b"), (-1, 0, 1)),
    "the outputs do not say, the background first": (None, "first", ("a", "b"), (-1, 0, 1)),
    "the background is named": (None, "first", ("__background__", "a"), None),
    "the outputs do not say": (None, "none", ("a", "b"), None),
}


@pytest.mark.parametrize("case", PLACES)
def test_class_numbers_map_to_names(case):
    classes, spare, names, expected = PLACES[case]
    assert class_indices(names, classes, spare) == expected


def test_mismatched_names_are_rejected():
    with pytest.raises(ValueError):
        class_indices(("a", "b"), 3, "none")
    with pytest.raises(ValueError):
        class_indices(("a", "b"), 5, "any")


KEYPOINTS = {
    "told": ({"kpt_names": "{0: ['head', 'tail']}"}, 2, ("head", "tail")),
    "a list": ({"kpt_names": "['head', 'tail']"}, 2, ("head", "tail")),
    "another count": ({"kpt_names": "['head']"}, 2, ("0", "1")),
    "no names": ({}, 3, ("0", "1", "2")),
}


@pytest.mark.parametrize("case", KEYPOINTS)
def test_keypoint_names(case):
    metadata, points, expected = KEYPOINTS[case]
    assert keypoint_names(metadata, points) == expected
    assert keypoint_names({}, 17)[0] == "nose"
