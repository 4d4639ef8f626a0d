"""Convert the tasks of a block to images and objects, and to each task's index row: account, losses, names."""

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
    """The outcome of a common task whose regions are all in the data set: tasks with one key have equal accounts.

    Attributes:
        rule: The rule that selected the annotation.
        split: The split of the image.
        repeated: Whether another task has the image too.
        unknown: The number of regions with a label that the label config does not have.
        clipped: The number of clipped regions.
        kinds: The numbers of upright rectangles, rotated rectangles and polygons.
        about: Whether an import stored fields of the image.
    """

    rule: str
    split: str
    repeated: bool
    unknown: int
    clipped: int
    kinds: tuple[int, ...]
    about: bool = False

    def counted(self) -> Counted:
        """Return the counts of a task with this outcome."""
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
    """A converted task.

    Attributes:
        key: Its id; without one of its own, its position in the source, negative.
        digest: The digest of its text, or ``NO_DIGEST`` if the result depends on more than that.
        names: The keys of its images' names, if it has a digest.
        pattern: Its outcome, for a common task.
        counted: Its counts, without a pattern; formats add theirs.
        losses: What is not in the data set; formats add theirs.
        photos: The copies of its images, each with its split.
    """

    key: int
    digest: bytes
    names: Sequence[NameKeys]
    pattern: TaskOutcomeKey | None
    counted: Counted | None
    losses: list[Loss]
    photos: Sequence[tuple[str, ImageCopy]] = ()


class _AcceptedTask(msgspec.Struct, gc=False):
    """A common task that is in the data set, with the indices of its image and of its row."""

    task: FastTask
    image: int
    row: int
    repeated: bool


