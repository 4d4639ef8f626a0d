"""Read Open Images (V4 to V7): CSV files with boxes in shares of the image and the classes of whole images.

Format: https://storage.googleapis.com/openimages/web/download_v7.html. ``ImageID`` is the file name of an image without
its extension; ``LabelName`` is a code (``/m/01g317``) that ``class-descriptions*.csv`` gives a name. The published
files list millions of images: rows of images that are not in the folder are counted and passed over.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import PurePosixPath
from typing import IO

from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.region_attributes import ObjectAttributes
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, open_binary
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import rectangle
from labelloop.service.datasets.text import parse_float

BOX_COLUMNS = frozenset({"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"})
_LABEL_COLUMNS = frozenset({"ImageID", "LabelName", "Confidence"})
_MASK_COLUMN = "MaskPath"
_DESCRIPTIONS = "class-descriptions"
# Column -> flag of a region.
_FLAGS = {"IsOccluded": "occluded", "IsTruncated": "truncated"}
# Column -> attribute of a region.
_ATTRIBUTES = {"IsDepiction": "is_depiction", "IsInside": "is_inside"}
# Larger values are pixels, not shares of the image.
_MAX_SHARE = 1.5
_ELSEWHERE = "rows of images that are not in the folder: not read"
_GROUPS = "boxes around groups (IsGroupOf): read as crowds"
_NEGATIVES = "classes that an image does not show (Confidence 0): not kept"
_GUESSED = "classes of images that a model is not sure of (Confidence below 1): read like those of people"
_MASKS = "files of masks or relations: not read"
_EMPTY = "empty rows"
_CODES = "classes without a name in class-descriptions*.csv: their code is their name"


def is_open_images(head: bytes) -> bool:
    """Whether the first line of a file has the columns of boxes or of classes of images."""
    columns = frozenset(_first_line(head))
    return columns >= BOX_COLUMNS or (columns >= _LABEL_COLUMNS and "Source" in columns and _MASK_COLUMN not in columns)


def open_images_files(files: DatasetFiles) -> list[str]:
    """The CSV files of boxes and classes of images among the files of a folder."""
    names = [name for name in files.names if name.lower().endswith(".csv")]
    return [name for name in names[:_MAX_FILES] if is_open_images(_head(files, name))]


_MAX_FILES = 20
_HEAD_BYTES = 4096


def read_open_images(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the CSV files of a folder, or one file with the class descriptions next to it.

    Args:
        files: The files of the data set.
        images: Its image files; boxes are shares of an image's size, which only the image has.
        file: The only file of boxes or classes to read; empty: all.

    Raises:
        DatasetError: There is no such file, or there are no images.
    """
    names = [file] if file else open_images_files(files)
    for name in names:
        if not is_open_images(_head(files, name)):
            columns = ", ".join(_first_line(_head(files, name))[:8])
            raise DatasetError(
                f"{files.location}/{name}",
                f"it is not CSV of Open Images (its first line is {columns[:80]!r})",
                fix="Open Images has the columns ImageID, LabelName, XMin, XMax, YMin and YMax.",
            )
    if not names:
        raise DatasetError(files.location, "it has no CSV of Open Images")
    if not images.names:
        raise DatasetError(
            files.location,
            "its boxes are shares of each image's size, and there are no images",
            fix="Pass their folder: --images-from DIR.",
        )
    display = _display_names(files)
    rows, counts, problems = _read_rows(files, names, images)
    codes = {code: None for listed in rows.values() for _, _, code, _ in listed}
    counts[_CODES] = sum(code not in display for code in codes)
    counts[_MASKS] = sum(
        name.lower().endswith(".csv") and bool(_first_line(head := _head(files, name))) and not is_open_images(head)
        for name in files.names
        if any(word in PurePosixPath(name).name for word in ("object-segmentation", "vrd", "point-labels"))
    )

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        yield from problems
        for image, listed in rows.items():
            yield from _read_image(image, listed, images, display)

    boxed = {code for listed in rows.values() for _, is_box, code, _ in listed if is_box}
    chosen = {code for listed in rows.values() for _, is_box, code, _ in listed if not is_box}
    ordered = [*(code for code in display if code in codes), *sorted(codes.keys() - display.keys())]
    labels, choices = (
        tuple(dict.fromkeys(display.get(code, code) for code in ordered if code in kind)) for kind in (boxed, chosen)
    )
    return DataSet(
        "open-images",
        read,
        labels,
        choices=choices,
        counts={note: number for note, number in counts.items() if number},
    )


# (line of the file, whether it is a box, code of the class, cells of a box, file)
_Row = tuple[str, bool, str, tuple[str, ...]]
_CELLS = ("XMin", "XMax", "YMin", "YMax", "Confidence", "IsGroupOf", *_FLAGS, *_ATTRIBUTES)


