"""Read YOLO (detect, segment, OBB, pose) as Ultralytics, Darknet and Label Studio write it: one text file per image.

Formats: https://docs.ultralytics.com/datasets/ (``data.yaml``), https://github.com/AlexeyAB/darknet (``obj.data``,
``obj.names``, lists of images). Label Studio writes ``classes.txt`` and ``notes.json``. An OBB row looks like a
segment of four corners: only the user or Label Studio's ``notes.json`` distinguishes them.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import msgspec
import yaml

from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.splits import split_of
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, original_names
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, Keypoint, LabelledObject
from labelloop.service.datasets.shapes import rectangle, rectangle_or_polygon
from labelloop.service.datasets.text import decode_json, decode_lines, decode_text

CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Written by Label Studio with ``classes.txt``.
NOTES_FILE = "notes.json"
_CLASS_LISTS = ("classes.txt", "names.txt", "_darknet.labels", "predefined_classes.txt")
_LABEL_FOLDERS = ("labels", "labelTxt")
_NO_LABELS = {*_CLASS_LISTS, "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt", "notes.txt"}
_MAX_CLASSES = 10_000
_MAX_KEYPOINTS = 1_000
_AMBIGUOUS = "Pass --format yolo-obb or --format yolo-segment."


class YoloConfig(msgspec.Struct, frozen=True):
    """The classes and key points of a data set.

    Attributes:
        class_names: Class names by index; an empty name is an unused index.
        keypoint_names: Names of the key points.
        keypoint_dims: Values per key point: 2 or 3.
        from_label_studio: Whether Label Studio wrote the data set: rows of four corners are rotated boxes.
    """

    class_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    keypoint_dims: int = 3
    from_label_studio: bool = False


# (values after the class, image width, image height, config) -> the object without its label.
RowParser = Callable[[Sequence[float], int, int, YoloConfig], LabelledObject]


def read_yolo(files: DatasetFiles, images: ImageFiles, task: str = "", *, config_file: str = "") -> DataSet:
    """Read a folder of YOLO labels.

    Args:
        files: The files of the data set: ``data.yaml`` or a class list, and label files at any depth.
        images: The image files, matched with label files by name. An image without a label file is unlabelled; an
            empty label file is a negative.
        task: ``detect``, ``segment``, ``obb`` or ``pose``; empty: detected from ``data.yaml`` and the rows.
        config_file: Name of ``data.yaml`` if it has another.

    Raises:
        DatasetError: The folder is not YOLO, or segment and OBB cannot be distinguished.
    """
    config = read_config(files, config_file)
    labels = label_files(files, images)
    if not labels:
        raise DatasetError(
            files.location,
            "none of its text files belongs to an image",
            fix="The labels of a.jpg are in a.txt in its folder or in labels/. Pass the image folder: --images-from.",
        )
    if config.from_label_studio and config.keypoint_names:
        config = match_keypoint_count(config, files, labels)
    task = task or _task(files, labels, config)
    row = ROW_PARSERS[task]
    splits = _splits(files, images)
    used = set(labels.values())

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name in images.names:
            image = DatasetImage(name, split=splits.get(name, ""))
            if name not in labels:
                yield msgspec.structs.replace(image, labelled=False)
                continue
            size = images.size(name)
            if isinstance(size, str):
                yield DatasetProblem(name, size)
                continue
            image = msgspec.structs.replace(image, width=size[0], height=size[1])
            yield from _read_image(image, labels[name], files, config, row)
        yield from (DatasetProblem(name, reason) for name, reason in unmatched_label_files(files, images, used))

    classes = tuple(name for name in config.class_names if name) or _numbered_classes(files, labels)
    return DataSet(f"yolo-{task}", read, classes, config.keypoint_names if task == "pose" else ())


def is_yolo(files: DatasetFiles) -> bool:
    """Whether a file marks a YOLO data set: ``data.yaml``, Darknet's ``*.names``, or Label Studio's notes."""
    names = files.names
    marked = any(name in CONFIG_FILES or name.endswith((".names", "_darknet.labels")) for name in names)
    return marked or (NOTES_FILE in names and "classes.txt" in names)


def has_label_files(files: DatasetFiles, images: ImageFiles) -> bool:
    """Whether there are text files in a label folder or with the name of an image."""
    texts = filter(may_be_label_file, files.names)
    return any(_in_label_folder(name) for name in texts) or bool(label_files(files, images))


def unmatched_label_files(files: DatasetFiles, images: ImageFiles, used: set[str]) -> Iterator[tuple[str, str]]:
    """(name, reason) of label files that match no image; text files without rows, such as a README, do not count."""
    stems = Counter(PurePosixPath(name).stem for name in images.names)
    for name in files.names:
        if may_be_label_file(name) and name not in used and (_in_label_folder(name) or _has_rows(files, name)):
            is_duplicate = stems[PurePosixPath(name).stem]
            yield (
                name,
                "several images or label files have this name" if is_duplicate else "there is no image of this name",
            )


def parse_detect(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse ``x_centre y_centre width height`` and an optional confidence."""
    del config
    if len(values) not in {4, 5}:
        raise MalformedData(f"{len(values)} numbers after the class; a box has 4")
    return LabelledObject(_box(values, width, height), "", values[4] if len(values) == 5 else None)


