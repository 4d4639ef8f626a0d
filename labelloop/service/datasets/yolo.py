"""YOLO: a text file for each photo, detect, segment, OBB and pose, as Ultralytics, Darknet and Label Studio lay it out.

Formats: https://docs.ultralytics.com/datasets/ (``data.yaml``), https://github.com/AlexeyAB/darknet (``obj.data``,
``obj.names``, lists of photos). Label Studio writes ``classes.txt`` and ``notes.json``. The rows of OBB look like a
segment's of four corners: only the user, or Label Studio's ``notes.json``, tells these two apart.
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
from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.files import Files, Photos, uploaded
from labelloop.service.datasets.model import DataSet, Keypoint, LabelledObject, LabelledPhoto, Problem
from labelloop.service.datasets.shapes import box, outline
from labelloop.service.datasets.text import json_of, lines_of, text_of

SHEETS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NOTES = "notes.json"
"""What Label Studio writes beside ``classes.txt``."""
_CLASS_LISTS = ("classes.txt", "names.txt", "_darknet.labels", "predefined_classes.txt")
_LABEL_FOLDERS = ("labels", "labelTxt")
_NO_LABELS = {*_CLASS_LISTS, "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt", "notes.txt"}
_CLASSES = 10_000
_JOINTS = 1_000
_AMBIGUOUS = "Say which with --format yolo-obb or --format yolo-segment."


class Sheet(msgspec.Struct, frozen=True):
    """What a data set says of all its photos: the classes, and the key points of a pose.

    Attributes:
        names: The classes by number; empty names are numbers of no class.
        joints: The key points.
        dimensions: How many numbers a key point has, 2 or 3.
        studio: Whether Label Studio wrote the data set: rows of four corners are turned boxes, or as good as.
    """

    names: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    dimensions: int = 3
    studio: bool = False


Row = Callable[[Sequence[float], int, int, Sheet], LabelledObject]
"""The numbers after the class, width, height and the sheet -> the object, without its class."""


def read_yolo(files: Files, photos: Photos, task: str = "", *, sheet: str = "") -> DataSet:
    """A folder of YOLO labels beside its photos.

    Args:
        files: The data set's files: ``data.yaml`` or a list of classes, and label files at any depth.
        photos: The photos; a label file is of the photo of its name. Nothing is said of a photo without one; nothing
            is on a photo whose file is empty.
        task: ``detect``, ``segment``, ``obb`` or ``pose``; empty: told by ``data.yaml`` and the rows.
        sheet: The name of ``data.yaml``, where it has another.

    Raises:
        DatasetError: It is no such folder, or segment and OBB cannot be told apart.
    """
    told = read_sheet(files, sheet)
    labels = label_files(files, photos)
    if not labels:
        raise DatasetError(
            files.place,
            "none of its text files is of one of the photos",
            fix="The labels of a.jpg are in a.txt, beside it or in labels/; --images-from says where the photos are.",
        )
    if told.studio and told.joints:
        told = named_joints(told, files, labels)
    task = task or _task(files, labels, told)
    row = ROWS[task]
    splits = _splits(files, photos)
    used = set(labels.values())

    def read() -> Iterator[LabelledPhoto | Problem]:
        for name in photos.names:
            photo = LabelledPhoto(name, split=splits.get(name, ""))
            if name not in labels:
                yield msgspec.structs.replace(photo, labelled=False)
                continue
            size = photos.size(name)
            if isinstance(size, str):
                yield Problem(name, size)
                continue
            photo = msgspec.structs.replace(photo, width=size[0], height=size[1])
            yield from _photo(photo, labels[name], files, told, row)
        yield from (Problem(name, reason) for name, reason in label_files_alone(files, photos, used))

    classes = tuple(name for name in told.names if name) or _numbered(files, labels)
    return DataSet(f"yolo-{task}", read, classes, told.joints if task == "pose" else ())


def is_yolo(files: Files) -> bool:
    """Whether a file says that it is a data set of YOLO: ``data.yaml``, Darknet's ``*.names``, Label Studio's notes."""
    names = files.names
    marked = any(name in SHEETS or name.endswith((".names", "_darknet.labels")) for name in names)
    return marked or (NOTES in names and "classes.txt" in names)


def has_label_files(files: Files, photos: Photos) -> bool:
    """Whether there are texts that can be labels: of one of the photos, or in a folder for labels."""
    texts = filter(may_be_labels, files.names)
    return any(_in_label_folder(name) for name in texts) or bool(label_files(files, photos))


def label_files_alone(files: Files, photos: Photos, used: set[str]) -> Iterator[tuple[str, str]]:
    """The label files of no photo, each with the reason. A text that holds no rows, such as a README, is none."""
    stems = Counter(PurePosixPath(name).stem for name in photos.names)
    for name in files.names:
        if may_be_labels(name) and name not in used and (_in_label_folder(name) or _has_rows(files, name)):
            among = stems[PurePosixPath(name).stem]
            yield name, "several photos or label files have this name" if among else "there is no photo of this name"


def detect(values: Sequence[float], width: int, height: int, sheet: Sheet) -> LabelledObject:
    """``x_centre y_centre width height`` and, of a model, how sure it is."""
    del sheet
    if len(values) not in {4, 5}:
        raise Flawed(f"{len(values)} numbers after the class; a box has 4")
    return LabelledObject(_box(values, width, height), "", values[4] if len(values) == 5 else None)


def segment(values: Sequence[float], width: int, height: int, sheet: Sheet) -> LabelledObject:
    """``x1 y1 x2 y2 ...`` and, of a model, how sure it is. Four numbers are a box, as for Ultralytics."""
    if len(values) in {4, 5}:
        return detect(values, width, height, sheet)
    points, score = _points(values, width, height)
    return LabelledObject(outline(points), "", score)


def obb(values: Sequence[float], width: int, height: int, sheet: Sheet) -> LabelledObject:
    """Four corners and, of a model, how sure it is."""
    del sheet
    if len(values) not in {8, 9}:
        raise Flawed(f"{len(values)} numbers after the class; four corners have 8")
    points, score = _points(values, width, height)
    return LabelledObject(outline(points, upright=False), "", score)


def pose(values: Sequence[float], width: int, height: int, sheet: Sheet) -> LabelledObject:
    """A box, ``x y visibility`` (or ``x y``) of each key point and, of a model, how sure it is."""
    wide = sheet.dimensions
    wanted = 4 + wide * len(sheet.joints)
    if len(values) not in {wanted, wanted + 1}:
        raise Flawed(f"{len(values)} numbers after the class; kpt_shape asks for {wanted}")
    joints = []
    for place, name in enumerate(sheet.joints):
        x, y, *seen = values[4 + place * wide : 4 + (place + 1) * wide]
        visible = seen[0] if seen else (2 if x >= 0 and y >= 0 else 0)
        if visible > 0:  # a model writes a confidence here
            joints.append(Keypoint(name, x * width, y * height, hidden=visible == 1))
    score = values[wanted] if len(values) > wanted else None
    if score is not None:  # of a model: where it saw a point or not, not whether it is hidden
        joints = [Keypoint(joint.name, joint.x, joint.y) for joint in joints]
    return LabelledObject(_box(values, width, height), "", score, tuple(joints))


ROWS: Mapping[str, Row] = {"detect": detect, "segment": segment, "obb": obb, "pose": pose}


def _photo(photo: LabelledPhoto, file: str, files: Files, sheet: Sheet, row: Row) -> Iterator[LabelledPhoto | Problem]:
    try:
        lines = text_of(files.read(file)).splitlines()
    except (DatasetError, Flawed) as error:
        yield Problem(file, error.reason if isinstance(error, DatasetError) else str(error))
        yield msgspec.structs.replace(photo, unread=1)
        return
    drawn: list[LabelledObject] = []
    faults: list[Problem] = []
    for line, text in enumerate(lines, start=1):
        cells = text.split()
        if not cells:
            continue
        try:
            kind, *values = _numbers(cells)
            one = row(values, photo.width, photo.height, sheet)
            drawn.append(msgspec.structs.replace(one, label=label_of(kind, sheet.names)))
        except Flawed as flaw:
            faults.append(Problem(f"{file}, line {line}", str(flaw)))
    if len(faults) > 1 and not drawn:
        first = faults[0].item.rpartition(", ")[2]
        yield Problem(file, f"none of its {len(faults)} rows can be read; {first}: {faults[0].reason}")
    else:
        yield from faults
    yield msgspec.structs.replace(photo, drawn=tuple(drawn), unread=len(faults))


def _numbers(cells: Sequence[str]) -> list[float]:
    if len(cells) in {9, 10} and _is_number(cells[0]) and _is_number(cells[7]) and not _is_number(cells[8]):
        raise Flawed(
            "a row of DOTA (four corners in pixels, then the name of the class), not of YOLO: export YOLOv8 OBB instead"
        )
    return [_share(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _share(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise Flawed(f"{cell!r:.40} is not a number") from None
    if not abs(value) < 1e6:
        raise Flawed(f"{cell!r:.40} is out of range")
    return value


def label_of(kind: float, names: Sequence[str]) -> str:
    """The name of a class by its number. Raises `Flawed` where there is none."""
    if kind < 0 or kind != int(kind) or (names and kind >= len(names)):
        raise Flawed(f"class {kind:g}: the classes are 0 to {len(names) - 1}" if names else f"class {kind:g} is none")
    name = names[int(kind)] if names else f"class {int(kind)}"
    if not name:
        raise Flawed(f"class {kind:g} has no name")
    return name


def _box(values: Sequence[float], width: int, height: int) -> Geometry:
    cx, cy, w, h = values[:4]
    return box((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)


def _points(values: Sequence[float], width: int, height: int) -> tuple[list[tuple[float, float]], float | None]:
    if len(values) < 6:
        raise Flawed(f"{len(values)} numbers after the class; an outline has 6 or more")
    score = values[-1] if len(values) % 2 else None
    flat = values[: len(values) // 2 * 2]
    return [(x * width, y * height) for x, y in zip(flat[::2], flat[1::2], strict=True)], score


def read_sheet(files: Files, name: str = "") -> Sheet:
    """What a data set says of all its photos: by ``data.yaml``, else by a list of classes and Label Studio's notes.

    Args:
        files: The data set's files.
        name: The name of ``data.yaml``, where it has another.

    Raises:
        DatasetError: The file that says it cannot be read.
    """
    name = name or next((each for each in SHEETS if each in files.names), "")
    if name.endswith((".yaml", ".yml")):
        return _read_data_yaml(files, name)
    listed = _class_list(files)
    try:
        text = text_of(files.read(listed)) if listed else ""
    except Flawed as flaw:
        raise DatasetError(f"{files.place}/{listed}", str(flaw)) from None
    names = tuple(line.strip() for line in text.rstrip().splitlines())  # an empty line is a number of no class
    return Sheet(names, _noted(files), studio=NOTES in files.names and listed == "classes.txt")


def class_list_of(files: Files) -> str:
    """The file that names the classes: ``data.yaml``, or a list; empty where there is none."""
    return next((each for each in SHEETS if each in files.names), "") or _class_list(files)


def _class_list(files: Files) -> str:
    """The list of classes that is nearest to the top: the same in several folders is one."""
    known = {name: place for place, name in enumerate(_CLASS_LISTS)}
    found = [
        (name.count("/"), known.get(path.name, -1), name)
        for name in files.names
        if (path := PurePosixPath(name)).name in known or path.suffix == ".names"
    ]
    return min(found)[2] if found else ""


def _noted(files: Files) -> tuple[str, ...]:
    """The key points that Label Studio's notes name."""
    try:
        notes = json_of(files.read(NOTES)) if NOTES in files.names else None
    except (Flawed, DatasetError):
        return ()
    listed = notes.get("categories") if isinstance(notes, dict) else None
    for each in listed if isinstance(listed, list) else ():
        joints = each.get("keypoints") if isinstance(each, dict) else None
        if isinstance(joints, list) and joints and all(isinstance(joint, str) for joint in joints):
            return tuple(dict.fromkeys(joints))
    return ()


