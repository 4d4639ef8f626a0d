"""What can be wrong in an Ultralytics NDJSON file: its head, its rows, and photos that a trainer could not fetch."""

import posixpath
from typing import Any

from exporters.validate.issues import Problems
from exporters.validate.names import check_classes
from exporters.validate.yolo import check_rows
from labelloop.labeling.splits import SPLITS
from labelloop.service.datasets import Place
from labelloop.service.datasets.errors import Flawed
from labelloop.service.datasets.text import json_of, text_of
from labelloop.service.datasets.yolo import is_joint_shape

_ROWS = ("boxes", "segments", "obb", "pose")


def check_ndjson(place: Place, prefix: str, problems: Problems) -> None:
    """Look the NDJSON files of a place through, each row by the rules of a YOLO label file."""
    for name in [place.file] if place.file else [each for each in place.files.names if each.endswith(".ndjson")]:
        if "/" not in name:
            _check_file(place, name, prefix + name, problems)


def _check_file(place: Place, name: str, file: str, problems: Problems) -> None:
    try:
        lines = text_of(place.files.read(name)).split("\n")
    except Flawed as flaw:
        problems.add("yolo-sheet", file, detail=str(flaw))
        return
    head = _object(lines[0]) or {}
    names = head.get("class_names")
    if head.get("type") != "dataset" or not isinstance(names, dict):
        problems.add("yolo-sheet", file, "line 1", 'it is no {"type": "dataset", "class_names": ...}')
        return
    if not all(isinstance(each, str) and each.strip() for each in names.values()):
        problems.add("yolo-sheet", file, "class_names", "a class without a name, or whose name is no text")
    check_classes(map(str, names.values()), file, "class_names", problems)
    shape = head.get("kpt_shape")
    points = (shape[0], shape[1]) if isinstance(shape, list) and is_joint_shape(shape) else None
    if shape is not None and points is None:
        problems.add("yolo-sheet", file, "kpt_shape", f"{shape!r:.40}: [number of key points, 2 or 3] is wanted")
    beside = _Beside(place, head)
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            _image(_object(line), f"{file}, line {number}", (len(names), points), beside, problems)


class _Beside:
    """The photos below the folder that a head names by ``path``."""

    def __init__(self, place: Place, head: dict[str, Any]) -> None:
        self.named = "path" in head
        self._folder = posixpath.normpath(f"{head.get('path')}/images")
        known = frozenset(place.photos.names)
        self._photos = known if any(name.startswith(f"{self._folder}/") for name in known) else None

    def lacks(self, split: str, file: str) -> bool:
        """Whether the photos are at hand, and this one is not among them."""
        name = posixpath.normpath(f"{self._folder}/{split}/{file}")
        return self._photos is not None and name not in self._photos


def _image(
    told: dict[str, Any] | None,
    file: str,
    asked: tuple[int, tuple[int, int] | None],
    beside: _Beside,
    problems: Problems,
) -> None:
    problems.looked_at["NDJSON images"] += 1
    if told is None or str(told.get("split")) not in SPLITS or not isinstance(told.get("file"), str):
        problems.add("yolo-columns", file, detail="an image has a file, and the split train, val or test")
        return
    given = told.get("annotations")
    rows = next((given[key] for key in _ROWS if key in given), []) if isinstance(given, dict) else given or []
    classes, points = asked
    if not isinstance(rows, list) or not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
        problems.add("yolo-columns", file, detail=f"its annotations are {rows!r:.60}, not rows")
        rows = []
    check_rows([" ".join(map(str, row)) for row in rows], file, classes, points, problems)
    if beside.named:
        if beside.lacks(told["split"], told["file"]):
            problems.add("yolo-label-alone", file, detail=told["file"])
    elif not str(told.get("url")).startswith(("http://", "https://")):
        problems.add("yolo-label-alone", file, detail=f"a trainer cannot fetch {str(told.get('url'))[:80]!r}")


def _is_number(value: object) -> bool:
    return type(value) in {int, float}


def _object(line: str) -> dict[str, Any] | None:
    try:
        told = json_of(line.encode())
    except Flawed:
        return None
    return told if isinstance(told, dict) else None
