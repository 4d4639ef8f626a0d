"""Compare two versions of a data set: tasks, images, classes and objects.

Generations shared by both versions are equal and not read. The remaining records of the earlier version are stored in a
temporary database until those of the later version are read, so memory does not grow with the data set.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import linear_sum_assignment

from exporters.dataset.shards import read_index, read_rows
from exporters.dataset.task_diff import WHOLE_LINES, TaskDifferences, line_changes
from exporters.dataset.task_index import TaskIndex
from exporters.errors import BadOption
from exporters.formats.decode import DECODERS, DecodedObject, decode_objects
from exporters.model.manifest import IMAGES, DatasetManifest
from exporters.model.records import Image
from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store

# IoU from which a removed and an added box count as one moved object.
SAME_OBJECT = 0.5
# Largest number of samples.
SAMPLES = 50
# Pixels; YOLO has eight digits of a share of the image.
_POSITION_TOLERANCE = 0.05  # pixels: YOLO keeps eight digits of a share of the image
_decode = msgspec.json.Decoder(Image).decode


class ChangeCounts(msgspec.Struct, frozen=True):
    """Numbers of added, removed, changed and unchanged items."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0


class ClassChange(msgspec.Struct, frozen=True):
    """Changes of the objects of a class; a relabelled object counts for its new class."""

    added: int = 0
    removed: int = 0
    moved: int = 0
    relabelled: int = 0


class Sample(msgspec.Struct, frozen=True):
    """One image that changed, and how."""

    image: str
    task: int
    what: str


class Differences(msgspec.Struct, frozen=True):
    """The changes from version ``a`` to version ``b``.

    Attributes:
        url: The data set.
        a: The earlier version.
        b: The later version.
        rules: The parts of source, policy and formats that differ: name -> (before, after).
        classes_added: Labels that only ``b`` has.
        tasks: The tasks of the source, whether or not they are in the data set.
        images: The images.
        splits: The number of images that changed split, by ``train -> val``.
        format: The format that the objects were read from.
        objects: The sum over all classes.
        classes: The changes by class.
        samples: Some images that changed.
        lines: The changes of the lines of tasks; None if the versions have no format of whole lines in common.
    """

    url: str
    a: str
    b: str
    rules: Mapping[str, tuple[Any, Any]]
    classes_added: tuple[str, ...]
    tasks: ChangeCounts
    images: ChangeCounts
    splits: Mapping[str, int]
    format: str
    objects: ClassChange
    classes: Mapping[str, ClassChange]
    samples: tuple[Sample, ...]
    lines: TaskDifferences | None = None


def diff_versions(store: Store, a: DatasetManifest, b: DatasetManifest) -> Differences:
    """Compare version ``a`` with the later version ``b``.

    Raises:
        BadOption: they have no format with objects in common.
        DatasetDamaged: an object of the data set is missing or damaged.
    """
    in_common = [name for name in a.formats if name in b.formats]
    name = next((format_name for format_name in DECODERS if format_name in in_common), "")
    whole = next((format_name for format_name in WHOLE_LINES if format_name in in_common), "")
    if not name and not whole:
        formats = ", ".join((*DECODERS, *WHOLE_LINES))
        raise BadOption("A and B", f"{a.version} {b.version}", f"versions with a format in common: {formats}")
    old, new = read_index(store, a), read_index(store, b)
    before, after = _rows(a, old), _rows(b, new)
    changed_before = {key for key, location in before.items() if after.get(key) != location}
    changed_after = {key for key, location in after.items() if before.get(key) != location}
    tasks = ChangeCounts(
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        changed=len(changed_after & before.keys()),
        same=len(after) - len(changed_after),
    )
    lines = None
    if whole:
        lines = line_changes(
            ((store, a, old, whole, changed_before), (store, b, new, whole, changed_after)), samples=SAMPLES
        )
    changes = _ChangeCollector(a, b)
    if not name:
        return msgspec.structs.replace(changes.result(store.url, name, tasks), lines=lines)
    with (
        scratch_folder() as folder,
        closing(sqlite3.connect(folder / "before.sqlite3", isolation_level=None)) as database,
    ):
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, image BLOB, record BLOB)")
        database.execute("BEGIN")
        for image, record in _images(store, a, old, name, changed_before):
            database.execute("INSERT INTO images VALUES (?, ?, ?)", (_decode(image).id, image, record))
        for image, record in _images(store, b, new, name, changed_after):
            new_image = _decode(image)
            row = database.execute("SELECT image, record FROM images WHERE id = ?", (new_image.id,)).fetchone()
            if row is None:
                changes.added(new_image, _objects(name, record, new_image, b))
                continue
            database.execute("DELETE FROM images WHERE id = ?", (new_image.id,))
            old_image = _decode(row[0])
            changes.changed(
                old_image, new_image, _objects(name, row[1], old_image, a), _objects(name, record, new_image, b)
            )
        for image, record in database.execute("SELECT image, record FROM images ORDER BY id"):
            old_image = _decode(image)
            changes.removed(old_image, _objects(name, record, old_image, a))
    return msgspec.structs.replace(changes.result(store.url, name, tasks), lines=lines)


