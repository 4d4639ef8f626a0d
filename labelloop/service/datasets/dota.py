"""Read DOTA's ``labelTxt`` (also of Roboflow): a text file for each image, each row four corners, a class and a flag.

Format: https://captain-whu.github.io/DOTA/dataset.html: ``x1 y1 x2 y2 x3 y3 x4 y4 category difficult`` in pixels, after
optional lines ``imagesource:`` and ``gsd:``. Roboflow adds a ``data.yaml``.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec

from labelloop.labeling.geometry.shapes import Polygon
from labelloop.labeling.studio.region_attributes import NO_OBJECT_ATTRIBUTES, ObjectAttributes
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import rectangle_or_polygon
from labelloop.service.datasets.text import decode_text, parse_floats
from labelloop.service.datasets.yolo import label_files, may_be_label_file
from labelloop.service.datasets.yolo_config import CONFIG_FILES, read_config
from labelloop.service.datasets.yolo_rows import is_numeric

_HEADERS = ("imagesource:", "gsd:", "acquisition dates:")
_CORNERS = 8
_MAX_COORDINATE = 1e7
# Label files read to recognise the format.
_MAX_SNIFFED_FILES = 20
_DIFFICULT = "difficult"
_POLYGONS = "quadrilaterals that are not rectangles: read as polygons"


class _Row(NamedTuple):
    line: int
    text: str


def is_dota(files: DatasetFiles) -> bool:
    """Whether a label file among the first ones has a row of eight numbers and a class name."""
    names = [name for name in files.names if may_be_label_file(name)]
    names.sort(key=lambda name: "labelTxt" not in PurePosixPath(name).parts)
    for name in names[:_MAX_SNIFFED_FILES]:
        try:
            rows = _rows(files, name)
        except (DatasetError, MalformedData):
            continue
        if rows:
            return _is_row(rows[0].text.replace(",", " ").split())
    return False


def read_dota(files: DatasetFiles, images: ImageFiles) -> DataSet:
    """Read the label files of a folder.

    Args:
        files: The files of the data set.
        images: Its image files, matched by name as those of YOLO; an image without label file is not labelled.

    Raises:
        DatasetError: No label file has rows of DOTA.
    """
    labels = label_files(files, images)
    used = set(labels.values())
    alone = [name for name in files.names if may_be_label_file(name) and name not in used and _has_rows(files, name)]
    classes = _classes(files)
    found: dict[str, None] = {}
    quadrilaterals = 0
    for name in (*dict.fromkeys(labels.values()), *alone):
        for item in _read_file(files, name):
            if isinstance(item, LabelledObject):
                found[item.label] = None
                quadrilaterals += isinstance(item.geometry, Polygon)
    if not found and not any("labelTxt" in PurePosixPath(name).parts for name in (*used, *alone)):
        raise DatasetError(
            files.location,
            "none of its text files has rows of DOTA",
            fix="A row is x1 y1 x2 y2 x3 y3 x4 y4 category difficult, in pixels.",
        )

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name in images.names:
            size = images.size(name)
            if name not in labels:
                yield DatasetImage(name, labelled=False)
            elif isinstance(size, str):
                yield DatasetProblem(name, size)
            else:
                yield from _read_image(DatasetImage(name, *size), files, labels[name])
        for name in alone:
            folder, stem = posixpath.split(posixpath.splitext(name)[0])
            yield from _read_image(
                DatasetImage(posixpath.join(folder.replace("labelTxt", "images"), stem)), files, name
            )

    names = (*(name for name in classes if name), *(name for name in sorted(found) if name not in classes))
    return DataSet("dota", read, names, counts={_POLYGONS: quadrilaterals} if quadrilaterals else {})


def _read_image(image: DatasetImage, files: DatasetFiles, file: str) -> Iterator[DatasetImage | DatasetProblem]:
    items = list(_read_file(files, file))
    problems = [item for item in items if isinstance(item, DatasetProblem)]
    yield from problems
    objects = tuple(item for item in items if isinstance(item, LabelledObject))
    yield msgspec.structs.replace(image, objects=objects, unread=len(problems))


def _read_file(files: DatasetFiles, name: str) -> Iterator[LabelledObject | DatasetProblem]:
    try:
        rows = _rows(files, name)
    except (DatasetError, MalformedData) as error:
        yield DatasetProblem(name, error.reason if isinstance(error, DatasetError) else str(error))
        return
    for row in rows:
        try:
            yield parse_row(row.text)
        except MalformedData as error:
            yield DatasetProblem(f"{name}, line {row.line}", str(error))


def parse_row(text: str) -> LabelledObject:
    """Parse a row. Raises `MalformedData`."""
    cells = text.replace(",", " ").split()
    if len(cells) <= _CORNERS or not all(map(is_numeric, cells[:_CORNERS])):
        raise MalformedData(f"{text[:60]!r} is not four corners, a category and a flag")
    values = parse_floats(cells[:_CORNERS], _MAX_COORDINATE)
    name, flag = cells[_CORNERS:], ""
    if len(name) > 1 and name[-1] in {"0", "1", "2"}:
        *name, flag = name
    corners = list(zip(values[::2], values[1::2], strict=True))
    remarks = ObjectAttributes(flags=frozenset({_DIFFICULT})) if flag in {"1", "2"} else NO_OBJECT_ATTRIBUTES
    return LabelledObject(rectangle_or_polygon(corners, upright=False), " ".join(name), remarks=remarks)


def _rows(files: DatasetFiles, name: str) -> list[_Row]:
    lines = enumerate(decode_text(files.read(name)).splitlines(), start=1)
    stripped = (_Row(number, line.strip()) for number, line in lines)
    return [row for row in stripped if row.text and not row.text.lower().startswith(_HEADERS)]


def _has_rows(files: DatasetFiles, name: str) -> bool:
    try:
        rows = _rows(files, name)
    except (DatasetError, MalformedData):
        return "labelTxt" in PurePosixPath(name).parts
    return any(_is_row(row.text.replace(",", " ").split()) for row in rows[:1])


def _is_row(cells: Sequence[str]) -> bool:
    """Whether cells are eight numbers and a class; a class that is a number is followed by the flag."""
    if len(cells) <= _CORNERS or not all(map(is_numeric, cells[:_CORNERS])):
        return False
    return not is_numeric(cells[_CORNERS]) or (len(cells) == _CORNERS + 2 and max(map(float, cells[:_CORNERS])) > 2)


def _classes(files: DatasetFiles) -> tuple[str, ...]:
    """The classes of ``data.yaml`` in their order; empty without one."""
    name = next((name for name in CONFIG_FILES if name in files.names), "")
    try:
        counted = Counter(read_config(files, name).class_names) if name else Counter()
    except DatasetError:
        return ()
    return tuple(counted)
