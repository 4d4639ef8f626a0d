"""The tables of formats: every place exists, and a class is imported when it is looked up."""

import subprocess
import sys

import pytest

from exporters.formats import FORMATS
from exporters.structures.class_table import ClassTable
from exporters.tasks.table import TASK_FORMATS


@pytest.mark.parametrize("table", [FORMATS, TASK_FORMATS], ids=["images", "tasks"])
def test_every_format_is_found_under_its_own_name(table):
    assert [table[name].name for name in table] == list(table)


def test_a_class_is_imported_when_it_is_looked_up():
    code = (
        "import sys; from exporters.tasks.table import FORMATS, format_names; format_names('coco,conll')\n"
        "loaded = lambda: {*sys.modules} & {'exporters.formats.coco', 'exporters.formats.voc'}\n"
        "assert 'coco' in FORMATS and 'yolo' not in FORMATS and len(FORMATS) == len(list(FORMATS))\n"
        "assert not loaded()\n"
        "assert FORMATS['coco'].__name__ == 'Coco'\n"
        "assert loaded() == {'exporters.formats.coco'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_a_key_error():
    table: ClassTable[object] = ClassTable({"a": "collections:Counter"})
    assert dict(table) == {"a": __import__("collections").Counter}
    with pytest.raises(KeyError):
        table["b"]
