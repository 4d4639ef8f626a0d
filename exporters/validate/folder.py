"""Validate any data set that `labelloop import` accepts: detect its formats, then check each."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from exporters.errors import DatasetNotFound
from exporters.validate.coco import check_coco_files
from exporters.validate.issues import IssueReport
from exporters.validate.ndjson import check_ndjson
from exporters.validate.objects import check_objects
from exporters.validate.voc import check_voc
from exporters.validate.yolo import check_yolo
from labelloop.service.datasets import (
    READERS,
    DatasetError,
    DatasetProblem,
    DatasetSource,
    detect_format,
    detect_layouts,
    images_of,
    open_source,
    sub_datasets,
)
from labelloop.service.settings import Settings
from labelloop.service.store import is_bucket_url

_TASKS = ("detect", "segment", "obb", "pose")
# The export formats that `validate` checks.
VALIDATED_FORMATS = (
    *("coco", "voc", "voc-masks", *(f"{kind}-{task}" for kind in ("yolo", "ndjson") for task in _TASKS)),
    *("semantic-png", "coco-panoptic", "dota", "imagefolder"),
)


def validate(source: Path | str, report: IssueReport | None = None, settings: Settings | None = None) -> IssueReport:
    """Check a folder, a zip, a file or a bucket, with the format detection of `labelloop import`.

    Args:
        source: The location. A folder may contain several data sets, each in its own subfolder.
        report: Report to add the issues to; None: a new one.
        settings: Access to the S3 server; None: from the environment.

    Returns:
        The report.

    Raises:
        DatasetNotFound: The location does not exist, or contains no data set of a known format.
        DatasetError: The file is for another command.
    """
    report = IssueReport() if report is None else report
    text = str(source)
    if not is_bucket_url(text) and not Path(text).expanduser().exists():
        raise DatasetNotFound(location=text, reason="there is no such file or folder")
    location = open_source(text, settings or Settings(), single=False)
    if location.file:
        _check(detect_format(location), location, "", report)
        return report
    checked = False
    subsets = sub_datasets(location.files)
    for name, files in subsets.items():
        subset = DatasetSource(files, images_of(files, location.files if len(subsets) == 1 else files))
        for layout in detect_layouts(files, subset.images) or _layouts_without_files(subset, single=not name):
            _check(layout, subset, f"{name}/" if name else "", report)
            checked = True
    if not checked:
        raise DatasetNotFound(location=text, reason="it contains no data set of a known format")
    return report


def _layouts_without_files(subset: DatasetSource, *, single: bool) -> list[str]:
    """The layout of a folder without label files (image classification). Raises `DatasetError` as an import does."""
    layout = detect_format(subset) if single and subset.files.names else "images"
    return [] if layout == "images" else [layout]


def _check(layout: str, source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Run the checks of a layout; if they find nothing, report the labels that an import could not read."""
    before = report.counts.total()
    check = _CHECKS.get(layout)
    if check is None:
        check_objects(READERS[layout](source), source, prefix, report)
        return
    check(source, prefix, report)
    if report.counts.total() > before or layout == "ndjson":  # an import needs image sizes, which ndjson may omit
        return
    with suppress(DatasetError):  # rows of four corners have two meanings
        for item in READERS[layout](source).images():
            if isinstance(item, DatasetProblem):
                file = prefix + (source.file or item.item)
                report.add("label-unread", file, source.file and item.item, item.reason)


_CHECKS: Mapping[str, Callable[[DatasetSource, str, IssueReport], None]] = {
    "coco": check_coco_files,
    "voc": check_voc,
    "yolo": check_yolo,
    "ndjson": check_ndjson,
}
