"""Find the COCO files of a data set, and the split of each."""

from pathlib import PurePosixPath

import msgspec

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.files import DatasetFiles
from labelloop.service.datasets.text import decode_json
from labelloop.service.datasets.yolo_config import NOTES_FILE

# COCO's prefixes of object files; other files of the folder (captions, panoptic) describe the same images differently.
_FILE_PREFIXES = ("instances", "person_keypoints")
# Maximum number of JSON files that are read to detect the format.
_MAX_SNIFFED_FILES = 50


def coco_files(files: DatasetFiles) -> list[str]:
    """The JSON files in a folder and its direct subfolders if any of them looks like COCO, else an empty list."""
    candidates = candidate_files(files)
    is_coco = any(may_be_coco(files.read(name)) for name in candidates[:_MAX_SNIFFED_FILES])
    return candidates if is_coco else []


def may_be_coco(data: bytes) -> bool:
    """Whether the data is a JSON object with images, or cannot be decoded (truncated, zeros, compressed)."""
    if data.lstrip().startswith(b"["):
        return False
    try:
        fields = decode_json(data, dict[str, msgspec.Raw])
    except MalformedData:
        return True
    return bytes(fields.get("images", b"")).strip() not in {b"", b"[]", b"null"}


def candidate_files(files: DatasetFiles) -> list[str]:
    """The JSON files in a folder and its direct subfolders; only those with a COCO prefix if there are any."""
    excluded = {NOTES_FILE} if "classes.txt" in files.names else set()
    names = [name for name in files.names if name.endswith(".json") and name.count("/") < 2 and name not in excluded]
    for prefix in _FILE_PREFIXES:
        if matching := [name for name in names if PurePosixPath(name).name.startswith(prefix)]:
            return matching
    return names


def split_folder(coco_file: str) -> str:
    """The name of the split in the name of a COCO file, else of its folder (Roboflow: train/_annotations.coco.json)."""
    path = PurePosixPath(coco_file)
    name = path.stem.rpartition("_")[2]
    return name if split_of(name) else path.parent.name
