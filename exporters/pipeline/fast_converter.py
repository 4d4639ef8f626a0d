"""Convert common tasks in columns, a block at a time; the general path converts the others."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.block import Block
from exporters.columnar.columns import Columns
from exporters.convert.columnar_builder import RegionOutcomes, build_columns
from exporters.convert.fast_decoder import FastBatch, FastTask, FastTaskDecoder
from exporters.convert.image_placer import moved_to, stated_split
from exporters.convert.options import ConversionOptions
from exporters.convert.tally import NOTHING, Tally
from exporters.convert.task_assembler import TaskAssembler
from exporters.convert.task_images import ImageSizes
from exporters.convert.task_registry import TaskRegistry
from exporters.dataset.task_index import NO_DIGEST, NameKeys
from exporters.model.accounting import Loss
from exporters.model.class_map import ClassMap
from exporters.model.manifest import ImageCopy
from exporters.model.records import Image, Item
from exporters.pipeline.converter import (
    ConvertedBlock,
    ConvertedTask,
    GeneralConverter,
    GeneralTask,
    SourceBlock,
    TaskConverter,
    TaskOutcomeKey,
    convert_pending,
    copy_images,
)

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier
    from exporters.pipeline.incremental import UnchangedTasks


def make_converter(
    rules: ConversionOptions,
    classes: ClassMap,
    *,
    registry: TaskRegistry,
    sizes: ImageSizes,
    copier: "ImageCopier | None" = None,
) -> TaskConverter:
    """Return the converter for formats of images. The arguments are those of `choose_converter`."""
    general = GeneralConverter(TaskAssembler(rules, classes=classes, sizes=sizes, registry=registry), copier)
    return FastConverter(general, rules, classes, registry, copier, reads_headers=sizes.reads_headers)


class AcceptedTask(msgspec.Struct, frozen=True, gc=False):
    """A common task that is in the data set, before its objects are built.

    Attributes:
        task: The decoded task.
        image: Its image.
        digest: The digest of its text, or ``NO_DIGEST`` if the result depends on more than that.
        names: The keys of its image's name, if it has a digest.
        repeated: Whether another task has the image too.
        tally: What is noted about its image, its other annotations and its other results.
        copied: What is noted about the copy of its image.
        photos: The copy of its image with its split.
    """

    task: FastTask
    image: Image
    digest: bytes
    names: tuple[NameKeys, ...]
    repeated: bool
    tally: Tally
    copied: Tally = NOTHING
    photos: tuple[tuple[str, ImageCopy], ...] = ()

    @property
    def key(self) -> int:
        """Its id."""
        return self.task.task


class FastConverter:
    """Converts common tasks in columns and leaves the others to the general path."""

    def __init__(
        self,
        general: GeneralConverter,
        rules: ConversionOptions,
        classes: ClassMap,
        registry: TaskRegistry,
        copier: "ImageCopier | None" = None,
        *,
        reads_headers: bool = False,
    ) -> None:
        self._general = general
        self._rules = rules
        self._classes = classes
        self._registry = registry
        self._copier = copier
        self._decoder = FastTaskDecoder(rules, classes, reads_headers=reads_headers)

    def convert(self, block: SourceBlock, unchanged: "UnchangedTasks | None" = None) -> ConvertedBlock:
        """See `TaskConverter`."""
        batch = self._decoder.decode(_texts(block))
        if self._copier:
            self._copier.prefetch((task.url, task.task) for task in batch.tasks if task is not None)
        has_new_labels = not batch.class_ids.all()

        def convert_task(index: int) -> AcceptedTask | GeneralTask:
            task = batch.tasks[index]
            accepted = None
            if task is not None and not (has_new_labels and _has_new_labels(batch, task)):
                accepted = self._accept(task, block.digests[index])
                if accepted is not None and task.first == task.last:
                    return _without_objects(accepted)
            return accepted or self._general.convert_task(block, index)

        return self._build(batch, convert_pending(block, unchanged, convert_task))

    def _accept(self, task: FastTask, digest: bytes) -> AcceptedTask | None:
        """Name the image of a common task; None if the task's id is in use."""
        policy, wanted, tally = self._rules.split, "", task.tally
        if policy.reads_data:
            wanted, noted = stated_split(policy, task.url, task.data)
            tally = Tally.join(tally, noted)
        assigned = self._registry.assign_name(task.task, task.url, name=task.name, split=wanted)
        if assigned is None:
            return None
        split = assigned.split or policy.assign_key(assigned.keys[1])
        if split != wanted and wanted:
            tally = Tally.join(tally, moved_to(task.task, assigned.public_url, split, wanted))
        size = task.width, task.height
        image = Image(task.task, assigned.name, *size, split, assigned.public_url, task.task, 0, task.key)
        if self._copier is None:
            if assigned.free:
                return AcceptedTask(task, image, digest, (assigned.keys,), assigned.repeated, tally)
            return AcceptedTask(task, image, NO_DIGEST, (), assigned.repeated, tally)
        copied = copy_images(self._copier, [Item(image, source=task.url)])
        reusable = assigned.free and copied.reusable
        return AcceptedTask(
            task,
            copied.items[0].image,
            digest if reusable else NO_DIGEST,
            (assigned.keys,) if reusable else (),
            assigned.repeated,
            tally,
            copied.tally,
            copied.copies,
        )

    def _build(self, batch: FastBatch, tasks: Sequence[AcceptedTask | GeneralTask]) -> ConvertedBlock:
        """Build the objects of the accepted tasks, and join them with the others in the order of the source."""
        images: list[Image] = []
        owners: list[int] = []
        items: dict[int, Item] = {}
        accepted: list[AcceptedTask] = []
        columnar: list[int] = []
        for number, task in enumerate(tasks):
            if isinstance(task, AcceptedTask):
                accepted.append(task)
                columnar.append(len(images))
                images.append(task.image)
                owners.append(number)
                continue
            for item in task.items:
                items[len(images)] = item
                images.append(item.image)
                owners.append(number)
        columns = None
        accepted_rows: list[ConvertedTask] = []
        if accepted:
            columns, outcomes = build_columns(batch, [task.task for task in accepted], self._classes.names)
            accepted_rows = self._rows(accepted, columns, outcomes)
        rows = iter(accepted_rows)
        return ConvertedBlock(
            Block(
                images,
                owners,
                items,
                columns,
                columnar,
                [task.task.url for task in accepted],
                _coco_fields(accepted, columnar, items),
                {
                    index: task.task.answers
                    for index, task in zip(columnar, accepted, strict=True)
                    if any(task.task.answers)
                },
            ),
            [next(rows) if isinstance(task, AcceptedTask) else task.row for task in tasks],
        )

    def _rows(
        self, accepted: Sequence[AcceptedTask], columns: Columns, outcomes: RegionOutcomes
    ) -> list[ConvertedTask]:
        """Return the index rows of common tasks."""
        unknown = self._unknown_labels(columns)
        rows: list[ConvertedTask] = []
        counts = zip(accepted, outcomes.counts, strict=True)
        for index, (task, (*kinds, clipped, points)) in enumerate(counts):
            pattern = TaskOutcomeKey(
                task.task.rule,
                task.image.split,
                task.repeated,
                unknown[index] if unknown else 0,
                clipped,
                (*kinds, points),
                bool(task.task.coco_fields),
                outcomes.noted[index] if outcomes.noted else (),
                (*task.tally.lines, *task.copied.lines),
                outcomes.several[index] if outcomes.several else (),
            )
            rows.append(_row(task, pattern, outcomes, index))
        return rows

    def _unknown_labels(self, columns: Columns) -> list[int]:
        """Count the regions of each common task with a label that the label config does not have; empty for none."""
        if self._rules.config is None:
            return []
        unknown_labels = [
            number for number, name in enumerate(self._classes.names, 1) if name not in self._rules.config_labels
        ]
        points = columns.points
        unknown_points = [label not in self._rules.config_labels for label in points.labels] if points else []
        if not unknown_labels and not any(unknown_points):
            return []
        is_unknown = np.isin(columns.class_ids, unknown_labels)
        if columns.regions is not None:  # a region counts once
            np.logical_or.at(is_unknown, columns.regions, is_unknown)
            is_unknown &= columns.is_first
        counts = _sums(is_unknown, columns.first)
        if points:
            counts += _sums(np.array(unknown_points), points.first)
        result: list[int] = counts.tolist()
        return result


