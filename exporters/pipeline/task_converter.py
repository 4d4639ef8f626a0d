"""Convert the tasks of a block to lines for the formats of tasks, alone or with the images of other formats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from exporters.columnar.block import Block
from exporters.convert.annotation_policy import select_annotations, unsettled_status
from exporters.convert.options import ConversionOptions
from exporters.convert.tally import MALFORMED, NOTHING, Tally, TaskLosses, moved_image
from exporters.convert.task_assembler import INPUT_TASK, kept_tally
from exporters.convert.task_images import ImageSizes
from exporters.convert.task_lines import NOT_FORMED, TaskLineBuilder, line_split, malformed_results
from exporters.convert.task_registry import TaskRegistry
from exporters.dataset.task_index import NO_DIGEST, NameKeys
from exporters.model.class_map import ClassMap
from exporters.pipeline.converter import (
    ConvertedBlock,
    ConvertedTask,
    SourceBlock,
    TaskConverter,
    convert_pending,
    read_entry,
)
from exporters.pipeline.fast_converter import make_converter
from exporters.tasks.flat import count_regions
from exporters.tasks.line import TaskLine
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.task import Annotation, Task

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier
    from exporters.pipeline.incremental import UnchangedTasks

Lines = Sequence[TaskLine]
# Ids of tasks without images are below this: the index holds 64-bit numbers.
_LARGEST_ID = 2**63


def choose_converter(
    rules: ConversionOptions,
    classes: ClassMap,
    *,
    registry: TaskRegistry,
    sizes: ImageSizes,
    copier: "ImageCopier | None" = None,
) -> TaskConverter:
    """Return the converter for the formats of an export: of images, of tasks, or of both.

    Args:
        rules: The options.
        classes: Numbers the labels.
        registry: The ids and names in use.
        sizes: Finds image sizes.
        copier: Copies the images into the data set.
    """
    if not rules.images:
        return LineConverter(rules, registry)
    images = make_converter(rules, classes, registry=registry, sizes=sizes, copier=copier)
    return ImageAndLineConverter(images, rules, registry) if rules.tasks else images


class LineConverter:
    """Converts tasks to lines alone. Images are neither read nor named."""

    def __init__(self, rules: ConversionOptions, registry: TaskRegistry) -> None:
        self._rules = rules
        self._registry = registry
        self._lines = TaskLineBuilder(rules)

    def convert(self, block: SourceBlock, unchanged: "UnchangedTasks | None" = None) -> ConvertedBlock:
        """See `TaskConverter`."""
        tasks = convert_pending(block, unchanged, lambda index: self._convert(block, index))
        return ConvertedBlock(Block([], [], {}), [task.row for task in tasks], [task.lines for task in tasks])

    def _convert(self, block: SourceBlock, index: int) -> "_LinedTask":
        position = self._registry.next_position()
        task = read_entry(block.entries[index])
        losses = TaskLosses(task.task if isinstance(task, MalformedTask) else task.id, position)
        if isinstance(task, MalformedTask):
            return _left_out(-position, Tally.join(INPUT_TASK, losses.malformed_task(task)), NO_DIGEST)
        malformed = losses.malformed_annotations(task)
        annotations = Tally.count("input", "annotation", times=len(task.annotations) + len(malformed.losses))
        received = Tally.join(INPUT_TASK, annotations, malformed)
        number = task.id if task.id and task.id > 0 else position
        if refusal := self._registry.claim_id(number, limit=_LARGEST_ID):
            dropped = _drop(task.annotations, refusal, losses, failed=True)
            whole = losses.whole_task(refusal, failed=True)
            return _left_out(-position, Tally.join(received, whole, dropped), NO_DIGEST)
        digest = block.digests[index] if task.id == number else NO_DIGEST
        held_for = unsettled_status(task)
        if held_for and self._rules.disputed == "out":
            dropped = _drop(task.annotations, held_for, losses)
            return _left_out(number, Tally.join(received, losses.whole_task(held_for), dropped), digest)
        selection = select_annotations(task, self._rules.policy)
        refused = Tally.join(*[_drop([annotation], reason, losses) for annotation, reason in selection.refused])
        if not selection.chosen:
            return _left_out(number, Tally.join(received, refused, losses.whole_task(selection.reason)), digest)
        is_apart = bool(held_for) and self._rules.disputed == "apart"
        split, names, moved = assign_split(task, number, self._rules, self._registry, losses, disputed=is_apart)
        if names is None:
            digest = NO_DIGEST
        lines = self._lines.lines(task, number, selection, split)
        rule = self._lines.rule(task, selection)
        tally = Tally.join(
            received,
            refused,
            kept_tally(task, replace(selection, rule=rule), split if is_apart else ""),
            moved,
            _results_tally(lines, selection.chosen, losses),
        )
        row = ConvertedTask(number, digest, names or (), None, tally.counted(), tally.losses)
        return _LinedTask(row, lines)


class ImageAndLineConverter:
    """Converts tasks to images by another converter, and to lines. A task is in the split of its first image."""

    def __init__(self, images: TaskConverter, rules: ConversionOptions, registry: TaskRegistry) -> None:
        self._images = images
        self._rules = rules
        self._registry = registry
        self._lines = TaskLineBuilder(rules)

    def convert(self, block: SourceBlock, unchanged: "UnchangedTasks | None" = None) -> ConvertedBlock:
        """See `TaskConverter`."""
        recorder = _KeptRecorder(unchanged) if unchanged is not None else None
        converted = self._images.convert(block, recorder)  # type: ignore[arg-type]
        kept = recorder.kept if recorder is not None else set[int]()
        previous = block.previous or [-1] * len(block.entries)
        pending = [index for index, position in enumerate(previous) if not _take(kept, position)]
        splits: dict[int, str] = {}
        for image, owner in zip(converted.block.images, converted.block.tasks, strict=True):
            splits.setdefault(owner, image.split)
        rows, lines = [], []
        for number, (index, row) in enumerate(zip(pending, converted.rows, strict=True)):
            new_row, made = self._convert(block, index, row, splits.get(number, ""))
            rows.append(new_row)
            lines.append(made)
        return ConvertedBlock(converted.block, rows, lines)

    def _convert(self, block: SourceBlock, index: int, row: ConvertedTask, split: str) -> tuple[ConvertedTask, Lines]:
        is_kept = row.pattern is not None or (row.counted is not None and row.counted["kept", "task"] > 0)
        if not is_kept:
            return row, ()
        task = read_entry(block.entries[index])
        assert isinstance(task, Task)  # it is kept
        selection = select_annotations(task, self._rules.policy)
        if not split:
            is_apart = bool(unsettled_status(task)) and self._rules.disputed == "apart"
            losses = TaskLosses(task.id, row.key)
            split, names, moved = assign_split(task, row.key, self._rules, self._registry, losses, disputed=is_apart)
            counted = moved.counted()
            counted.update(row.counted or {})
            row = replace(row, counted=counted, losses=(*row.losses, *moved.losses))
            row = (
                replace(row, digest=NO_DIGEST, names=()) if names is None else replace(row, names=(*row.names, *names))
            )
        if row.counted is not None and self._lines.rule(task, selection) == NOT_FORMED:
            counted = row.counted.copy()
            counted["notes", f"lines of tasks by the {NOT_FORMED}"] += 1
            row = replace(row, counted=counted)
        return row, self._lines.lines(task, row.key, selection, split)


def _take(kept: set[int], position: int) -> bool:
    """Remove a position, if it is there: of two tasks with one text only the first is reused."""
    if position not in kept:
        return False
    kept.remove(position)
    return True


class _LinedTask:
    """A task converted to lines: its index row and its lines."""

    def __init__(self, row: ConvertedTask, lines: Lines) -> None:
        self.row, self.lines, self.key = row, lines, row.key


class _KeptRecorder:
    """Passes `UnchangedTasks` on, and records which tasks are reused."""

    def __init__(self, unchanged: "UnchangedTasks") -> None:
        self._unchanged = unchanged
        self.find, self.mark_converted = unchanged.find, unchanged.mark_converted
        self.kept: set[int] = set()

    def keep(self, position: int) -> bool:
        """See `UnchangedTasks.keep`."""
        is_kept = self._unchanged.keep(position)
        if is_kept:
            self.kept.add(position)
        return is_kept


def assign_split(
    task: Task,
    number: int,
    rules: ConversionOptions,
    registry: TaskRegistry,
    losses: TaskLosses,
    *,
    disputed: bool,
) -> tuple[str, tuple[NameKeys, ...] | None, Tally]:
    """Return the split of a task, the keys that the index keeps for it, and what is noted.

    Where splits depend on data, tasks that show the same content are in the split of the first. The keys are None if
    the split depends on an earlier task.
    """
    split, identity = line_split(task, rules, disputed=disputed)
    if not rules.split.reads_data:
        return split, (), NOTHING
    assigned = registry.names.assign(identity, image_id=number, name=f"task-{number}.jpg", split=split)
    moved = NOTHING
    if assigned.split != split:
        moved = moved_image(losses.task, identity[:200], assigned.split, split, "with the same content")
    return assigned.split, (assigned.keys,) if assigned.free else None, moved


def _left_out(key: int, tally: Tally, digest: bytes) -> _LinedTask:
    return _LinedTask(ConvertedTask(key, digest, (), None, tally.counted(), tally.losses), ())


def _drop(annotations: Sequence[Annotation], reason: str, losses: TaskLosses, *, failed: bool = False) -> Tally:
    return Tally.join(
        *[
            losses.whole_annotation(one, reason, count_regions(result.raw for result in one.results), failed=failed)
            for one in annotations
        ]
    )


def _results_tally(lines: Lines, chosen: Sequence[Annotation], losses: TaskLosses) -> Tally:
    """Return the counts of the regions and answers of the lines, and of what is no result."""
    tallies = []
    for line in lines:
        regions = len(line.flat.regions)
        tallies.append(Tally(((("input", "region"), regions), (("kept", "region"), regions))))
        answers = [*(line.flat.controls[control] for control in line.flat.answers), *line.flat.item_answers]
        tallies += [Tally.count("other_results", str(answer.get("type") or "unknown")) for answer in answers]
        if line.flat.relations:
            tallies.append(Tally.count("other_results", "relation", times=len(line.flat.relations)))
    for annotation, field, reason in malformed_results(chosen):
        tallies.append(Tally.count("input", "region"))
        tallies.append(losses.region(annotation, "", MALFORMED, f"{field}: {reason}"))
    return Tally.join(*tallies)
