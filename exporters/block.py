"""A block of tasks on its way through an export: the images it gave, with their objects, in the order of the tasks."""

from collections.abc import Iterator, Sequence

import msgspec

from exporters.dataset import Item


class Block(msgspec.Struct, frozen=True):
    """Images with their objects; ``tasks[i]`` is the place, in the block, of the task that image ``i`` belongs to."""

    items: Sequence[Item]
    tasks: Sequence[int]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)
