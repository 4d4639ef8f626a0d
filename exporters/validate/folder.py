"""A place with data sets, as `labelloop import` takes it: which layouts it holds, each looked through."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from exporters.errors import NoDataSet
from exporters.validate.coco import check_sheets
from exporters.validate.issues import Problems
from exporters.validate.ndjson import check_ndjson
from exporters.validate.voc import check_voc
from exporters.validate.yolo import check_yolo
from labelloop.service.datasets import (
    READERS,
    DatasetError,
    Place,
    Problem,
    layouts,
    open_place,
    parts,
    photos_of,
    recognise,
)
from labelloop.service.settings import Settings

_TASKS = ("detect", "segment", "obb", "pose")
CHECKED = ("coco", "voc", "voc-masks", *(f"{kind}-{task}" for kind in ("yolo", "ndjson") for task in _TASKS))
"""The formats of ours that `validate` knows."""


def validate(source: Path | str, problems: Problems | None = None, settings: Settings | None = None) -> Problems:
    """Look through whatever `labelloop import` takes, by the same recognition: a folder, a zip, a file, a bucket.

    Args:
        source: The place. A folder may hold several data sets, each in a folder of its own.
        problems: Where faults go, if there were others before.
        settings: Where the S3 server is; None: of the environment.

    Raises:
        NoDataSet: There is nothing there that is a data set of a format we know.
        DatasetError: It is a file that other commands are for.
    """
    problems = Problems() if problems is None else problems
    text = str(source)
    if not text.startswith("s3://") and not Path(text).expanduser().exists():
        raise NoDataSet(text, "there is no such file or folder")
    place = open_place(text, settings or Settings(), alone=False)
    if place.file:
        _check(recognise(place), place, "", problems)
        return problems
    found = False
    within = parts(place.files)
    for name, files in within.items():
        part = Place(files, photos_of(files, place.files if len(within) == 1 else files))
        for layout in layouts(files, part.photos) or _unlike(part, alone=not name):
            _check(layout, part, f"{name}/" if name else "", problems)
            found = True
    if not found:
        raise NoDataSet(text, "none of the files of a data set is in it")
    return problems


def _unlike(part: Place, *, alone: bool) -> list[str]:
    """The layout of a folder whose labels are no files: classes of photos. Raises `DatasetError` as an import does."""
    layout = recognise(part) if alone and part.files.names else "images"
    return [] if layout == "images" else [layout]


def _check(layout: str, place: Place, name: str, problems: Problems) -> None:
    """Look a layout through by its rules; where they find nothing, by whether an import could read all of it."""
    before = problems.counts.total()
    check = _CHECKS.get(layout)
    if check is not None:
        check(place, name, problems)
    if problems.counts.total() > before or layout == "ndjson":  # a trainer needs no sizes there, an import does
        return
    ambiguous = (DatasetError,) if check else ()  # rows of four corners are two things
    with suppress(*ambiguous):
        for each in READERS[layout](place).photos():
            if isinstance(each, Problem):
                problems.add("label-unread", name + (place.file or each.item), place.file and each.item, each.reason)
            elif check is None:
                problems.looked_at["images"] += 1


_CHECKS: Mapping[str, Callable[[Place, str, Problems], None]] = {
    "coco": check_sheets,
    "voc": check_voc,
    "yolo": check_yolo,
    "ndjson": check_ndjson,
}
