"""YOLO as Ultralytics has it: a text file a photo, classes in ``data.yaml``; detect, segment, OBB and pose.

Formats: https://docs.ultralytics.com/datasets/. The rows of OBB look like a segment's of four corners, so nothing but
the user can tell these two apart.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
import yaml

from labelloop.labeling.geometry import Geometry
from labelloop.service.datasets.dataset import DataSet, Drawn, Joint, LabelledPhoto, Problem
from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.files import Files, Photos
from labelloop.service.datasets.shapes import box, outline

SHEETS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "names.txt", "obj.names", "labels/classes.txt")
_NO_LABELS = {"classes.txt", "names.txt", "readme.txt", "train.txt", "val.txt", "test.txt", "labels.txt", "notes.txt"}
_CLASSES = 10_000
_AMBIGUOUS = "Say which with --format yolo-obb or --format yolo-segment."


class Sheet(msgspec.Struct, frozen=True):
    """What ``data.yaml`` says: the classes, and the key points of a pose."""

    names: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    dimensions: int = 3


Row = Callable[[Sequence[float], int, int, Sheet], Drawn]
"""The numbers after the class, width, height and the sheet -> the object, without its class."""


def read_yolo(files: Files, photos: Photos, task: str = "", *, sheet: str = "") -> DataSet:
    """A folder of YOLO labels beside its photos.

    Args:
        files: The data set's files: ``data.yaml`` and label files at any depth.
        photos: The photos; a label file is of the photo of its name. A photo without one has nothing on it.
        task: ``detect``, ``segment``, ``obb`` or ``pose``; empty: told by ``data.yaml`` and the rows.
        sheet: The name of ``data.yaml``, where it has another.

    Raises:
        DatasetError: It is no such folder, or segment and OBB cannot be told apart.
    """
    told = _told(files, sheet) if sheet else _sheet(files)
    labels = _label_files(files, photos)
    if not labels:
        raise DatasetError(
            files.place,
            "none of its text files is of one of the photos",
            fix="The labels of a.jpg are in a.txt, beside it or in labels/; --images-from says where the photos are.",
        )
    task = task or _task(files, labels, told)
    row = ROWS[task]

    def read() -> Iterator[LabelledPhoto | Problem]:
        for name in photos.names:
            if name not in labels:
                yield LabelledPhoto(name)
                continue
            size = photos.size(name)
            if isinstance(size, str):
                yield Problem(name, size)
                continue
            yield from _photo(LabelledPhoto(name, *size), labels[name], files.read(labels[name]), told, row)
        yield from (Problem(file, "there is no photo of this name") for file in orphans)

    used = set(labels.values())
    orphans = [name for name in files.names if _may_be_labels(name) and name not in used]
    classes = tuple(name for name in told.names if name) or _numbered(files, labels)
    return DataSet(f"yolo-{task}", read, classes, told.joints if task == "pose" else ())


def has_label_files(files: Files, photos: Photos) -> bool:
    """Whether there are texts that can be labels: of one of the photos, or in a folder for labels."""
    texts = filter(_may_be_labels, files.names)
    return any("labels" in PurePosixPath(name).parts[:-1] for name in texts) or bool(_label_files(files, photos))


def detect(values: Sequence[float], width: int, height: int, sheet: Sheet) -> Drawn:
    """``x_centre y_centre width height`` and, of a model, how sure it is."""
    del sheet
    if len(values) not in {4, 5}:
        raise Flawed(f"{len(values)} numbers after the class; a box has 4")
    return Drawn(_box(values, width, height), "", values[4] if len(values) == 5 else None)


def segment(values: Sequence[float], width: int, height: int, sheet: Sheet) -> Drawn:
    """``x1 y1 x2 y2 ...`` and, of a model, how sure it is. Four numbers are a box, as for Ultralytics."""
    if len(values) in {4, 5}:
        return detect(values, width, height, sheet)
    points, score = _points(values, width, height)
    return Drawn(outline(points), "", score)


def obb(values: Sequence[float], width: int, height: int, sheet: Sheet) -> Drawn:
    """Four corners and, of a model, how sure it is."""
    del sheet
    if len(values) not in {8, 9}:
        raise Flawed(f"{len(values)} numbers after the class; four corners have 8")
    points, score = _points(values, width, height)
    return Drawn(outline(points, upright=False), "", score)


def pose(values: Sequence[float], width: int, height: int, sheet: Sheet) -> Drawn:
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
            joints.append(Joint(name, x * width, y * height, hidden=visible == 1))
    score = values[wanted] if len(values) > wanted else None
    if score is not None:  # of a model: where it saw a point or not, not whether it is hidden
        joints = [Joint(joint.name, joint.x, joint.y) for joint in joints]
    return Drawn(_box(values, width, height), "", score, tuple(joints))


ROWS: Mapping[str, Row] = {"detect": detect, "segment": segment, "obb": obb, "pose": pose}


def _photo(photo: LabelledPhoto, file: str, text: bytes, sheet: Sheet, row: Row) -> Iterator[LabelledPhoto | Problem]:
    drawn = []
    for line, cells in enumerate(text.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if not cells.strip():
            continue
        try:
            kind, *values = (_share(cell) for cell in cells.split())
            one = row(values, photo.width, photo.height, sheet)
            drawn.append(msgspec.structs.replace(one, label=label_of(kind, sheet.names)))
        except Flawed as flaw:
            yield Problem(f"{file}, line {line}", str(flaw))
    yield msgspec.structs.replace(photo, drawn=tuple(drawn))


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
        raise Flawed(f"class {kind:g}: the classes are 0 to {len(names) - 1}")
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


def _sheet(files: Files) -> Sheet:
    for name in SHEETS:
        if name in files.names:
            return _told(files, name)
    for name in (*_CLASS_LISTS, "predefined_classes.txt"):
        if name in files.names:
            lines = files.read(name).decode("utf-8-sig", errors="replace").splitlines()
            return Sheet(tuple(line.strip() for line in lines if line.strip()))
    return Sheet()


def _told(files: Files, name: str) -> Sheet:
    try:
        told = yaml.safe_load(files.read(name))
    except (yaml.YAMLError, ValueError) as error:
        raise DatasetError(f"{files.place}/{name}", f"it is no YAML ({error})") from None
    names = told.get("names") if isinstance(told, dict) else None
    if isinstance(names, dict) and all(type(number) is int and 0 <= number < _CLASSES for number in names):
        names = [names.get(number, "") for number in range(max(names, default=-1) + 1)]  # gaps: numbers of no class
    if not isinstance(names, list):
        raise DatasetError(f"{files.place}/{name}", "it names no classes", fix="Write `names:` with 0, 1, 2, ...")
    shape = told.get("kpt_shape")
    if shape is None:
        return Sheet(tuple(map(str, names)))
    if not (isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and shape[1] in {2, 3}):
        raise DatasetError(f"{files.place}/{name}", f"kpt_shape {shape!r:.40} is not [number of key points, 2 or 3]")
    return Sheet(tuple(map(str, names)), joint_names(told.get("kpt_names"), shape[0]), shape[1])


def joint_names(given: Any, count: int) -> tuple[str, ...]:
    """The names of ``count`` key points, of the first class that has some: Label Studio's are the same for all."""
    lists = list(given.values()) if isinstance(given, dict) else [given]
    for names in lists:
        if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
            return tuple(map(str, names))
    return tuple(f"point {number}" for number in range(count))


