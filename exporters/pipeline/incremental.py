"""The tasks of the published version, so that an export converts only those that changed since."""

from collections.abc import Container, Sequence

import numpy as np

from exporters.convert.task_registry import TaskRegistry
from exporters.dataset.shards import read_index
from exporters.dataset.task_index import ByDigest, TaskIndex
from exporters.model.accounting import TaskAccount, TaskAccountTable
from exporters.model.manifest import DatasetManifest, Generation
from labelloop.service.store import Store

# Largest number of generations of a version before it is rewritten.
MAX_GENERATIONS = 12
# Largest ratio of stored to current tasks; beyond it the data set is rewritten, as readers read all stored ones.
MAX_STORED_RATIO = 1.5


class SourceOrderChanged(Exception):
    """The tasks come in another order than in the published version."""


class PreviousVersionIndex:
    """The tasks of the published version by their text, and which of them the source still has.

    The tasks of a version are in the order of its source. A reconverted task keeps its position, a new one is
    appended. If the source has another order, the published version cannot be reused.
    """

    def __init__(
        self, generations: tuple[Generation, ...], index: TaskIndex, moved: Container[int] = frozenset()
    ) -> None:
        self.generations = generations
        self._index = index
        self._moved = moved
        self._by_digest = ByDigest(index)
        self._order = np.argsort(index.keys, kind="stable").astype(np.uint32)
        self._keys = index.keys[self._order]
        self._seen = np.zeros(len(index), np.bool_)
        self._last = -1
        self._appending = False

    @classmethod
    def load(
        cls, store: Store, parent: DatasetManifest, rules: str, moved: Container[int] = frozenset()
    ) -> "PreviousVersionIndex | None":
        """Load the index of a version; None if its rules differ or it is better rewritten.

        Args:
            store: The data set's store.
            parent: The version.
            rules: The digest of the rules of the export.
            moved: Keys of tasks that are converted again although they are unchanged, as their split is another.
        """
        if parent.rules != rules or not parent.generations or len(parent.generations) >= MAX_GENERATIONS:
            return None
        index = read_index(store, parent)
        return cls(parent.generations, index, moved) if index.stored <= MAX_STORED_RATIO * len(index) else None

    def find_unchanged(self, digests: Sequence[bytes]) -> list[int]:
        """Return the position of the task that was converted from each text; -1 if there is none."""
        return self._by_digest.find(digests)

    def position(self, key: int) -> int:
        """Return the position of a task; -1 if there is none."""
        insertion = int(np.searchsorted(self._keys, key))
        return int(self._order[insertion]) if insertion < len(self._keys) and self._keys[insertion] == key else -1

    def keep(self, position: int, registry: TaskRegistry) -> TaskAccount | None:
        """Reuse a task with its id and names. Return its account; None if another task uses one of them now."""
        key = int(self._index.keys[position])
        if self._seen[position] or key in self._moved or not registry.try_reserve(key, self._index.names(position)):
            return None
        self._advance_to(position)
        return self._index.account(position)

    def mark_converted(self, key: int) -> None:
        """Record that a task was converted: again, or for the first time."""
        position = self.position(key)
        if position < 0:
            self._appending = True
        else:
            self._advance_to(position)

    def removed(self) -> list[int]:
        """Return the tasks that the source does not have any more."""
        keys: list[int] = self._index.keys[~self._seen].tolist()
        return keys

    def _advance_to(self, position: int) -> None:
        if self._appending or position <= self._last:
            raise SourceOrderChanged
        self._last = position
        self._seen[position] = True


class UnchangedTasks:
    """The tasks that are unchanged since the published version."""

    def __init__(self, previous: PreviousVersionIndex, registry: TaskRegistry, accounts: TaskAccountTable) -> None:
        self._previous, self._registry, self._accounts = previous, registry, accounts
        self.find, self.mark_converted = previous.find_unchanged, previous.mark_converted

    def keep(self, position: int) -> bool:
        """Reuse the task at a position of that version. Return False if another task uses its id or names now."""
        account = self._previous.keep(position, self._registry)
        if account is not None:
            self._accounts.add([self._accounts.number(account)])
        return account is not None
