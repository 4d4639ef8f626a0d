"""Read YOLO (detect, segment, OBB, pose) as Ultralytics, Darknet and Label Studio write it: one text file per image.

Formats: https://docs.ultralytics.com/datasets/ (``data.yaml``), https://github.com/AlexeyAB/darknet (``obj.data``,
``obj.names``, lists of images). Label Studio writes ``classes.txt`` and ``notes.json``. An OBB row looks like a
segment of four corners: only the user or Label Studio's ``notes.json`` distinguishes them.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePosixPath

import msgspec

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, original_names
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.text import decode_lines
from labelloop.service.datasets.yolo_config import (
    CLASS_LISTS,
    CONFIG_FILES,
    MAX_CLASSES,
    NOTES_FILE,
    YoloConfig,
    keypoint_names,
    read_config,
)
from labelloop.service.datasets.yolo_rows import ROW_PARSERS, LabelRow, RowParser, is_numeric, parse_row, read_rows

_LABEL_FOLDERS = ("labels", "labelTxt")
_NO_LABELS = {*CLASS_LISTS, "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt", "notes.txt"}
_AMBIGUOUS = "Pass --format yolo-obb or --format yolo-segment."


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
    parse = ROW_PARSERS[task]
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
            yield from _read_image(image, labels[name], files, config, parse)
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


def _read_image(
    image: DatasetImage, file: str, files: DatasetFiles, config: YoloConfig, parse: RowParser
) -> Iterator[DatasetImage | DatasetProblem]:
    try:
        rows = read_rows(files, file)
    except (DatasetError, MalformedData) as error:
        yield DatasetProblem(file, error.reason if isinstance(error, DatasetError) else str(error))
        yield msgspec.structs.replace(image, unread=1)
        return
    objects: list[LabelledObject] = []
    problems: list[DatasetProblem] = []
    for row in rows:
        try:
            objects.append(parse_row(row, image.width, image.height, config, parse))
        except MalformedData as error:
            problems.append(DatasetProblem(f"{file}, line {row.line}", str(error)))
    if len(problems) > 1 and not objects:
        first = problems[0].item.rpartition(", ")[2]
        yield DatasetProblem(file, f"none of its {len(problems)} rows can be read; {first}: {problems[0].reason}")
    else:
        yield from problems
    yield msgspec.structs.replace(image, objects=tuple(objects), unread=len(problems))


def match_keypoint_count(config: YoloConfig, files: DatasetFiles, labels: Mapping[str, str]) -> YoloConfig:
    """Replace the key point names if the rows have another number of key points than the config.

    Label Studio writes only key points with a ``model_index``, so its names may not match the rows.
    """
    lengths = _row_lengths(files, labels)
    counts = {(length - 4) // 3 for length in lengths if length > 4 and (length - 4) % 3 == 0}
    if len(counts) == 1 and (count := counts.pop()) != len(config.keypoint_names):
        return msgspec.structs.replace(config, keypoint_names=keypoint_names(None, count))
    return config


def may_be_label_file(name: str) -> bool:
    """Whether the name of a file allows it to be a label file."""
    file = name.rpartition("/")[2].lower()
    return name.endswith(".txt") and file not in _NO_LABELS and not file.startswith("readme")


def _in_label_folder(name: str) -> bool:
    return not set(_LABEL_FOLDERS).isdisjoint(PurePosixPath(name).parts[:-1])


def _has_rows(files: DatasetFiles, name: str) -> bool:
    """Whether the first line of a text file consists of at least 5 numbers."""
    try:
        first = next(iter(read_rows(files, name)), None)
    except (MalformedData, DatasetError):
        return False
    return first is not None and len(first.cells) > 4 and all(map(is_numeric, first.cells))


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
    return Counter(len(row.cells) - 1 for row in _rows(files, labels) if all(map(is_numeric, row.cells)))


def _rows(files: DatasetFiles, labels: Mapping[str, str]) -> Iterator[LabelRow]:
    """The rows of all readable label files."""
    for file in dict.fromkeys(labels.values()):
        with suppress(MalformedData, DatasetError):  # reported when the image is read
            yield from read_rows(files, file)


def _numbered_classes(files: DatasetFiles, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Class names for a data set without them: ``class 0`` up to the largest index in use."""
    firsts = (row.cells[0] for row in _rows(files, labels))
    numbers = [min(int(first), MAX_CLASSES - 1) for first in firsts if first.isdecimal() and len(first) < 10]
    return tuple(f"class {number}" for number in range(max(numbers, default=-1) + 1))
