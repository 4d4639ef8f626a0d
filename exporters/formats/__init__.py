"""FORMATS: the data set formats that can be written, one line each."""

from exporters.errors import BadOption
from exporters.formats.base import Format
from exporters.formats.coco import Coco
from exporters.formats.ndjson import NdjsonDetect, NdjsonObb, NdjsonPose, NdjsonSegment
from exporters.formats.voc import Voc
from exporters.formats.voc_masks import VocMasks
from exporters.formats.webdataset import WebDataset
from exporters.formats.yolo import YoloDetect
from exporters.formats.yolo_classify import YoloClassify
from exporters.formats.yolo_polygons import YoloObb, YoloSegment
from exporters.formats.yolo_pose import YoloPose

FORMATS: dict[str, type[Format]] = {
    "coco": Coco,
    "voc": Voc,
    "voc-masks": VocMasks,
    "yolo-detect": YoloDetect,
    "yolo-segment": YoloSegment,
    "yolo-obb": YoloObb,
    "yolo-pose": YoloPose,
    "yolo-classify": YoloClassify,
    "ndjson-detect": NdjsonDetect,
    "ndjson-segment": NdjsonSegment,
    "ndjson-obb": NdjsonObb,
    "ndjson-pose": NdjsonPose,
    "webdataset": WebDataset,
}

# Formats of an export without --format: those that any label config can fill.
DEFAULT_FORMATS = ("coco", "voc", "yolo-detect")


def format_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of formats, without duplicates.

    Raises:
        BadOption: a format does not exist, or the list is empty.
    """
    names = tuple(dict.fromkeys(name for name in (part.strip().lower() for part in text.split(",")) if name))
    if not names or not set(names) <= set(FORMATS):
        raise BadOption("--format", text, "one or more of " + ", ".join(FORMATS))
    return names