class Converter:
    """Converts tasks in the order of the source, a block at a time: `prefetch_block`, `add` each task, `flush`."""

    def __init__(
        self,
        assembler: TaskAssembler,
        rules: ConversionOptions,
        classes: ClassMap,
        ledger: Ledger,
        copier: "ImageCopier | None" = None,
    ) -> None:
        self._assembler = assembler
        self._rules = rules
        self._classes = classes
        self._ledger = ledger
        self._copier = copier
        self._decoder = FastTaskDecoder(rules, classes)
        self._batch = FastBatch([])
        self._new_labels = False
        # Number of images in the flushed blocks.
        self.images = 0
        self._reset()

    def prefetch_block(self, texts: Sequence[bytes | None]) -> None:
        """Decode the tasks of the next block; ``None`` stands for a task that may be skipped."""
        if self._rules.split.reads_data:  # splits depend on task data, which the fast decoder does not read
            texts = [None] * len(texts)
        self._batch = self._decoder.decode(texts)
        if self._copier:
            self._copier.prefetch((task.url, task.task) for task in self._batch.tasks if task is not None)
        self._new_labels = not self._batch.class_ids.all()

    def add(self, index: int, entry: bytes | MalformedTask, digest: bytes) -> int:
        """Convert a task of the block. Return its key."""
        fast_task = self._batch.tasks[index]
        if fast_task is not None and not (self._new_labels and not self._has_known_labels(fast_task)):
            named = self._assembler.assign_name(fast_task.task, fast_task.url)
            if named is not None:
                image = Image(
                    fast_task.task,
                    named.name,
                    fast_task.width,
                    fast_task.height,
                    self._rules.split.assign_key(named.keys[1]),
                    named.public_url,
                    fast_task.task,
                    0,
                    fast_task.key,
                )
                row = ConvertedTask(fast_task.task, digest, (named.keys,), None, None, [])
                if self._copier:
                    (item,) = self._copy([Item(image, source=fast_task.url)], row)
                    image = item.image
                    if row.digest == NO_DIGEST:
                        row.counted = self._ledger.close_task()
                if not named.free:
                    row.digest, row.names = NO_DIGEST, ()
                self._accepted.append(_AcceptedTask(fast_task, len(self._images), len(self._rows), named.repeated))
                self._images.append(image)
                self._tasks.append(len(self._rows))
                self._rows.append(row)
                return fast_task.task
        return self._convert_general(entry, digest)

    def _has_known_labels(self, task: FastTask) -> bool:
        """Whether all its labels have class numbers."""
        return bool(self._batch.class_ids[task.first : task.last].all())

    def flush(self) -> tuple[Block, list[ConvertedTask]]:
        """Return the images of the added tasks, and their rows."""
        columns = None
        if self._accepted:
            columns, outcomes = build_columns(
                self._batch, [accepted.task for accepted in self._accepted], self._classes.names
            )
            self._close_accounts(columns, outcomes)
        block = Block(
            self._images,
            self._tasks,
            self._items,
            columns,
            [accepted.image for accepted in self._accepted],
            [accepted.task.url for accepted in self._accepted],
            {accepted.image: accepted.task.coco_fields for accepted in self._accepted if accepted.task.coco_fields}
            | {index: item.coco_fields for index, item in self._items.items() if item.coco_fields},
        )
        rows = self._rows
        self.images += len(self._images)
        self._reset()
        return block, rows

    def _close_accounts(self, columns: Columns, outcomes: RegionOutcomes) -> None:
        """Set the outcomes of the common tasks."""
        unknown = self._unknown_labels(columns)
        for index, (accepted, (upright, rotated, rings, clipped)) in enumerate(
            zip(self._accepted, outcomes.counts, strict=True)
        ):
            row = self._rows[accepted.row]
            row.pattern = TaskOutcomeKey(
                accepted.task.rule,
                self._images[accepted.image].split,
                accepted.repeated,
                unknown[index] if unknown else 0,
                clipped,
                (upright, rotated, rings),
                bool(accepted.task.coco_fields),
            )
            if index in outcomes.others or index in outcomes.dropped or row.counted:
                self._close_account(accepted.task, row, outcomes.others.get(index, ()), outcomes.dropped.get(index, ()))

    def _unknown_labels(self, columns: Columns) -> list[int]:
        """Count the regions of each common task with a label that the label config does not have; empty for none."""
        if self._rules.config is None:
            return []
        unknown_labels = [
            number for number, name in enumerate(self._classes.names, 1) if name not in self._rules.config_labels
        ]
        if not unknown_labels:
            return []
        cumulative = np.concatenate(([0], np.cumsum(np.isin(columns.class_ids, unknown_labels))))
        first = np.array(columns.first)
        counts: list[int] = (cumulative[first[1:]] - cumulative[first[:-1]]).tolist()
        return counts

    def _close_account(
        self, task: FastTask, row: ConvertedTask, others: Sequence[ClippedShape], dropped: Sequence[DroppedRegion]
    ) -> None:
        """Set the counts of a common task that its pattern does not cover."""
        assert row.pattern is not None
        counted = row.pattern.counted()
        row.pattern = None
        for clipped in others:
            counted["kept", "region"] += 1
            counted["input", "region"] += 1
            counted.update(("repaired", repair) for repair in clipped.repairs)
        for region, annotation, reason in dropped:
            counted["input", "region"] += 1
            counted["dropped", "region", reason] += 1
            counted["failed", "regions"] += 1
            row.losses.append(Loss("region", reason, task=task.task, annotation=annotation, region=region))
        counted.update(row.counted or {})
        row.counted = counted

    def _reset(self) -> None:
        self._images: list[Image] = []
        self._tasks: list[int] = []
        self._items: dict[int, Item] = {}
        self._rows: list[ConvertedTask] = []
        self._accepted: list[_AcceptedTask] = []

    def _convert_general(self, entry: bytes | MalformedTask, digest: bytes) -> int:
        assembled = self._assembler.assemble(_read(entry) if isinstance(entry, bytes) else entry)
        row = ConvertedTask(assembled.key, digest, assembled.names, None, None, list(assembled.losses))
        if not assembled.reusable:
            row.digest, row.names = NO_DIGEST, ()
        for item in self._copy(assembled.items, row):
            self._items[len(self._images)] = item
            self._images.append(item.image)
            self._tasks.append(len(self._rows))
        row.counted = self._ledger.close_task()
        self._rows.append(row)
        return assembled.key

    def _copy(self, items: Sequence[Item], row: ConvertedTask) -> Sequence[Item]:
        """Copy the images of a task. Return its items, each in the split of the first image with the same bytes."""
        if self._copier is None:
            return items
        items_with_split = []
        for item in items:
            copy, split = self._copier.copy(item, self._ledger, row.losses.append)
            if copy is not None:
                row.photos = [*row.photos, (split, copy)]
            # the split depends on another task, or the image may be available next time
            if copy is None or split != item.image.split:
                row.digest, row.names = NO_DIGEST, ()
            items_with_split.append(replace(item, image=replace(item.image, split=split)))
        return items_with_split


def _read(text: bytes) -> Task | MalformedTask:
    try:
        return read_task(text)
    except MalformedTask as error:
        return error