class _ChangeCollector:
    """Collects changes; classes are compared by name, as the versions may have different class maps."""

    def __init__(self, a: DatasetManifest, b: DatasetManifest) -> None:
        self._a, self._b = a, b
        self._images: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._classes: dict[str, Counter[str]] = {}
        self._samples: list[Sample] = []

    def added(self, image: Image, objects: Sequence[tuple[str, DecodedObject]]) -> None:
        self._images["added"] += 1
        self._add_sample(image, "new", Counter(added=len(objects)))
        for name, _ in objects:
            self._class(name)["added"] += 1

    def removed(self, image: Image, objects: Sequence[tuple[str, DecodedObject]]) -> None:
        self._images["removed"] += 1
        self._add_sample(image, "gone", Counter(removed=len(objects)))
        for name, _ in objects:
            self._class(name)["removed"] += 1

    def changed(
        self,
        old_image: Image,
        new_image: Image,
        before: Sequence[tuple[str, DecodedObject]],
        after: Sequence[tuple[str, DecodedObject]],
    ) -> None:
        differences = list(_compare(before, after))
        for name, what in differences:
            self._class(name)[what] += 1
        move = f"{old_image.split} -> {new_image.split}" if old_image.split != new_image.split else ""
        if move:
            self._splits[move] += 1
        sized = (old_image.width, old_image.height) != (new_image.width, new_image.height)
        if differences or move or sized or old_image.file_name != new_image.file_name:
            self._images["changed"] += 1
            self._add_sample(
                new_image, move or ("another size" if sized else ""), Counter(what for _, what in differences)
            )

    def result(self, url: str, name: str, tasks: ChangeCounts) -> Differences:
        a, b = self._a, self._b
        total: Counter[str] = Counter()
        for counts in self._classes.values():
            total += counts
        images = sum(b.splits.values())
        return Differences(
            url=url,
            a=a.version,
            b=b.version,
            rules=dict(_rules(a, b)),
            classes_added=tuple(label for label in b.classes if label not in a.classes),
            tasks=tasks,
            images=ChangeCounts(**self._images, same=images - self._images["added"] - self._images["changed"]),
            splits=dict(sorted(self._splits.items())),
            format=name,
            objects=ClassChange(**total),
            classes={label: ClassChange(**counts) for label, counts in sorted(self._classes.items())},
            samples=tuple(self._samples),
        )

    def _class(self, name: str) -> Counter[str]:
        return self._classes.setdefault(name, Counter())

    def _add_sample(self, image: Image, what: str, counts: Counter[str]) -> None:
        if len(self._samples) < SAMPLES:
            words = [what, *(f"{number} {change}" for change, number in sorted(counts.items()) if number)]
            self._samples.append(Sample(image.file_name, image.task, ", ".join(filter(None, words))))


def _rows(manifest: DatasetManifest, index: TaskIndex) -> dict[int, tuple[str, int]]:
    """Return the location of each task: the SHA-256 of its generation's index, and its row there."""
    names = [generation.index.sha256 for generation in manifest.generations]
    places = ((names[generation], row) for generation, row in index.locations())
    return dict(zip(index.keys.tolist(), places, strict=True))


def _images(
    store: Store, manifest: DatasetManifest, index: TaskIndex, name: str, wanted: set[int]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield (image, record of the format) of the images of some tasks, by generation."""
    keys = index.keys.tolist()
    for number, generation in enumerate(manifest.generations):
        rows = {
            row for key, (where, row) in zip(keys, index.locations(), strict=True) if where == number and key in wanted
        }
        if rows:
            images = read_rows(store, generation, IMAGES, rows)
            yield from zip(images, read_rows(store, generation, name, rows), strict=True)


def _objects(name: str, record: bytes, image: Image, manifest: DatasetManifest) -> list[tuple[str, DecodedObject]]:
    labels = {number: label for label, number in manifest.classes.items()}
    return [(labels.get(obj.class_id, "?"), obj) for obj in decode_objects(name, record, image, manifest)]


def _compare(
    before: Sequence[tuple[str, DecodedObject]], after: Sequence[tuple[str, DecodedObject]]
) -> Iterator[tuple[str, str]]:
    """Yield (class, change) of each object that differs; unmoved objects are matched first."""
    unmatched = Counter(_object_key(*pair) for pair in before)
    added = []
    for pair in after:
        if unmatched[_object_key(*pair)]:
            unmatched[_object_key(*pair)] -= 1
        else:
            added.append(pair)
    removed = []
    for pair in before:
        if unmatched[_object_key(*pair)]:
            unmatched[_object_key(*pair)] -= 1
            removed.append(pair)
    paired: set[int] = set()
    if removed and added:
        overlaps = _overlaps([obj.box for _, obj in removed], [obj.box for _, obj in added])
        same = np.array([[old == new for new, _ in added] for old, _ in removed])
        rows, columns = linear_sum_assignment(-(overlaps + 0.01 * same))
        pairs = [
            (row, column) for row, column in zip(rows, columns, strict=True) if overlaps[row, column] >= SAME_OBJECT
        ]
        for row, column in pairs:
            yield added[column][0], "moved" if same[row, column] else "relabelled"
        paired = {row for row, _ in pairs}
        added = [pair for column, pair in enumerate(added) if column not in {column for _, column in pairs}]
    for row, (name, _) in enumerate(removed):
        if row not in paired:
            yield name, "removed"
    for name, _ in added:
        yield name, "added"


def _object_key(name: str, obj: DecodedObject) -> tuple[Any, ...]:
    outline = bytes(obj.outline) if isinstance(obj.outline, msgspec.Raw) else repr(obj.outline)
    return (name, outline, *(round(edge / _POSITION_TOLERANCE) for edge in obj.box))


def _overlaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Any:
    """Return the IoU matrix of two lists of boxes: (len(a), len(b))."""
    first, second = np.array(a)[:, None], np.array(b)[None]
    sides = np.maximum(np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]), 0)
    intersection = sides.prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - intersection
    return intersection / np.maximum(union, 1e-9)


def _rules(a: DatasetManifest, b: DatasetManifest) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for prefix, old, new in (("", a.policy, b.policy), ("source.", a.source, b.source)):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key) and key not in {"annotators", "read"}:
                yield f"{prefix}{key}", (old.get(key), new.get(key))
    if a.formats != b.formats:
        yield "formats", (list(a.formats), list(b.formats))
