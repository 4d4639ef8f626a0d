"""Assemble the images and objects of a task by the options of an export, recording what is left out."""

from array import array
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from exporters.convert.annotation_policy import (
    CONSENSUS,
    NOT_CHOSEN,
    AnnotationSelection,
    ByUser,
    select_annotations,
    unsettled_status,
)
from exporters.convert.consensus import MERGED, OUTVOTED, PARTLY_READABLE, TOO_LARGE, ConsensusResult, consensus_reading
from exporters.convert.loss_recorder import MALFORMED, LossRecorder
from exporters.convert.options import ConversionOptions, image_class_control
from exporters.convert.region_converter import RegionConverter
from exporters.convert.task_images import ImageSizes, TaskImage, find_image, task_images
from exporters.dataset.task_index import NameKeys
from exporters.model.accounting import Ledger, Loss
from exporters.model.class_map import ClassMap
from exporters.model.clipping import is_size_independent
from exporters.model.file_names import AssignedName, FileNames, imported_coco_fields, original_name, public_url
from exporters.model.records import IMAGE_SLOT, NOMINAL, Image, Item, Object, image_id
from exporters.model.splits import DISPUTED_SPLIT
from exporters.structures.integer_sets import IntervalSet, SpillingSet
from exporters.structures.split_keys import SplitKeys
from labelloop.labeling.consensus.consensus import AnnotatorModel
from labelloop.labeling.errors import MalformedTask, TooLargeToJudge
from labelloop.labeling.region import ParsedAnnotation
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, Task

SAME_IMAGE = "images that another task has too"
HEADER = "image sizes read from the image's header"
UNSIZED = "images of unknown size, in the formats that need none"
NOT_KNOWN = "its image's size is not known"
NO_SPLIT = "images whose task does not say its split, split by shares"
NO_GROUP = "images without a value of the group key, split by their own address"
UNSETTLED_IN = "{} tasks that are in all the same"
UNSETTLED_APART = "{} tasks in the split of disputed ones"


_UNKNOWN = (NOMINAL, NOMINAL)


class AssembledTask(msgspec.Struct, frozen=True):
    """The conversion result of a task.

    Attributes:
        key: Its id; without one of its own, its position in the source, negative.
        items: Its images with their objects.
        reusable: Whether the result follows from the task's own text: no other task affected its number or names.
        names: The keys of its images' names.
        losses: What is not in the data set.
    """

    key: int
    items: tuple[Item, ...]
    reusable: bool
    names: tuple[NameKeys, ...]
    losses: tuple[Loss, ...]


class UsedKeys(msgspec.Struct, frozen=True):
    """The task ids, image stems and image sources used by some tasks, each once."""

    ids: "array[int]"
    stems: "array[int]"
    sources: "array[int]"


class _TaskState:
    """The state of the current task."""

    def __init__(self, key: int, losses: LossRecorder) -> None:
        self.key = key
        self.reusable = False
        self.names: list[NameKeys] = []
        self.losses = losses
        self.annotators: Mapping[str, tuple[int, ...]] = {}  # consensus only: region id -> annotators