def _without_objects(task: AcceptedTask) -> GeneralTask:
    """Return a common task without regions, converted."""
    outcome = TaskOutcomeKey(
        task.task.rule,
        task.image.split,
        task.repeated,
        0,
        0,
        (),
        bool(task.task.coco_fields),
        more=(*task.tally.lines, *task.copied.lines),
    )
    losses = (*task.tally.losses, *task.copied.losses)
    row = ConvertedTask(task.key, task.digest, task.names, outcome, None, losses, task.photos)
    choices, texts = task.task.answers
    item = Item(task.image, (), task.task.url, choices, texts, task.task.coco_fields)
    return GeneralTask(row, (item,))


def _texts(block: SourceBlock) -> list[bytes | None]:
    """Return the texts to decode; ``None`` for a task that cannot be read or may be reused."""
    texts = [entry if type(entry) is bytes else None for entry in block.entries]
    if not block.previous:
        return texts
    return [text if position < 0 else None for text, position in zip(texts, block.previous, strict=True)]


def _sums(values: NDArray[np.bool_], first: Sequence[int]) -> NDArray[np.int64]:
    """Count the set rows of each part: (rows,), (parts + 1,) -> (parts,)."""
    cumulative = np.concatenate(([0], np.cumsum(values)))
    return np.diff(cumulative[np.array(first)])


def _has_new_labels(batch: FastBatch, task: FastTask) -> bool:
    """Whether a label of a task has no class number."""
    return not batch.class_ids[task.first : task.last].all()


def _coco_fields(
    accepted: Sequence[AcceptedTask], columnar: Sequence[int], items: Mapping[int, Item]
) -> dict[int, Mapping[str, object]]:
    """Return `Item.coco_fields` of the images that have any, by the index of the image."""
    fields = {
        index: task.task.coco_fields for index, task in zip(columnar, accepted, strict=True) if task.task.coco_fields
    }
    return fields | {index: item.coco_fields for index, item in items.items() if item.coco_fields}


def _row(task: AcceptedTask, pattern: TaskOutcomeKey, outcomes: RegionOutcomes, index: int) -> ConvertedTask:
    """Return the index row of a common task; it has counts if its pattern does not cover it."""
    others, dropped = outcomes.others.get(index, ()), outcomes.dropped.get(index, ())
    losses = [
        *task.tally.losses,
        *[
            Loss("region", reason, task=task.key, annotation=annotation, region=region)
            for region, annotation, reason in dropped
        ],
        *task.copied.losses,
    ]
    if not (others or dropped):
        return ConvertedTask(task.key, task.digest, task.names, pattern, None, losses, task.photos)
    counted = pattern.counted()
    for clipped in others:
        counted["kept", "region"] += 1
        counted["input", "region"] += 1
        counted.update(("repaired", repair) for repair in clipped.repairs)
    for _, _, reason in dropped:
        counted["input", "region"] += 1
        counted["dropped", "region", reason] += 1
        counted["failed", "regions"] += 1
    return ConvertedTask(task.key, task.digest, task.names, None, counted, losses, task.photos)
