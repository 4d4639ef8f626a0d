"""From the tasks of a block to its images and objects, and to each task's row in the index: bill, losses, names."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from exporters.accounting import Ledger, Loss
from exporters.assemble import Assembler
from exporters.block import Block
from exporters.dataset import Item
from exporters.index import NO_DIGEST, NameKeys
from exporters.manifest import Photo
from exporters.photos import Photos
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.task import Task, read_task


class Row(msgspec.Struct):
    """A task that was converted.

    Attributes:
        key: Its number, or its place in the source, negative, where it has none of its own.
        digest: Of its text, or ``NO_DIGEST`` where its part in the data set hangs on more than that.
        names: The keys of its images' names, where it has a digest.
        counted: What became of it; formats count on.
        losses: What of it is not in the data set; formats write on.
        photos: The copies of its images.
    """

    key: int
    digest: bytes
    names: Sequence[NameKeys]
    counted: Counter[tuple[str, ...]]
    losses: list[Loss]
    photos: Sequence[tuple[str, Photo]] = ()


class Converter:
    """Takes tasks in the order of the source; ``flush`` gives what became of those since the last one."""

    def __init__(self, assembler: Assembler, ledger: Ledger, photos: Photos | None = None) -> None:
        self._assembler = assembler
        self._ledger = ledger
        self._photos = photos
        self._rows: list[Row] = []
        self._items: list[Item] = []
        self._tasks: list[int] = []

    def add(self, entry: bytes | MalformedTask, digest: bytes) -> int:
        """Take a task, or its text; gives its key."""
        task = _read(entry) if isinstance(entry, bytes) else entry
        made = self._assembler.assemble(task)
        place = len(self._rows)
        self._items += made.items
        self._tasks += [place] * len(made.items)
        losses, photos, whole = list(made.losses), [], True
        if self._photos:
            for item in made.items:
                copied = self._photos.copy(item, self._ledger, losses.append)
                whole &= copied is not None
                photos += [(item.image.split, copied)] if copied else []
        stays = made.stays and whole
        self._rows.append(
            Row(
                made.key,
                digest if stays else NO_DIGEST,
                made.names if stays else (),
                self._ledger.settle(),
                losses,
                photos,
            )
        )
        return made.key

    def flush(self) -> tuple[Block, list[Row]]:
        """The images of the tasks taken, and the tasks' rows."""
        block, rows = Block(self._items, self._tasks), self._rows
        self._rows, self._items, self._tasks = [], [], []
        return block, rows


def _read(text: bytes) -> Task | MalformedTask:
    try:
        return read_task(text)
    except MalformedTask as error:
        return error
