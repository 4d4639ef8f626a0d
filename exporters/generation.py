"""A generation being written: the tasks that an export converts, in the tables of the formats and of the bill."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from exporters.accounting import Bills
from exporters.block import Block
from exporters.convert import Pattern, Row
from exporters.formats.format import Format
from exporters.index import PageWriter
from exporters.manifest import DROPPED, IMAGES, PHOTOS, Generation
from exporters.tables import Objects, TableWriter, line_head
from exporters.tally import Tally

_encode = msgspec.json.Encoder().encode


class NewGeneration:
    """Takes blocks of converted tasks; ``bills`` adds up what became of all tasks of the version."""

    def __init__(self, formats: Sequence[Format], scratch: Path, objects: Objects) -> None:
        self.bills = Bills()
        self._formats = formats
        self._objects = objects
        self._page = PageWriter()
        self._patterns: dict[Pattern, int] = {}
        self._tables = {
            name: TableWriter(name, scratch, objects)
            for name in (IMAGES, DROPPED, PHOTOS, *(each.name for each in formats))
        }

    @property
    def converted(self) -> int:
        """How many tasks were converted."""
        return len(self._page)

    def add(self, block: Block, rows: Sequence[Row]) -> None:
        """Write the records of a block and the rows of its tasks."""
        first = len(self._page)
        splits = [image.split for image in block.images]
        seqs = [first + task for task in block.tasks]
        heads = [line_head(*each) for each in zip(seqs, splits, strict=True)]
        self._tables[IMAGES].add(heads, [_encode(image) for image in block.images])
        tally = Tally(block, rows)
        for each in self._formats:
            encoded = each.encode(block)
            self._tables[each.name].add(heads, encoded.records)
            tally.add(each, encoded)
        for seq, (row, number) in enumerate(
            zip(rows, tally.bills(self.bills, self._patterns), strict=True), start=first
        ):
            if row.photos:
                head = [line_head(seq, split) for split, _ in row.photos]
                self._tables[PHOTOS].add(head, [_encode(photo) for _, photo in row.photos])
            if row.losses:
                self._tables[DROPPED].add(
                    [line_head(seq, "")] * len(row.losses), [_encode(loss) for loss in row.losses]
                )
            self.bills.add(number)
            self._page.add(row.key, row.digest, number, row.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables.values():
            table.close()

    def finish(self, removed: Iterable[int] = ()) -> Generation | None:
        """The generation; None where there is nothing in it.

        Args:
            removed: tasks of older generations that are gone.
        """
        removed = list(removed)
        tables = {name: shards for name, table in self._tables.items() if (shards := table.finish())}
        if not len(self._page) and not removed:
            return None
        index = self._objects.put(self._page.page(self.bills.known, removed))
        return Generation(msgspec.structs.replace(index, records=len(self._page)), tables)
