"""Read third-party data sets (COCO, Pascal VOC, YOLO, NDJSON, image folders) into one in-memory form."""

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, open_files
from labelloop.service.datasets.layouts import detect_layouts, images_of, sub_datasets
from labelloop.service.datasets.model import (
    Category,
    DataSet,
    DatasetImage,
    DatasetProblem,
    Keypoint,
    LabelledObject,
    shape_of,
)
from labelloop.service.datasets.registry import READERS, DatasetSource, detect_format, open_source, read_dataset

__all__ = [
    "READERS",
    "Category",
    "DataSet",
    "DatasetError",
    "DatasetFiles",
    "DatasetImage",
    "DatasetProblem",
    "DatasetSource",
    "ImageFiles",
    "Keypoint",
    "LabelledObject",
    "detect_format",
    "detect_layouts",
    "images_of",
    "open_files",
    "open_source",
    "read_dataset",
    "shape_of",
    "sub_datasets",
]