def named_joints(told: Sheet, files: Files, labels: Mapping[str, str]) -> Sheet:
    """Label Studio's rows have key points of a ``model_index`` alone: where the numbers differ, they have no names."""
    lengths = _lengths(files, labels)
    wanted = {(length - 4) // 3 for length in lengths if length > 4 and (length - 4) % 3 == 0}
    if len(wanted) == 1 and (count := wanted.pop()) != len(told.joints):
        return msgspec.structs.replace(told, joints=joint_names(None, count))
    return told


def _read_data_yaml(files: Files, name: str) -> Sheet:
    place = f"{files.place}/{name}"
    try:
        told = yaml.safe_load(files.read(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DatasetError(place, f"it is no YAML ({reason})") from None
    names = told.get("names") if isinstance(told, dict) else None
    if isinstance(names, dict) and all(type(number) is int and 0 <= number < _CLASSES for number in names):
        names = [names.get(number, "") for number in range(max(names, default=-1) + 1)]  # gaps: numbers of no class
    if not isinstance(names, list):
        raise DatasetError(place, "it names no classes", fix="Write `names:` with 0, 1, 2, ...")
    for number, each in enumerate(names):
        if not isinstance(each, str | int | float | date) or isinstance(each, bool):
            fix = f"Write the name of class {number} in quotes." if isinstance(each, bool) else ""
            raise DatasetError(place, f"names: class {number} is {each!r:.40}, not a text", fix=fix)
    shape = told.get("kpt_shape")
    if shape is None:
        return Sheet(tuple(map(str, names)))
    if not is_joint_shape(shape):
        raise DatasetError(place, f"kpt_shape {shape!r:.40} is not [number of key points, 2 or 3]")
    return Sheet(tuple(map(str, names)), joint_names(told.get("kpt_names"), shape[0]), shape[1])


def is_joint_shape(shape: Any) -> bool:
    """Whether it is a ``kpt_shape``: a number of key points, and 2 or 3."""
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)):
        return False
    return 0 < shape[0] <= _JOINTS and shape[1] in {2, 3}


def joint_names(given: Any, count: int) -> tuple[str, ...]:
    """The names of ``count`` key points, of the first class that has some: Label Studio's are the same for all."""
    lists = list(given.values()) if isinstance(given, dict) else [given]
    for names in lists:
        if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
            return tuple(map(str, names))
    return tuple(f"point {number}" for number in range(count))


def may_be_labels(name: str) -> bool:
    """Whether a file may hold the rows of a photo, by its name."""
    file = name.rpartition("/")[2].lower()
    return name.endswith(".txt") and file not in _NO_LABELS and not file.startswith("readme")


def _in_label_folder(name: str) -> bool:
    return not set(_LABEL_FOLDERS).isdisjoint(PurePosixPath(name).parts[:-1])


def _has_rows(files: Files, name: str) -> bool:
    """Whether a text begins as rows do: with numbers alone."""
    try:
        first = next(iter(lines_of(files.read(name))), "")
    except (Flawed, DatasetError):
        return False
    return len(first.split()) > 4 and all(map(_is_number, first.split()))


def label_files(files: Files, photos: Photos) -> dict[str, str]:
    """The label file of each photo that has one: where Ultralytics looks for it, else the one of its name."""
    texts = {name for name in files.names if may_be_labels(name)}
    if not texts:
        return {}
    of_stem: dict[str, list[str]] = {}
    of_upload: dict[str, list[str]] = {}
    for name in sorted(texts):
        stem = _stem(name)
        of_stem.setdefault(stem, []).append(name)
        for each in uploaded(stem):
            of_upload.setdefault(each, []).append(name)
    found = {}
    for name in photos.names:
        whole, stem = posixpath.splitext(name)[0], _stem(name)
        head, images, rest = f"/{whole}".rpartition("/images/")
        usual = [f"{head}/{folder}/{rest}".lstrip("/") for folder in _LABEL_FOLDERS] if images else []
        usual += [*(f"{folder}/{whole}" for folder in _LABEL_FOLDERS), whole]
        wanted = next((f"{each}.txt" for each in usual if f"{each}.txt" in texts), "")
        if not wanted:
            named = of_stem.get(stem) or of_stem.get(name.rpartition("/")[2]) or of_upload.get(stem, [])  # a.jpg.txt
            top = name.partition("/")[0]
            near = [each for each in named if each.partition("/")[0] == top] if len(named) > 1 else named
            wanted = near[0] if len(near) == 1 else ""
        if wanted:
            found[name] = wanted
    return found


def _stem(name: str) -> str:
    return posixpath.splitext(name.rpartition("/")[2])[0]


def _splits(files: Files, photos: Photos) -> dict[str, str]:
    """The split of each photo that Darknet's lists name: ``train.txt`` holds ``data/obj_train_data/a.jpg``."""
    found: dict[str, str] = {}
    for name in files.names:
        path = PurePosixPath(name)
        split = split_of(path.stem) if path.suffix == ".txt" and len(path.parts) < 3 else ""
        if not split or _in_label_folder(name):
            continue
        try:
            lines = lines_of(files.read(name))
        except Flawed as flaw:
            raise DatasetError(f"{files.place}/{name}", str(flaw)) from None
        found |= {photo: split for line in lines if (photo := photos.find(line))}
    return found


def _task(files: Files, labels: Mapping[str, str], sheet: Sheet) -> str:
    """What the rows are, by ``kpt_shape`` and their lengths."""
    if sheet.joints:
        return "pose"
    lengths = {length for length in _lengths(files, labels) if length > 3}
    if lengths <= {4, 5}:
        return "detect"
    if lengths <= {8, 9}:
        if sheet.studio:
            return "obb"
        raise DatasetError(files.place, "rows of four corners are turned boxes or outlines", fix=_AMBIGUOUS)
    return "segment"


def _lengths(files: Files, labels: Mapping[str, str]) -> Counter[int]:
    """How many numbers follow the class -> how many rows have so many; rows with anything else are left out."""
    rows = (line.split() for line in _rows(files, labels))
    return Counter(len(cells) - 1 for cells in rows if all(map(_is_number, cells)))


def _rows(files: Files, labels: Mapping[str, str]) -> Iterator[str]:
    """The lines of all label files that can be read."""
    for file in dict.fromkeys(labels.values()):
        with suppress(Flawed, DatasetError):  # told when its photo is read
            yield from lines_of(files.read(file))


def _numbered(files: Files, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Classes of a folder that does not name them: ``class 0`` to the largest in use."""
    firsts = (line.split(maxsplit=1)[0] for line in _rows(files, labels))
    numbers = [min(int(first), _CLASSES - 1) for first in firsts if first.isdecimal() and len(first) < 10]
    return tuple(f"class {number}" for number in range(max(numbers, default=-1) + 1))
