"""Owns `LabelledPhotos`: a data set that somebody labelled, as boxes in pixels, and lists that name photos of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelloop.service.datasets import DatasetError, Photos, Place, Problem, open_place, read_dataset
from labelloop.service.datasets import LabelledPhoto as Described
from labelloop.service.datasets.registry import recognise
from labelloop.service.settings import Settings
from ml_backend.errors import DatasetUnreadable, TestListUnusable

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and what is on it: boxes as x_min, y_min, x_max, y_max in pixels of the photo, each with its label.

    Attributes:
        path: The file.
        name: Its name below the folder of photos, with `/`.
    """

    path: Path
    name: str
    boxes: tuple[Box, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelledPhotos:
    """The photos that are labelled, in the order of their names, and what of the data set was left out."""

    photos: tuple[LabelledPhoto, ...]
    problems: tuple[Problem, ...]
    folder: Photos

    def listed(self, file: Path) -> tuple[frozenset[str], Sequence[str]]:
        """The names of the photos that a text file lists, one a line, and the lines that name none.

        Args:
            file: Names with or without folder and ending.

        Raises:
            TestListUnusable: It cannot be read.
        """
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise TestListUnusable(file, str(why)) from error
        names = [line.strip() for line in lines if line.strip()]
        found = {name: self.folder.find(name) for name in names}
        return frozenset(one for one in found.values() if one), [name for name, one in found.items() if not one]


def read_labelled(images: Path, annotations: Path, *, settings: Settings | None = None) -> LabelledPhotos:
    """The photos that have annotations, whatever `labelloop import` reads too; polygons and masks as the boxes around.

    Args:
        images: A folder of photos, or of folders of photos.
        annotations: A folder of Pascal VOC's XML or of YOLO's text files, or a COCO JSON file.
        settings: Read from the environment where None.

    Raises:
        DatasetError: There is nothing of the kind.
        DatasetUnreadable: No photo of it is there, or nothing is drawn on any.
    """
    place = open_place(str(annotations), settings or Settings(), images=str(images))
    if not place.photos.names:
        raise DatasetUnreadable(images, "there is no photo in it")
    found: dict[str, LabelledPhoto] = {}
    problems: list[Problem] = []
    for one in _read(place):
        name = one.item if isinstance(one, Problem) else place.photos.find(one.name)
        if isinstance(one, Problem):
            problems.append(one)
        elif name is None:
            problems.append(Problem(one.name, f"{images} has no photo of this name, or several"))
        elif name in found:
            problems.append(Problem(one.name, "the data set describes this photo twice; the first counts"))
        elif not one.unread or one.drawn:  # what cannot be read is no photo with nothing on it
            drawn = [each for each in one.drawn if not each.crowd]
            if one.drawn and not drawn:
                problems.append(Problem(one.name, "all that is on it is a crowd"))
                continue
            boxes = tuple(each.geometry.bounds for each in drawn)
            found[name] = LabelledPhoto(images / name, name, boxes, tuple(each.label for each in drawn))
    if not any(one.labels for one in found.values()):
        reason = "nothing is drawn on any of its photos" if found else f"none of its photos is in {images}"
        raise DatasetUnreadable(annotations, f"{reason}{_first(problems)}")
    return LabelledPhotos(tuple(found[name] for name in sorted(found)), tuple(problems), place.photos)


def _read(place: Place) -> Iterator[Described | Problem]:
    try:
        return read_dataset(place).photos()
    except DatasetError:
        if recognise(place) != "yolo":
            raise
        # Rows that are turned boxes or outlines, who knows: the boxes around them are the same.
        return read_dataset(place, "yolo-segment").photos()


def _first(problems: Sequence[Problem]) -> str:
    return f" ({problems[0].item}: {problems[0].reason})" if problems else ""
