"""FORMATS: the data set formats that can be written, one line each."""

from exporters.formats.base import Format
from exporters.structures.class_table import ClassTable

FORMATS: ClassTable[Format] = ClassTable(
    {
        "coco": "exporters.formats.coco:Coco",
        "voc": "exporters.formats.voc:Voc",
        "voc-masks": "exporters.formats.voc_masks:VocMasks",
        "yolo-detect": "exporters.formats.yolo:YoloDetect",
        "yolo-segment": "exporters.formats.yolo_polygons:YoloSegment",
        "yolo-obb": "exporters.formats.yolo_polygons:YoloObb",
        "yolo-pose": "exporters.formats.yolo_pose:YoloPose",
        "yolo-classify": "exporters.formats.yolo_classify:YoloClassify",
        "ndjson-detect": "exporters.formats.ndjson:NdjsonDetect",
        "ndjson-segment": "exporters.formats.ndjson:NdjsonSegment",
        "ndjson-obb": "exporters.formats.ndjson:NdjsonObb",
        "ndjson-pose": "exporters.formats.ndjson:NdjsonPose",
        "webdataset": "exporters.formats.webdataset:WebDataset",
        "semantic-png": "exporters.formats.semantic_png:SemanticPng",
        "coco-panoptic": "exporters.formats.coco_panoptic:CocoPanoptic",
        "dota": "exporters.formats.dota:Dota",
        "imagefolder": "exporters.formats.image_folder:ImageFolder",
    }
)

# Formats of an export without --format: those that any label config can fill.
DEFAULT_FORMATS = ("coco", "voc", "yolo-detect")
