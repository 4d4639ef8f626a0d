"""From one task to the items of the data set: whose annotation, which image, which shape, which class; losses noted."""

from array import array
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from exporters.convert.annotation_policy import NOT_CHOSEN, TOGETHER, ByUser, Choice, choose, unsettled
from exporters.convert.consensus import JOINED, NOT_WHOLE, OUTVOTED, TOO_LARGE, Together, consensus_reading
from exporters.convert.loss_recorder import MALFORMED, LossRecorder
from exporters.convert.options import Rules, question
from exporters.convert.region_converter import Labeller
from exporters.convert.task_images import Sizes, TaskImage, find_image, task_images
from exporters.dataset.task_index import NameKeys
from exporters.model.accounting import Ledger, Loss
from exporters.model.class_map import ClassMap
from exporters.model.clipping import is_sizeless
from exporters.model.file_names import Named, Names, image_about, original_name, public_url
from exporters.model.records import IMAGE_SLOT, NOMINAL, Image, Item, Object, image_id
from exporters.model.splits import APART
from exporters.structures.integer_sets import KeySet, Runs
from exporters.structures.split_keys import SplitKeys
from labelloop.labeling.consensus.consensus import AnnotatorModel
from labelloop.labeling.errors import MalformedTask, TooLargeToJudge
from labelloop.labeling.region import Reading
from labelloop.labeling.studio.regions import read_annotation
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


class Assembled(msgspec.Struct, frozen=True):
    """What became of a task.

    Attributes:
        key: Its number, or its place in the source, negative, where it has none of its own.
        items: Its images with their objects.
        stays: Whether all of it follows from the task's own text: no other task decided about its number or names.
        names: The keys of its images' names.
        losses: What of it is not in the data set.
    """

    key: int
    items: tuple[Item, ...]
    stays: bool
    names: tuple[NameKeys, ...]
    losses: tuple[Loss, ...]


class Taken(msgspec.Struct, frozen=True):
    """What some tasks took, of which each is there once: their numbers, the stems and the sources of their images."""

    ids: "array[int]"
    stems: "array[int]"
    sources: "array[int]"


class _Made:
    """What becomes of the task under way."""

    def __init__(self, key: int, losses: LossRecorder) -> None:
        self.key = key
        self.stays = False
        self.names: list[NameKeys] = []
        self.losses = losses
        self.saw: Mapping[str, tuple[int, ...]] = {}  # of a consensus: who marked a region, by its id


