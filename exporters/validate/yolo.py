"""What can be wrong in a YOLO folder, by the rules of Ultralytics' own check (``verify_image_label``), and more.

Format: https://docs.ultralytics.com/datasets/.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from exporters.names import EXTENSIONS
from exporters.validate.flaws import Problems
from exporters.validate.names import check_classes, check_shared
from exporters.validate.photos import check_photo

TOLERANCE = 1e-4
"""Shares over the edge that are rounding: a tenth of a pixel in a thousand."""


def check_yolo(folder: Path, name: str, problems: Problems) -> None:
    """Look a folder with ``data.yaml`` and ``labels/`` through; images are compared where ``images/`` is there.

    ``labels/`` and ``images/`` may be in a folder for each split instead (``train/labels/``), as Roboflow lays them.
    """
    sheet = _sheet(folder, name, problems)
    classes = _classes(sheet.get("names"), sheet.get("nc"), f"{name}data.yaml", problems) if sheet else None
    points = _key_points(sheet, f"{name}data.yaml", problems) if sheet else None
    kinds: dict[str, str] = {}
    parts = parts_of(folder)
    for path in (path for part in parts for path in sorted((part / "labels").rglob("*.txt"))):
        problems.looked_at["label files"] += 1
        file = name + path.relative_to(folder).as_posix()
        kind = _labels(path, file, classes, points, problems)
        if kind:
            kinds[file] = kind
    usual = Counter(kinds.values()).most_common(1)
    for file, kind in kinds.items():
        if usual and kind != usual[0][0] and kind != "mixed":
            problems.add("yolo-mixed", file, detail=f"rows of {kind}, the other files have rows of {usual[0][0]}")
    for part in parts:
        if (part / "images").is_dir():
            _pairs(part, name if part == folder else f"{name}{part.name}/", problems)


def parts_of(folder: Path) -> list[Path]:
    """The folders with a ``labels/`` that the ``data.yaml`` of a folder is about: itself, or those of its splits."""
    splits = sorted(folder.iterdir()) if (folder / "data.yaml").is_file() else []
    return [
        each
        for each in (folder, *splits)
        if (each / "labels").is_dir() and (each == folder or not (each / "data.yaml").is_file())
    ]


def _sheet(folder: Path, name: str, problems: Problems) -> dict[str, Any]:
    try:
        sheet = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.add("yolo-sheet", f"{name}data.yaml", detail=str(error).replace("\n", " ")[:200])
        return {}
    if not isinstance(sheet, dict):
        problems.add("yolo-sheet", f"{name}data.yaml", detail="it holds no names")
        return {}
    return sheet


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


def _key_points(sheet: Mapping[str, Any], file: str, problems: Problems) -> tuple[int, int] | None:
    shape = sheet.get("kpt_shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)):
        problems.add("yolo-sheet", file, "kpt_shape", f"{shape!r}: [number of key points, 2 or 3] is wanted")
        return None
    flip = sheet.get("flip_idx")
    if flip is not None and sorted(flip if isinstance(flip, list) else [], key=str) != sorted(range(shape[0]), key=str):
        problems.add("yolo-sheet", file, "flip_idx", f"{flip!r} is no order of {shape[0]} key points")
    return shape[0], shape[1]


def _labels(path: Path, file: str, classes: int | None, points: tuple[int, int] | None, problems: Problems) -> str:
    """Look a label file through; gives the kind of its rows: boxes, points, mixed, or nothing."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add("yolo-columns", file, detail=str(error))
        return ""
    return check_rows(lines, file, classes, points, problems)


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


def _pairs(folder: Path, name: str, problems: Problems) -> None:
    """Images and label files that go together: the last images/ of a path becomes labels/, as Ultralytics has it."""
    beside: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((folder / "images").rglob("*")):
        if path.suffix.lower() in EXTENSIONS:
            beside[path.relative_to(folder / "images").with_suffix("").as_posix()].append(path)
    images = {Path(stem): paths[0] for stem, paths in beside.items()}
    labels = {path.relative_to(folder / "labels").with_suffix("") for path in (folder / "labels").rglob("*.txt")}
    files = {path.as_posix(): f"{name}labels/{path.as_posix()}.txt" for path in sorted(labels)}
    check_shared(beside, files, problems)
    for path in sorted(images.keys() - labels):
        problems.add("yolo-image-unlabelled", f"{name}images/{path.as_posix()}")
    for path in sorted(images.keys() & labels):
        check_photo(images[path], f"{name}labels/{path.as_posix()}.txt", "", None, problems)
    for path in sorted(labels - images.keys()):
        problems.add("yolo-label-alone", f"{name}labels/{path.as_posix()}.txt")


def _within(low: float, high: float) -> bool:
    return low >= -TOLERANCE and high <= 1 + TOLERANCE


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        row = [float(cell) for cell in cells]
    except ValueError:
        return None
    return row if all(abs(number) < 1e9 for number in row) else None  # also false for NaN
