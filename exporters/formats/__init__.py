"""FORMATS: the data set formats that can be written, one line each."""

from exporters.formats.base import Format
from exporters.formats.coco import Coco
from exporters.formats.coco_panoptic import CocoPanoptic
from exporters.formats.dota import Dota
from exporters.formats.image_folder import ImageFolder
from exporters.formats.ndjson import NdjsonDetect, NdjsonObb, NdjsonPose, NdjsonSegment
from exporters.formats.semantic_png import SemanticPng
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
    "semantic-png": SemanticPng,
    "coco-panoptic": CocoPanoptic,
    "dota": Dota,
    "imagefolder": ImageFolder,
}

# Formats of an export without --format: those that any label config can fill.
DEFAULT_FORMATS = ("coco", "voc", "yolo-detect")
