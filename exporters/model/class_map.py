"""The class map: which number a label has. Kept with the data set, only ever appended to, so that no number moves."""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Self

import msgspec

from exporters.errors import BadOption, ClassMapMoved, DatasetDamaged, LabelsAlike
from labelloop.labeling.studio.config import Label, LabelConfig
from labelloop.service.store import Changed, NotThere, Store

KEY = "classes.json"
_FORMAT = "labelloop-classes/1"
SUPERCATEGORY, COCO_ID = "supercategory", "coco_id"
"""Attributes of labels in the label config, which Label Studio keeps and does not look at."""
ORIGINAL = "original"
CATEGORY_IDS = ("classes", ORIGINAL)
"""What numbers COCO's categories have: those of the class map, or the ones of the COCO file that was imported."""
_APART = re.compile(r"[\s_\-]+")


class ClassMapFile(msgspec.Struct, frozen=True):
    """``classes.json``: the labels in the order of their numbers, the first is class 1."""

    names: tuple[str, ...]
    format: str = _FORMAT


class ClassMap:
    """Label -> number from 1 (COCO); a format that counts from 0 (YOLO) takes one off, so its numbers are dense.

    A label that left the label config keeps its number; a new one, or one that only the tasks know, gets the next.
    ``renamed`` maps labels of the tasks to the class that they count as.
    """

    def __init__(self, names: Iterable[str] = (), renamed: Mapping[str, str] | None = None) -> None:
        self._ids = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
        self._renamed = renamed or {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every label, in the order of the numbers."""
        return tuple(self._ids)

    def name(self, label: str) -> str:
        """The class that a label counts as."""
        return self._renamed.get(label, label)

    def id(self, label: str) -> int:
        """The number of a label; a label not seen before gets the next one."""
        name = self.name(label)
        found = self._ids.get(name)
        return self._ids.setdefault(name, len(self._ids) + 1) if found is None else found

    def ids(self, labels: Iterable[str]) -> Iterator[int]:
        """The number of each label; 0 for one that is no class yet."""
        return map(self._ids.get, map(self.name, labels) if self._renamed else labels, repeat(0))

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __len__(self) -> int:
        return len(self._ids)


def renames(texts: Iterable[str]) -> dict[str, str]:
    """Label -> the class that it counts as, from ``OLD=NEW``.

    Raises:
        BadOption: a text is something else, or two contradict each other.
    """
    found: dict[str, str] = {}
    for text in texts:
        old, _, new = (part.strip() for part in text.partition("="))
        if not old or not new or found.setdefault(old, new) != new:
            raise BadOption("--rename", text, "OLD=NEW, each label once")
    for old, new in found.items():
        if new in found:
            raise BadOption("--rename", f"{old}={new}", f"{old}={found[new]}: {new!r} is renamed itself")
    return found


class Categories(msgspec.Struct, frozen=True):
    """What COCO says of classes beside their names, by label: numbers of their own, and supercategories.

    Without ``ids`` a category has its class's number.
    """

    ids: Mapping[str, int] = {}
    supercategories: Mapping[str, str] = {}

    @classmethod
    def of(cls, config: LabelConfig | None, *, original: bool, renamed: Mapping[str, str] | None = None) -> Self:
        """Those of a label config: ``coco_id`` and ``supercategory`` of its labels.

        Args:
            config: The label config.
            original: Whether categories keep their ``coco_id``.
            renamed: Labels that count as another class.

        Raises:
            BadOption: No label has a ``coco_id``, or two have the same.
        """
        ids: dict[str, int] = {}
        above: dict[str, str] = {}
        for label in _drawn_labels(config) if config else ():
            name = (renamed or {}).get(label.stored, label.stored)
            if kind := label.attributes.get(SUPERCATEGORY):
                above.setdefault(name, kind)
            if (told := label.attributes.get(COCO_ID, "")).isdecimal():
                ids.setdefault(name, int(told))
        if not original:
            return cls({}, above)
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
        return cls(ids, above)

    def id(self, label: str, number: int) -> int:
        """A category's number; one without its own gets its class's, counted from the highest of the others."""
        if not self.ids:
            return number
        own = self.ids.get(label)
        return max(self.ids.values()) + number if own is None else own


def alike(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ only in case, spaces, ``-`` or ``_``, each with the first one of its kind.

    Names of a single character may: ``a`` and ``A`` are two.
    """
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if len(name.strip()) > 1:
            other = first.setdefault(_APART.sub(" ", name).strip().casefold(), name)
            if other != name:
                yield other, name


def config_labels(config: LabelConfig) -> list[str]:
    """The labels of the controls that draw on images, in the config's order; never the values of Choices.

    Key points are no classes: their labels name the parts of an object.

    A label with an alias goes by it, as in the results themselves.
    """
    return [label.stored for label in _drawn_labels(config)]


def _drawn_labels(config: LabelConfig) -> list[Label]:
    images = {tag.name for tag in config.images}
    return [
        label
        for control in config.controls.values()
        if control.type.endswith("labels")
        and control.type != "keypointlabels"
        and images.intersection(control.to_names)
        for label in control.labels
    ]


def load_classes(store: Store) -> tuple[ClassMap, str | None]:
    """The class map of a data set and its etag; an empty one and ``None`` where there is none yet.

    Raises:
        DatasetDamaged: ``classes.json`` is there and is not a class map. Numbering afresh would move every class.
    """
    try:
        data, etag = store.read(KEY)
    except NotThere:
        return ClassMap(), None
    try:
        return ClassMap(msgspec.json.decode(data, type=ClassMapFile).names), etag
    except msgspec.DecodeError as error:
        fix = f"Remove {KEY}: the next `labelloop export` makes it anew, with the numbers of the published version."
        raise DatasetDamaged(store.url, KEY, str(error), fix=fix) from error


Stored = tuple[ClassMap, str | None]
"""The store's class map and its etag, as `load_classes` gives them."""


def save_classes(store: Store, classes: ClassMap, seen: Stored | None = None) -> Stored:
    """Append the labels that the store's map does not have yet.

    Args:
        store: where the data set lives.
        classes: the class map.
        seen: what the store had, where it was read before.

    Returns:
        What the store has now.

    Raises:
        ClassMapMoved: another exporter appended first and gave a number to a label that has another one here.
    """
    for _ in range(20):
        stored, etag = seen or load_classes(store)
        seen = None
        if stored.names[: len(classes.names)] == classes.names:
            return stored, etag  # somebody knows all that we know
        if classes.names[: len(stored.names)] != stored.names:
            break
        try:
            etag = store.swap(KEY, msgspec.json.format(msgspec.json.encode(ClassMapFile(classes.names))), etag=etag)
        except Changed:
            continue
        return classes, etag
    raise ClassMapMoved(store.url)


class Numbering:
    """Keeps the store's class map up with ours while tasks are converted, so that exporters beside us see our numbers.

    Use it as a context.

    Args:
        store: where the data set lives.
        classes: the class map as it was loaded; it grows.
        etag: what came with it.
    """

    def __init__(self, store: Store, classes: ClassMap, etag: str | None) -> None:
        self._store, self._classes = store, classes
        self._seen: Stored = ClassMap(classes.names), etag
        self._saved = len(classes)  # what was loaded is there
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="classes")
        self._saving: Future[Stored] | None = None

    def keep_up(self) -> None:
        """Begin to save what is new. Raises what went wrong with what was new before.

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
            if pairs := [pair for pair in alike(names) if new.intersection(pair)]:
                raise LabelsAlike(pairs)
            self._saved = len(names)
            self._saving = self._threads.submit(save_classes, self._store, ClassMap(names), self._seen)

    def finish(self) -> None:
        """All of them are in the store when this returns.

        Raises:
            ClassMapMoved: see `save_classes`.
        """
        while self._saving or len(self._classes) > self._saved:
            if self._saving:
                self._seen = self._saving.result()
                self._saving = None
            self.keep_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
