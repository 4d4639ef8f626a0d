"""From the tasks of a block to its images and objects, and to each task's row in the index: bill, losses, names."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec.structs import replace

from exporters.columnar.block import Block
from exporters.columnar.columns import Columns
from exporters.convert.columnar_builder import DroppedRegion, RegionOutcomes, build_columns
from exporters.convert.fast_decoder import FastBatch, FastTask, FastTaskDecoder
from exporters.convert.options import ConversionOptions
from exporters.convert.region_converter import UNKNOWN_LABEL
from exporters.convert.task_assembler import SAME_IMAGE, TaskAssembler
from exporters.dataset.task_index import NO_DIGEST, NameKeys
from exporters.model.accounting import Ledger, Loss
from exporters.model.class_map import ClassMap
from exporters.model.clipping import CLIPPED, ClippedShape
from exporters.model.manifest import ImageCopy
from exporters.model.records import Image, Item
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.task import Task, read_task

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier

Counted = Counter[tuple[str, ...]]


class TaskOutcomeKey(msgspec.Struct, frozen=True, gc=False):
    """What became of a usual task, all of whose regions are in the data set: tasks with one pattern have one bill.

    ``kinds`` counts its upright rectangles, turned rectangles and polygons; ``unknown`` its regions with a label that
    the label config does not have; ``repeated``: another task has its image too; ``about``: an import kept fields of
    the image.
    """

    rule: str
    split: str
    repeated: bool
    unknown: int
    clipped: int
    kinds: tuple[int, ...]
    about: bool = False

    def counted(self) -> Counted:
        """The pattern as lines of a bill."""
        regions = sum(self.kinds)
        return Counter(
            {
                ("input", "task"): 1,
                ("input", "annotation"): 1,
                ("input", "image"): 1,
                ("input", "region"): regions,
                ("kept", "task"): 1,
                ("kept", "annotation"): 1,
                ("kept", "image"): 1,
                ("kept", "region"): regions,
                ("chosen_by", self.rule): 1,
                ("repaired", CLIPPED): self.clipped,
                ("notes", SAME_IMAGE): int(self.repeated),
                ("notes", UNKNOWN_LABEL): self.unknown,
            }
        )


class ConvertedTask(msgspec.Struct):
    """A task that was converted.

    Attributes:
        key: Its number, or its place in the source, negative, where it has none of its own.
        digest: Of its text, or ``NO_DIGEST`` where its part in the data set hangs on more than that.
        names: The keys of its images' names, where it has a digest.
        pattern: What became of it, for a usual task.
        counted: What became of it beside the pattern; formats count on.
        losses: What of it is not in the data set; formats write on.
        photos: The copies of its images.
    """

    key: int
    digest: bytes
    names: Sequence[NameKeys]
    pattern: TaskOutcomeKey | None
    counted: Counted | None
    losses: list[Loss]
    photos: Sequence[tuple[str, ImageCopy]] = ()


class _Accepted(msgspec.Struct, gc=False):
    """A usual task that is in the data set, by the places of its image and of its row."""

    draft: FastTask
    image: int
    row: int
    repeated: bool


class Converter:
    """Takes tasks in the order of the source, a block at a time: ``look``, ``add`` each, ``flush``."""

    def __init__(
        self,
        assembler: TaskAssembler,
        rules: ConversionOptions,
        classes: ClassMap,
        ledger: Ledger,
        photos: "ImageCopier | None" = None,
    ) -> None:
        self._assembler = assembler
        self._rules = rules
        self._classes = classes
        self._ledger = ledger
        self._photos = photos
        self._usual = FastTaskDecoder(rules, classes)
        self._drafts = FastBatch([])
        self._new_labels = False
        self.images = 0
        """Images of the blocks that were flushed."""
        self._begin()

    def prefetch_block(self, texts: Sequence[bytes | None]) -> None:
        """See the tasks of a block that will be added, by their places: ``None`` for one that may not be."""
        if self._rules.split.reads_data:  # the task's, which the usual way does not read
            texts = [None] * len(texts)
        self._drafts = self._usual.decode(texts)
        if self._photos:
            self._photos.prefetch((draft.url, draft.task) for draft in self._drafts.tasks if draft is not None)
        self._new_labels = not self._drafts.class_ids.all()

    def add(self, place: int, entry: bytes | MalformedTask, digest: bytes) -> int:
        """Take the task at a place of the block; gives its key."""
        draft = self._drafts.tasks[place]
        if draft is not None and not (self._new_labels and not self._known(draft)):
            named = self._assembler.assign_name(draft.task, draft.url)
            if named is not None:
                image = Image(
                    draft.task,
                    named.name,
                    draft.width,
                    draft.height,
                    self._rules.split.assign_key(named.keys[1]),
                    named.public_url,
                    draft.task,
                    0,
                    draft.key,
                )
                row = ConvertedTask(draft.task, digest, (named.keys,), None, None, [])
                if self._photos:
                    (item,) = self._copy([Item(image, source=draft.url)], row)
                    image = item.image
                    if row.digest == NO_DIGEST:
                        row.counted = self._ledger.close_task()
                if not named.free:
                    row.digest, row.names = NO_DIGEST, ()
                self._accepted.append(_Accepted(draft, len(self._images), len(self._rows), named.repeated))
                self._images.append(image)
                self._tasks.append(len(self._rows))
                self._rows.append(row)
                return draft.task
        return self._convert_general(entry, digest)

    def _known(self, draft: FastTask) -> bool:
        """Whether all its labels are classes."""
        return bool(self._drafts.class_ids[draft.first : draft.last].all())

    def flush(self) -> tuple[Block, list[ConvertedTask]]:
        """The images of the tasks taken, and the tasks' rows."""
        columns = None
        if self._accepted:
            columns, fates = build_columns(self._drafts, [each.draft for each in self._accepted], self._classes.names)
            self._settle(columns, fates)
        block = Block(
            self._images,
            self._tasks,
            self._items,
            columns,
            [each.image for each in self._accepted],
            [each.draft.url for each in self._accepted],
            {each.image: each.draft.coco_fields for each in self._accepted if each.draft.coco_fields}
            | {place: item.coco_fields for place, item in self._items.items() if item.coco_fields},
        )
        rows = self._rows
        self.images += len(self._images)
        self._begin()
        return block, rows

    def _settle(self, columns: Columns, fates: RegionOutcomes) -> None:
        """Write the bills of the usual tasks."""
        unknown = self._unknown(columns)
        for place, (each, (upright, turned, rings, clipped)) in enumerate(
            zip(self._accepted, fates.counts, strict=True)
        ):
            row = self._rows[each.row]
            row.pattern = TaskOutcomeKey(
                each.draft.rule,
                self._images[each.image].split,
                each.repeated,
                unknown[place] if unknown else 0,
                clipped,
                (upright, turned, rings),
                bool(each.draft.coco_fields),
            )
            if place in fates.others or place in fates.dropped or row.counted:
                self._settle_apart(each.draft, row, fates.others.get(place, ()), fates.dropped.get(place, ()))

    def _unknown(self, columns: Columns) -> list[int]:
        """How many regions of each usual task have a label that the label config does not have; empty for none."""
        if self._rules.config is None:
            return []
        strange = [
            number for number, name in enumerate(self._classes.names, 1) if name not in self._rules.config_labels
        ]
        if not strange:
            return []
        found = np.concatenate(([0], np.cumsum(np.isin(columns.class_ids, strange))))
        first = np.array(columns.first)
        counts: list[int] = (found[first[1:]] - found[first[:-1]]).tolist()
        return counts

    def _settle_apart(
        self, draft: FastTask, row: ConvertedTask, others: Sequence[ClippedShape], dropped: Sequence[DroppedRegion]
    ) -> None:
        """The bill of a usual task of which there is more to say than its pattern does."""
        assert row.pattern is not None
        counted = row.pattern.counted()
        row.pattern = None
        for fitted in others:
            counted["kept", "region"] += 1
            counted["input", "region"] += 1
            counted.update(("repaired", repair) for repair in fitted.repairs)
        for region, annotation, reason in dropped:
            counted["input", "region"] += 1
            counted["dropped", "region", reason] += 1
            counted["failed", "regions"] += 1
            row.losses.append(Loss("region", reason, task=draft.task, annotation=annotation, region=region))
        counted.update(row.counted or {})
        row.counted = counted

    def _begin(self) -> None:
        self._images: list[Image] = []
        self._tasks: list[int] = []
        self._items: dict[int, Item] = {}
        self._rows: list[ConvertedTask] = []
        self._accepted: list[_Accepted] = []

    def _convert_general(self, entry: bytes | MalformedTask, digest: bytes) -> int:
        made = self._assembler.assemble(_read(entry) if isinstance(entry, bytes) else entry)
        row = ConvertedTask(made.key, digest, made.names, None, None, list(made.losses))
        if not made.reusable:
            row.digest, row.names = NO_DIGEST, ()
        for item in self._copy(made.items, row):
            self._items[len(self._images)] = item
            self._images.append(item.image)
            self._tasks.append(len(self._rows))
        row.counted = self._ledger.close_task()
        self._rows.append(row)
        return made.key

    def _copy(self, items: Sequence[Item], row: ConvertedTask) -> Sequence[Item]:
        """Copy the photos of a task; gives its items, each in the split that has its photo's bytes."""
        if self._photos is None:
            return items
        placed = []
        for item in items:
            photo, split = self._photos.copy(item, self._ledger, row.losses.append)
            if photo is not None:
                row.photos = [*row.photos, (split, photo)]
            if photo is None or split != item.image.split:  # another task may decide, or the photo be there next time
                row.digest, row.names = NO_DIGEST, ()
            placed.append(replace(item, image=replace(item.image, split=split)))
        return placed


def _read(text: bytes) -> Task | MalformedTask:
    try:
        return read_task(text)
    except MalformedTask as error:
        return error
