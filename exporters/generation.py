"""A generation being written: the tasks that an export converts, in the tables of the formats and of the bill."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from exporters.accounting import Bills, Loss, bill_of
from exporters.block import Block
from exporters.convert import Row
from exporters.formats.format import Format
from exporters.index import PageWriter
from exporters.manifest import DROPPED, IMAGES, PHOTOS, Generation
from exporters.tables import Objects, TableWriter, line

_encode = msgspec.json.Encoder().encode


class NewGeneration:
    """Takes blocks of converted tasks; ``bills`` adds up what became of all tasks of the version."""

    def __init__(self, formats: Sequence[Format], scratch: Path, objects: Objects) -> None:
        self.bills = Bills()
        self._formats = formats
        self._objects = objects
        self._page = PageWriter()
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
        splits = [item.image.split for item in block]
        seqs = [first + task for task in block.tasks]
        records = [_encode(item.image) for item in block]
        self._tables[IMAGES].add([line(*each) for each in zip(seqs, splits, records, strict=True)])
        for split, task in zip(splits, block.tasks, strict=True):
            rows[task].counted["images", split] += 1
        for each in self._formats:
            self._encode(each, block, rows, seqs, splits)
        for seq, row in enumerate(rows, start=first):
            self._tables[PHOTOS].add([line(seq, split, _encode(photo)) for split, photo in row.photos])
            self._tables[DROPPED].add([line(seq, "", _encode(loss)) for loss in row.losses])
            self._page.add(row.key, row.digest, self.bills.add(bill_of(row.counted)), row.names)

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

    def _encode(
        self, each: Format, block: Block, rows: Sequence[Row], seqs: Sequence[int], splits: Sequence[str]
    ) -> None:
        encoded = each.encode(block)
        self._tables[each.name].add([line(*parts) for parts in zip(seqs, splits, encoded.records, strict=True)])
        refused: dict[int, dict[int, str]] = {}
        for place, not_held, reason in encoded.refused:
            refused.setdefault(place, {})[not_held.number] = reason
            row = rows[block.tasks[place]]
            row.losses.append(
                Loss(
                    "region",
                    reason,
                    block.items[place].image.task,
                    not_held.annotation,
                    not_held.region,
                    format=each.name,
                )
            )
        for place, (item, task) in enumerate(zip(block.items, block.tasks, strict=True)):
            counted, without = rows[task].counted, refused.get(place, {})
            for reason in without.values():
                counted["format", each.name, "dropped", reason] += 1
            written = [one for one in item.objects if one.number not in without]
            # a key point is part of an object
            counted["format", each.name, "objects"] += sum(one.box is not None for one in written)
            counted["format", each.name, "regions"] += len({one.number for one in written})
        for place, change, times in encoded.converted:
            rows[block.tasks[place]].counted["format", each.name, "converted", change] += times
