"""What can be wrong in a YOLO folder, by the rules of Ultralytics' own check (``verify_image_label``), and more.

Format: https://docs.ultralytics.com/datasets/.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from exporters.validate.issues import Problems
from exporters.validate.names import check_classes, check_shared
from exporters.validate.photos import check_photo
from labelloop.service.datasets import DatasetError, Photos, Place
from labelloop.service.datasets.errors import Flawed
from labelloop.service.datasets.text import text_of
from labelloop.service.datasets.yolo import class_list_of, label_files, label_files_alone, named_joints, read_sheet

TOLERANCE = 1e-4
"""Shares over the edge that are rounding: a tenth of a pixel in a thousand."""


def check_yolo(place: Place, prefix: str, problems: Problems) -> None:
    """Look a YOLO folder through, and the photos where there are some; labels are found as an import finds them."""
    files, photos = place.files, place.photos
    classes, points = _sheet(place, prefix, problems)
    of_photo = label_files(files, photos)
    alone = dict(label_files_alone(files, photos, set(of_photo.values())))
    kinds: dict[str, str] = {}
    for name in sorted({*of_photo.values(), *alone}):
        problems.looked_at["label files"] += 1
        try:
            lines = text_of(files.read(name)).splitlines()
        except (DatasetError, Flawed) as error:
            problems.add("yolo-columns", prefix + name, detail=str(error))
            continue
        if kind := check_rows(lines, prefix + name, classes, points, problems):
            kinds[prefix + name] = kind
    usual = Counter(kinds.values()).most_common(1)
    for file, kind in kinds.items():
        if usual and kind != usual[0][0] and kind != "mixed":
            problems.add("yolo-mixed", file, detail=f"rows of {kind}, the other files have rows of {usual[0][0]}")
    if photos.names:
        _pairs(photos, of_photo, alone, prefix, problems)


def _sheet(place: Place, prefix: str, problems: Problems) -> tuple[int | None, tuple[int, int] | None]:
    """Look at what names the classes; gives their number and the ``kpt_shape``, where they are known."""
    files = place.files
    name = place.file if place.file.endswith((".yaml", ".yml")) else class_list_of(files)
    if not name:
        problems.add("yolo-sheet", f"{prefix}data.yaml", detail="no data.yaml, and no list of classes")
        return None, None
    file = prefix + name
    try:
        told = read_sheet(files, name)
    except DatasetError as error:
        problems.add("yolo-sheet", file, detail=error.reason[:200])
        return None, None
    if told.studio and told.joints:
        told = named_joints(told, files, label_files(files, place.photos))
    points = (len(told.joints), told.dimensions) if told.joints else None
    if not name.endswith((".yaml", ".yml")):
        return _classes(list(told.names), None, file, problems), points
    sheet = yaml.safe_load(files.read(name))
    flip = sheet.get("flip_idx")
    if (
        points
        and flip is not None
        and sorted(flip if isinstance(flip, list) else [], key=str) != sorted(range(points[0]), key=str)
    ):
        problems.add("yolo-sheet", file, "flip_idx", f"{flip!r:.80} is no order of {points[0]} key points")
    return _classes(sheet.get("names"), sheet.get("nc"), file, problems), points


def _classes(names: Any, nc: object, file: str, problems: Problems) -> int | None:
    dense = isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str)
    if not (dense or isinstance(names, list)):
        problems.add("yolo-sheet", file, "names", "a list of names, or 0: name, 1: name, ... without gaps, is wanted")
        return nc if isinstance(nc, int) else None
    count = len(names)
    values = list(names.values()) if isinstance(names, dict) else names
    twice = [label for label, number in Counter(map(str, values)).items() if number > 1]
    if twice:
        problems.add("yolo-sheet", file, "names", f"{twice[0]!r} is there twice")
    check_classes(map(str, values), file, "names", problems)
    if nc is not None and nc != count:
        problems.add("yolo-sheet", file, "nc", f"nc is {nc!r}, there are {count} names")
    return count


def check_rows(
    lines: Sequence[str], file: str, classes: int | None, points: tuple[int, int] | None, problems: Problems
) -> str:
    """Look the rows of an image through; gives their kind: boxes, points, mixed, or nothing.

    Args:
        lines: the rows, as text.
        file: where they are, for a person.
        classes: how many classes there are, where it is known.
        points: ``kpt_shape`` of a pose.
        problems: where faults go.
    """
    kinds: set[str] = set()
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines, start=1):
        cells = tuple(line.split())
        if not cells:
            continue
        problems.looked_at["rows"] += 1
        where = f"line {number}"
        kind = _kind(len(cells), points)
        row = _numbers(cells)
        if row is None or not kind:
            detail = "not all numbers" if row is None else f"{len(cells)} columns"
            problems.add("yolo-columns", file, where, detail)
            continue
        kinds.add(kind)
        if cells in seen:
            problems.add("yolo-twice", file, where, line[:60])
        seen.add(cells)
        if row[0] != int(row[0]) or row[0] < 0 or (classes is not None and row[0] >= classes):
            problems.add("yolo-class", file, where, f"class {cells[0]} of {classes if classes is not None else '?'}")
        for flaw, detail in _place(kind, row[1:], points):
            problems.add(flaw, file, where, detail)
    if len(kinds) > 1:
        problems.add("yolo-mixed", file, detail=f"rows of {' and of '.join(sorted(kinds))}")
        return "mixed"
    return next(iter(kinds), "")


def _kind(columns: int, points: tuple[int, int] | None) -> str:
    if points is not None:
        return "boxes with key points" if columns == 5 + points[0] * points[1] else ""
    if columns == 5:
        return "boxes"
    return "points" if columns >= 7 and columns % 2 else ""


def _place(kind: str, row: Sequence[float], points: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """The faults of a row's numbers after its class: (flaw, what is there)."""
    if kind == "points":
        xs, ys = row[::2], row[1::2]
        # Four points may be a turned box, whose corners may lie outside as long as the box around it fits the image.
        turned = len(xs) == 4
        for edges in (xs, ys):
            low, high = min(edges), max(edges)
            if high - low <= 0:
                yield "yolo-size", "its points are on one line"
            elif (not 0 <= (low + high) / 2 <= 1 or high - low > 1 + TOLERANCE) if turned else not _within(low, high):
                yield "yolo-outside", f"from {low} to {high}"
        return
    for centre, size in ((row[0], row[2]), (row[1], row[3])):
        if size <= 0:
            yield "yolo-size", f"size {size}"
        elif not _within(centre - size / 2, centre + size / 2):
            yield "yolo-outside", f"from {centre - size / 2:.6g} to {centre + size / 2:.6g}"
    if points is not None:
        step = points[1]
        places = [number for start in range(4, len(row), step) for number in row[start : start + 2]]
        if places and not _within(min(places), max(places)):
            yield "yolo-outside", "a key point"
        if step == 3 and not set(row[6::3]) <= {0.0, 1.0, 2.0}:
            yield "yolo-columns", "visibility of a key point is 0, 1 or 2"


def _pairs(
    photos: Photos, of_photo: Mapping[str, str], alone: Mapping[str, str], prefix: str, problems: Problems
) -> None:
    """Images and label files that go together, and those that do not."""
    shared: dict[str, list[str]] = defaultdict(list)
    for photo, file in of_photo.items():
        shared[file].append(photo)
    check_shared({prefix + file: names for file, names in shared.items()}, problems)
    for photo in sorted(photos.names):
        if photo not in of_photo:
            problems.add("yolo-image-unlabelled", prefix + str(PurePosixPath(photo).with_suffix("")))
    for file, names in sorted(shared.items()):
        check_photo(photos, names[0], prefix + file, "", size=None, problems=problems)
    for file in sorted(alone):
        problems.add("yolo-label-alone", prefix + file, detail=alone[file])


def _within(low: float, high: float) -> bool:
    return low >= -TOLERANCE and high <= 1 + TOLERANCE


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        row = [float(cell) for cell in cells]
    except ValueError:
        return None
    return row if all(abs(number) < 1e9 for number in row) else None  # also false for NaN
