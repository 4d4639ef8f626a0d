"""What can be wrong in an Ultralytics NDJSON file: its head, its rows, and photos that a trainer could not fetch."""

import json
from pathlib import Path
from typing import Any

from exporters.splits import SPLITS
from exporters.validate.flaws import Problems
from exporters.validate.names import check_classes
from exporters.validate.yolo import check_rows

_ROWS = ("boxes", "segments", "obb", "pose")


def check_ndjson(path: Path, name: str, problems: Problems) -> None:
    """Look a file through, each row by the rules of a YOLO label file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = _object(file.readline())
        names = (head or {}).get("class_names")
        if head is None or head.get("type") != "dataset" or not isinstance(names, dict):
            problems.add("yolo-sheet", name, "line 1", 'it is no {"type": "dataset", "class_names": ...}')
            return
        check_classes(map(str, names.values()), name, "class_names", problems)
        shape = head.get("kpt_shape")
        points = (shape[0], shape[1]) if isinstance(shape, list) and len(shape) == 2 else None
        beside = path.parent / str(head["path"]) / "images" if "path" in head else None
        for number, line in enumerate(file, start=2):
            if line.strip():
                _image(_object(line), f"{name}, line {number}", (len(names), points), beside, problems)


def _image(
    told: dict[str, Any] | None,
    file: str,
    asked: tuple[int, tuple[int, int] | None],
    beside: Path | None,
    problems: Problems,
) -> None:
    problems.looked_at["NDJSON images"] += 1
    if told is None or told.get("split") not in SPLITS or not isinstance(told.get("file"), str):
        problems.add("yolo-columns", file, detail="an image has a file, and the split train, val or test")
        return
    given = told.get("annotations") or {}
    rows = next((given[key] for key in _ROWS if key in given), []) if isinstance(given, dict) else given
    classes, points = asked
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        problems.add("yolo-columns", file, detail=f"its annotations are {rows!r:.60}, not rows")
        rows = []
    check_rows([" ".join(map(str, row)) for row in rows], file, classes, points, problems)
    if beside is not None and beside.is_dir():
        if not (beside / told["split"] / told["file"]).is_file():
            problems.add("yolo-label-alone", file, detail=told["file"])
    elif beside is None and not str(told.get("url")).startswith(("http://", "https://")):
        problems.add("yolo-label-alone", file, detail=f"a trainer cannot fetch {str(told.get('url'))[:80]!r}")


def _object(line: str) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
