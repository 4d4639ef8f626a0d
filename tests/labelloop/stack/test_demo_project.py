"""The demo's label config: the embedded model's words meet its labels, and quality control's note is optional."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.stack.demo_project import LABEL_CONFIG

CONFIG = LabelConfig.parse(LABEL_CONFIG)


@pytest.mark.parametrize(
    ("said", "label"),
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
def test_words_of_detectors_meet_everyday_labels(said, label):
    assert CONFIG.controls["objects"].label_for(said) == label


def test_the_note_is_shown_by_a_header_so_that_tasks_need_not_have_it():
    assert '<Header value="$qc_note"/>' in LABEL_CONFIG
    assert "<Text" not in LABEL_CONFIG
    assert tuple(CONFIG.image_keys) == ("image",)
