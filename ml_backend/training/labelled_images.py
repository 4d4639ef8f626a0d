"""Read images with labels as a whole from disk: a folder per class, or a CSV file of images and their labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labelloop.service.datasets import DatasetProblem, ImageFiles
from labelloop.service.datasets.files import open_files
from labelloop.service.settings import Settings
from ml_backend.errors import DatasetUnreadable, TestListUnusable
from ml_backend.training.label_model import Kind

# Folders above the class folders that name a part of the data set; images of the latter are for testing.
TRAIN_PARTS, TEST_PARTS = frozenset({"train", "training"}), frozenset({"test", "testing", "val", "valid", "validation"})

# Signs between the labels of an image in a CSV file.
SEPARATORS = ("|", ";", ",")

# Cells of a table with one column a label that mean yes or no.
YES, NO = frozenset({"1", "1.0", "true", "yes", "x"}), frozenset({"0", "0.0", "-1", "false", "no", ""})

# Names of the column of images in a header, lower case.
IMAGE_COLUMNS = frozenset(
    {"image", "images", "filename", "filenames", "file", "file_name", "path", "name", "id", "image_id"}
)

# Classes named in a sentence.
MOST_NAMED = 8


@dataclass(frozen=True)
class ImageWithLabels:
    """An image with its labels.

    Attributes:
        path: The image file.
        name: Its path below the image folder, with `/`.
        labels: One class, or any number of tags.
        is_test: Whether the data set itself keeps it for testing.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    is_test: bool = False


@dataclass(frozen=True)
class LabelledFolder:
    """Images sorted by name, and what was skipped.

    Attributes:
        images: Images with labels.
        kind: "single" where every image has exactly one label.
        problems: Skipped items.
        files: All images of the folder.
        source: How the labels were found, in words.
    """

    images: tuple[ImageWithLabels, ...]
    kind: Kind
    problems: tuple[DatasetProblem, ...]
    files: ImageFiles
    source: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in use, sorted."""
        return tuple(sorted({label for image in self.images for label in image.labels}))

    def sentence(self) -> str:
        """What was found, for the user."""
        counts = Counter(label for image in self.images for label in image.labels)
        named = ", ".join(f"{name} {count}" for name, count in counts.most_common(MOST_NAMED))
        more = f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
        what = "classes" if self.kind == "single" else f"tags, {counts.total() / len(self.images):.1f} an image"
        tested = sum(image.is_test for image in self.images)
        test = f"; {tested} of them are in its test folders" if tested else ""
        return f"Found {len(self.images)} images with {len(counts)} {what} ({named}{more}) in {self.source}{test}."

    def listed(self, file: Path) -> tuple[frozenset[str], Sequence[str]]:
        """Resolve a text file with one image name per line: (names of images, lines that match none).

        Raises:
            TestListUnusable: The file cannot be read.
        """
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise TestListUnusable(path=file, reason=str(why)) from error
        matches = {name: self.files.find(name) for name in lines if name}
        return frozenset(match for match in matches.values() if match), [
            name for name, match in matches.items() if not match
        ]


def open_image_files(images: Path, settings: Settings) -> ImageFiles:
    """The image files below a folder.

    Raises:
        DatasetError: The folder does not exist.
    """
    return ImageFiles(open_files(str(images), settings))


def read_labelled_folder(images: Path, table: Path | None, *, settings: Settings) -> LabelledFolder:
    """Read images with labels.

    Args:
        images: Folder of the images; without a table, its subfolders are the classes.
        table: CSV file of images and labels.
        settings: Of the service.

    Raises:
        DatasetError: The folder does not exist.
        DatasetUnreadable: There are no images, or fewer than two labels.
    """
    files = open_image_files(images, settings)
    if not files.names:
        raise DatasetUnreadable(path=images, reason="it contains no image")
    problems: list[DatasetProblem] = []
    labels_of: dict[str, tuple[tuple[str, ...], bool]] = {}
    if table is None:
        rows = [
            (name, (label,) if label else (), is_test) for name in files.names for label, is_test in [_class_of(name)]
        ]
        problems += [DatasetProblem(name, "it is in no class folder") for name, labels, _ in rows if not labels]
        labels_of = {name: (labels, is_test) for name, labels, is_test in rows if labels}
        source = "one folder a class"
    else:
        for name, labels in _read_table(table):
            image = files.find(name)
            if image is None:
                problems.append(DatasetProblem(name, f"{images} has no image of this name, or several"))
            elif image in labels_of:
                problems.append(DatasetProblem(name, f"{table.name} lists this image twice; the first line is used"))
            else:
                labels_of[image] = labels, False
        source = table.name
    kind: Kind = "single" if all(len(labels) == 1 for labels, _ in labels_of.values()) else "multiple"
    entries = [ImageWithLabels(images / name, name, *labels_of[name]) for name in sorted(labels_of)]
    folder = LabelledFolder(tuple(entries), kind, tuple(problems), files, source)
    if len(folder.classes) < (2 if kind == "single" else 1):
        first = f" ({problems[0].item}: {problems[0].reason})" if problems else ""
        raise DatasetUnreadable(path=table or images, reason=f"its images have fewer than two different labels{first}")
    return folder


def _class_of(name: str) -> tuple[str, bool]:
    """(class of an image by its folder, whether it is in a test folder); "" without a folder."""
    folders = PurePosixPath(name).parts[:-1]
    is_test = False
    while folders and folders[0].lower() in TRAIN_PARTS | TEST_PARTS:
        is_test = folders[0].lower() in TEST_PARTS
        folders = folders[1:]
    return (folders[0] if folders else ""), is_test


def _read_table(table: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (image, labels) of each line of a CSV file, with or without a header.

    The labels are in the second column, separated by one of `SEPARATORS`, or each has a column of 0 and 1.

    Raises:
        DatasetUnreadable: The file cannot be read.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetUnreadable(path=table, reason=str(why)) from error
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    if not rows or max(map(len, rows)) < 2:
        raise DatasetUnreadable(path=table, reason="its lines have no second column with labels")
    columns = _label_columns(rows)
    if columns is not None:
        for row in rows[1:]:
            yield row[0], tuple(name for index, name in columns.items() if row[index].lower() in YES)
        return
    header = rows[0][0].lower() in IMAGE_COLUMNS
    for row in rows[1:] if header else rows:
        labels = ",".join(row[1:])
        sign = next((sign for sign in SEPARATORS if sign in labels), "|")
        yield row[0], tuple(dict.fromkeys(part.strip() for part in labels.split(sign) if part.strip()))


def _label_columns(rows: Sequence[Sequence[str]]) -> Mapping[int, str] | None:
    """Label of each column of 0 and 1, by index; None where the table has another form."""
    head, body = rows[0], rows[1:]
    if len(head) < 3 or not body or any(len(row) != len(head) for row in body):
        return None
    columns = {
        index: head[index]
        for index in range(1, len(head))
        if head[index] and all(row[index].lower() in YES | NO for row in body)
    }
    return columns if len(columns) > 1 else None
