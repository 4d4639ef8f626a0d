"""Check YOLO folders with the rules of Ultralytics' own check (``verify_image_label``), and more.

Format: https://docs.ultralytics.com/datasets/.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from exporters.validate.file_checks import MAX_NUMBER, check_class_names, check_image_file, check_shared_label_files
from exporters.validate.issues import IssueReport
from labelloop.service.datasets import DatasetError, DatasetSource, ImageFiles
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.text import parse_floats
from labelloop.service.datasets.yolo import label_files, match_keypoint_count, unmatched_label_files
from labelloop.service.datasets.yolo_config import KeypointShape, class_list_file, read_config
from labelloop.service.datasets.yolo_rows import LabelRow, is_class_index, keypoint_values, read_rows

# Normalised coordinates beyond the image edge that count as rounding: 0.1 pixel in 1000.
TOLERANCE = 1e-4


def check_yolo(source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check a YOLO folder, and its image files if it has any; label files are matched as in an import."""
    files, images = source.files, source.images
    classes, points = _check_config(source, prefix, report)
    labels_by_image = label_files(files, images)
    unmatched = dict(unmatched_label_files(files, images, set(labels_by_image.values())))
    kinds: dict[str, str] = {}
    for name in sorted({*labels_by_image.values(), *unmatched}):
        report.checked["label files"] += 1
        try:
            rows = read_rows(files, name)
        except (DatasetError, MalformedData) as error:
            report.add("yolo-columns", prefix + name, detail=str(error))
            continue
        if kind := check_yolo_rows(rows, prefix + name, classes, points, report):
            kinds[prefix + name] = kind
    most_common = Counter(kinds.values()).most_common(1)
    for file, kind in kinds.items():
        if most_common and kind != most_common[0][0] and kind != "mixed":
            report.add("yolo-mixed", file, detail=f"rows of {kind}, the other files have rows of {most_common[0][0]}")
    if images.names:
        _check_pairs(images, labels_by_image, unmatched, prefix, report)


def _check_config(source: DatasetSource, prefix: str, report: IssueReport) -> tuple[int | None, KeypointShape | None]:
    """Check data.yaml or the list of classes; returns the number of classes and the ``kpt_shape``, None if unknown."""
    files = source.files
    name = source.file if source.file.endswith((".yaml", ".yml")) else class_list_file(files)
    if not name:
        report.add("yolo-sheet", f"{prefix}data.yaml", detail="no data.yaml, and no list of classes")
        return None, None
    file = prefix + name
    try:
        config = read_config(files, name)
    except DatasetError as error:
        report.add("yolo-sheet", file, detail=error.reason[:200])
        return None, None
    if config.from_label_studio and config.keypoint_names:
        config = match_keypoint_count(config, files, label_files(files, source.images))
    points = config.keypoint_shape
    if not name.endswith((".yaml", ".yml")):
        return _check_classes(list(config.class_names), None, file, report), points
    flip = config.document.get("flip_idx")
    if (
        points
        and flip is not None
        and sorted(flip if isinstance(flip, list) else [], key=str) != sorted(range(points.count), key=str)
    ):
        report.add("yolo-sheet", file, "flip_idx", f"{flip!r:.80} is not a permutation of {points.count} keypoints")
    return _check_classes(config.document.get("names"), config.document.get("nc"), file, report), points


def _check_classes(names: Any, nc: object, file: str, report: IssueReport) -> int | None:
    dense = isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str)
    if not (dense or isinstance(names, list)):
        report.add("yolo-sheet", file, "names", "expected a list of names, or 0: name, 1: name, ... without gaps")
        return nc if isinstance(nc, int) else None
    count = len(names)
    values = list(names.values()) if isinstance(names, dict) else names
    duplicates = [label for label, number in Counter(map(str, values)).items() if number > 1]
    if duplicates:
        report.add("yolo-sheet", file, "names", f"{duplicates[0]!r} is used twice")
    check_class_names(map(str, values), file, "names", report)
    if nc is not None and nc != count:
        report.add("yolo-sheet", file, "nc", f"nc is {nc!r}, but there are {count} names")
    return count