class TaskAssembler:
    """Converts tasks to items. Each loss is counted in the ledger and listed with its task."""

    def __init__(
        self, rules: ConversionOptions, *, classes: ClassMap, sizes: ImageSizes, ledger: Ledger, before: int = 0
    ) -> None:
        """Create an assembler.

        Args:
            rules: The options of the export.
            classes: Numbers the labels.
            sizes: Finds image sizes.
            ledger: Counts what happens to each task.
            before: The number of tasks of the source before the first one.
        """
        self._rules = rules
        self._sizes = sizes
        self._ledger = ledger
        self._class_control = image_class_control(rules.config)
        self._converter = RegionConverter(rules, classes, ledger)
        self._names = FileNames(split=rules.split.reads_data)
        self._ids = IntervalSet()
        self._position = before
        self._state: _TaskState

    def assemble(self, task: Task | MalformedTask) -> AssembledTask:
        """Return the images of a task with their objects; none if the task is not in the data set."""
        self._position += 1
        number = task.task if isinstance(task, MalformedTask) else task.id
        state = self._state = _TaskState(-self._position, LossRecorder(self._ledger, number, self._position))
        items = tuple(self._items(task))
        return AssembledTask(state.key, items, state.reusable, tuple(state.names), tuple(state.losses.losses))

    def try_reserve(self, number: int, names: Sequence[NameKeys]) -> bool:
        """Reserve the id and names of a reused task. Return False, and reserve nothing, if one of them is in use."""
        if number in self._ids or not self._names.try_reserve(names):
            return False
        self._position += 1
        self._ids.add(number)
        return True

    @property
    def used_keys(self) -> UsedKeys:
        """The keys used by the tasks so far."""
        return UsedKeys(self._ids.keys(), *(keys.keys() for keys in self._names.used_keys))

    def try_skip_tasks(self, tasks: int, used: UsedKeys) -> bool:
        """Skip tasks assembled elsewhere. Return False, and change nothing, if one of their keys is in use."""
        own_sets: tuple[IntervalSet | SpillingSet | SplitKeys, ...] = (self._ids, *self._names.used_keys)
        other_arrays = (used.ids, used.stems, used.sources)
        if any(key in own_set for own_set, keys in zip(own_sets, other_arrays, strict=True) for key in keys):
            return False
        for own_set, keys in zip(own_sets, other_arrays, strict=True):
            for key in keys:
                own_set.add(key)
        self._position += tasks
        return True

    def assign_name(self, number: int, url: str) -> AssignedName | None:
        """Assign the file name of the only image of a task; None, with no name assigned, if its id is in use."""
        if not self._ids.add(number):
            return None
        self._position += 1
        return self._names.assign(url, image_id=number)

    def _items(self, task: Task | MalformedTask) -> Iterator[Item]:
        self._ledger.input["task"] += 1
        if isinstance(task, MalformedTask):
            self._state.losses.malformed(task)
            return
        self._ledger.input["annotation"] += len(task.annotations) + self._state.losses.malformed_annotations(task)
        number = task.id if task.id and task.id > 0 else self._position
        if number in self._ids or number >= IMAGE_SLOT:
            is_duplicate = number in self._ids
            reason = "a task of this id came before" if is_duplicate else "its id is too large"
            self._drop_task(reason, self._read_all(task), failed=True)
            return
        self._ids.add(number)
        self._state.key = number
        self._state.reusable = task.id == number
        held_for = unsettled_status(task)
        if held_for and self._rules.disputed == "out":
            self._drop_task(held_for, self._read_all(task))
            return
        choice = select_annotations(task, self._rules.policy)
        for annotation, reason in choice.refused:
            self._state.losses.annotation(annotation, self._read(task, annotation), reason)
            if reason == NOT_CHOSEN and isinstance(self._rules.policy, ByUser):
                self._ledger.notes[f"annotations of user {annotation.completed_by} (not asked for)"] += 1
        if not choice.chosen:
            self._state.losses.task(choice.reason)
            return
        yield from self._chosen(
            task, number, choice, split=DISPUTED_SPLIT if held_for and self._rules.disputed == "apart" else ""
        )

    def _chosen(self, task: Task, number: int, choice: AnnotationSelection, *, split: str) -> Iterator[Item]:
        chosen = choice.chosen
        images = task_images(task, self._rules.config)
        readings = [(annotation, self._read(task, annotation, images)) for annotation in chosen]
        try:
            consensus = (
                consensus_reading(readings, self._rules.crowd or AnnotatorModel()) if choice.rule == CONSENSUS else None
            )
        except TooLargeToJudge as problem:
            self._drop_task(TOO_LARGE, readings, failed=True, detail=problem.reason)
            return
        self._ledger.input["image"] += len(images)
        placed, reasons = self._place_images(task, number, images, readings, split)
        if not placed:
            reason = "no image in its data" if not images else "no image with a known size"
            self._drop_task(reason, readings, failed=True, counted=bool(images))
            return
        self._ledger.kept["task"] += 1
        self._ledger.kept["annotation"] += len(chosen)
        self._ledger.chosen_by[choice.rule] += 1
        if held_for := unsettled_status(task):
            self._ledger.notes[(UNSETTLED_APART if split else UNSETTLED_IN).format(held_for)] += 1
        objects: dict[int, list[Object]] = {slot: [] for slot in placed}
        sources = {image.slot: image.url for image in images}
        numbers = iter(range(1, 2**62))
        losses = self._state.losses
        for annotation, reading in readings:
            self._count_other_results(reading)
            self._ledger.input["region"] += len(reading.regions) + len(reading.errors)
            for error in reading.errors:
                losses.region(annotation, error.result, MALFORMED, f"{error.field}: {error.reason}")
        if consensus is not None:
            readings = [self._apply_consensus(consensus)]
        for annotation, reading in readings:
            for region in reading.regions:
                image = find_image(images, region)
                if image is None:
                    losses.region(annotation, region.id, "drawn on an image that the task does not have")
                elif image.slot not in placed:
                    losses.region(annotation, region.id, reasons[image.slot])
                elif not placed[image.slot].width and not is_size_independent(region.geometry):
                    losses.region(annotation, region.id, NOT_KNOWN)
                else:
                    objects[image.slot] += self._converter.objects(
                        region,
                        annotation,
                        placed[image.slot],
                        numbers=numbers,
                        saw=self._state.annotators.get(region.id, ()),
                        losses=losses,
                    )
        coco_fields = imported_coco_fields(task.meta) if len(images) == 1 else {}
        for slot, placed_image in placed.items():
            classes = self._image_classes(readings, placed_image.item_index, alone=len(images) == 1)
            yield Item(
                placed_image, tuple(objects[slot]), source=sources[slot], choices=classes, coco_fields=coco_fields
            )

    def _image_classes(
        self, readings: Sequence[tuple[Annotation, ParsedAnnotation]], item_index: int, *, alone: bool
    ) -> tuple[str, ...]:
        """Return the distinct answers about an image, to the control of the image class."""
        answers: dict[str, None] = {}
        for _, reading in readings:
            control = self._class_control or next(iter(reading.choices), "")
            if alone:
                answers |= dict.fromkeys(reading.choices.get(control, ()))
                continue
            for result in reading.choice_results:
                choices = result.value.get("choices")
                if result.from_name == control and (result.item_index or 0) == item_index and isinstance(choices, list):
                    answers |= dict.fromkeys(map(str, choices))
        renamed = self._rules.renamed
        return tuple(dict.fromkeys(renamed.get(answer, answer) for answer in answers))

    def _split(self, task: Task, url: str) -> str:
        policy = self._rules.split
        if explicit := policy.explicit_split(task.data):
            return explicit
        if policy.key:
            self._ledger.notes[NO_SPLIT] += 1
        group = policy.group(url, task.data)
        if policy.group_by and not group:
            self._ledger.notes[NO_GROUP] += 1
        return policy.assign(url, group)

    def _place_images(
        self,
        task: Task,
        number: int,
        images: list[TaskImage],
        readings: list[tuple[Annotation, ParsedAnnotation]],
        split: str,
    ) -> tuple[dict[int, Image], dict[int, str]]:
        placed: dict[int, Image] = {}
        reasons: dict[int, str] = {}
        for image in images:
            stated_size = _size_of_regions(readings, images, image) or self._sizes.from_task(
                task, image, alone=len(images) == 1
            )
            size = stated_size or self._header(image, task.id)
            if self._sizes.reads_headers and (isinstance(size, str) or size == _UNKNOWN):
                self._state.reusable = False  # the image may be available next time
            if (
                isinstance(size, str)
                and self._rules.sizeless
                and any(reading.choice_results for _, reading in readings)
            ):
                size = _UNKNOWN  # the class of a whole image needs no size
            if isinstance(size, str):
                reasons[image.slot] = NOT_KNOWN
                failed = not _is_drawn_on(readings, images, image)
                self._state.losses.image(image.url, "its size is not known", size, failed=failed)
                continue
            if size == _UNKNOWN:
                size = 0, 0
                self._ledger.notes[UNSIZED] += 1
            new_id = image_id(number, image.slot)
            url = public_url(image.url)
            original = original_name(task.meta, image.url) if len(images) == 1 else ""
            wanted = split or self._split(task, image.url)
            assigned = self._names.assign(image.url, image_id=new_id, name=original, split=wanted)
            if assigned.split != wanted:
                self._state.losses.image_moved(url, assigned.split, wanted, "with the same image")
            self._state.names.append(assigned.keys)
            self._state.reusable &= assigned.free
            self._ledger.notes[SAME_IMAGE] += assigned.repeated
            self._ledger.kept["image"] += 1
            placed[image.slot] = Image(
                id=new_id,
                file_name=assigned.name,
                width=size[0],
                height=size[1],
                split=assigned.split,
                url=url,
                task=number,
                item_index=image.item_index,
                key=image.key,
            )
        return placed, reasons

    def _header(self, image: TaskImage, task: int | None) -> tuple[int, int] | str:
        size = self._sizes.from_header(image, task)
        self._ledger.notes[HEADER] += not isinstance(size, str)
        return size

    def _apply_consensus(self, consensus: ConsensusResult) -> tuple[Annotation, ParsedAnnotation]:
        """Return the consensus as an annotation without an annotator, and record the regions left out."""
        if consensus.merged:
            self._ledger.drop("region", MERGED, times=consensus.merged)
        for annotation, region, probability in consensus.outvoted:
            self._state.losses.region(annotation, region, OUTVOTED, f"{probability:.2f} likely", failed=False)
        for annotation, region in consensus.left_out:
            self._state.losses.region(annotation, region, PARTLY_READABLE, failed=False)
        self._state.annotators = consensus.annotators
        return Annotation(), consensus.reading

    def _read(self, task: Task, annotation: Annotation, images: Sequence[TaskImage] = ()) -> ParsedAnnotation:
        def size(item_index: int) -> tuple[int, int] | None:
            # called only if neither the results nor their siblings state the size; with several image tags it is
            # unknown here which one is meant
            at_index = [image for image in images if image.item_index == item_index]
            if len(at_index) != 1:
                return None
            stated_size = self._sizes.from_task(task, at_index[0], alone=len(images) == 1)
            header = stated_size or self._sizes.from_header(at_index[0], task.id)
            if isinstance(header, str):
                return _UNKNOWN if self._rules.sizeless else None
            return header

        return read_annotation(annotation, task=task, config=self._rules.config, size=size if images else None)

    def _read_all(self, task: Task) -> list[tuple[Annotation, ParsedAnnotation]]:
        """Read all annotations of a task, to count their regions."""
        return [(annotation, self._read(task, annotation)) for annotation in task.annotations]

    def _drop_task(
        self,
        reason: str,
        readings: Sequence[tuple[Annotation, ParsedAnnotation]],
        *,
        failed: bool = False,
        counted: bool = False,
        detail: str = "",
    ) -> None:
        """Leave a task out; ``counted``: its images or their regions are already counted as failures."""
        self._state.losses.task(reason, detail, failed=failed and not counted)
        for annotation, reading in readings:
            self._state.losses.annotation(annotation, reading, reason, failed=failed)

    def _count_other_results(self, reading: ParsedAnnotation) -> None:
        for result in (*reading.choice_results, *reading.relations, *reading.other_results):
            self._ledger.other_results[result.type or "unknown"] += 1


def _is_drawn_on(
    readings: list[tuple[Annotation, ParsedAnnotation]], images: list[TaskImage], image: TaskImage
) -> bool:
    """Whether a region is on an image, malformed regions included."""
    return any(
        any(find_image(images, region) is image for region in reading.regions)
        or any(_item_index(error.source) == image.item_index for error in reading.errors)
        for _, reading in readings
    )


def _item_index(result: object) -> int:
    """Return the item index of a malformed result; 0 if it has none."""
    item_index = result.get("item_index") if isinstance(result, dict) else None
    return item_index if isinstance(item_index, int) else 0


def _size_of_regions(
    readings: list[tuple[Annotation, ParsedAnnotation]], images: list[TaskImage], image: TaskImage
) -> tuple[int, int] | None:
    """Return the image size stated by the regions on an image."""
    for _, reading in readings:
        for region in reading.regions:
            if find_image(images, region) is image:
                return region.width, region.height
    return None
