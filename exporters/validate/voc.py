"""What can be wrong in a Pascal VOC folder.

Format: the VOC2012 development kit: whole pixels from 1, the maximum included.
"""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from exporters.validate.issues import Problems
from exporters.validate.names import check_classes, check_shared
from exporters.validate.photos import check_photo
from labelloop.service.datasets import Photos, Place
from labelloop.service.datasets.errors import Flawed
from labelloop.service.datasets.text import lines_of
from labelloop.service.datasets.voc import parse_voc

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")


def check_voc(place: Place, prefix: str, problems: Problems) -> None:
    """Look the XML files of a place through, and the photos where there are some."""
    photos = _Shown(place.photos)
    stems: set[str] = set()
    classes: set[str] = set()
    names = [name for name in place.files.names if name.lower().endswith(".xml")]
    masked = {PurePosixPath(name).stem for name in place.files.names if "SegmentationObject/" in name}
    for name in names:
        problems.looked_at["VOC files"] += 1
        stem, file = PurePosixPath(name).stem, prefix + name
        stems.add(stem)
        try:
            root = parse_voc(place.files, name)
        except Flawed as flaw:
            problems.add("voc-unreadable", file, detail=str(flaw))
            continue
        size = _page(root, file, problems, masked=stem in masked)
        classes |= {label for each in root.iter("object") if (label := each.findtext("name") or "").strip()}
        told = (root.findtext("filename") or "").strip()
        photo = photos.of_stem.get(stem, [""])[0] or (place.photos.find(told) if told else None)
        if photo:
            check_photo(place.photos, photo, file, "", size=size, problems=problems)
        elif photos.of_stem:
            problems.add("voc-image-missing", file, detail=told or stem)
    folder = f"{prefix}Annotations" if any(name.startswith("Annotations/") for name in names) else prefix.rstrip("/")
    check_classes(sorted(classes), folder, "name", problems)
    check_shared({prefix + name: photos.of_stem.get(PurePosixPath(name).stem, []) for name in names}, problems)
    _lists(place, prefix, {PurePosixPath(name).stem: name for name in names}, problems)


class _Shown:
    """The photos by their names without extension; masks are none."""

    def __init__(self, photos: Photos) -> None:
        self.of_stem: dict[str, list[str]] = defaultdict(list)
        for name in photos.names:
            path = PurePosixPath(name)
            if not any(part.startswith("Segmentation") for part in path.parts):
                self.of_stem[path.stem].append(name)


def _page(root: Any, file: str, problems: Problems, *, masked: bool) -> tuple[float, float] | None:
    """Look a file's text through; gives the size that it states. ``masked``: pixels tell its objects apart."""
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not width or not height or width <= 0 or height <= 0:
        problems.add("voc-size", file, detail=f"width {width}, height {height}")
        width = height = None
    for place, each in enumerate(root.iter("object"), start=1):
        problems.looked_at["objects"] += 1
        where = f"object {place}"
        said = tuple((str(one.tag), (one.text or "").strip()) for one in each.iter())
        first = where if masked else seen.setdefault(said, where)
        if first != where:
            problems.add("voc-twice", file, where, f"it says the same as {first}")
        if not (each.findtext("name") or "").strip():
            problems.add("voc-box", file, where, "it has no name")
        box = [_number(each.findtext(f"bndbox/{edge}")) for edge in _EDGES]
        x_min, y_min, x_max, y_max = box
        if x_min is None or y_min is None or x_max is None or y_max is None or x_max < x_min or y_max < y_min:
            problems.add("voc-box", file, where, f"xmin, ymin, xmax, ymax are {box}")
        elif x_min < 1 or y_min < 1 or (width and x_max > width) or (height and y_max > height):
            on = f" on {width:g} x {height:g}" if width and height else ""
            problems.add(
                "voc-box-outside", file, where, f"{[f'{edge:g}' for edge in (x_min, y_min, x_max, y_max)]}{on}"
            )
    return (width, height) if width and height else None


def _lists(place: Place, prefix: str, files: dict[str, str], problems: Problems) -> None:
    listed: dict[str, set[str]] = {}
    where: dict[str, str] = {}
    for name in place.files.names:
        path = PurePosixPath(name)
        if path.parts[-3:-1] == ("ImageSets", "Main") and path.name in _LISTS:
            try:
                lines = lines_of(place.files.read(name))
            except Flawed as flaw:
                problems.add("voc-imagesets", prefix + name, detail=str(flaw))
                lines = []
            where[path.stem] = prefix + name
            listed.setdefault(path.stem, set()).update(line.split()[0] for line in lines)  # a class's have two columns
    if not listed:
        main, names = f"{prefix}ImageSets/Main", ", ".join(_LISTS)
        problems.add("voc-imagesets", main, detail=f"there is none of the lists {names}")
        return
    stems = files.keys()
    for split, names_ in listed.items():
        for stem in sorted(names_ - stems):
            problems.add("voc-imagesets", where[split], stem, "it has no file in Annotations")
    for stem in sorted(stems - set().union(*listed.values())):
        problems.add("voc-imagesets", prefix + files[stem], detail="no list has it")
    for stem in sorted(listed.get("train", set()) & (listed.get("val", set()) | listed.get("test", set()))):
        problems.add("voc-imagesets", where["train"], stem, "it is in val.txt or test.txt too")


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None
