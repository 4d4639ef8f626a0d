"""What lies in a folder: which layouts of labels, and whether folders of it are data sets of their own."""

from collections.abc import Callable, Mapping, Sequence

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import Files, PartFiles, Photos
from labelloop.service.datasets.image_folders import SPLITS
from labelloop.service.datasets.sheets import coco_sheets
from labelloop.service.datasets.yolo import NOTES, SHEETS, has_label_files, is_yolo

_PARTS = SPLITS | {"images", "labels", "labeltxt", "annotations", "jpegimages", "imagesets", "data"}
"""Folders that are parts of a data set, in small letters."""


def layouts(files: Files, photos: Photos) -> list[str]:
    """Which readers of labels find theirs among files; the one that an import takes comes first.

    Args:
        files: Where labels are.
        photos: The photos that label files may be of.
    """
    found = [layout for layout, there in _SIGNS.items() if there(files)]
    if "yolo" not in found and has_label_files(files, photos):  # a README.txt beside photos makes no labels
        found.append("yolo")
    return found


def parts(files: Files) -> Mapping[str, Files]:
    """The data sets of a folder by its folders' names: those that are one of their own, and the rest under ``""``."""
    inside: dict[str, list[str]] = {}
    for name in files.names:
        top, slash, rest_of_it = name.partition("/")
        if slash:
            inside.setdefault(top, []).append(rest_of_it)
    tops = [top for top, names in inside.items() if top.casefold() not in _PARTS and _is_marked(names)]
    own = {top: PartFiles(files, top) for top in tops}
    rest = PartFiles(files, without=own) if own else files
    return ({"": rest} if not own or layouts(rest, Photos(rest)) else {}) | own


def only_part(files: Files) -> Files:
    """The data set of a folder, which may lie in a folder of its own there, as archives have it.

    Raises:
        DatasetError: There are several, of different layouts.
    """
    found = parts(files)
    if len(found) == 1 and "" not in found:
        return only_part(*found.values())
    kinds = {layouts(part, Photos(part))[0] for part in found.values()} if "" not in found else set()
    if len(kinds) > 1:
        raise DatasetError(
            files.place, f"it holds several data sets: {', '.join(sorted(found))}", fix="Give the folder of one."
        )
    return files


def photos_of(part: Files, files: Files) -> Photos:
    """The photos of a data set that is a part of others: its own, else those beside it."""
    own = Photos(part)
    return own if own.names or part is files else Photos(files)


def _is_marked(names: Sequence[str]) -> bool:
    """Whether one of a folder's files, near its top, says that a data set begins here."""
    if NOTES in names and "classes.txt" in names:
        return True
    return any(
        name in SHEETS
        or ("/" not in name and name.endswith((".ndjson", ".names")))
        or (name.startswith("Annotations/") and name.lower().endswith(".xml"))
        or (name.startswith("annotations/") and name.endswith(".json"))
        for name in names
    )


_SIGNS: Mapping[str, Callable[[Files], bool]] = {
    "yolo": is_yolo,
    "voc": lambda files: any(name.lower().endswith(".xml") for name in files.names),
    "coco": lambda files: bool(coco_sheets(files)),
    "ndjson": lambda files: any(name.endswith(".ndjson") and "/" not in name for name in files.names),
}
