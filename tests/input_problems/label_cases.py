"""Problems of labels and regions that `labelloop export` would publish and `dataset validate` would find."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.exporters.conftest import Build
from tests.input_problems.case import Case
from tests.input_problems.export_cases import command, nothing_published, published

SECTION = "Exports: labels and regions"
_build = Build()
_BOX = _build.box(10, 20, 30, 40, "Butterfly")
_ALIKE = (_BOX, _build.box(50, 50, 10, 10, "butterfly", id="r2"))


def exported(regions: Sequence[dict], folder: Path, *options: str) -> list[str]:
    """An export of one task with these regions."""
    return command(folder, json.dumps([_build.task(1, _build.annotation(*regions))]).encode(), *options)


CASES = [
    Case(
        "labels that differ only in case, spaces, - or _",
        "refused",
        partial(exported, _ALIKE),
        ("'Butterfly' and 'butterfly'", "--rename butterfly=Butterfly"),
        1,
        nothing_published,
    ),
    Case(
        "such labels, with --rename OLD=NEW",
        "converted",
        lambda folder: exported(_ALIKE, folder, "--rename", "butterfly=Butterfly"),
        ("classes Butterfly 1",),
        0,
        published,
        "both count as one class",
    ),
    Case(
        "an object that says the same as another one of its image",
        "skipped and counted",
        partial(exported, (_BOX, _BOX | {"id": "twin"})),
        ("1 not: the same row as another object's of its image",),
        0,
        published,
        "written once in each format",
    ),
    Case(
        "a region marked as a crowd, in YOLO",
        "skipped and counted",
        partial(exported, (_build.box(1, 1, 9, 9, "car", id="one"), _BOX | {"meta": {"text": ["crowd"]}})),
        ("1 not: a crowd: the format has no regions to ignore",),
        0,
        published,
        "COCO has it as iscrowd 1, Pascal VOC as a difficult object",
    ),
]