class Assembler:
    """Turns tasks into items. Each loss is written down: in the ledger's sums and, one by one, with the task."""

    def __init__(self, rules: Rules, *, classes: ClassMap, sizes: Sizes, ledger: Ledger, before: int = 0) -> None:
        """``before``: how many tasks of the source stand before the first that comes here."""
        self._rules = rules
        self._sizes = sizes
        self._ledger = ledger
        self._question = question(rules.config)
        self._labeller = Labeller(rules, classes, ledger)
        self._names = Names(split=rules.split.reads_data)
        self._ids = Runs()
        self._position = before
        self._made: _Made

    def assemble(self, task: Task | MalformedTask) -> Assembled:
        """The images of a task with their objects; none where the task is not in the data set."""
        self._position += 1
        number = task.task if isinstance(task, MalformedTask) else task.id
        made = self._made = _Made(-self._position, LossRecorder(self._ledger, number, self._position))
        items = tuple(self._items(task))
        return Assembled(made.key, items, made.stays, tuple(made.names), tuple(made.losses.listed))

    def reserve(self, number: int, names: Sequence[NameKeys]) -> bool:
        """Let a task pass that is in the data set as it is; False, and nothing taken, where its number or names are."""
        if number in self._ids or not self._names.reserve(names):
            return False
        self._position += 1
        self._ids.add(number)
        return True

    @property
    def taken(self) -> Taken:
        """What the tasks so far took."""
        return Taken(self._ids.keys(), *(each.keys() for each in self._names.taken))

    def pass_over(self, tasks: int, taken: Taken) -> bool:
        """Let so many tasks pass that were assembled elsewhere; False, and nothing taken, where they took what is."""
        own: tuple[Runs | KeySet | SplitKeys, ...] = (self._ids, *self._names.taken)
        theirs = (taken.ids, taken.stems, taken.sources)
        if any(key in mine for mine, other in zip(own, theirs, strict=True) for key in other):
            return False
        for mine, other in zip(own, theirs, strict=True):
            for key in other:
                mine.add(key)
        self._position += tasks
        return True

    def place(self, number: int, url: str) -> Named | None:
        """The name of the one image of a usual task; None, and nothing is taken, where its number is taken."""
        if not self._ids.add(number):
            return None
        self._position += 1
        return self._names.take(url, image_id=number)

    def _items(self, task: Task | MalformedTask) -> Iterator[Item]:
        self._ledger.input["task"] += 1
        if isinstance(task, MalformedTask):
            self._made.losses.malformed(task)
            return
        self._ledger.input["annotation"] += len(task.annotations) + self._made.losses.malformed_annotations(task)
        number = task.id if task.id and task.id > 0 else self._position
        if number in self._ids or number >= IMAGE_SLOT:
            known = number in self._ids
            reason = "a task of this id came before" if known else "its id is too large"
            self._drop_task(reason, self._unsized(task), failed=True)
            return
        self._ids.add(number)
        self._made.key = number
        self._made.stays = task.id == number
        held_for = unsettled(task)
        if held_for and self._rules.disputed == "out":
            self._drop_task(held_for, self._unsized(task))
            return
        choice = choose(task, self._rules.policy)
        for annotation, reason in choice.refused:
            self._made.losses.annotation(annotation, self._read(task, annotation), reason)
            if reason == NOT_CHOSEN and isinstance(self._rules.policy, ByUser):
                self._ledger.notes[f"annotations of user {annotation.completed_by} (not asked for)"] += 1
        if not choice.chosen:
            self._made.losses.task(choice.reason)
            return
        yield from self._chosen(
            task, number, choice, split=APART if held_for and self._rules.disputed == "apart" else ""
        )

    def _chosen(self, task: Task, number: int, choice: Choice, *, split: str) -> Iterator[Item]:
        chosen = choice.chosen
        images = task_images(task, self._rules.config)
        readings = [(annotation, self._read(task, annotation, images)) for annotation in chosen]
        try:
            agreed = (
                consensus_reading(readings, self._rules.crowd or AnnotatorModel()) if choice.rule == TOGETHER else None
            )
        except TooLargeToJudge as problem:
            self._drop_task(TOO_LARGE, readings, failed=True, detail=problem.reason)
            return
        self._ledger.input["image"] += len(images)
        placed, reasons = self._place(task, number, images, readings, split)
        if not placed:
            reason = "no image in its data" if not images else "no image with a known size"
            self._drop_task(reason, readings, failed=True, counted=bool(images))
            return
        self._ledger.kept["task"] += 1
        self._ledger.kept["annotation"] += len(chosen)
        self._ledger.chosen_by[choice.rule] += 1
        if held_for := unsettled(task):
            self._ledger.notes[(UNSETTLED_APART if split else UNSETTLED_IN).format(held_for)] += 1
        objects: dict[int, list[Object]] = {slot: [] for slot in placed}
        sources = {image.slot: image.url for image in images}
        numbers = iter(range(1, 2**62))
        losses = self._made.losses
        for annotation, reading in readings:
            self._others(reading)
            self._ledger.input["region"] += len(reading.regions) + len(reading.errors)
            for error in reading.errors:
                losses.region(annotation, error.result, MALFORMED, f"{error.field}: {error.reason}")
        if agreed is not None:
            readings = [self._together(agreed)]
        for annotation, reading in readings:
            for region in reading.regions:
                image = find_image(images, region)
                if image is None:
                    losses.region(annotation, region.id, "drawn on an image that the task does not have")
                elif image.slot not in placed:
                    losses.region(annotation, region.id, reasons[image.slot])
                elif not placed[image.slot].width and not is_sizeless(region.geometry):
                    losses.region(annotation, region.id, NOT_KNOWN)
                else:
                    objects[image.slot] += self._labeller.objects(
                        region,
                        annotation,
                        placed[image.slot],
                        numbers=numbers,
                        saw=self._made.saw.get(region.id, ()),
                        losses=losses,
                    )
        about = image_about(task.meta) if len(images) == 1 else {}
        for slot, each in placed.items():
            answered = self._answered(readings, each.item_index, alone=len(images) == 1)
            yield Item(each, tuple(objects[slot]), source=sources[slot], choices=answered, about=about)

    def _answered(
        self, readings: Sequence[tuple[Annotation, Reading]], item_index: int, *, alone: bool
    ) -> tuple[str, ...]:
        """What was answered about an image to the one question about images, each answer once."""
        found: dict[str, None] = {}
        for _, reading in readings:
            asked = self._question or next(iter(reading.choices), "")
            if alone:
                found |= dict.fromkeys(reading.choices.get(asked, ()))
                continue
            for result in reading.answers:
                given = result.value.get("choices")
                if result.from_name == asked and (result.item_index or 0) == item_index and isinstance(given, list):
                    found |= dict.fromkeys(map(str, given))
        renamed = self._rules.renamed
        return tuple(dict.fromkeys(renamed.get(each, each) for each in found))

    def _split(self, task: Task, url: str) -> str:
        rule = self._rules.split
        if told := rule.explicit_split(task.data):
            return told
        if rule.key:
            self._ledger.notes[NO_SPLIT] += 1
        group = rule.group(url, task.data)
        if rule.group_by and not group:
            self._ledger.notes[NO_GROUP] += 1
        return rule.of(url, group)

    def _place(
        self,
        task: Task,
        number: int,
        images: list[TaskImage],
        readings: list[tuple[Annotation, Reading]],
        split: str,
    ) -> tuple[dict[int, Image], dict[int, str]]:
        placed: dict[int, Image] = {}
        reasons: dict[int, str] = {}
        for image in images:
            known = _size_in(readings, images, image) or self._sizes.known(task, image, alone=len(images) == 1)
            size = known or self._header(image, task.id)
            if self._sizes.looks and (isinstance(size, str) or size == _UNKNOWN):
                self._made.stays = False  # the photo may be there the next time
            if isinstance(size, str) and self._rules.sizeless and any(reading.answers for _, reading in readings):
                size = _UNKNOWN  # the class of a whole image needs no size
            if isinstance(size, str):
                reasons[image.slot] = NOT_KNOWN
                failed = not _is_drawn_on(readings, images, image)
                self._made.losses.image(image.url, "its size is not known", size, failed=failed)
                continue
            if size == _UNKNOWN:
                size = 0, 0
                self._ledger.notes[UNSIZED] += 1
            identity = image_id(number, image.slot)
            url = public_url(image.url)
            original = original_name(task.meta, image.url) if len(images) == 1 else ""
            wanted = split or self._split(task, image.url)
            named = self._names.take(image.url, image_id=identity, name=original, split=wanted)
            if named.split != wanted:
                self._made.losses.moved(url, named.split, wanted, "with the same image")
            self._made.names.append(named.keys)
            self._made.stays &= named.free
            self._ledger.notes[SAME_IMAGE] += named.repeated
            self._ledger.kept["image"] += 1
            placed[image.slot] = Image(
                id=identity,
                file_name=named.name,
                width=size[0],
                height=size[1],
                split=named.split,
                url=url,
                task=number,
                item_index=image.item_index,
                key=image.key,
            )
        return placed, reasons

    def _header(self, image: TaskImage, task: int | None) -> tuple[int, int] | str:
        size = self._sizes.header(image, task)
        self._ledger.notes[HEADER] += not isinstance(size, str)
        return size

    def _together(self, found: Together) -> tuple[Annotation, Reading]:
        """The consensus as an annotation that is nobody's; what it does not hold is noted."""
        if found.joined:
            self._ledger.drop("region", JOINED, times=found.joined)
        for annotation, region, probability in found.outvoted:
            self._made.losses.region(annotation, region, OUTVOTED, f"{probability:.2f} likely", failed=False)
        for annotation, region in found.left_out:
            self._made.losses.region(annotation, region, NOT_WHOLE, failed=False)
        self._made.saw = found.saw
        return Annotation(), found.reading

    def _read(self, task: Task, annotation: Annotation, images: Sequence[TaskImage] = ()) -> Reading:
        def size(item_index: int) -> tuple[int, int] | None:
            # asked for only where neither the results nor their siblings tell; with several image tags it is not
            # known here which of them is meant
            found = [image for image in images if image.item_index == item_index]
            if len(found) != 1:
                return None
            known = self._sizes.known(task, found[0], alone=len(images) == 1)
            header = known or self._sizes.header(found[0], task.id)
            if isinstance(header, str):
                return _UNKNOWN if self._rules.sizeless else None
            return header

        return read_annotation(annotation, task=task, config=self._rules.config, size=size if images else None)

    def _unsized(self, task: Task) -> list[tuple[Annotation, Reading]]:
        """Every annotation of a task, read for its regions to be counted."""
        return [(annotation, self._read(task, annotation)) for annotation in task.annotations]

    def _drop_task(
        self,
        reason: str,
        readings: Sequence[tuple[Annotation, Reading]],
        *,
        failed: bool = False,
        counted: bool = False,
        detail: str = "",
    ) -> None:
        """Leave a task out; ``counted``: its images or their regions are the failures already."""
        self._made.losses.task(reason, detail, failed=failed and not counted)
        for annotation, reading in readings:
            self._made.losses.annotation(annotation, reading, reason, failed=failed)

    def _others(self, reading: Reading) -> None:
        for result in (*reading.answers, *reading.relations, *reading.carried):
            self._ledger.other_results[result.type or "unknown"] += 1


def _is_drawn_on(readings: list[tuple[Annotation, Reading]], images: list[TaskImage], image: TaskImage) -> bool:
    """Whether a region is on an image, malformed ones included."""
    return any(
        any(find_image(images, region) is image for region in reading.regions)
        or any(_item_index(error.source) == image.item_index for error in reading.errors)
        for _, reading in readings
    )


def _item_index(result: object) -> int:
    """Which image a malformed result says it is on; the first where it says nothing."""
    found = result.get("item_index") if isinstance(result, dict) else None
    return found if isinstance(found, int) else 0


def _size_in(
    readings: list[tuple[Annotation, Reading]], images: list[TaskImage], image: TaskImage
) -> tuple[int, int] | None:
    """The size that the regions on an image were read with."""
    for _, reading in readings:
        for region in reading.regions:
            if find_image(images, region) is image:
                return region.width, region.height
    return None
