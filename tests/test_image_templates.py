"""What labelloop does with each image template of Label Studio is what the reference says."""

from pathlib import Path

import pytest

from labelloop.labeling.studio.config import LabelConfig
from tests.image_templates import PAGE, TEMPLATES, page

ROOT = Path(__file__).parents[1]


def test_reference_of_image_templates_is_true():
    written = PAGE.read_text(encoding="utf-8")
    assert page() == written, "Write the page again: python -m tests.image_templates"


def installed_templates():
    homes = (ROOT / ".labelloop" / "label-studio").glob("venv/lib/python3*/site-packages/label_studio")
    return {home / "annotation_templates" for home in homes}


def parsed(text):
    return LabelConfig.parse(text[text.index("<View") : text.rindex("</View>") + len("</View>")])


def controls(config):
    return sorted((control.tag, control.name, control.to_names) for control in config.controls.values())


def test_templates_are_those_of_label_studio():
    for folder in installed_templates():
        files = [file for file in folder.glob("*/*/config.yml") if "<Image " in file.read_text(encoding="utf-8")]
        assert {str(file.parent.relative_to(folder)) for file in files} == {one.folder for one in TEMPLATES}
        for template in TEMPLATES:
            text = (folder / template.folder / "config.yml").read_text(encoding="utf-8")
            assert f"title: {template.title}\n" in text
            assert controls(parsed(text)) == controls(template.config), template.folder
        return
    pytest.skip("needs Label Studio in .labelloop/label-studio")
