"""The class map of a data set, label -> number: stored with the data set and append-only, so that no number changes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Self

import msgspec

from exporters.errors import BadOption, ClassMapChanged, DatasetDamaged, NearDuplicateLabels
from exporters.model.keypoints import names_points
from labelloop.labeling.studio.config import Label, LabelConfig
from labelloop.labeling.studio.region_attributes import is_false
from labelloop.service.store import ObjectChanged, ObjectNotFound, Store

KEY = "classes.json"
_FORMAT = "labelloop-classes/1"
# Attributes of labels in the label config, which Label Studio stores and ignores.
SUPERCATEGORY, COCO_ID, IS_THING = "supercategory", "coco_id", "isthing"
ORIGINAL = "original"
# Category ids of COCO files: those of the class map, or those of the imported COCO file.
CATEGORY_IDS = ("classes", ORIGINAL)
_SEPARATORS = re.compile(r"[\s_\-]+")


class ClassMapFile(msgspec.Struct, frozen=True):
    """``classes.json``: the labels in the order of their numbers, from class 1."""

    names: tuple[str, ...]
    format: str = _FORMAT


class ClassMap:
    """Label -> number from 1 (COCO). Formats that count from 0 (YOLO) subtract one.

    A label removed from the label config keeps its number. A new label, or one that only occurs in tasks, gets the
    next number. ``renamed`` maps labels of the tasks to the class that they count as.
    """

    def __init__(self, names: Iterable[str] = (), renamed: Mapping[str, str] | None = None) -> None:
        self._ids = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
        self._renamed = renamed or {}

    @property
    def names(self) -> tuple[str, ...]:
        """All labels, in the order of their numbers."""
        return tuple(self._ids)

    def name(self, label: str) -> str:
        """Return the class that a label counts as."""
        return self._renamed.get(label, label)

    def id(self, label: str) -> int:
        """Return the number of a label; a new label gets the next one."""
        name = self.name(label)
        number = self._ids.get(name)
        return self._ids.setdefault(name, len(self._ids) + 1) if number is None else number

    def ids(self, labels: Iterable[str]) -> Iterator[int]:
        """Return the number of each label; 0 for a label without a number."""
        return map(self._ids.get, map(self.name, labels) if self._renamed else labels, repeat(0))

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __len__(self) -> int:
        return len(self._ids)


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """Parse ``OLD=NEW`` texts into label -> the class that it counts as.

    Raises:
        BadOption: a text has another form, or two contradict each other.
    """
    renamed: dict[str, str] = {}
    for text in texts:
        old, _, new = (part.strip() for part in text.partition("="))
        if not old or not new or renamed.setdefault(old, new) != new:
            raise BadOption("--rename", text, "OLD=NEW, each label once")
    for old, new in renamed.items():
        if new in renamed:
            raise BadOption("--rename", f"{old}={new}", f"{old}={renamed[new]}: {new!r} is renamed itself")
    return renamed


class Categories(msgspec.Struct, frozen=True):
    """Category ids and supercategories of the classes, by label, for COCO files.

    Without ``ids`` a category has its class's number. ``stuff`` are the labels without instances (``isthing="0"``).
    """

    ids: Mapping[str, int] = {}
    supercategories: Mapping[str, str] = {}
    stuff: tuple[str, ...] = ()

    @classmethod
    def from_config(
        cls, config: LabelConfig | None, *, original: bool, renamed: Mapping[str, str] | None = None
    ) -> Self:
        """Read ``coco_id``, ``supercategory`` and ``isthing`` of the labels of a label config.

        Args:
            config: The label config.
            original: Whether categories have the ids of their ``coco_id``.
            renamed: Labels that count as another class.

        Raises:
            BadOption: No label has a ``coco_id``, or two have the same.
        """
        ids: dict[str, int] = {}
        supercategories: dict[str, str] = {}
        stuff: dict[str, None] = {}
        for label in _drawn_labels(config) if config else ():
            name = (renamed or {}).get(label.stored, label.stored)
            if kind := label.attributes.get(SUPERCATEGORY):
                supercategories.setdefault(name, kind)
            if is_false(label.attributes.get(IS_THING, "")):
                stuff[name] = None
            if (coco_id := label.attributes.get(COCO_ID, "")).isdecimal():
                ids.setdefault(name, int(coco_id))
        if not original:
            return cls({}, supercategories, tuple(stuff))
        named = {number: name for name, number in ids.items()}
        if not ids:
            wanted = (
                f"it with a label config whose labels have a {COCO_ID}, as `labelloop import` of a COCO file writes it"
            )
            raise BadOption("--category-ids", "original", wanted)
        for name, own in ids.items():
            if named[own] != name:
                wanted = f"it with labels of different {COCO_ID}: {name!r} and {named[own]!r} both have {own}"
                raise BadOption("--category-ids", "original", wanted)
        return cls(ids, supercategories, tuple(stuff))

    def id(self, label: str, class_id: int) -> int:
        """Return the category id of a label; one without its own gets its class number plus the largest of the ids."""
        if not self.ids:
            return class_id
        own = self.ids.get(label)
        return max(self.ids.values()) + class_id if own is None else own


def near_duplicates(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ only in case, spaces, ``-`` or ``_``, the first occurrence first.

    Names of a single character are exempt: ``a`` and ``A`` are two classes.
    """
    originals: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if len(name.strip()) > 1:
            original = originals.setdefault(_SEPARATORS.sub(" ", name).strip().casefold(), name)
            if original != name:
                yield original, name


