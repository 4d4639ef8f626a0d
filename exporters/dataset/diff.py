"""What changed from one version of a data set to another: tasks, images, classes and objects.

What both versions have from the same generation is the same, and is not read. Of the rest the records of the earlier
version wait in a file on the disk until those of the later one come by, so memory does not grow with the data set.
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
from exporters.dataset.task_index import Index
from exporters.errors import BadOption
from exporters.formats.decode import OBJECTS, DecodedObject, objects_of
from exporters.model.manifest import IMAGES, Manifest
from exporters.model.records import Image
from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store

SAME_OBJECT = 0.5
"""Overlap (IoU) of two boxes from which a box that is gone and one that is new are one object, moved."""
SAMPLES = 50
_NEAR = 0.05  # pixels: YOLO keeps eight digits of a share of the image
_decode = msgspec.json.Decoder(Image).decode


class Change(msgspec.Struct, frozen=True):
    """How many came, went, changed and stayed as they were."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0


class ClassChange(msgspec.Struct, frozen=True):
    """What became of a class's objects; a relabelled one counts for the class that it has now."""

    added: int = 0
    removed: int = 0
    moved: int = 0
    relabelled: int = 0


class Sample(msgspec.Struct, frozen=True):
    """One image that changed, and what of it."""

    image: str
    task: int
    what: str


class Differences(msgspec.Struct, frozen=True):
    """From version ``a`` to version ``b``.

    ``rules`` are the parts of source, policy and formats that differ, as (before, after). ``tasks`` are those of the
    source, whether they are in the data set or not. ``splits`` counts images that are in another split, as
    ``train -> val``. ``format`` is what the objects were read from; ``objects`` sums the classes up.
    """

    url: str
    a: str
    b: str
    rules: Mapping[str, tuple[Any, Any]]
    classes_added: tuple[str, ...]
    tasks: Change
    images: Change
    splits: Mapping[str, int]
    format: str
    objects: ClassChange
    classes: Mapping[str, ClassChange]
    samples: tuple[Sample, ...]


def differences(store: Store, a: Manifest, b: Manifest) -> Differences:
    """What changed from ``a`` to ``b``.

    Raises:
        BadOption: they have no format in common that says where objects are.
        DatasetDamaged: an object of the data set is missing or is not what it should be.
    """
    name = next((each for each in OBJECTS if each in a.formats and each in b.formats), "")
    if not name:
        raise BadOption(
            "A and B", f"{a.version} {b.version}", "versions with a format in common: " + ", ".join(OBJECTS)
        )
    old, new = read_index(store, a), read_index(store, b)
    before, after = _rows(a, old), _rows(b, new)
    count = _Count(a, b)
    with (
        scratch_folder() as folder,
        closing(sqlite3.connect(folder / "before.sqlite3", isolation_level=None)) as kept,
    ):
        kept.execute("PRAGMA synchronous=OFF")
        kept.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, image BLOB, record BLOB)")
        changed_before = {key for key, place in before.items() if after.get(key) != place}
        changed_after = {key for key, place in after.items() if before.get(key) != place}
        kept.execute("BEGIN")
        for image, record in _images(store, a, old, name, changed_before):
            kept.execute("INSERT INTO images VALUES (?, ?, ?)", (_decode(image).id, image, record))
        for image, record in _images(store, b, new, name, changed_after):
            now = _decode(image)
            row = kept.execute("SELECT image, record FROM images WHERE id = ?", (now.id,)).fetchone()
            if row is None:
                count.added(now, _objects(name, record, now, b))
                continue
            kept.execute("DELETE FROM images WHERE id = ?", (now.id,))
            was = _decode(row[0])
            count.both(was, now, _objects(name, row[1], was, a), _objects(name, record, now, b))
        for image, record in kept.execute("SELECT image, record FROM images ORDER BY id"):
            was = _decode(image)
            count.removed(was, _objects(name, record, was, a))
    tasks = Change(
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        changed=len(changed_after & before.keys()),
        same=len(after) - len(changed_after),
    )
    return count.told(store.url, name, tasks)


