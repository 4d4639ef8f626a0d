"""Detect the annotation formats in a folder, and subfolders that are separate data sets."""

import re
from collections.abc import Callable, Mapping, Sequence

from labelloop.labeling.studio.sniff import HEAD_BYTES
from labelloop.service.datasets.coco_captions import caption_files
from labelloop.service.datasets.coco_files import coco_files
from labelloop.service.datasets.createml import is_createml
from labelloop.service.datasets.cvat import cvat_files
from labelloop.service.datasets.dota import is_dota
from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, SubfolderFiles
from labelloop.service.datasets.image_folder_metadata import METADATA, metadata_files
from labelloop.service.datasets.image_folders import SPLITS
from labelloop.service.datasets.labelme import is_labelme
from labelloop.service.datasets.mask_files import SEMANTIC_CLASSES, SEMANTIC_FOLDER
from labelloop.service.datasets.open_images import open_images_files
from labelloop.service.datasets.panoptic import panoptic_files
from labelloop.service.datasets.semantic_masks import has_semantic_masks
from labelloop.service.datasets.yolo import has_label_files, is_yolo
from labelloop.service.datasets.yolo_config import CONFIG_FILES, NOTES_FILE

# Lower-case names of folders that are parts of a data set.
_PART_FOLDERS = SPLITS | {"images", "labels", "labeltxt", "annotations", "jpegimages", "imagesets", "data"}


def detect_layouts(files: DatasetFiles, images: ImageFiles) -> list[str]:
    """The formats of the annotations among the files, in the order of preference.

    Args:
        files: The files of the data set.
        images: Its image files, which YOLO label files are matched with.
    """
    detected = [layout for layout, is_present in _DETECTORS.items() if is_present(files)]
    if "yolo" not in detected and has_label_files(files, images):  # a README.txt alone is not a label file
        detected.append("yolo")
    if "dota" in detected and "yolo" in detected:  # one label folder, whose rows are of DOTA
        detected.remove("yolo")
    if {"labelme", "createml"} & set(detected) and "coco" in detected and not _has_coco_keys(files):
        detected.remove("coco")
    return detected


def sub_datasets(files: DatasetFiles) -> Mapping[str, DatasetFiles]:
    """The data sets in a folder: subfolders that are separate data sets by name, and the rest as ``""``."""
    inside: dict[str, list[str]] = {}
    for name in files.names:
        top, slash, relative = name.partition("/")
        if slash:
            inside.setdefault(top, []).append(relative)
    roots = [top for top, names in inside.items() if top.casefold() not in _PART_FOLDERS and _is_dataset_root(names)]
    separate = {root: SubfolderFiles(files, root) for root in roots}
    rest = SubfolderFiles(files, exclude=separate) if separate else files
    return ({"": rest} if not separate or detect_layouts(rest, ImageFiles(rest)) else {}) | separate


def single_dataset(files: DatasetFiles) -> DatasetFiles:
    """The files of the single data set in a folder; archives often have it in a subfolder.

    Raises:
        DatasetError: The folder has several data sets of different formats.
    """
    datasets = sub_datasets(files)
    if len(datasets) == 1 and "" not in datasets:
        return single_dataset(*datasets.values())
    formats = {detect_layouts(part, ImageFiles(part))[0] for part in datasets.values()} if "" not in datasets else set()
    if len(formats) > 1:
        raise DatasetError(
            files.location, f"it has several data sets: {', '.join(sorted(datasets))}", fix="Pass the folder of one."
        )
    return files


def images_of(part: DatasetFiles, files: DatasetFiles) -> ImageFiles:
    """The image files of a sub-dataset: those in its own folder, else all images of the data set."""
    images = ImageFiles(part)
    return images if images.names or part is files else ImageFiles(files)


def _is_dataset_root(names: Sequence[str]) -> bool:
    """Whether the files of a folder mark it as the root of a data set."""
    if NOTES_FILE in names and "classes.txt" in names:
        return True
    has_masks = any(name.startswith(f"{SEMANTIC_FOLDER}/") for name in names)
    return any(
        name in CONFIG_FILES
        or ("/" not in name and name.endswith((".ndjson", ".names")))
        or (name.startswith("Annotations/") and name.lower().endswith(".xml"))
        or (name.startswith("annotations/") and name.endswith(".json"))
        or (name == SEMANTIC_CLASSES and has_masks)
        or (name.rpartition("/")[2] == METADATA and name.count("/") < 2)
        for name in names
    )


def _has_coco_keys(files: DatasetFiles) -> bool:
    """Whether a JSON file begins as COCO; a damaged one, which counts as COCO otherwise, may be of another format."""
    return any(_COCO_START.match(files.start(name, _START_BYTES)) for name in coco_files(files)[:_MAX_COCO_FILES])


_COCO_START = re.compile(rb'[\s\xef\xbb\xbf]*\{\s*"(info|images|annotations|categories|licenses)"')
_START_BYTES = 1000
_MAX_COCO_FILES = 50


def _has_json(files: DatasetFiles, is_present: Callable[[bytes], bool]) -> bool:
    """Whether one of the first JSON files of a folder is of a format; folders of many files are read in part."""
    names = [name for name in files.names if name.lower().endswith(".json")]
    return any(is_present(files.start(name, HEAD_BYTES)) for name in names[:_MAX_SNIFFED_FILES])


# JSON files whose beginning is read to recognise their format.
_MAX_SNIFFED_FILES = 10
# Format -> whether a folder has it, in the order of preference.
_DETECTORS: Mapping[str, Callable[[DatasetFiles], bool]] = {
    "dota": is_dota,
    "yolo": is_yolo,
    "cvat": lambda files: bool(cvat_files(files)),
    "voc": lambda files: bool({name for name in files.names if name.lower().endswith(".xml")} - {*cvat_files(files)}),
    "labelme": lambda files: _has_json(files, is_labelme),
    "createml": lambda files: _has_json(files, is_createml),
    "coco": lambda files: not set(coco_files(files)) <= {*caption_files(files), *panoptic_files(files)},
    "coco-panoptic": lambda files: bool(panoptic_files(files)),
    "coco-captions": lambda files: bool(caption_files(files)),
    "open-images": lambda files: bool(open_images_files(files)),
    "semantic-png": has_semantic_masks,
    "imagefolder": lambda files: bool(metadata_files(files)),
    "ndjson": lambda files: any(name.endswith(".ndjson") and "/" not in name for name in files.names),
}
