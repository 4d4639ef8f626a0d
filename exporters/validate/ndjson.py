"""Check Ultralytics NDJSON files: the header, the rows, and images that a trainer cannot load."""

import posixpath
from typing import Any

from exporters.validate.file_checks import check_class_names
from exporters.validate.issues import IssueReport
from exporters.validate.yolo import check_yolo_rows
from labelloop.labeling.splits import SPLITS
from labelloop.service.datasets import DatasetSource
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.ndjson import ROW_KEYS, parse_ndjson
from labelloop.service.datasets.shapes import is_number
from labelloop.service.datasets.yolo_config import KeypointShape, parse_keypoint_shape
from labelloop.service.datasets.yolo_rows import split_rows


def check_ndjson(source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check the NDJSON files of a data set; each row is checked like a row of a YOLO label file."""
    for name in [source.file] if source.file else [name for name in source.files.names if name.endswith(".ndjson")]:
        if "/" not in name:
            _check_file(source, name, prefix + name, report)


def _check_file(source: DatasetSource, name: str, file: str, report: IssueReport) -> None:
    try:
        content = parse_ndjson(source.files.read(name))
    except MalformedData as error:
        report.add("yolo-sheet", file, detail=str(error))
        return
    header = content.header if content.starts_on_first_line else None
    names = header and header.get("class_names")
    if header is None or not isinstance(names, dict):
        report.add("yolo-sheet", file, "line 1", 'expected {"type": "dataset", "class_names": ...}')
        return
    if not all(isinstance(label, str) and label.strip() for label in names.values()):
        report.add("yolo-sheet", file, "class_names", "a class name is empty or not text")
    check_class_names(map(str, names.values()), file, "class_names", report)
    shape = header.get("kpt_shape")
    points = parse_keypoint_shape(shape)
    if shape is not None and points is None:
        report.add("yolo-sheet", file, "kpt_shape", f"{shape!r:.40}: expected [number of keypoints, 2 or 3]")
    local_images = _LocalImages(source, header)
    for line, record in content.records():
        _check_image(record, f"{file}, line {line}", (len(names), points), local_images, report)


class _LocalImages:
    """The image files below the folder that the header names as ``path``."""

    def __init__(self, source: DatasetSource, header: dict[str, Any]) -> None:
        self.has_path = "path" in header
        self._folder = posixpath.normpath(f"{header.get('path')}/images")
        names = frozenset(source.images.names)
        self._names = names if any(name.startswith(f"{self._folder}/") for name in names) else None

    def is_missing(self, split: str, file: str) -> bool:
        """Whether the folder is part of the data set but does not contain this image."""
        name = posixpath.normpath(f"{self._folder}/{split}/{file}")
        return self._names is not None and name not in self._names


def _check_image(
    row: dict[str, Any] | None,
    file: str,
    classes_and_points: tuple[int, KeypointShape | None],
    local_images: _LocalImages,
    report: IssueReport,
) -> None:
    report.checked["NDJSON images"] += 1
    if row is None or str(row.get("split")) not in SPLITS or not isinstance(row.get("file"), str):
        report.add("yolo-columns", file, detail="an image needs a file, and the split train, val or test")
        return
    annotations = row.get("annotations")
    labels: Any
    if isinstance(annotations, dict):
        labels = next((annotations[key] for key in ROW_KEYS if key in annotations), [])
    else:
        labels = annotations or []
    classes, points = classes_and_points
    if not isinstance(labels, list) or not all(isinstance(row, list) and all(map(is_number, row)) for row in labels):
        report.add("yolo-columns", file, detail=f"its annotations are {labels!r:.60}, not rows of numbers")
        labels = []
    rows = split_rows("\n".join(" ".join(map(str, row)) for row in labels))
    check_yolo_rows(rows, file, classes, points, report)
    if local_images.has_path:
        if local_images.is_missing(row["split"], row["file"]):
            report.add("yolo-label-alone", file, detail=row["file"])
    elif not str(row.get("url")).startswith(("http://", "https://")):
        report.add("yolo-label-alone", file, detail=f"a trainer cannot fetch {str(row.get('url'))[:80]!r}")
