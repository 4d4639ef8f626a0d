"""A generation being written: the tasks that an export converts, in the tables of the formats and of the bill.

It is written a stretch of tasks at a time (`StretchWriter`), by this process or by others: a shard never holds tasks of
two stretches, so the bytes are the same however many processes had a part in them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from exporters.columnar.block import Block
from exporters.dataset.shards import ObjectUploader, TableWriter, line_heads
from exporters.dataset.task_index import PageFile, PageWriter
from exporters.formats.base import Format
from exporters.model.accounting import TaskAccount, TaskAccountTable
from exporters.model.manifest import DROPPED, IMAGES, PHOTOS, Generation, Shard
from exporters.pipeline.converter import ConvertedTask, TaskOutcomeKey
from exporters.pipeline.format_accounting import FormatAccountant

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class SegmentResult(msgspec.Struct, frozen=True):
    """Tasks that were converted: the shards they gave in each table, their rows of the index, and their bills."""

    tables: Mapping[str, tuple[Shard, ...]]
    rows: PageWriter
    accounts: TaskAccountTable


class SegmentWriter:
    """Takes blocks of converted tasks.

    Args:
        formats: what is written.
        scratch: a folder for shards on their way.
        objects: puts shards into the store.
        first: how many tasks of the generation stand before this stretch.
        known: keeps the bills of patterns from one stretch to the next.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        scratch: Path,
        objects: ObjectUploader,
        *,
        first: int,
        known: dict[TaskOutcomeKey, TaskAccount] | None = None,
    ) -> None:
        self._formats = formats
        self._first = first
        self._rows = PageWriter()
        self._bills = TaskAccountTable()
        self._numbers: dict[TaskOutcomeKey, int] = {}
        self._known = {} if known is None else known
        self._tables = {
            name: TableWriter(f"{first}-{name}", scratch, objects)
            for name in (IMAGES, DROPPED, PHOTOS, *(each.name for each in formats))
        }

    def add(self, block: Block, rows: Sequence[ConvertedTask]) -> None:
        """Write the records of a block and the rows of its tasks."""
        first = self._first + len(self._rows)
        heads = line_heads([first + task for task in block.tasks], [image.split for image in block.images])
        self._tables[IMAGES].add(heads, _encode_lines(block.images).split(b"\n")[:-1])
        tally = FormatAccountant(block, rows)
        for each in self._formats:
            encoded = each.encode(block)
            self._tables[each.name].add(heads, encoded.records)
            tally.add(each, encoded)
        for seq, row in enumerate(rows, start=first):
            if row.photos:
                splits = [split for split, _ in row.photos]
                photos = [_encode(photo) for _, photo in row.photos]
                self._tables[PHOTOS].add(line_heads([seq] * len(photos), splits), photos)
            if row.losses:
                losses = [_encode(loss) for loss in row.losses]
                self._tables[DROPPED].add(line_heads([seq] * len(losses), [""] * len(losses)), losses)
        numbers = tally.account_numbers(self._bills, self._numbers, self._known)
        self._bills.add(numbers)
        self._rows.add([row.key for row in rows], [row.digest for row in rows], numbers, [row.names for row in rows])

    def finish(self) -> SegmentResult:
        """What was written."""
        tables = {name: shards for name, table in self._tables.items() if (shards := table.finish())}
        return SegmentResult(tables, self._rows, self._bills)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables.values():
            table.close()


class GenerationBuilder:
    """Takes stretches in the order of the source; ``bills`` adds up what became of all tasks of the version."""

    def __init__(self, scratch: Path, objects: ObjectUploader) -> None:
        self.accounts = TaskAccountTable()
        self.converted = 0
        """How many tasks it holds."""
        self._objects = objects
        self._page = PageFile(scratch)
        self._tables: dict[str, tuple[Shard, ...]] = {}

    def add(self, stretch: SegmentResult) -> None:
        """Add a stretch."""
        for name, shards in stretch.tables.items():
            self._tables[name] = (*self._tables.get(name, ()), *shards)
        self._page.add(stretch.rows.columns(self.accounts.merge(stretch.accounts)))
        self.converted += len(stretch.rows)

    def finish(self, removed: Iterable[int] = ()) -> Generation | None:
        """The generation; None where there is nothing in it.

        Args:
            removed: tasks of older generations that are gone.
        """
        removed = list(removed)
        if not self.converted and not removed:
            return None
        path = self._page.finish(self.accounts.accounts, removed)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        index = Shard(digest, path.stat().st_size, self.converted)
        self._objects.put_file(path, digest)
        return Generation(index, self._tables)