def check_yolo_rows(
    rows: Iterable[LabelRow], file: str, classes: int | None, points: KeypointShape | None, report: IssueReport
) -> str:
    """Check the label rows of an image.

    Args:
        rows: The rows.
        file: Name of the file in the report.
        classes: Number of classes; None if unknown.
        points: ``kpt_shape`` of a pose data set.
        report: Receives the issues.

    Returns:
        The kind of the rows: "boxes", "points", "boxes with key points", "mixed", or "" without valid rows.
    """
    kinds: set[str] = set()
    seen_rows: set[tuple[str, ...]] = set()
    for row in rows:
        report.checked["rows"] += 1
        where = f"line {row.line}"
        cells = tuple(row.cells)
        kind = _kind(len(cells), points)
        numbers = _numbers_or_none(cells)
        if numbers is None or not kind:
            detail = "not all numbers" if numbers is None else f"{len(cells)} columns"
            report.add("yolo-columns", file, where, detail)
            continue
        kinds.add(kind)
        if cells in seen_rows:
            report.add("yolo-twice", file, where, row.text[:60])
        seen_rows.add(cells)
        if not is_class_index(numbers[0], classes):
            report.add("yolo-class", file, where, f"class {cells[0]} of {classes if classes is not None else '?'}")
        for issue, detail in _coordinate_issues(kind, numbers[1:], points):
            report.add(issue, file, where, detail)
    if len(kinds) > 1:
        report.add("yolo-mixed", file, detail=f"rows of {' and of '.join(sorted(kinds))}")
        return "mixed"
    return next(iter(kinds), "")


def _kind(columns: int, points: KeypointShape | None) -> str:
    if points is not None:
        return "boxes with key points" if columns == 5 + points.count * points.dims else ""
    if columns == 5:
        return "boxes"
    return "points" if columns >= 7 and columns % 2 else ""


def _coordinate_issues(kind: str, row: Sequence[float], points: KeypointShape | None) -> Iterator[tuple[str, str]]:
    """The issues of a row's coordinates: (kind, detail)."""
    if kind == "points":
        xs, ys = row[::2], row[1::2]
        # Four points may be a rotated box, whose corners may be outside the image as long as its extent fits.
        rotated = len(xs) == 4
        for edges in (xs, ys):
            low, high = min(edges), max(edges)
            if high - low <= 0:
                yield "yolo-size", "its points are collinear"
            elif (not 0 <= (low + high) / 2 <= 1 or high - low > 1 + TOLERANCE) if rotated else not _within(low, high):
                yield "yolo-outside", f"from {low} to {high}"
        return
    for centre, size in ((row[0], row[2]), (row[1], row[3])):
        if size <= 0:
            yield "yolo-size", f"size {size}"
        elif not _within(centre - size / 2, centre + size / 2):
            yield "yolo-outside", f"from {centre - size / 2:.6g} to {centre + size / 2:.6g}"
    if points is not None:
        keypoints = keypoint_values(row, points)
        coordinates = [number for values in keypoints for number in values[:2]]
        if not _within(min(coordinates), max(coordinates)):
            yield "yolo-outside", "a keypoint"
        if not {visibility for values in keypoints for visibility in values[2:]} <= {0.0, 1.0, 2.0}:
            yield "yolo-columns", "the visibility of a keypoint must be 0, 1 or 2"


def _check_pairs(
    images: ImageFiles,
    labels_by_image: Mapping[str, str],
    unmatched: Mapping[str, str],
    prefix: str,
    report: IssueReport,
) -> None:
    """Report images without label file, label files without image, and label files that images share."""
    images_by_label: dict[str, list[str]] = defaultdict(list)
    for image, file in labels_by_image.items():
        images_by_label[file].append(image)
    check_shared_label_files({prefix + file: names for file, names in images_by_label.items()}, report)
    for image in sorted(images.names):
        if image not in labels_by_image:
            report.add("yolo-image-unlabelled", prefix + str(PurePosixPath(image).with_suffix("")))
    for file, names in sorted(images_by_label.items()):
        check_image_file(images, names[0], prefix + file, "", size=None, report=report)
    for file in sorted(unmatched):
        report.add("yolo-label-alone", prefix + file, detail=unmatched[file])


def _within(low: float, high: float) -> bool:
    return low >= -TOLERANCE and high <= 1 + TOLERANCE


def _numbers_or_none(cells: Sequence[str]) -> list[float] | None:
    try:
        return parse_floats(cells, MAX_NUMBER)
    except MalformedData:
        return None