class _Count:
    """What changed so far. Classes go by their names, so that versions of two class maps can be compared."""

    def __init__(self, a: Manifest, b: Manifest) -> None:
        self._a, self._b = a, b
        self._images: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._classes: dict[str, Counter[str]] = {}
        self._samples: list[Sample] = []

    def added(self, image: Image, objects: Sequence[tuple[str, DecodedObject]]) -> None:
        self._images["added"] += 1
        self._say(image, "new", Counter(added=len(objects)))
        for name, _ in objects:
            self._class(name)["added"] += 1

    def removed(self, image: Image, objects: Sequence[tuple[str, DecodedObject]]) -> None:
        self._images["removed"] += 1
        self._say(image, "gone", Counter(removed=len(objects)))
        for name, _ in objects:
            self._class(name)["removed"] += 1

    def both(
        self,
        was: Image,
        now: Image,
        before: Sequence[tuple[str, DecodedObject]],
        after: Sequence[tuple[str, DecodedObject]],
    ) -> None:
        found = list(_compare(before, after))
        for name, what in found:
            self._class(name)[what] += 1
        move = f"{was.split} -> {now.split}" if was.split != now.split else ""
        if move:
            self._splits[move] += 1
        sized = (was.width, was.height) != (now.width, now.height)
        if found or move or sized or was.file_name != now.file_name:
            self._images["changed"] += 1
            self._say(now, move or ("another size" if sized else ""), Counter(what for _, what in found))

    def told(self, url: str, name: str, tasks: Change) -> Differences:
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
            images=Change(**self._images, same=images - self._images["added"] - self._images["changed"]),
            splits=dict(sorted(self._splits.items())),
            format=name,
            objects=ClassChange(**total),
            classes={label: ClassChange(**counts) for label, counts in sorted(self._classes.items())},
            samples=tuple(self._samples),
        )

    def _class(self, name: str) -> Counter[str]:
        return self._classes.setdefault(name, Counter())

    def _say(self, image: Image, what: str, counts: Counter[str]) -> None:
        if len(self._samples) < SAMPLES:
            words = [what, *(f"{number} {change}" for change, number in sorted(counts.items()) if number)]
            self._samples.append(Sample(image.file_name, image.task, ", ".join(filter(None, words))))


def _rows(manifest: Manifest, index: Index) -> dict[int, tuple[str, int]]:
    """Where each task is: in which generation, told by its index, and in which row of it."""
    names = [generation.index.sha256 for generation in manifest.generations]
    places = ((names[generation], row) for generation, row in index.places())
    return dict(zip(index.keys.tolist(), places, strict=True))


def _images(
    store: Store, manifest: Manifest, index: Index, name: str, wanted: set[int]
) -> Iterator[tuple[bytes, bytes]]:
    """(image, record of the format) of each image of some tasks, a generation at a time."""
    keys = index.keys.tolist()
    for number, generation in enumerate(manifest.generations):
        here = {
            row for key, (where, row) in zip(keys, index.places(), strict=True) if where == number and key in wanted
        }
        if here:
            images = read_rows(store, generation, IMAGES, here)
            yield from zip(images, read_rows(store, generation, name, here), strict=True)


def _objects(name: str, record: bytes, image: Image, manifest: Manifest) -> list[tuple[str, DecodedObject]]:
    labels = {number: label for label, number in manifest.classes.items()}
    return [(labels.get(each.class_id, "?"), each) for each in objects_of(name, record, image, manifest)]


def _compare(
    before: Sequence[tuple[str, DecodedObject]], after: Sequence[tuple[str, DecodedObject]]
) -> Iterator[tuple[str, str]]:
    """(class, what) of each object that differs: those that stayed where they were are paired first."""
    places = Counter(_place(*each) for each in before)
    left = []
    for each in after:
        if places[_place(*each)]:
            places[_place(*each)] -= 1
        else:
            left.append(each)
    gone = []
    for each in before:
        if places[_place(*each)]:
            places[_place(*each)] -= 1
            gone.append(each)
    taken: set[int] = set()
    if gone and left:
        overlaps = _overlaps([seen.box for _, seen in gone], [seen.box for _, seen in left])
        same = np.array([[one == other for other, _ in left] for one, _ in gone])
        rows, columns = linear_sum_assignment(-(overlaps + 0.01 * same))
        pairs = [
            (row, column) for row, column in zip(rows, columns, strict=True) if overlaps[row, column] >= SAME_OBJECT
        ]
        for row, column in pairs:
            yield left[column][0], "moved" if same[row, column] else "relabelled"
        taken = {row for row, _ in pairs}
        left = [each for column, each in enumerate(left) if column not in {column for _, column in pairs}]
    for row, (name, _) in enumerate(gone):
        if row not in taken:
            yield name, "removed"
    for name, _ in left:
        yield name, "added"


def _place(name: str, seen: DecodedObject) -> tuple[Any, ...]:
    outline = bytes(seen.outline) if isinstance(seen.outline, msgspec.Raw) else repr(seen.outline)
    return (name, outline, *(round(edge / _NEAR) for edge in seen.box))


def _overlaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Any:
    """(len(a), len(b)) IoU of boxes."""
    one, other = np.array(a)[:, None], np.array(b)[None]
    sides = np.maximum(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0)
    shared = sides.prod(-1)
    both = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared
    return shared / np.maximum(both, 1e-9)


def _rules(a: Manifest, b: Manifest) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for prefix, one, other in (("", a.policy, b.policy), ("source.", a.source, b.source)):
        for key in dict.fromkeys((*one, *other)):
            if one.get(key) != other.get(key) and key not in {"annotators", "read"}:
                yield f"{prefix}{key}", (one.get(key), other.get(key))
    if a.formats != b.formats:
        yield "formats", (list(a.formats), list(b.formats))
