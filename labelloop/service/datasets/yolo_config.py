"""Read the classes and key points of a YOLO data set: ``data.yaml``, a class list, or Label Studio's ``notes.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import msgspec
import yaml

from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles
from labelloop.service.datasets.text import decode_json, decode_text

CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Written by Label Studio with ``classes.txt``.
NOTES_FILE = "notes.json"
CLASS_LISTS = ("classes.txt", "names.txt", "_darknet.labels", "predefined_classes.txt")
MAX_CLASSES = 10_000
_MAX_KEYPOINTS = 1_000


@dataclass(frozen=True, slots=True)
class KeypointShape:
    """A valid ``kpt_shape``.

    Attributes:
        count: Number of key points.
        dims: Values per key point: 2 (x, y) or 3 (x, y, visibility).
    """

    count: int
    dims: int


class YoloConfig(msgspec.Struct, frozen=True):
    """The classes and key points of a data set.

    Attributes:
        class_names: Class names by index; an empty name is an unused index.
        keypoint_names: Names of the key points.
        keypoint_dims: Values per key point: 2 or 3.
        document: The content of ``data.yaml``; empty if the classes are in another file.
        from_label_studio: Whether Label Studio wrote the data set: rows of four corners are rotated boxes.
    """

    class_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    keypoint_dims: int = 3
    document: Mapping[str, Any] = {}
    from_label_studio: bool = False

    @property
    def keypoint_shape(self) -> KeypointShape | None:
        """The number and dimension of the key points; None if there are none."""
        return KeypointShape(len(self.keypoint_names), self.keypoint_dims) if self.keypoint_names else None


def read_config(files: DatasetFiles, name: str = "") -> YoloConfig:
    """Read the classes and key points from ``data.yaml``, else from a class list and Label Studio's notes.

    Args:
        files: The data set's files.
        name: Name of ``data.yaml`` if it has another.

    Raises:
        DatasetError: The file cannot be read.
    """
    name = name or next((candidate for candidate in CONFIG_FILES if candidate in files.names), "")
    if name.endswith((".yaml", ".yml")):
        return _read_data_yaml(files, name)
    class_list = _class_list(files)
    try:
        text = decode_text(files.read(class_list)) if class_list else ""
    except MalformedData as error:
        raise DatasetError(f"{files.location}/{class_list}", str(error)) from None
    names = tuple(line.strip() for line in text.rstrip().splitlines())  # an empty line is an unused index
    return YoloConfig(
        names, _noted_keypoints(files), from_label_studio=NOTES_FILE in files.names and class_list == "classes.txt"
    )


def class_list_file(files: DatasetFiles) -> str:
    """The name of ``data.yaml`` or of a class list; empty if there is none."""
    return next((candidate for candidate in CONFIG_FILES if candidate in files.names), "") or _class_list(files)


def _class_list(files: DatasetFiles) -> str:
    """The name of the class list nearest to the root; empty if there is none."""
    ranks = {name: rank for rank, name in enumerate(CLASS_LISTS)}
    candidates = [
        (name.count("/"), ranks.get(path.name, -1), name)
        for name in files.names
        if (path := PurePosixPath(name)).name in ranks or path.suffix == ".names"
    ]
    return min(candidates)[2] if candidates else ""


def _noted_keypoints(files: DatasetFiles) -> tuple[str, ...]:
    """The key point names in Label Studio's notes."""
    try:
        notes = decode_json(files.read(NOTES_FILE)) if NOTES_FILE in files.names else None
    except (MalformedData, DatasetError):
        return ()
    listed = notes.get("categories") if isinstance(notes, dict) else None
    for category in listed if isinstance(listed, list) else ():
        keypoints = category.get("keypoints") if isinstance(category, dict) else None
        if isinstance(keypoints, list) and keypoints and all(isinstance(keypoint, str) for keypoint in keypoints):
            return tuple(dict.fromkeys(keypoints))
    return ()


def _read_data_yaml(files: DatasetFiles, name: str) -> YoloConfig:
    location = f"{files.location}/{name}"
    try:
        document = yaml.safe_load(files.read(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DatasetError(location, f"it is not YAML ({reason})") from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and all(str(number).isdecimal() for number in names):
        names = {int(number): name_ for number, name_ in names.items()}  # also '0', as Ultralytics reads it
    if isinstance(names, dict) and all(type(number) is int and 0 <= number < MAX_CLASSES for number in names):
        names = [names.get(number, "") for number in range(max(names, default=-1) + 1)]  # gaps: unused indices
    if not isinstance(names, list):
        raise DatasetError(location, "it has no class names", fix="Add `names:` with 0, 1, 2, ...")
    for number, name_ in enumerate(names):
        if not isinstance(name_, str | int | float | date) or isinstance(name_, bool):
            fix = f"Quote the name of class {number}." if isinstance(name_, bool) else ""
            raise DatasetError(location, f"names: class {number} is {name_!r:.40}, not a text", fix=fix)
    return with_keypoints(YoloConfig(tuple(map(str, names)), document=document), location)


def parse_keypoint_shape(shape: Any) -> KeypointShape | None:
    """The number and dimension of the key points from a ``kpt_shape``; None if it is invalid."""
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)):
        return None
    return KeypointShape(*shape) if 0 < shape[0] <= _MAX_KEYPOINTS and shape[1] in {2, 3} else None


def with_keypoints(config: YoloConfig, location: str) -> YoloConfig:
    """Add the key points of ``config.document``: ``kpt_shape`` and ``kpt_names``.

    Raises:
        DatasetError: ``kpt_shape`` is invalid.
    """
    stated = config.document.get("kpt_shape")
    if stated is None:
        return config
    if (shape := parse_keypoint_shape(stated)) is None:
        raise DatasetError(location, f"kpt_shape {stated!r:.40} is not [number of key points, 2 or 3]")
    names = keypoint_names(config.document.get("kpt_names"), shape.count)
    return msgspec.structs.replace(config, keypoint_names=names, keypoint_dims=shape.dims)


def keypoint_names(names_of_classes: Any, count: int) -> tuple[str, ...]:
    """The names of ``count`` key points: of the first class with that many names, else ``point 0``, ``point 1``, ..."""
    lists = list(names_of_classes.values()) if isinstance(names_of_classes, dict) else [names_of_classes]
    for names in lists:
        if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
            return tuple(map(str, names))
    return tuple(f"point {number}" for number in range(count))
