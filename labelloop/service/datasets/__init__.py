"""Data sets that somebody else made - COCO, Pascal VOC, YOLO, folders of photos - read into one inner form."""

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import Files, Photos, open_files
from labelloop.service.datasets.layouts import layouts, parts, photos_of
from labelloop.service.datasets.model import (
    Category,
    DataSet,
    Keypoint,
    LabelledObject,
    LabelledPhoto,
    Problem,
    shape_of,
)
from labelloop.service.datasets.registry import READERS, Place, open_place, read_dataset, recognise

__all__ = [
    "READERS",
    "Category",
    "DataSet",
    "DatasetError",
    "Files",
    "Keypoint",
    "LabelledObject",
    "LabelledPhoto",
    "Photos",
    "Place",
    "Problem",
    "layouts",
    "open_files",
    "open_place",
    "parts",
    "photos_of",
    "read_dataset",
    "recognise",
    "shape_of",
]
