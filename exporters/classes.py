"""The class map: which number a label has. Kept with the data set, only ever appended to, so that no number moves."""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Self

import msgspec

from exporters.errors import BadOption, ClassMapMoved, DatasetDamaged, LabelsAlike
from labelloop.labeling.config import LabelConfig
from labelloop.service.store import Changed, NotThere, Store

KEY = "classes.json"
_FORMAT = "labelloop-classes/1"
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
    images = {tag.name for tag in config.images}
    return [
        label.stored
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
