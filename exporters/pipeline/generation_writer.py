"""Write a generation: the converted tasks, in the tables of the formats and of the accounts.

It is written a segment of tasks at a time (`SegmentWriter`), by this process or by others. A shard never spans two
segments, so the bytes do not depend on the number of processes.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from exporters.dataset.shards import ObjectUploader, TableWriter, line_heads
from exporters.dataset.task_index import PageFile, PageWriter
from exporters.formats.base import LEFT_OUT, EncodedBlock, Format
from exporters.model.accounting import TaskAccount, TaskAccountTable
from exporters.model.manifest import DROPPED, IMAGES, PHOTOS, Generation, Shard
from exporters.model.records import Image
from exporters.pipeline.converter import ConvertedBlock, TaskOutcomeKey
from exporters.pipeline.format_accounting import FormatAccountant
from exporters.tasks.formats.base import TaskFormat, noted

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


# Called with a format, images, and their records.
OnRecords = Callable[[str, Sequence[Image], EncodedBlock], None]


class SegmentResult(msgspec.Struct, frozen=True):
    """A converted segment: its shards by table, its index rows, and its accounts."""

    tables: Mapping[str, tuple[Shard, ...]]
    rows: PageWriter
    accounts: TaskAccountTable


class SegmentWriter:
    """Writes blocks of converted tasks.

    Args:
        formats: the formats to write.
        scratch: a folder for shards before they are uploaded.
        objects: uploads shards.
        first: the number of tasks of the generation before this segment.
        account_cache: cache of the accounts of patterns, shared by segments.
        on_records: called with each format, the images of a block, and their records.
    """

    def __init__(
        self,
        formats: Sequence[Format | TaskFormat],
        scratch: Path,
        objects: ObjectUploader,
        *,
        first: int,
        account_cache: dict[TaskOutcomeKey, TaskAccount] | None = None,
        on_records: OnRecords | None = None,
    ) -> None:
        self._formats: list[Format] = [fmt for fmt in formats if not isinstance(fmt, TaskFormat)]
        self._task_formats = [fmt for fmt in formats if isinstance(fmt, TaskFormat)]
        self._first = first
        self._on_records = on_records
        self._rows = PageWriter()
        self._accounts = TaskAccountTable()
        self._numbers: dict[TaskOutcomeKey, int] = {}
        self._account_cache = {} if account_cache is None else account_cache
        self._tables = {
            name: TableWriter(f"{first}-{name}", scratch, objects)
            for name in (IMAGES, DROPPED, PHOTOS, *(fmt.name for fmt in formats))
        }

    def add(self, converted: ConvertedBlock) -> None:
        """Write the records of a block and the rows of its tasks."""
        block, rows = converted.block, converted.rows
        first = self._first + len(self._rows)
        heads = line_heads([first + task for task in block.tasks], [image.split for image in block.images])
        self._tables[IMAGES].add(heads, _encode_lines(block.images).split(b"\n")[:-1])
        accountant = FormatAccountant(block, rows)
        for fmt in self._formats:
            encoded = fmt.encode(block)
            self._tables[fmt.name].add(heads, encoded.records)
            accountant.add(fmt, encoded)
            if self._on_records:
                self._on_records(fmt.name, block.images, encoded)
        if self._task_formats:
            self._add_lines(converted, first, accountant)
        for task, row in enumerate(rows):
            seq = first + task
            if row.photos:
                splits = [split for split, _ in row.photos]
                photos = [_encode(photo) for _, photo in row.photos]
                self._tables[PHOTOS].add(line_heads([seq] * len(photos), splits), photos)
            if losses := [_encode(loss) for loss in accountant.losses(task)]:
                self._tables[DROPPED].add(line_heads([seq] * len(losses), [""] * len(losses)), losses)
        numbers = accountant.account_numbers(self._accounts, self._numbers, self._account_cache)
        self._accounts.add(numbers)
        self._rows.add([row.key for row in rows], [row.digest for row in rows], numbers, [row.names for row in rows])

    def _add_lines(self, converted: ConvertedBlock, first: int, accountant: FormatAccountant) -> None:
        """Write the lines of a block."""
        for task, lines in enumerate(converted.lines):
            if not lines:
                continue
            heads = line_heads([first + task] * len(lines), [line.split for line in lines])
            for fmt in self._task_formats:
                encoded = [noted(fmt.encode_line(line)) for line in lines]
                records = [LEFT_OUT if line.record is None else line.record for line in encoded]
                self._tables[fmt.name].add(heads, records)
                accountant.add_lines(fmt.name, task, lines, encoded)
            accountant.count_lines(task, lines)

    def finish(self) -> SegmentResult:
        """Return what was written."""
        tables = {name: shards for name, table in self._tables.items() if (shards := table.finish())}
        return SegmentResult(tables, self._rows, self._accounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables.values():
            table.close()


class GenerationBuilder:
    """Joins segments in the order of the source; ``accounts`` covers all tasks of the version."""

    def __init__(self, scratch: Path, objects: ObjectUploader) -> None:
        self.accounts = TaskAccountTable()
        # Number of tasks in the generation.
        self.converted = 0
        self._objects = objects
        self._page = PageFile(scratch)
        self._tables: dict[str, tuple[Shard, ...]] = {}

    def add(self, segment: SegmentResult) -> None:
        """Add a segment."""
        for name, shards in segment.tables.items():
            self._tables[name] = (*self._tables.get(name, ()), *shards)
        self._page.add(segment.rows.columns(self.accounts.merge(segment.accounts)))
        self.converted += len(segment.rows)

    def finish(self, removed: Iterable[int] = ()) -> Generation | None:
        """Return the generation; None if it is empty.

        Args:
            removed: removed tasks of older generations.
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
