"""What the published version knows of the tasks, so that an export converts only those that changed since."""

from collections.abc import Sequence

import numpy as np

from exporters.convert.task_assembler import TaskAssembler
from exporters.dataset.shards import read_index
from exporters.dataset.task_index import ByDigest, TaskIndex
from exporters.model.accounting import TaskAccount
from exporters.model.manifest import Generation, VersionManifest
from labelloop.service.store import Store

MAX_GENERATIONS = 12
MAX_STORED_RATIO = 1.5
"""Tasks stored for each that counts; beyond it the data set is written anew, as readers have to read them all."""


class SourceOrderChanged(Exception):
    """The tasks come in another order than the published version has them in."""


class PreviousVersionIndex:
    """The tasks of the published version by their text, and which of them the source still has.

    A version's tasks stand in the order of its source. One that is converted again keeps its place, a new one comes
    last; where the source has it otherwise, the published version cannot be built on.
    """

    def __init__(self, generations: tuple[Generation, ...], index: TaskIndex) -> None:
        self.generations = generations
        self._index = index
        self._by_digest = ByDigest(index)
        self._order = np.argsort(index.keys, kind="stable").astype(np.uint32)
        self._keys = index.keys[self._order]
        self._seen = np.zeros(len(index), np.bool_)
        self._last = -1
        self._new = False

    @classmethod
    def load(cls, store: Store, parent: VersionManifest, rules: str) -> "PreviousVersionIndex | None":
        """What a version knows; None where it was made by other rules, or is better written anew."""
        if parent.rules != rules or not parent.generations or len(parent.generations) >= MAX_GENERATIONS:
            return None
        index = read_index(store, parent)
        return cls(parent.generations, index) if index.stored <= MAX_STORED_RATIO * len(index) else None

    def find_unchanged(self, digests: Sequence[bytes]) -> list[int]:
        """The place of the task that was converted from each text; -1 where there is none."""
        return self._by_digest.find(digests)

    def position(self, key: int) -> int:
        """The place of a task; -1 where there is none."""
        found = int(np.searchsorted(self._keys, key))
        return int(self._order[found]) if found < len(self._keys) and self._keys[found] == key else -1

    def keep(self, place: int, assembler: TaskAssembler) -> TaskAccount | None:
        """Take a task as it is, with its number and names; None where another task has one of them by now."""
        if self._seen[place] or not assembler.try_reserve(int(self._index.keys[place]), self._index.names(place)):
            return None
        self._come(place)
        return self._index.account(place)

    def mark_converted(self, key: int) -> None:
        """A task was converted: again, or for the first time."""
        place = self.position(key)
        if place < 0:
            self._new = True
        else:
            self._come(place)

    def removed(self) -> list[int]:
        """The tasks that did not come."""
        gone: list[int] = self._index.keys[~self._seen].tolist()
        return gone

    def _come(self, place: int) -> None:
        if self._new or place <= self._last:
            raise SourceOrderChanged
        self._last = place
        self._seen[place] = True
