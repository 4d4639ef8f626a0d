"""Compiled templates are kept beside their sources, and never trusted when they are damaged."""

import sys

import pytest
from jinja2 import Environment, FileSystemLoader

from exporters.report.templates import TemplateCache


def render(folder):
    environment = Environment(loader=FileSystemLoader(folder), bytecode_cache=TemplateCache(folder), autoescape=True)
    return environment.get_template("a.jinja").render(name="x")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "a.jinja").write_text("Hello {{ name }}")
    return tmp_path


def test_template_is_compiled_once(folder, monkeypatch):
    assert render(folder) == "Hello x"
    monkeypatch.setattr(Environment, "compile", None)
    assert render(folder) == "Hello x"


@pytest.mark.parametrize("damage", [b"", b"j2", None], ids=["empty", "other magic", "cut off"])
def test_damaged_or_old_templates_are_compiled_again(folder, damage):
    render(folder)
    (file,) = (folder / "__pycache__").iterdir()
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    assert render(folder) == "Hello x"
    (folder / "a.jinja").write_text("Bye {{ name }}")
    assert render(folder) == "Bye x"


def test_folder_that_cannot_be_written_only_costs_time(folder):
    (folder / "__pycache__").write_text("in the way")
    assert render(folder) == "Hello x"