def _read_rows(
    files: DatasetFiles, names: Sequence[str], images: ImageFiles
) -> tuple[dict[str, list[_Row]], Counter[str], list[DatasetProblem]]:
    """The rows of each image in the folder; the others are counted."""
    rows: dict[str, list[_Row]] = {}
    counts: Counter[str] = Counter()
    problems = []
    # images of the folder, and the last other one: the published files list millions, the rows of each together
    found: dict[str, str] = {}
    missing = ""
    for name in names:
        with closing(_text(files, name)) as stream:
            reader = csv.DictReader(stream)
            is_box = frozenset(reader.fieldnames or ()) >= BOX_COLUMNS
            try:
                for row in reader:
                    where = f"{name}, line {reader.line_num}"
                    image_id, code = (row.get("ImageID") or "").strip(), (row.get("LabelName") or "").strip()
                    if not any(row.values()):
                        counts[_EMPTY] += 1
                        continue
                    if not image_id or not code:
                        problems.append(DatasetProblem(where, "a row without ImageID or LabelName"))
                        continue
                    image = found.get(image_id)
                    if image is None and image_id != missing:
                        image = images.find(image_id)
                        if image is None:
                            missing = image_id
                        else:
                            found[image_id] = image
                    if image is None:
                        counts[_ELSEWHERE] += 1
                    elif not is_box and (row.get("Confidence") or "").strip() in {"0", "0.0"}:
                        counts[_NEGATIVES] += 1
                    else:
                        counts[_GUESSED] += not is_box and not _is_certain(row)
                        counts[_GROUPS] += is_box and (row.get("IsGroupOf") or "").strip() == "1"
                        cells = tuple((row.get(key) or "").strip() for key in _CELLS) if is_box else ()
                        rows.setdefault(image, []).append((where, is_box, code, cells))
            except (csv.Error, UnicodeDecodeError) as error:
                reason = f"it is damaged there ({error!s:.80}); the rows after it are not read. Download it again."
                problems.append(DatasetProblem(f"{name}, line {reader.line_num + 1}", reason))
    return rows, counts, problems


def _is_certain(row: Mapping[str, str | None]) -> bool:
    try:
        return parse_float((row.get("Confidence") or "1").strip(), 1e6) >= 1
    except MalformedData:
        return False


def _read_image(
    name: str, rows: Sequence[_Row], images: ImageFiles, display: Mapping[str, str]
) -> Iterator[DatasetImage | DatasetProblem]:
    size = images.size(name)
    if isinstance(size, str):
        yield DatasetProblem(name, size)
        return
    objects: list[LabelledObject] = []
    choices: dict[str, None] = {}
    unread = 0
    for where, is_box, code, cells in rows:
        label = display.get(code, code)
        if not is_box:
            choices[label] = None
            continue
        try:
            objects.append(_object(dict(zip(_CELLS, cells, strict=True)), label, *size))
        except MalformedData as error:
            unread += 1
            yield DatasetProblem(where, str(error))
    split = next(filter(None, map(split_of, PurePosixPath(name).parts[:-1])), "")
    split = split or next(filter(None, map(split_of, rows[0][0].replace("_", "-").rpartition("/")[2].split("-"))), "")
    yield DatasetImage(name, *size, tuple(objects), tuple(choices), split=split, unread=unread)


def _object(row: Mapping[str, str], label: str, width: int, height: int) -> LabelledObject:
    shares = []
    for key in ("XMin", "XMax", "YMin", "YMax"):
        try:
            shares.append(parse_float(row[key], _MAX_SHARE))
        except MalformedData as error:
            raise MalformedData(
                f"{key} is {row[key]!r:.40}: {error}; it is a share of the image, from 0 to 1"
            ) from None
    x_min, x_max, y_min, y_max = shares
    box = rectangle(x_min * width, y_min * height, (x_max - x_min) * width, (y_max - y_min) * height)
    try:
        confidence = parse_float(row["Confidence"], 1e6)
    except MalformedData:
        confidence = 1.0
    remarks = ObjectAttributes(
        flags=frozenset(flag for key, flag in _FLAGS.items() if row[key] == "1"),
        attributes={name: True for key, name in _ATTRIBUTES.items() if row[key] == "1"},
    )
    score = confidence if confidence < 1 else None
    return LabelledObject(box, label, score, crowd=row["IsGroupOf"] == "1", remarks=remarks)


def _display_names(files: DatasetFiles) -> dict[str, str]:
    """Code of a class -> its name, in the order of the descriptions."""
    names: dict[str, str] = {}
    for file in files.names:
        if _DESCRIPTIONS in PurePosixPath(file).name and file.lower().endswith(".csv"):
            with closing(_text(files, file)) as stream:
                rows = [row for row in csv.reader(stream) if len(row) > 1]
            names |= {code.strip(): name.strip() for code, name, *_ in rows if code.startswith("/") and name.strip()}
    return names


def _text(files: DatasetFiles, name: str) -> IO[str]:
    return io.TextIOWrapper(open_binary(files, name), encoding="utf-8-sig", newline="")


def _head(files: DatasetFiles, name: str) -> bytes:
    return files.start(name, _HEAD_BYTES)


def _first_line(head: bytes) -> list[str]:
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return [cell.strip() for cell in line.split(",")]