def parse_segment(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse ``x1 y1 x2 y2 ...`` and an optional confidence. Four values are a box, as in Ultralytics."""
    if len(values) in {4, 5}:
        return parse_detect(values, width, height, config)
    points, score = _points(values, width, height)
    return LabelledObject(rectangle_or_polygon(points), "", score)


def parse_obb(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse four corners and an optional confidence."""
    del config
    if len(values) not in {8, 9}:
        raise MalformedData(f"{len(values)} numbers after the class; four corners have 8")
    points, score = _points(values, width, height)
    return LabelledObject(rectangle_or_polygon(points, upright=False), "", score)


def parse_pose(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse a box, ``x y visibility`` (or ``x y``) per key point, and an optional confidence."""
    dims = config.keypoint_dims
    expected = 4 + dims * len(config.keypoint_names)
    if len(values) not in {expected, expected + 1}:
        raise MalformedData(f"{len(values)} numbers after the class; kpt_shape requires {expected}")
    keypoints = []
    for index, name in enumerate(config.keypoint_names):
        x, y, *visibility = values[4 + index * dims : 4 + (index + 1) * dims]
        visible = visibility[0] if visibility else (2 if x >= 0 and y >= 0 else 0)
        if visible > 0:  # predictions have a confidence here
            keypoints.append(Keypoint(name, x * width, y * height, hidden=visible == 1))
    score = values[expected] if len(values) > expected else None
    if score is not None:  # predictions: the third value is not an occlusion flag
        keypoints = [Keypoint(keypoint.name, keypoint.x, keypoint.y) for keypoint in keypoints]
    return LabelledObject(_box(values, width, height), "", score, tuple(keypoints))


ROW_PARSERS: Mapping[str, RowParser] = {
    "detect": parse_detect,
    "segment": parse_segment,
    "obb": parse_obb,
    "pose": parse_pose,
}


def _read_image(
    image: DatasetImage, file: str, files: DatasetFiles, config: YoloConfig, parse_row: RowParser
) -> Iterator[DatasetImage | DatasetProblem]:
    try:
        lines = decode_text(files.read(file)).splitlines()
    except (DatasetError, MalformedData) as error:
        yield DatasetProblem(file, error.reason if isinstance(error, DatasetError) else str(error))
        yield msgspec.structs.replace(image, unread=1)
        return
    objects: list[LabelledObject] = []
    problems: list[DatasetProblem] = []
    for line, text in enumerate(lines, start=1):
        cells = text.split()
        if not cells:
            continue
        try:
            class_index, *values = _numbers(cells)
            labelled = parse_row(values, image.width, image.height, config)
            objects.append(msgspec.structs.replace(labelled, label=class_name(class_index, config.class_names)))
        except MalformedData as error:
            problems.append(DatasetProblem(f"{file}, line {line}", str(error)))
    if len(problems) > 1 and not objects:
        first = problems[0].item.rpartition(", ")[2]
        yield DatasetProblem(file, f"none of its {len(problems)} rows can be read; {first}: {problems[0].reason}")
    else:
        yield from problems
    yield msgspec.structs.replace(image, objects=tuple(objects), unread=len(problems))


def _numbers(cells: Sequence[str]) -> list[float]:
    if len(cells) in {9, 10} and _is_number(cells[0]) and _is_number(cells[7]) and not _is_number(cells[8]):
        raise MalformedData(
            "a DOTA row (four corners in pixels, then the class name), not YOLO: export YOLOv8 OBB instead"
        )
    return [_parse_value(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse_value(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise MalformedData(f"{cell!r:.40} is not a number") from None
    if not abs(value) < 1e6:
        raise MalformedData(f"{cell!r:.40} is out of range")
    return value


def class_name(class_index: float, names: Sequence[str]) -> str:
    """The name of a class by its index. Raises `MalformedData` if the index is invalid."""
    if class_index < 0 or class_index != int(class_index) or (names and class_index >= len(names)):
        raise MalformedData(
            f"class {class_index:g}: the classes are 0 to {len(names) - 1}"
            if names
            else f"class {class_index:g} is invalid"
        )
    name = names[int(class_index)] if names else f"class {int(class_index)}"
    if not name:
        raise MalformedData(f"class {class_index:g} has no name")
    return name


def _box(values: Sequence[float], width: int, height: int) -> Geometry:
    cx, cy, w, h = values[:4]
    return rectangle((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)


def _points(values: Sequence[float], width: int, height: int) -> tuple[list[tuple[float, float]], float | None]:
    if len(values) < 6:
        raise MalformedData(f"{len(values)} numbers after the class; a polygon has 6 or more")
    score = values[-1] if len(values) % 2 else None
    flat = values[: len(values) // 2 * 2]
    return [(x * width, y * height) for x, y in zip(flat[::2], flat[1::2], strict=True)], score


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
    ranks = {name: rank for rank, name in enumerate(_CLASS_LISTS)}
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


def match_keypoint_count(config: YoloConfig, files: DatasetFiles, labels: Mapping[str, str]) -> YoloConfig:
    """Replace the key point names if the rows have another number of key points than the config.

    Label Studio writes only key points with a ``model_index``, so its names may not match the rows.
    """
    lengths = _row_lengths(files, labels)
    counts = {(length - 4) // 3 for length in lengths if length > 4 and (length - 4) % 3 == 0}
    if len(counts) == 1 and (count := counts.pop()) != len(config.keypoint_names):
        return msgspec.structs.replace(config, keypoint_names=keypoint_names(None, count))
    return config


def _read_data_yaml(files: DatasetFiles, name: str) -> YoloConfig:
    location = f"{files.location}/{name}"
    try:
        data = yaml.safe_load(files.read(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DatasetError(location, f"it is not YAML ({reason})") from None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict) and all(type(number) is int and 0 <= number < _MAX_CLASSES for number in names):
        names = [names.get(number, "") for number in range(max(names, default=-1) + 1)]  # gaps: unused indices
    if not isinstance(names, list):
        raise DatasetError(location, "it has no class names", fix="Add `names:` with 0, 1, 2, ...")
    for number, name_ in enumerate(names):
        if not isinstance(name_, str | int | float | date) or isinstance(name_, bool):
            fix = f"Quote the name of class {number}." if isinstance(name_, bool) else ""
            raise DatasetError(location, f"names: class {number} is {name_!r:.40}, not a text", fix=fix)
    shape = data.get("kpt_shape")
    if shape is None:
        return YoloConfig(tuple(map(str, names)))
    if not is_keypoint_shape(shape):
        raise DatasetError(location, f"kpt_shape {shape!r:.40} is not [number of key points, 2 or 3]")
    return YoloConfig(tuple(map(str, names)), keypoint_names(data.get("kpt_names"), shape[0]), shape[1])


def is_keypoint_shape(shape: Any) -> bool:
    """Whether the value is a valid ``kpt_shape``: [number of key points, 2 or 3]."""
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)):
        return False
    return 0 < shape[0] <= _MAX_KEYPOINTS and shape[1] in {2, 3}


def keypoint_names(names_of_classes: Any, count: int) -> tuple[str, ...]:
    """The names of ``count`` key points: of the first class with that many names, else ``point 0``, ``point 1``, ..."""
    lists = list(names_of_classes.values()) if isinstance(names_of_classes, dict) else [names_of_classes]
    for names in lists:
        if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
            return tuple(map(str, names))
    return tuple(f"point {number}" for number in range(count))


def may_be_label_file(name: str) -> bool:
    """Whether the name of a file allows it to be a label file."""
    file = name.rpartition("/")[2].lower()
    return name.endswith(".txt") and file not in _NO_LABELS and not file.startswith("readme")


def _in_label_folder(name: str) -> bool:
    return not set(_LABEL_FOLDERS).isdisjoint(PurePosixPath(name).parts[:-1])


def _has_rows(files: DatasetFiles, name: str) -> bool:
    """Whether the first line of a text file consists of at least 5 numbers."""
    try:
        first = next(iter(decode_lines(files.read(name))), "")
    except (MalformedData, DatasetError):
        return False
    return len(first.split()) > 4 and all(map(_is_number, first.split()))


def label_files(files: DatasetFiles, images: ImageFiles) -> dict[str, str]:
    """Image name -> label file: at the standard Ultralytics path, else the unique file of the same name."""
    texts = {name for name in files.names if may_be_label_file(name)}
    if not texts:
        return {}
    by_stem: dict[str, list[str]] = {}
    by_original_name: dict[str, list[str]] = {}
    for name in sorted(texts):
        stem = _stem(name)
        by_stem.setdefault(stem, []).append(name)
        for original in original_names(stem):
            by_original_name.setdefault(original, []).append(name)
    label_file_by_image = {}
    for name in images.names:
        base, stem = posixpath.splitext(name)[0], _stem(name)
        head, separator, rest = f"/{base}".rpartition("/images/")
        standard_paths = [f"{head}/{folder}/{rest}".lstrip("/") for folder in _LABEL_FOLDERS] if separator else []
        standard_paths += [*(f"{folder}/{base}" for folder in _LABEL_FOLDERS), base]
        label_file = next((f"{path}.txt" for path in standard_paths if f"{path}.txt" in texts), "")
        if not label_file:
            same_stem = (
                by_stem.get(stem) or by_stem.get(name.rpartition("/")[2]) or by_original_name.get(stem, [])
            )  # a.jpg.txt
            top = name.partition("/")[0]
            same_top = (
                [file for file in same_stem if file.partition("/")[0] == top] if len(same_stem) > 1 else same_stem
            )
            label_file = same_top[0] if len(same_top) == 1 else ""
        if label_file:
            label_file_by_image[name] = label_file
    return label_file_by_image


def _stem(name: str) -> str:
    return posixpath.splitext(name.rpartition("/")[2])[0]


def _splits(files: DatasetFiles, images: ImageFiles) -> dict[str, str]:
    """Image name -> split, from Darknet's lists: ``train.txt`` has lines such as ``data/obj_train_data/a.jpg``."""
    splits: dict[str, str] = {}
    for name in files.names:
        path = PurePosixPath(name)
        split = split_of(path.stem) if path.suffix == ".txt" and len(path.parts) < 3 else ""
        if not split or _in_label_folder(name):
            continue
        try:
            lines = decode_lines(files.read(name))
        except MalformedData as error:
            raise DatasetError(f"{files.location}/{name}", str(error)) from None
        splits |= {image: split for line in lines if (image := images.find(line))}
    return splits


def _task(files: DatasetFiles, labels: Mapping[str, str], config: YoloConfig) -> str:
    """The task, from ``kpt_shape`` and the lengths of the rows."""
    if config.keypoint_names:
        return "pose"
    lengths = {length for length in _row_lengths(files, labels) if length > 3}
    if lengths <= {4, 5}:
        return "detect"
    if lengths <= {8, 9}:
        if config.from_label_studio:
            return "obb"
        raise DatasetError(files.location, "rows of four corners are either rotated boxes or polygons", fix=_AMBIGUOUS)
    return "segment"


def _row_lengths(files: DatasetFiles, labels: Mapping[str, str]) -> Counter[int]:
    """Count rows by their number of values after the class; non-numeric rows are skipped."""
    rows = (line.split() for line in _rows(files, labels))
    return Counter(len(cells) - 1 for cells in rows if all(map(_is_number, cells)))


def _rows(files: DatasetFiles, labels: Mapping[str, str]) -> Iterator[str]:
    """The lines of all readable label files."""
    for file in dict.fromkeys(labels.values()):
        with suppress(MalformedData, DatasetError):  # reported when the image is read
            yield from decode_lines(files.read(file))


def _numbered_classes(files: DatasetFiles, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Class names for a data set without them: ``class 0`` up to the largest index in use."""
    firsts = (line.split(maxsplit=1)[0] for line in _rows(files, labels))
    numbers = [min(int(first), _MAX_CLASSES - 1) for first in firsts if first.isdecimal() and len(first) < 10]
    return tuple(f"class {number}" for number in range(max(numbers, default=-1) + 1))
