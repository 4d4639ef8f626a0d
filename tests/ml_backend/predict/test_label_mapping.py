"""Classes are mapped to labels: exact, case-folded, by predicted_values; mismatches are reported."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.label_mapping import find_targets, mapping_report

NAMES = ("cat", "person", "car", "dining table")


def config(body):
    return LabelConfig.parse(f'<View><Image name="image" value="$image"/>{body}</View>')


def rectangles(*labels):
    inner = "".join(labels)
    return config(f'<RectangleLabels name="label" toName="image">{inner}</RectangleLabels>')


MATCHES = {
    "exact": ('<Label value="cat"/>', {"cat": "cat"}),
    "another case": ('<Label value="CAT"/>', {"cat": "CAT"}),
    "predicted_values": ('<Label value="Vehicle" predicted_values="car,truck"/>', {"car": "Vehicle"}),
    "several classes, one label": ('<Label value="Any" predicted_values="car, cat"/>', {"cat": "Any", "car": "Any"}),
    "a name with a space": ('<Label value="Dining Table"/>', {"dining table": "Dining Table"}),
    "none": ('<Label value="Spaceship"/>', {}),
}


@pytest.mark.parametrize("case", MATCHES)
def test_a_class_finds_its_label(case):
    labels, expected = MATCHES[case]
    assert dict(mapping_report(rectangles(labels), NAMES).matched) == expected


def test_mismatches_are_reported_in_both_directions():
    report = mapping_report(rectangles('<Label value="Cat"/>', '<Label value="Spaceship"/>'), NAMES)
    assert report.classes_without_label == ("person", "car", "dining table")
    assert report.labels_without_class == ("Spaceship",)
    message = " ".join(report.lines())
    assert "Spaceship" in message
    assert "dining table" in message
    assert "predicted_values" in message


def test_a_perfect_fit_says_nothing():
    labels = [f'<Label value="{name}"/>' for name in NAMES]
    assert mapping_report(rectangles(*labels), NAMES).lines() == []


NO_TARGETS = {
    "no control": config(""),
    "choices only": config('<Choices name="c" toName="image"><Choice value="cat"/></Choices>'),
    "labels without a shape": config('<Labels name="l" toName="image"><Label value="cat"/></Labels>'),
    "text": LabelConfig.parse(
        '<View><Text name="t" value="$text"/><Labels name="l" toName="t"><Label value="cat"/></Labels></View>'
    ),
    "nothing at all": LabelConfig({}, {}),
}


@pytest.mark.parametrize("value", NO_TARGETS.values(), ids=NO_TARGETS)
def test_without_box_controls_there_are_no_targets(value):
    assert find_targets(value, NAMES) == ()
    assert "nothing is pre-labelled" in mapping_report(value, NAMES).lines()[0]


def test_labels_with_a_rectangle_of_their_own_are_a_target():
    value = config(
        '<Labels name="l" toName="image"><Label value="cat"/></Labels><Rectangle name="box" toName="image"/>'
    )
    [target] = find_targets(value, NAMES)
    assert (target.control.name, target.shape.name, target.to_name, target.data_key) == ("l", "box", "image", "image")


def test_tags_may_be_written_in_any_case():
    value = config('<rectanglelabels name="l" toName="image"><Label value="cat"/></rectanglelabels>')
    assert [dict(target.labels) for target in find_targets(value, NAMES)] == [{0: "cat"}]


def test_two_controls_of_an_image_get_their_own_labels():
    value = config(
        '<RectangleLabels name="a" toName="image" model_score_threshold="0.8"><Label value="cat"/></RectangleLabels>'
        '<RectangleLabels name="b" toName="image"><Label value="person"/></RectangleLabels>'
    )
    first, second = find_targets(value, NAMES)
    assert (dict(first.labels), dict(second.labels)) == ({0: "cat"}, {1: "person"})
    assert (first.threshold(0.3), second.threshold(0.3)) == (0.8, 0.3)
    assert mapping_report(value, NAMES).labels_without_class == ()
