"""The COCO files of a folder: one, or one for each split, which are one data set."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath

import msgspec

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.coco import read_coco
from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.files import Files, Photos
from labelloop.service.datasets.model import Category, DataSet, LabelledPhoto, Problem
from labelloop.service.datasets.text import json_of
from labelloop.service.datasets.yolo import NOTES

_KINDS = ("instances", "person_keypoints")
"""How COCO names the files of objects; others beside them (captions, panoptic) say other things of the same photos."""


_LOOKED_AT = 50
"""JSON files of which it is asked whether they are COCO's, where no name says so."""


def coco_sheets(files: Files) -> list[str]:
    """The JSON files of a folder, not far below it, that may be COCO's; none where none of them looks like it."""
    found = json_sheets(files)
    looks = any(may_be_coco(files.read(name)) for name in found[:_LOOKED_AT])
    return found if looks else []


def may_be_coco(data: bytes) -> bool:
    """Whether it is a JSON object with images, or is damaged (cut short, zeros, packed) and may have been one."""
    if data.lstrip().startswith(b"["):
        return False
    try:
        told = json_of(data, dict[str, msgspec.Raw])
    except Flawed:
        return True
    return bytes(told.get("images", b"")).strip() not in {b"", b"[]", b"null"}


def json_sheets(files: Files) -> list[str]:
    """The JSON files of a folder, not far below it: those named as COCO's, where some are."""
    studio = {NOTES} if "classes.txt" in files.names else set()
    found = [name for name in files.names if name.endswith(".json") and name.count("/") < 2 and name not in studio]
    for kind in _KINDS:
        if of_kind := [name for name in found if PurePosixPath(name).name.startswith(kind)]:
            return of_kind
    return found


def read_sheets(files: Files, photos: Photos, names: Sequence[str]) -> DataSet:
    """The data set of several COCO files: classes by their names, in the order of the files.

    Args:
        files: The data set's files.
        photos: Its photos. Where two of one name are in folders named for the splits (``train/1.jpg`` and
            ``val/1.jpg``), the file's own is taken.
        names: The COCO files.

    Raises:
        DatasetError: None of them is one, or one is damaged.
    """
    sheets: dict[str, DataSet] = {}
    others: dict[str, DatasetError] = {}
    for name in names:
        data = files.read(name)
        try:
            sheets[name] = read_coco(data, f"{files.place}/{name}")
        except DatasetError as error:
            if may_be_coco(data):
                raise
            others[name] = error
    if not sheets:
        raise next(iter(others.values()), DatasetError(files.place, "there is no COCO file in it"))

    def read() -> Iterator[LabelledPhoto | Problem]:
        for name, sheet in sheets.items():
            path = PurePosixPath(name)
            split = path.stem.rpartition("_")[2]
            split = split if split_of(split) else path.parent.name  # Roboflow: train/_annotations.coco.json
            for each in sheet.photos():
                if isinstance(each, Problem):
                    yield Problem(f"{name}: {each.item}" if len(sheets) > 1 else each.item, each.reason)
                else:
                    name_ = _in_split(each.name, split, photos)
                    yield msgspec.structs.replace(each, name=name_, split=split_of(split))

    def union(*lists: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain(*lists)))

    categories: dict[str, Category] = {}
    moved = 0
    for sheet in sheets.values():
        moved += sum(categories.get(name, each).id != each.id for name, each in sheet.categories.items())
        categories = {**sheet.categories, **categories}
    return DataSet(
        "coco",
        read,
        union(*(sheet.labels for sheet in sheets.values())),
        union(*(sheet.joints for sheet in sheets.values())),
        notes=(
            *(note for sheet in sheets.values() for note in sheet.notes),
            *([f"{' and '.join(sheets)}: taken as one data set"] if len(sheets) > 1 else []),
            *(f"{name}: {error.reason}; left out" for name, error in others.items()),
            *([f"categories with another id in a second file, the first counts: {moved}"] if moved else []),
        ),
        counts=sum((Counter(sheet.counts) for sheet in sheets.values()), Counter()),
        categories=categories,
        skeleton=tuple(dict.fromkeys(pair for sheet in sheets.values() for pair in sheet.skeleton)),
    )


def _in_split(name: str, split: str, photos: Photos) -> str:
    own = f"{split}/{name}" if split else name
    return own if photos.find(name) is None and photos.find(own) is not None else name
