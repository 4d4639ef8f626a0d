"""The task ids, image names and positions in use, so that each task and each image gets its own."""

from array import array
from collections.abc import Sequence

import msgspec

from exporters.dataset.task_index import NameKeys
from exporters.model.file_names import AssignedName, FileNames
from exporters.model.records import IMAGE_SLOT
from exporters.structures.integer_sets import IntervalSet, SpillingSet
from exporters.structures.split_keys import SplitKeys

REPEATED_ID = "a task of this id came before"
LARGE_ID = "its id is too large"


class UsedKeys(msgspec.Struct, frozen=True):
    """The task ids, image stems and image sources used by some tasks, each once."""

    ids: "array[int]"
    stems: "array[int]"
    sources: "array[int]"


class TaskRegistry:
    """Gives tasks their positions and ids, and images their names, in the order of the source.

    Args:
        reads_data: Whether splits depend on the data of tasks.
        before: The number of tasks of the source before the first one.
    """

    def __init__(self, *, reads_data: bool, before: int = 0) -> None:
        # The images' names.
        self.names = FileNames(split=reads_data)
        self._ids = IntervalSet()
        self._position = before

    def next_position(self) -> int:
        """Return the position of the next task, from 1."""
        self._position += 1
        return self._position

    def claim_id(self, number: int, *, limit: int = IMAGE_SLOT) -> str:
        """Reserve the id of a task, if it is below a limit. Return why it cannot have it; empty if it has it now."""
        if number in self._ids:
            return REPEATED_ID
        if number >= limit:
            return LARGE_ID
        self._ids.add(number)
        return ""

    def assign_name(self, number: int, url: str, *, name: str = "", split: str = "") -> AssignedName | None:
        """Assign the file name of the only image of a task: see `FileNames.assign`.

        None, with no name assigned, if the task's id is in use.
        """
        if not self._ids.add(number):
            return None
        self._position += 1
        return self.names.assign(url, image_id=number, name=name, split=split)

    def try_reserve(self, number: int, names: Sequence[NameKeys]) -> bool:
        """Reserve the id and names of a reused task. Return False, and reserve nothing, if one of them is in use."""
        if number in self._ids or not self.names.try_reserve(names):
            return False
        self._position += 1
        self._ids.add(number)
        return True

    @property
    def used_keys(self) -> UsedKeys:
        """The keys used by the tasks so far."""
        return UsedKeys(self._ids.keys(), *(keys.keys() for keys in self.names.used_keys))

    def try_skip_tasks(self, tasks: int, used: UsedKeys) -> bool:
        """Skip tasks converted elsewhere. Return False, and change nothing, if one of their keys is in use."""
        own_sets: tuple[IntervalSet | SpillingSet | SplitKeys, ...] = (self._ids, *self.names.used_keys)
        other_arrays = (used.ids, used.stems, used.sources)
        if any(key in own_set for own_set, keys in zip(own_sets, other_arrays, strict=True) for key in keys):
            return False
        for own_set, keys in zip(own_sets, other_arrays, strict=True):
            for key in keys:
                own_set.add(key)
        self._position += tasks
        return True
