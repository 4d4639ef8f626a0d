"""READERS: the data sets that can be read, and which of them a folder or a file is."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from labelloop.labeling.studio.sniff import HEAD_BYTES, no_labels
from labelloop.service.datasets.coco import read_results
from labelloop.service.datasets.errors import DatasetError, no_data_set
from labelloop.service.datasets.files import Files, Photos, open_files
from labelloop.service.datasets.image_folders import SPLITS, read_classes, read_images
from labelloop.service.datasets.layouts import layouts, only_part, photos_of
from labelloop.service.datasets.model import DataSet, LabelledPhoto, Problem
from labelloop.service.datasets.ndjson import read_ndjson
from labelloop.service.datasets.sheets import json_sheets, read_sheets
from labelloop.service.datasets.voc import read_voc
from labelloop.service.datasets.yolo import ROWS, read_yolo
from labelloop.service.settings import Settings

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold: https://www.w3.org/TR/xml/#charsets. Label Studio's labels are in XML."""
_READ = "Give a folder or zip of COCO, Pascal VOC, YOLO or photos, or a COCO or NDJSON file."
_LOOKED_AT = 50
"""Folders of which one JSON file is looked at, where nothing else tells a layout."""


class Place(msgspec.Struct, frozen=True):
    """Where a data set is.

    Attributes:
        files: The folder or prefix that holds it.
        photos: Its photos.
        file: The name in ``files`` of the one file that the user named; empty where a folder was.
    """

    files: Files
    photos: Photos
    file: str = ""

    def sheet(self, *endings: str) -> str:
        """The file named by the user, else the only one of these endings in the folder (not below it).

        Raises:
            DatasetError: There is none, or several.
        """
        if self.file:
            return self.file
        found = [name for name in self.files.names if name.endswith(endings) and name.count("/") < 2]
        if len(found) != 1:
            told = "no" if not found else f"{len(found)} times a"
            raise DatasetError(self.files.place, f"there is {told} file {' or '.join(endings)}", fix="Name the file.")
        return found[0]


def _from_file(read: Callable[[bytes, str], DataSet], *endings: str) -> Callable[[Place], DataSet]:
    def reader(place: Place) -> DataSet:
        name = place.sheet(*endings)
        return read(place.files.read(name), f"{place.files.place}/{name}")

    return reader


def _yolo(task: str) -> Callable[[Place], DataSet]:
    return lambda place: read_yolo(place.files, place.photos, task, sheet=place.file)


READERS: Mapping[str, Callable[[Place], DataSet]] = {
    "coco": lambda place: read_sheets(
        place.files, place.photos, [place.file] if place.file else json_sheets(place.files)
    ),
    "coco-results": _from_file(read_results, ".json"),
    "voc": lambda place: read_voc(place.files, place.photos),
    "yolo": _yolo(""),
    **{f"yolo-{task}": _yolo(task) for task in ROWS},
    "yolo-classify": lambda place: read_classes(place.photos),
    "ndjson": _from_file(read_ndjson, ".ndjson"),
    "images": lambda place: read_images(place.photos, place.files),
}
"""Format -> its reader; ``yolo`` tells its task by its rows. `DatasetError`: the place holds no such data set."""


def open_place(source: str, settings: Settings, *, images: str = "", alone: bool = True) -> Place:
    """The data set's files, and its photos: below ``images`` where that is given, else below the data set.

    Args:
        source: A folder, a file, ``s3://BUCKET/PREFIX`` or ``s3://BUCKET/KEY.json``.
        settings: Where the S3 server is.
        images: Where the photos are: a folder or ``s3://BUCKET/PREFIX``.
        alone: Whether a folder must hold one data set, which may lie in a folder of its own there.

    Raises:
        DatasetError: There is nothing.
    """
    source = source.removeprefix("file://")
    name = ""
    if source.startswith("s3://") and source.endswith((".json", ".ndjson", ".jsonl")):
        source, _, name = source.rpartition("/")
    elif not source.startswith("s3://") and (path := Path(source).expanduser()).is_file() and not _is_zip(path):
        source, name = str(path.parent), path.name
    files = open_files(source, settings)
    part = only_part(files) if alone and not name else files
    return Place(part, Photos(open_files(images, settings)) if images else photos_of(part, files), name)


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def read_dataset(place: Place, format: str = "auto") -> DataSet:  # noqa: A002 - the user's word for it
    """The data set at a place.

    Args:
        place: Where it is.
        format: One of `READERS`; ``auto``: what it looks like.

    Raises:
        DatasetError: It is no such data set.
    """
    data = READERS[recognise(place) if format == "auto" else format](place)
    for name in (*data.labels, *data.joints, *data.choices):
        if (found := _NO_XML.search(name)) is not None:
            where = f"{place.files.place}/{place.file}".rstrip("/")
            what = f"the class or key point {name!r:.60} has a character that no label can have ({found[0]!r})"
            raise DatasetError(where, what, fix="Rename it.")

    def photos() -> Iterator[LabelledPhoto | Problem]:
        for each in data.photos():
            name = each.name if isinstance(each, LabelledPhoto) else each.item
            plain = name.encode("utf-8", "backslashreplace").decode()
            if plain == name:
                yield each
            elif isinstance(each, Problem):
                yield Problem(plain, each.reason)
            else:
                yield Problem(plain, "its name is no UTF-8; rename the file")

    return msgspec.structs.replace(data, photos=photos)


def recognise(place: Place) -> str:
    """Which of `READERS` a place is for: by the file's name and first sign, or by the files of a folder.

    Raises:
        DatasetError: It is something that other commands, or Label Studio itself, are for.
    """
    if place.file:
        return _recognise_file(place)
    names = place.files.names
    if "HEAD.json" in names and any(name.startswith("versions/") for name in names):
        raise DatasetError(
            place.files.place,
            "it is a data set of `labelloop export`, whose files are packed",
            fix=f"Unpack it: labelloop dataset pull {place.files.place} --format coco --to DIR, and import DIR.",
        )
    if found := layouts(place.files, place.photos):
        return found[0]
    _not_foreign(place.files)
    folders = {name.split("/", 1)[0] for name in place.photos.names if name.count("/") > 1}
    return "yolo-classify" if folders and folders <= SPLITS else "images"


def _not_foreign(files: Files) -> None:
    """Looks at one JSON file of each folder. Raises `DatasetError`: it has labels of a form that is not read."""
    firsts = {name.rpartition("/")[0]: name for name in reversed(files.names) if name.endswith((".json", ".jsonl"))}
    for name in list(firsts.values())[:_LOOKED_AT]:
        if (found := no_labels(files.read(name)[:HEAD_BYTES])) is not None:
            raise DatasetError(f"{files.place}/{name}", f"it is {found.what}", fix=found.fix)


def _recognise_file(place: Place) -> str:
    name = place.file
    if name.endswith((".yaml", ".yml", ".data", ".names")):
        return "yolo"
    data = place.files.read(name)
    if name.endswith((".ndjson", ".jsonl")):
        return "ndjson"
    start = data.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if start not in {b"[", b"{"} or no_labels(data[:HEAD_BYTES]) is not None:
        raise no_data_set(
            data, f"{place.files.place}/{name}", otherwise="it is no JSON, YAML, NDJSON or zip", fix=_READ
        )
    return "coco-results" if start == b"[" else "coco"
