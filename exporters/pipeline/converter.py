"""Convert the tasks of a block to images and objects, and to each task's index row: account, losses, names.

`TaskConverter` is the interface. `GeneralConverter` converts every task; `exporters.pipeline.fast_converter` converts
common tasks in columns and leaves the others to it. Both give the same bytes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from exporters.columnar.block import Block
from exporters.convert.image_placer import SAME_IMAGE
from exporters.convert.region_converter import SEVERAL_LABELS, UNKNOWN_LABEL
from exporters.convert.tally import NOTHING, Counted, Tally
from exporters.convert.task_assembler import TaskAssembler
from exporters.dataset.task_index import NO_DIGEST, NameKeys
from exporters.model.accounting import AccountLine, Loss
from exporters.model.clipping import CLIPPED
from exporters.model.manifest import ImageCopy
from exporters.model.records import Item
from exporters.tasks.line import TaskLine
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.task import Task, read_task

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier
    from exporters.pipeline.incremental import UnchangedTasks


class SourceBlock(msgspec.Struct, frozen=True):
    """A block of tasks of the source.

    Attributes:
        entries: The JSON of each task, or why it cannot be read.
        digests: The digest of each text; ``NO_DIGEST`` without one.
        previous: The position of the task with the same text in the published version; -1 for none. Empty: no task
            may be reused.
    """

    entries: Sequence[bytes | MalformedTask]
    digests: Sequence[bytes]
    previous: Sequence[int] = ()


class TaskOutcomeKey(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a common task whose regions are all in the data set: tasks with one key have equal accounts.

    Attributes:
        rule: The rule that selected the annotation.
        split: The split of the image.
        repeated: Whether another task has the image too.
        unknown: The number of regions with a label that the label config does not have.
        clipped: The number of clipped regions.
        kinds: The numbers of upright rectangles, rotated rectangles, polygons, ellipses and key points.
        about: Whether an import stored fields of the image.
        noted: The numbers of regions with flags, with attributes and with notes; empty if there are none.
        more: Further counts, of its other annotations and results.
        several: `RegionOutcomes.several`.
    """

    rule: str
    split: str
    repeated: bool
    unknown: int
    clipped: int
    kinds: tuple[int, ...]
    about: bool = False
    noted: tuple[int, ...] = ()
    more: tuple[AccountLine, ...] = ()
    several: tuple[int, ...] = ()

    def counted(self) -> Counted:
        """Return the counts of a task with this outcome."""
        regions = sum(self.kinds)
        counted: Counted = Counter(
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
                ("notes", SEVERAL_LABELS): self.several[0] if self.several else 0,
            }
        )
        counted.update(Tally(self.more).counted())
        return counted


class ConvertedTask(msgspec.Struct, frozen=True):
    """The index row of a converted task.

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
    losses: Sequence[Loss] = ()
    photos: Sequence[tuple[str, ImageCopy]] = ()


class ConvertedBlock(msgspec.Struct, frozen=True):
    """The images of the converted tasks of a block, and their index rows; reused tasks are in neither.

    ``lines`` are the lines of each of these tasks, for formats of tasks; empty without such a format.
    """

    block: Block
    rows: Sequence[ConvertedTask]
    lines: Sequence[Sequence[TaskLine]] = ()


class TaskConverter(Protocol):
    """Converts blocks in the order of the source. All converters give the same data set, to the byte."""

    def convert(self, block: SourceBlock, unchanged: "UnchangedTasks | None" = None) -> ConvertedBlock:
        """Convert the tasks of a block, except those that ``unchanged`` keeps."""


class GeneralTask(msgspec.Struct, frozen=True):
    """A task converted by the general path: its index row and its images with their objects."""

    row: ConvertedTask
    items: Sequence[Item]

    @property
    def key(self) -> int:
        """The key of its row."""
        return self.row.key


class GeneralConverter:
    """Converts every task by the general path."""

    def __init__(self, assembler: TaskAssembler, copier: "ImageCopier | None" = None) -> None:
        self._assembler = assembler
        self._copier = copier

    def convert(self, block: SourceBlock, unchanged: "UnchangedTasks | None" = None) -> ConvertedBlock:
        """See `TaskConverter`."""
        tasks = convert_pending(block, unchanged, lambda index: self.convert_task(block, index))
        images = [(number, item) for number, task in enumerate(tasks) for item in task.items]
        return ConvertedBlock(
            Block(
                [item.image for _, item in images],
                [number for number, _ in images],
                {index: item for index, (_, item) in enumerate(images)},
                coco_fields={index: item.coco_fields for index, (_, item) in enumerate(images) if item.coco_fields},
            ),
            [task.row for task in tasks],
        )

    def convert_task(self, block: SourceBlock, index: int) -> GeneralTask:
        """Convert one task of a block."""
        entry = block.entries[index]
        outcome = self._assembler.assemble(read_entry(entry))
        content = outcome.content
        copied = copy_images(self._copier, content.items)
        tally = Tally.join(content.tally, copied.tally) if self._copier else content.tally
        reusable = content.reusable and copied.reusable
        row = ConvertedTask(
            outcome.key,
            block.digests[index] if reusable else NO_DIGEST,
            content.names if reusable else (),
            None,
            tally.counted(),
            tally.losses,
            copied.copies,
        )
        return GeneralTask(row, copied.items)


class CopiedImages(msgspec.Struct, frozen=True):
    """The images of a task after they were copied.

    Attributes:
        items: The images, each in the split of the first image with the same bytes.
        copies: The copies, each with its split.
        reusable: Whether the result follows from the task's own text.
        tally: What is noted about them.
    """

    items: Sequence[Item]
    copies: tuple[tuple[str, ImageCopy], ...] = ()
    reusable: bool = True
    tally: Tally = NOTHING


def copy_images(copier: "ImageCopier | None", items: Sequence[Item]) -> CopiedImages:
    """Copy the images of a task; without a copier they stay where they are."""
    if copier is None:
        return CopiedImages(items)
    outcomes = [copier.copy(item) for item in items]
    return CopiedImages(
        [
            replace(item, image=replace(item.image, split=outcome.split))
            for item, outcome in zip(items, outcomes, strict=True)
        ],
        tuple((outcome.split, outcome.copy) for outcome in outcomes if outcome.copy is not None),
        # otherwise the split depends on another task, or the image may be available next time
        all(
            outcome.copy is not None and outcome.split == item.image.split
            for item, outcome in zip(items, outcomes, strict=True)
        ),
        Tally.join(*[outcome.tally for outcome in outcomes]),
    )


class Keyed(Protocol):
    """A converted task with its key."""

    @property
    def key(self) -> int:
        """See `ConvertedTask`."""


KeyedTask = TypeVar("KeyedTask", bound=Keyed)


def convert_pending(
    block: SourceBlock, unchanged: "UnchangedTasks | None", convert_task: Callable[[int], KeyedTask]
) -> list[KeyedTask]:
    """Convert the tasks of a block that are not reused, in the order of the source, each by its index."""
    if unchanged is None:
        return [convert_task(index) for index in range(len(block.entries))]
    converted: list[KeyedTask] = []
    for index, position in enumerate(block.previous):
        if position < 0 or not unchanged.keep(position):
            task = convert_task(index)
            unchanged.mark_converted(task.key)
            converted.append(task)
    return converted


def read_entry(entry: bytes | MalformedTask) -> Task | MalformedTask:
    """Return a task of a block; the error of one that cannot be read."""
    if isinstance(entry, MalformedTask):
        return entry
    try:
        return read_task(entry)
    except MalformedTask as error:
        return error