def _may_be_labels(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".txt" and path.name.lower() not in _NO_LABELS


def _label_files(files: Files, photos: Photos) -> dict[str, str]:
    """The label file of each photo that has one: where Ultralytics looks for it, else the one of its name."""
    texts = {name for name in files.names if _may_be_labels(name)}
    stems = Counter(PurePosixPath(name).stem for name in texts)
    by_stem = {PurePosixPath(name).stem: name for name in texts}
    found = {}
    for name in photos.names:
        path = PurePosixPath(name)
        stem = str(path.with_suffix(""))
        head, images, rest = f"/{stem}".rpartition("/images/")
        for wanted in (f"{head}/labels/{rest}".lstrip("/") if images else "", f"labels/{stem}", stem):
            if f"{wanted}.txt" in texts:
                found[name] = f"{wanted}.txt"
                break
        else:
            if stems[path.stem] == 1:
                found[name] = by_stem[path.stem]
    return found


def _task(files: Files, labels: Mapping[str, str], sheet: Sheet) -> str:
    """What the rows are, by ``kpt_shape`` and their lengths."""
    if sheet.joints:
        return "pose"
    lengths: Counter[int] = Counter()
    for file in labels.values():
        text = files.read(file).decode("utf-8-sig", errors="replace")
        lengths.update(len(line.split()) - 1 for line in text.splitlines() if line.strip())
    if not lengths or set(lengths) <= {4, 5}:
        return "detect"
    if set(lengths) <= {8, 9}:
        raise DatasetError(files.place, "rows of four corners are turned boxes or outlines", fix=_AMBIGUOUS)
    return "segment"


def _numbered(files: Files, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Classes of a folder that does not name them: ``class 0`` to the largest in use."""
    largest = -1
    for file in labels.values():
        for line in files.read(file).decode("utf-8-sig", errors="replace").splitlines():
            first = line.split(maxsplit=1)[:1]
            if first and first[0].isdecimal():
                largest = max(largest, min(int(first[0]), _CLASSES - 1))
    return tuple(f"class {number}" for number in range(largest + 1))
