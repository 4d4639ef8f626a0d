"""The demo's label config: labels match the names of common detectors, and the note is optional."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.stack.demo_project import LABEL_CONFIG

CONFIG = LabelConfig.parse(LABEL_CONFIG)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("person", "Person"),
        ("cat", "Cat"),
        ("motorbike", "Motorbike"),
        ("motorcycle", "Motorbike"),
        ("diningtable", "Table"),
        ("potted plant", "Plant"),
        ("aeroplane", None),
    ],
)
def test_detector_class_names_match_the_labels(name, label):
    assert CONFIG.controls["objects"].label_for(name) == label


def test_tasks_without_the_note_are_valid():
    assert '<Header value="$qc_note"/>' in LABEL_CONFIG
    assert "<Text" not in LABEL_CONFIG
    assert tuple(CONFIG.image_keys) == ("image",)
