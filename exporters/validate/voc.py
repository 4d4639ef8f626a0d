"""Check Pascal VOC folders.

Format: the VOC2012 development kit; coordinates are integers from 1, the maximum is inclusive.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from exporters.validate.file_checks import check_class_names, check_image_file, check_shared_label_files
from exporters.validate.issues import IssueReport
from labelloop.service.datasets import DatasetSource, ImageFiles
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.text import decode_lines
from labelloop.service.datasets.voc import parse_annotation

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")


def check_voc(source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check the XML files of a data set, and its image files if it has any."""
    images_by_stem = _images_by_stem(source.images)
    stems: set[str] = set()
    classes: set[str] = set()
    names = [name for name in source.files.names if name.lower().endswith(".xml")]
    masked = {PurePosixPath(name).stem for name in source.files.names if "SegmentationObject/" in name}
    for name in names:
        report.checked["VOC files"] += 1
        stem, file = PurePosixPath(name).stem, prefix + name
        stems.add(stem)
        try:
            root = parse_annotation(source.files, name)
        except MalformedData as error:
            report.add("voc-unreadable", file, detail=str(error))
            continue
        size = _check_annotation(root, file, report, masked=stem in masked)
        classes |= {label for item in root.iter("object") if (label := item.findtext("name") or "").strip()}
        filename = (root.findtext("filename") or "").strip()
        image = images_by_stem.get(stem, [""])[0] or (source.images.find(filename) if filename else None)
        if image:
            check_image_file(source.images, image, file, "", size=size, report=report)
        elif images_by_stem:
            report.add("voc-image-missing", file, detail=filename or stem)
    folder = f"{prefix}Annotations" if any(name.startswith("Annotations/") for name in names) else prefix.rstrip("/")
    check_class_names(sorted(classes), folder, "name", report)
    check_shared_label_files(
        {prefix + name: images_by_stem.get(PurePosixPath(name).stem, []) for name in names}, report
    )
    _check_lists(source, prefix, {PurePosixPath(name).stem: name for name in names}, report)


def _images_by_stem(images: ImageFiles) -> Mapping[str, list[str]]:
    """The image files by name without extension, excluding masks."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in images.names:
        path = PurePosixPath(name)
        if not any(part.startswith("Segmentation") for part in path.parts):
            names[path.stem].append(name)
    return names


def _check_annotation(root: Any, file: str, report: IssueReport, *, masked: bool) -> tuple[float, float] | None:
    """Check one XML file; returns its (width, height), None if invalid. ``masked``: a mask separates the objects."""
    first_objects: dict[tuple[tuple[str, str], ...], str] = {}
    width, height = (_parse_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not width or not height or width <= 0 or height <= 0:
        report.add("voc-size", file, detail=f"width {width}, height {height}")
        width = height = None
    for number, item in enumerate(root.iter("object"), start=1):
        report.checked["objects"] += 1
        where = f"object {number}"
        content = tuple((str(node.tag), (node.text or "").strip()) for node in item.iter())
        first = where if masked else first_objects.setdefault(content, where)
        if first != where:
            report.add("voc-twice", file, where, f"it duplicates {first}")
        if not (item.findtext("name") or "").strip():
            report.add("voc-box", file, where, "it has no name")
        box = [_parse_number(item.findtext(f"bndbox/{edge}")) for edge in _EDGES]
        x_min, y_min, x_max, y_max = box
        if x_min is None or y_min is None or x_max is None or y_max is None or x_max < x_min or y_max < y_min:
            report.add("voc-box", file, where, f"xmin, ymin, xmax, ymax are {box}")
        elif x_min < 1 or y_min < 1 or (width and x_max > width) or (height and y_max > height):
            on = f" on {width:g} x {height:g}" if width and height else ""
            report.add("voc-box-outside", file, where, f"{[f'{edge:g}' for edge in (x_min, y_min, x_max, y_max)]}{on}")
    return (width, height) if width and height else None


def _check_lists(source: DatasetSource, prefix: str, files: dict[str, str], report: IssueReport) -> None:
    listed: dict[str, set[str]] = {}
    where: dict[str, str] = {}
    for name in source.files.names:
        path = PurePosixPath(name)
        if path.parts[-3:-1] == ("ImageSets", "Main") and path.name in _LISTS:
            try:
                lines = decode_lines(source.files.read(name))
            except MalformedData as error:
                report.add("voc-imagesets", prefix + name, detail=str(error))
                lines = []
            where[path.stem] = prefix + name
            # The lists of a class have two columns.
            listed.setdefault(path.stem, set()).update(line.split()[0] for line in lines)
    if not listed:
        main, names = f"{prefix}ImageSets/Main", ", ".join(_LISTS)
        report.add("voc-imagesets", main, detail=f"none of the lists {names} exists")
        return
    stems = files.keys()
    for split, listed_stems in listed.items():
        for stem in sorted(listed_stems - stems):
            report.add("voc-imagesets", where[split], stem, "no such file in Annotations")
    for stem in sorted(stems - set().union(*listed.values())):
        report.add("voc-imagesets", prefix + files[stem], detail="not in any list")
    for stem in sorted(listed.get("train", set()) & (listed.get("val", set()) | listed.get("test", set()))):
        report.add("voc-imagesets", where["train"], stem, "also in val.txt or test.txt")


def _parse_number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None
