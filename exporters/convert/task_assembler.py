"""Convert any task to images with objects by the options of an export: the general path, a step at a time.

Each step returns its outcome with its `Tally`; nothing is recorded on the way. The first step that leaves the task out
ends the walk.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from exporters.convert.annotation_policy import (
    CONSENSUS,
    NOT_CHOSEN,
    AnnotationSelection,
    ByUser,
    Policy,
    select_annotations,
    unsettled_status,
)
from exporters.convert.image_placer import NOT_KNOWN, ImagePlacement, ImagePlacer, Reading, at_common_sizes
from exporters.convert.options import ConversionOptions, image_class_control
from exporters.convert.region_converter import ConvertedRegion, RegionConverter
from exporters.convert.tally import MALFORMED, MERGED, NOTHING, OUTVOTED, PARTLY_READABLE, TOO_LARGE, Tally, TaskLosses
from exporters.convert.task_images import ImageSizes, TaskImage, find_image, task_images
from exporters.convert.task_registry import TaskRegistry
from exporters.dataset.task_index import NameKeys
from exporters.model.accounting import AccountLine
from exporters.model.class_map import ClassMap
from exporters.model.clipping import is_size_independent
from exporters.model.file_names import imported_coco_fields
from exporters.model.records import Image, Item, Object
from exporters.model.splits import DISPUTED_SPLIT
from labelloop.labeling.errors import MalformedTask, TooLargeToJudge
from labelloop.labeling.region import ParsedAnnotation, Region
from labelloop.labeling.studio.task import Annotation, Task

if TYPE_CHECKING:
    from exporters.convert.consensus import ConsensusResult

INPUT_TASK = Tally.count("input", "task")
NO_SUCH_IMAGE = "drawn on an image that the task does not have"
NO_IMAGE_IN_DATA = "no image in its data"
NO_SIZED_IMAGE = "no image with a known size"
OTHER_SIZE = "regions that state another size of their image (read in percent)"
UNSETTLED_IN = "{} tasks that are in nevertheless"
UNSETTLED_APART = "{} tasks in the split of disputed ones"


class TaskContent(msgspec.Struct, frozen=True):
    """The images of a task.

    Attributes:
        tally: Its counts and losses.
        items: Its images with their objects; none for a task that is left out.
        names: The keys of its images' names.
        reusable: Whether the content follows from the task's own text: no other task affected its number or names.
    """

    tally: Tally
    items: tuple[Item, ...] = ()
    names: tuple[NameKeys, ...] = ()
    reusable: bool = True


class TaskOutcome(msgspec.Struct, frozen=True):
    """The outcome of a task: ``key`` is its id; without one of its own, its position in the source, negative."""

    key: int
    content: TaskContent


class TaskAssembler:
    """Converts tasks in the order of the source.

    Args:
        rules: The options of the export.
        classes: Numbers the labels.
        sizes: Finds image sizes.
        registry: The ids and names in use.
    """

    def __init__(
        self, rules: ConversionOptions, *, classes: ClassMap, sizes: ImageSizes, registry: TaskRegistry
    ) -> None:
        self._rules = rules
        self._registry = registry
        self._class_control = image_class_control(rules.config)
        self._placer = ImagePlacer(rules, sizes, registry.names)
        self._regions = RegionConverter(rules, classes)

    def assemble(self, task: Task | MalformedTask) -> TaskOutcome:
        """Return the outcome of a task."""
        position = self._registry.next_position()
        losses = TaskLosses(task.task if isinstance(task, MalformedTask) else task.id, position)
        if isinstance(task, MalformedTask):
            tally = Tally.join(INPUT_TASK, losses.malformed_task(task))
            return TaskOutcome(-position, TaskContent(tally, reusable=False))
        malformed = losses.malformed_annotations(task)
        annotations = Tally.count("input", "annotation", times=len(task.annotations) + len(malformed.losses))
        received = Tally.join(INPUT_TASK, annotations, malformed)
        number = task.id if task.id and task.id > 0 else position
        if refusal := self._registry.claim_id(number):
            tally = Tally.join(received, _drop_task(refusal, self._read_all(task), losses, failed=True))
            return TaskOutcome(-position, TaskContent(tally, reusable=False))
        content = self._select(task, number, losses)
        return TaskOutcome(
            number,
            TaskContent(
                Tally.join(received, content.tally),
                content.items,
                content.names,
                content.reusable and task.id == number,
            ),
        )

    def _select(self, task: Task, number: int, losses: TaskLosses) -> TaskContent:
        """Select the annotations of a task, and convert them."""
        held_for = unsettled_status(task)
        if held_for and self._rules.disputed == "out":
            return TaskContent(_drop_task(held_for, self._read_all(task), losses))
        selection = select_annotations(task, self._rules.policy)
        refused = Tally.join(
            *[
                refused_tally(
                    self._rules.policy, annotation, _region_count(self._placer.read(task, annotation)), reason, losses
                )
                for annotation, reason in selection.refused
            ]
        )
        if not selection.chosen:
            return TaskContent(Tally.join(refused, losses.whole_task(selection.reason)))
        split = DISPUTED_SPLIT if held_for and self._rules.disputed == "apart" else ""
        content = self._convert_selected(task, number, selection, split, losses)
        return TaskContent(Tally.join(refused, content.tally), content.items, content.names, content.reusable)

    def _convert_selected(
        self, task: Task, number: int, selection: AnnotationSelection, split: str, losses: TaskLosses
    ) -> TaskContent:
        """Convert the selected annotations of a task, fused if the policy asks for it."""
        images = task_images(task, self._rules.config)
        readings = at_common_sizes(
            [(annotation, self._placer.read(task, annotation, images)) for annotation in selection.chosen], task
        )
        consensus: ConsensusResult | None = None
        if selection.rule == CONSENSUS:
            from exporters.convert.consensus import consensus_reading
            from labelloop.labeling.consensus.consensus import AnnotatorModel

            try:
                consensus = consensus_reading(readings, self._rules.crowd or AnnotatorModel())
            except TooLargeToJudge as problem:
                return TaskContent(_drop_task(TOO_LARGE, readings, losses, failed=True, detail=problem.reason))
        placements = self._placer.place(task, number, images, readings, split=split, losses=losses)
        reusable = all(placement.reusable for placement in placements.values())
        placed_tally = Tally.join(
            Tally.count("input", "image", times=len(images)),
            *[placement.tally for placement in placements.values()],
        )
        if not any(placement.image for placement in placements.values()):
            reason = NO_SIZED_IMAGE if images else NO_IMAGE_IN_DATA
            if self._rules.tasks:  # the formats of tasks hold it nevertheless
                dropped = _without_image(reason, readings, losses)
                return TaskContent(
                    Tally.join(placed_tally, kept_tally(task, selection, split), dropped), reusable=reusable
                )
            dropped = _drop_task(reason, readings, losses, failed=True, counted=bool(images))
            return TaskContent(Tally.join(placed_tally, dropped), reusable=reusable)
        readings_tally = _read_tally(readings, losses)
        fused_tally = NOTHING
        annotators: Mapping[str, tuple[int, ...]] = {}
        if consensus is not None:
            fused_tally, annotators = _consensus_tally(consensus, losses), consensus.annotators
            readings = [(Annotation(), consensus.reading)]
        converted = self._convert_regions(images, placements, readings, annotators, losses)
        return TaskContent(
            Tally.join(
                placed_tally,
                kept_tally(task, selection, split),
                readings_tally,
                fused_tally,
                *[region.tally for _, region in converted],
            ),
            self._items(task, images, placements, readings, converted),
            tuple(name for placement in placements.values() for name in placement.names),
            reusable,
        )

    def _convert_regions(
        self,
        images: list[TaskImage],
        placements: Mapping[int, ImagePlacement],
        readings: Sequence[Reading],
        annotators: Mapping[str, tuple[int, ...]],
        losses: TaskLosses,
    ) -> list[tuple[int, ConvertedRegion]]:
        """Return the outcome of each region, with the slot of its image; -1 for a region that is left out."""
        converted: list[tuple[int, ConvertedRegion]] = []
        first = 1
        for annotation, reading in readings:
            for region in reading.regions:
                image, reason = _placed_on(region, images, placements)
                if image is None:
                    converted.append((-1, ConvertedRegion(losses.region(annotation, region.id, reason))))
                    continue
                slot, record = image
                outcome = self._regions.convert(
                    region,
                    annotation,
                    record,
                    first=first,
                    annotators=annotators.get(region.id, ()),
                    losses=losses,
                )
                first += outcome.numbers
                converted.append((slot, outcome))
        return converted

    def _items(
        self,
        task: Task,
        images: Sequence[TaskImage],
        placements: Mapping[int, ImagePlacement],
        readings: Sequence[Reading],
        converted: Iterable[tuple[int, ConvertedRegion]],
    ) -> tuple[Item, ...]:
        """Return the placed images with their objects."""
        objects: dict[int, list[Object]] = {image.slot: [] for image in images}
        for slot, region in converted:
            if region.objects:
                objects[slot] += region.objects
        alone = len(images) == 1
        coco_fields = imported_coco_fields(task.meta) if alone else {}
        return tuple(
            Item(
                record,
                tuple(objects[image.slot]),
                source=image.url,
                choices=image_classes(
                    readings, record.item_index, control=self._class_control, renamed=self._rules.renamed, alone=alone
                ),
                texts=image_texts(readings, record.item_index, alone=alone),
                coco_fields=coco_fields,
            )
            for image in images
            if (record := placements[image.slot].image)
        )

    def _read_all(self, task: Task) -> list[tuple[Annotation, ParsedAnnotation]]:
        """Read all annotations of a task, to count their regions."""
        return [(annotation, self._placer.read(task, annotation)) for annotation in task.annotations]


def refused_tally(policy: Policy, annotation: Annotation, regions: int, reason: str, losses: TaskLosses) -> Tally:
    """Return the tally of an annotation, with some number of regions, that a policy does not select."""
    refused = losses.whole_annotation(annotation, reason, regions)
    if reason != NOT_CHOSEN or not isinstance(policy, ByUser):
        return refused
    note = f"annotations of user {annotation.completed_by} (not asked for)"
    return Tally.join(refused, Tally.count("notes", note))


def image_classes(
    readings: Sequence[Reading], item_index: int = 0, *, control: str, renamed: Mapping[str, str], alone: bool = True
) -> tuple[str, ...]:
    """Return the distinct answers about an image, to the control of the image class.

    Args:
        readings: The selected annotations of its task.
        item_index: Its index in the task.
        control: The control of the image class; empty: the first that has an answer.
        renamed: Label -> the class that it counts as.
        alone: Whether it is the only image of its task.
    """
    answers: dict[str, None] = {}
    for _, reading in readings:
        asked = control or next(iter(reading.choices), "")
        if alone:
            answers |= dict.fromkeys(reading.choices.get(asked, ()))
            continue
        for result in reading.choice_results:
            choices = result.value.get("choices")
            if result.from_name == asked and (result.item_index or 0) == item_index and isinstance(choices, list):
                answers |= dict.fromkeys(map(str, choices))
    return tuple(dict.fromkeys(renamed.get(answer, answer) for answer in answers))


def image_texts(readings: Sequence[Reading], item_index: int = 0, *, alone: bool = True) -> tuple[str, ...]:
    """Return the distinct texts about an image, of the first text area that has any."""
    results = [result for _, reading in readings for result in reading.other_results if result.type == "textarea"]
    results = [result for result in results if alone or (result.item_index or 0) == item_index]
    texts: dict[str, None] = {}
    for result in results:
        if result.from_name == results[0].from_name:
            value = result.value.get("text")
            written = value if isinstance(value, list) else [value]
            texts |= dict.fromkeys(text for text in written if isinstance(text, str))
    return tuple(texts)


def _placed_on(
    region: Region, images: list[TaskImage], placements: Mapping[int, ImagePlacement]
) -> tuple[tuple[int, Image] | None, str]:
    """Return the slot and record of the image that a region is drawn on, or why the region is left out."""
    image = find_image(images, region)
    if image is None:
        return None, NO_SUCH_IMAGE
    placement = placements[image.slot]
    if placement.image is None:
        return None, placement.reason
    if not placement.image.width and not is_size_independent(region.geometry):
        return None, NOT_KNOWN
    return (image.slot, placement.image), ""


def _drop_task(
    reason: str,
    readings: Sequence[Reading],
    losses: TaskLosses,
    *,
    failed: bool = False,
    counted: bool = False,
    detail: str = "",
) -> Tally:
    """Return the tally of a task left out; ``counted``: its images or their regions are already counted as failures."""
    return Tally.join(
        losses.whole_task(reason, detail, failed=failed and not counted),
        *[losses.annotation(annotation, reading, reason, failed=failed) for annotation, reading in readings],
    )


def _without_image(reason: str, readings: Sequence[Reading], losses: TaskLosses) -> Tally:
    """Return the tally of the results of a task that is in the data set without an image."""
    lost = [
        losses.region(annotation, region.id, reason) for annotation, reading in readings for region in reading.regions
    ]
    return Tally.join(_read_tally(readings, losses), *lost)


def kept_tally(task: Task, selection: AnnotationSelection, split: str) -> Tally:
    """Return the counts of a task that is in the data set."""
    lines: tuple[AccountLine, ...] = (
        (("kept", "task"), 1),
        (("kept", "annotation"), len(selection.chosen)),
        (("chosen_by", selection.rule), 1),
    )
    if held_for := unsettled_status(task):
        lines = (*lines, (("notes", (UNSETTLED_APART if split else UNSETTLED_IN).format(held_for)), 1))
    return Tally(lines)


def other_results(reading: ParsedAnnotation) -> list[AccountLine]:
    """Return the counts of the results of an annotation that are about no region of an image."""
    others = (*reading.choice_results, *reading.relations, *reading.other_results)
    return [(("other_results", result.type or "unknown"), 1) for result in others]


def _region_count(reading: ParsedAnnotation) -> int:
    return len(reading.regions) + len(reading.errors)


def _states_other_size(region: Region) -> bool:
    """Whether `at_common_sizes` put a region on an image of another size than it states."""
    width, height = region.result[0].original_width, region.result[0].original_height
    return None not in (width, height) and (width, height) != (region.width, region.height)


def _read_tally(readings: Sequence[Reading], losses: TaskLosses) -> Tally:
    """Return the regions of the selected annotations, their other results, and the regions that cannot be read."""
    lines: list[AccountLine] = []
    malformed: list[Tally] = []
    for annotation, reading in readings:
        lines.append((("input", "region"), _region_count(reading)))
        lines.append((("notes", OTHER_SIZE), sum(map(_states_other_size, reading.regions))))
        lines += other_results(reading)
        malformed += [
            losses.region(annotation, error.result, MALFORMED, f"{error.field}: {error.reason}")
            for error in reading.errors
        ]
    return Tally.join(Tally(tuple(lines)), *malformed)


def _consensus_tally(consensus: "ConsensusResult", losses: TaskLosses) -> Tally:
    """Return the regions that a consensus leaves out."""
    return Tally.join(
        Tally.drop("region", MERGED, times=consensus.merged),
        *[
            losses.region(annotation, region, OUTVOTED, f"{probability:.2f} likely", failed=False)
            for annotation, region, probability in consensus.outvoted
        ],
        *[
            losses.region(annotation, region, PARTLY_READABLE, failed=False)
            for annotation, region in consensus.left_out
        ],
    )
