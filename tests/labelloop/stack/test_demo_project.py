"""The demo's label config: labels match the names of common detectors, and the note is optional."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.stack import demo_project
from labelloop.stack.demo_project import INTERFACES, packaged_sources

CONFIG = LabelConfig.parse(INTERFACES["boxes"].label_config)


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


@pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES)
def test_tasks_without_the_note_are_valid(interface):
    assert '<Header value="$qc_note"/>' in interface.label_config
    assert "<Text" not in interface.label_config
    assert tuple(LabelConfig.parse(interface.label_config).image_keys) == ("image",)


def test_packaged_images_are_written_once_for_all_projects(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(demo_project, "packaged_images", lambda folder, **_: written.append(folder) or [folder / "a"])
    assert [source.files() for source in packaged_sources(tmp_path, None)] == [[tmp_path / "a"]] * 3
    assert written == [tmp_path]


def test_every_interface_is_a_project_boxes_first(tmp_path):
    sources = packaged_sources(tmp_path, None)
    assert [source.interface.name for source in sources] == ["boxes", "outlines", "subjects"]
    assert sources[0].key == "demo"  # the project of earlier versions
    assert len({source.key for source in sources}) == len({source.title for source in sources}) == len(sources)
