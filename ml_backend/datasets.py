"""Owns READERS: labelled photos in a folder, as Pascal VOC, COCO or YOLO has them, read as boxes in pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defusedxml import ElementTree

from labelloop.service.media import MediaError, photo_size
from ml_backend.errors import DatasetUnreadable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and what is on it: boxes as x_min, y_min, x_max, y_max in pixels of the photo, each with its label."""

    path: Path
    boxes: tuple[Box, ...]
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending: what lists of photos name."""
        return self.path.stem


Reader = Callable[[Path, Mapping[str, Path]], Iterable[LabelledPhoto]]


def read_dataset(images: Path, annotations: Path) -> list[LabelledPhoto]:
    """The photos that have annotations, in the order of their names.

    Args:
        images: A folder of photos, or of folders of photos.
        annotations: A folder of VOC's XML, a folder of YOLO's text files (`classes.txt`, `names.txt` or a `data.yaml`
            in it or above it names the classes), or a COCO JSON file.

    Raises:
        DatasetUnreadable: There is nothing of the kind, or a file of it is malformed.
    """
    photos = {path.stem: path for path in sorted(images.rglob("*")) if path.suffix.lower() in SUFFIXES}
    if not photos:
        raise DatasetUnreadable(images, "there is no photo in it")
    for recognise, read in READERS.values():
        if recognise(annotations):
            found = sorted(read(annotations, photos), key=lambda photo: photo.name)
            if not found:
                raise DatasetUnreadable(annotations, f"none of its annotations is of a photo in {images}")
            return found
    raise DatasetUnreadable(annotations, "it is neither a folder of VOC XML or YOLO text files nor a COCO JSON file")


def read_list(file: Path) -> frozenset[str]:
    """Names of photos, one a line, with or without folder and ending.

    Raises:
        DatasetUnreadable: It cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetUnreadable(file, "it cannot be read as text") from error
    names = (Path(line.strip()) for line in lines if line.strip())
    return frozenset(name.stem if name.suffix.lower() in SUFFIXES else name.name for name in names)


def _read_voc(folder: Path, photos: Mapping[str, Path]) -> Iterable[LabelledPhoto]:
    """Corners are taken as they stand: VOC's count from 1, but most sets that call themselves VOC count from 0."""
    for file in sorted(folder.glob("*.xml")):
        if file.stem not in photos:
            continue
        try:
            objects = ElementTree.parse(file).findall(".//object")
            labels = tuple(str(one.findtext("name", "")).strip() for one in objects)
            boxes = tuple(_voc_box(one.find("bndbox")) for one in objects)
        except (ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
            raise DatasetUnreadable(file, f"it is no Pascal VOC annotation ({error})") from error
        yield LabelledPhoto(photos[file.stem], boxes, labels)


def _voc_box(box: Any) -> Box:
    left, top, right, bottom = (float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    return left, top, right, bottom


def _read_coco(file: Path, photos: Mapping[str, Path]) -> Iterable[LabelledPhoto]:
    try:
        told = json.loads(file.read_bytes())
        names = {one["id"]: str(one["name"]) for one in told["categories"]}
        drawn: dict[Any, list[tuple[Box, str]]] = {one["id"]: [] for one in told["images"]}
        for one in told["annotations"]:
            x, y, width, height = (float(value) for value in one["bbox"])
            if not one.get("iscrowd"):
                drawn[one["image_id"]].append(((x, y, x + width, y + height), names[one["category_id"]]))
        stems = [(one["id"], Path(str(one["file_name"])).stem) for one in told["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetUnreadable(file, f"it is no COCO file ({error!r})") from error
    for image, stem in stems:
        if stem in photos:
            boxes, labels = zip(*drawn[image], strict=True) if drawn[image] else ((), ())
            yield LabelledPhoto(photos[stem], boxes, labels)


def _read_yolo(folder: Path, photos: Mapping[str, Path]) -> Iterable[LabelledPhoto]:
    """Lines `class cx cy w h` as shares of the photo; a polygon `class x1 y1 x2 y2 ...` becomes the box around it."""
    names = _yolo_names(folder)
    for file in sorted(folder.glob("*.txt")):
        if file.stem not in photos:
            continue
        boxes, labels = [], []
        try:
            width, height = photo_size(photos[file.stem])
            for line in filter(str.strip, file.read_text().splitlines()):
                number, *values = line.split()
                boxes.append(_yolo_box([float(value) for value in values], width, height))
                labels.append(names[int(number)] if int(number) < len(names) else number)
        except (ValueError, UnicodeDecodeError) as error:
            raise DatasetUnreadable(file, f"it is no YOLO annotation ({error})") from error
        except MediaError:
            continue  # a photo that cannot be opened has no size; it could not be learned from either
        yield LabelledPhoto(photos[file.stem], tuple(boxes), tuple(labels))


def _yolo_box(values: list[float], width: int, height: int) -> Box:
    if len(values) == 4:
        cx, cy, w, h = values
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"a line has {len(values)} numbers after the class")
    return min(values[::2]) * width, min(values[1::2]) * height, max(values[::2]) * width, max(values[1::2]) * height


def _yolo_names(folder: Path) -> list[str]:
    for place in (folder, folder.parent, folder.parent.parent):
        for name in ("classes.txt", "names.txt"):
            if (place / name).is_file():
                return (place / name).read_text(encoding="utf-8").splitlines()
    return []


READERS: Mapping[str, tuple[Callable[[Path], bool], Reader]] = {
    "coco": (lambda path: path.is_file() and path.suffix.lower() == ".json", _read_coco),
    "voc": (lambda path: path.is_dir() and any(path.glob("*.xml")), _read_voc),
    "yolo": (lambda path: path.is_dir() and any(path.glob("*.txt")), _read_yolo),
}
"""Format -> (whether a path is of it, its reader), tried in this order."""
