"""A plain folder, or one file: which formats it holds, each looked through."""

from pathlib import Path

from exporters.errors import NoDataSet
from exporters.validate.coco import Names, check_coco
from exporters.validate.flaws import Problems
from exporters.validate.ndjson import check_ndjson
from exporters.validate.voc import check_voc
from exporters.validate.yolo import check_yolo, parts_of

_TASKS = ("detect", "segment", "obb", "pose")
CHECKED = ("coco", "voc", "voc-masks", *(f"{kind}-{task}" for kind in ("yolo", "ndjson") for task in _TASKS))
"""The formats of ours that `validate` knows."""


def validate(place: Path, problems: Problems | None = None) -> Problems:
    """Look a data set through: a COCO or NDJSON file, or a folder with COCO, Pascal VOC, YOLO or NDJSON in it or below.

    Args:
        place: the file or folder.
        problems: where faults go, if there were others before.

    Raises:
        NoDataSet: there is nothing there that is a data set of a format we know.
    """
    problems = Problems() if problems is None else problems
    if place.is_file():
        if place.suffix == ".ndjson":
            check_ndjson(place, place.name, problems)
        else:
            check_coco(place, place.name, {}, problems)
        return problems
    inner = sorted(place.iterdir()) if place.is_dir() else []
    parts = parts_of(place) if place.is_dir() else []  # of the data set that is the folder itself
    folders = [(place, "")]
    folders += [(child, f"{child.name}/") for child in inner if child.is_dir() and child not in parts]
    beside: Names = {}
    found = [_one(folder, name, beside, problems) for folder, name in folders]
    if not any(found):
        reason = "none of the files of a data set is in it" if place.is_dir() else "there is no such file or folder"
        raise NoDataSet(str(place), reason)
    return problems


def _one(folder: Path, name: str, beside: Names, problems: Problems) -> bool:
    """Look one folder through; ``beside`` are the images of the COCO files that lie beside the photos of a split."""
    if name in ("annotations/", "labels/", "images/", "Annotations/", "JPEGImages/", "ImageSets/"):
        return False  # a part of the data set that its parent is
    seen: Names = {}
    here = folder.glob("*.json" if not name else "*.coco.json")  # Roboflow has one beside the photos of each split
    sheets = sorted([*(folder / "annotations").glob("*.json"), *here])
    for path in sheets:
        split = path.stem.rpartition("_")[2]
        places = [folder / "images" / split, folder / split, folder / "images"]
        places += [folder] if path.name.endswith(".coco.json") else []
        photos = next((each for each in places if each.is_dir()), None)
        known = beside if path.name.endswith(".coco.json") else seen
        check_coco(path, name + path.relative_to(folder).as_posix(), known, problems, images=photos)
    voc, yolo = (folder / "Annotations").is_dir(), (folder / "labels").is_dir() or (folder / "data.yaml").is_file()
    if voc:
        check_voc(folder, name, problems)
    if yolo:
        check_yolo(folder, name, problems)
    lines = sorted(folder.glob("*.ndjson"))
    for path in lines:
        check_ndjson(path, name + path.name, problems)
    return bool(sheets) or voc or yolo or bool(lines)
