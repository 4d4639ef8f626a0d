"""Check Pascal VOC folders.

Format: the VOC2012 development kit; coordinates are integers from 1, the maximum is inclusive.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from exporters.validate.file_checks import MAX_NUMBER, check_class_names, check_image_file, check_shared_label_files
from exporters.validate.issues import IssueReport
from labelloop.service.datasets import DatasetSource, ImageFiles
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.text import parse_float
from labelloop.service.datasets.voc_xml import (
    VocAnnotation,
    annotation_files,
    image_set_files,
    read_annotation,
    read_image_set,
)

_LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")


def check_voc(source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check the XML files of a data set, and its image files if it has any."""
    images_by_stem = _images_by_stem(source.images)
    classes: set[str] = set()
    names = annotation_files(source.files)
    masked = {PurePosixPath(name).stem for name in source.files.names if "SegmentationObject/" in name}
    for name in names:
        report.checked["VOC files"] += 1
        stem, file = PurePosixPath(name).stem, prefix + name
        try:
            annotation = read_annotation(source.files, name)
        except MalformedData as error:
            report.add("voc-unreadable", file, detail=str(error))
            continue
        size = _check_annotation(annotation, file, report, masked=stem in masked)
        classes |= {obj.raw_name for obj in annotation.nested_objects if obj.name}
        filename = annotation.filename
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


def _check_annotation(
    annotation: VocAnnotation, file: str, report: IssueReport, *, masked: bool
) -> tuple[float, float] | None:
    """Check one XML file; returns its (width, height), None if invalid. ``masked``: a mask separates the objects."""
    first_objects: dict[tuple[tuple[str, str], ...], str] = {}
    width, height = map(_number_or_none, annotation.size)
    if not width or not height or width <= 0 or height <= 0:
        report.add("voc-size", file, detail=f"width {width}, height {height}")
        width = height = None
    for number, obj in enumerate(annotation.nested_objects, start=1):
        report.checked["objects"] += 1
        where = f"object {number}"
        content = tuple((str(node.tag), (node.text or "").strip()) for node in obj.element.iter())
        first = where if masked else first_objects.setdefault(content, where)
        if first != where:
            report.add("voc-twice", file, where, f"it duplicates {first}")
        if not obj.name:
            report.add("voc-box", file, where, "it has no name")
        box = [_number_or_none(edge) for edge in obj.edges]
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
    for name in image_set_files(source.files):
        path = PurePosixPath(name)
        if path.name in _LISTS:
            where[path.stem] = prefix + name
            split_stems = listed.setdefault(path.stem, set())
            try:
                split_stems.update(read_image_set(source.files, name))
            except MalformedData as error:
                report.add("voc-imagesets", prefix + name, detail=str(error))
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


def _number_or_none(text: str) -> float | None:
    try:
        return parse_float(text, MAX_NUMBER)
    except MalformedData:
        return None