def config_labels(config: LabelConfig) -> list[str]:
    """Return the labels of the controls that draw on images, in the config's order, without those of Choices.

    Labels of key points are not classes: they name the parts of an object. A label with an alias is listed by its
    alias, as in the results.
    """
    return [label.stored for label in _drawn_labels(config)]


def _drawn_labels(config: LabelConfig) -> list[Label]:
    images = {tag.name for tag in config.images}
    return [
        label
        for control in config.controls.values()
        if control.type.endswith("labels")
        and not names_points(config, control)
        and images.intersection(control.to_names)
        for label in control.labels
    ]


def load_classes(store: Store) -> tuple[ClassMap, str | None]:
    """Read the class map of a data set and its etag; an empty map and ``None`` if it does not exist.

    Raises:
        DatasetDamaged: ``classes.json`` is not a class map. A new numbering would change every class.
    """
    try:
        data, etag = store.read(KEY)
    except ObjectNotFound:
        return ClassMap(), None
    try:
        return ClassMap(msgspec.json.decode(data, type=ClassMapFile).names), etag
    except msgspec.DecodeError as error:
        fix = f"Remove {KEY}: the next `labelloop export` restores it with the numbers of the published version."
        raise DatasetDamaged(url=store.url, key=KEY, reason=str(error), fix=fix) from error


# A class map in the store and its etag, as returned by `load_classes`.
StoredClassMap = tuple[ClassMap, str | None]


def save_classes(store: Store, classes: ClassMap, expected: StoredClassMap | None = None) -> StoredClassMap:
    """Append the labels that the stored class map does not have.

    Args:
        store: where the data set lives.
        classes: the class map.
        expected: the stored class map, if it was read before.

    Returns:
        The class map now in the store.

    Raises:
        ClassMapChanged: another exporter appended first, so that a label has another number here.
    """
    for _ in range(20):
        stored, etag = expected or load_classes(store)
        expected = None
        if stored.names[: len(classes.names)] == classes.names:
            return stored, etag  # already has all of them
        if classes.names[: len(stored.names)] != stored.names:
            break
        try:
            etag = store.swap(KEY, msgspec.json.format(msgspec.json.encode(ClassMapFile(classes.names))), etag=etag)
        except ObjectChanged:
            continue
        return classes, etag
    raise ClassMapChanged(url=store.url)


class ClassMapSync:
    """Saves new classes to the store while tasks are converted, so that concurrent exporters see them early.

    Use it as a context manager.

    Args:
        store: where the data set lives.
        classes: the class map as loaded; the conversion appends to it.
        etag: its etag.
    """

    def __init__(self, store: Store, classes: ClassMap, etag: str | None) -> None:
        self._store, self._classes = store, classes
        self._seen: StoredClassMap = ClassMap(classes.names), etag
        self._saved = len(classes)  # the loaded ones are stored
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="classes")
        self._saving: Future[StoredClassMap] | None = None

    def sync(self) -> None:
        """Start saving the new classes in the background. Raises the error of the previous save.

        Raises:
            LabelsAlike: A new label differs from another one only in case, spaces, ``-`` or ``_``.
        """
        if self._saving and not self._saving.done():
            return
        if self._saving:
            self._seen = self._saving.result()
        if len(self._classes) > self._saved:
            names = self._classes.names
            new = set(names[self._saved :])
            if pairs := [pair for pair in near_duplicates(names) if new.intersection(pair)]:
                raise NearDuplicateLabels(pairs)
            self._saved = len(names)
            self._saving = self._threads.submit(save_classes, self._store, ClassMap(names), self._seen)

    def finish(self) -> None:
        """Save all classes; they are in the store when this returns.

        Raises:
            ClassMapMoved: see `save_classes`.
        """
        while self._saving or len(self._classes) > self._saved:
            if self._saving:
                self._seen = self._saving.result()
                self._saving = None
            self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
