"""Place the images of a task in the data set: their sizes, splits and file names, or why they are left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from exporters.convert.options import ConversionOptions
from exporters.convert.tally import NOTHING, Tally, TaskLosses, moved_image
from exporters.convert.task_images import ImageSizes, TaskImage, find_image
from exporters.dataset.task_index import NameKeys
from exporters.model.file_names import FileNames, original_name, public_url
from exporters.model.records import NOMINAL, Image, image_id
from exporters.model.splits import SplitPolicy
from labelloop.labeling.errors import MalformedValue, RegionError
from labelloop.labeling.region import ParsedAnnotation, Region
from labelloop.labeling.studio.reading import at_image_size, read_annotation
from labelloop.labeling.studio.task import Annotation, Task

SAME_IMAGE = "images that another task has too"
HEADER = "image sizes read from the image's header"
UNSIZED = "images of unknown size, in the formats that need none"
NOT_KNOWN = "its image's size is not known"
NO_SPLIT = "images whose task does not say its split, split by shares"
NO_GROUP = "images without a value of the group key, split by their own address"
_UNKNOWN = (NOMINAL, NOMINAL)

# An annotation with what was read of it.
Reading = tuple[Annotation, ParsedAnnotation]


class ImagePlacement(msgspec.Struct, frozen=True):
    """The outcome of one image of a task.

    Attributes:
        image: Its record; None if it is left out.
        reason: Why regions on it are left out.
        names: The keys of its name.
        reusable: Whether the outcome follows from the task's own text.
        tally: Its counts and losses.
    """

    image: Image | None = None
    reason: str = ""
    names: tuple[NameKeys, ...] = ()
    reusable: bool = True
    tally: Tally = NOTHING


class ImagePlacer:
    """Places images by the options of an export; ``names`` are the file names in use."""

    def __init__(self, rules: ConversionOptions, sizes: ImageSizes, names: FileNames) -> None:
        self._rules = rules
        self._sizes = sizes
        self._names = names

    def read(self, task: Task, annotation: Annotation, images: Sequence[TaskImage] = ()) -> ParsedAnnotation:
        """Read an annotation; with ``images``, sizes that no result states are those of the images."""

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

    def place(
        self,
        task: Task,
        number: int,
        images: Sequence[TaskImage],
        readings: Sequence[Reading],
        *,
        split: str,
        losses: TaskLosses,
    ) -> Mapping[int, ImagePlacement]:
        """Return the outcome of each image of a task, by slot.

        Args:
            task: The task.
            number: Its id in the data set.
            images: Its images.
            readings: Its selected annotations.
            split: The split of its images; empty: each has its own.
            losses: Makes the tallies of what is left out.
        """
        return {
            image.slot: self._place(task, number, image, images=images, readings=readings, split=split, losses=losses)
            for image in images
        }

    def _place(
        self,
        task: Task,
        number: int,
        image: TaskImage,
        *,
        images: Sequence[TaskImage],
        readings: Sequence[Reading],
        split: str,
        losses: TaskLosses,
    ) -> ImagePlacement:
        """Return the outcome of one image."""
        alone = len(images) == 1
        size, reusable, sized = self._size(task, image, images, readings)
        if isinstance(size, str):
            failed = not _is_drawn_on(readings, images, image)
            left_out = losses.image(image.url, "its size is not known", size, failed=failed)
            return ImagePlacement(None, NOT_KNOWN, reusable=reusable, tally=Tally.join(sized, left_out))
        url = public_url(image.url)
        wanted, split_tally = (split, NOTHING) if split else stated_split(self._rules.split, image.url, task.data)
        assigned = self._names.assign(
            image.url,
            image_id=(new_id := image_id(number, image.slot)),
            name=original_name(task.meta, image.url) if alone else "",
            split=wanted,
        )
        return ImagePlacement(
            Image(
                id=new_id,
                file_name=assigned.name,
                width=size[0],
                height=size[1],
                split=assigned.split,
                url=url,
                task=number,
                item_index=image.item_index,
                key=image.key,
            ),
            names=(assigned.keys,),
            reusable=reusable and assigned.free,
            tally=Tally.join(
                sized,
                split_tally,
                moved_to(losses.task, url, assigned.split, wanted),
                Tally(((("notes", SAME_IMAGE), int(assigned.repeated)), (("kept", "image"), 1))),
            ),
        )

    def _size(
        self, task: Task, image: TaskImage, images: Sequence[TaskImage], readings: Sequence[Reading]
    ) -> tuple[tuple[int, int] | str, bool, Tally]:
        """Return the size of an image, whether it follows from the task's text, and its notes.

        The size is (0, 0) if it is unknown and not needed, and the reason as text if it is unknown and needed.
        """
        size: tuple[int, int] | str | None = _size_of_regions(readings, images, image) or self._sizes.from_task(
            task, image, alone=len(images) == 1
        )
        notes = NOTHING
        if size is None:
            size = self._sizes.from_header(image, task.id)
            notes = Tally(((("notes", HEADER), int(not isinstance(size, str))),))
        is_unknown = isinstance(size, str) or size == _UNKNOWN
        is_taken = self._rules.takes_unsized(is_answered=any(reading.choice_results for _, reading in readings))
        if is_unknown and (is_taken or not isinstance(size, str)):
            size, notes = (0, 0), Tally.join(notes, Tally.count("notes", UNSIZED))
        # an image of unknown size may be available next time
        return size, not (is_unknown and self._sizes.reads_headers), notes


def at_common_sizes(readings: Sequence[Reading], task: Task) -> Sequence[Reading]:
    """Return the readings with all regions of an image at one size, that of most; a mask of another is malformed."""
    stated = Counter(
        (region.to_name, region.item_index, region.width, region.height)
        for _, reading in readings
        for region in reading.regions
    )
    # the last of each image stays; by size too, so that the order of annotations does not matter
    sizes = {key[:2]: key[2:] for key in sorted(stated, key=lambda key: (stated[key], key[2:]))}
    if len(sizes) == len(stated):
        return readings
    placed = []
    for annotation, reading in readings:
        regions: list[Region] = []
        errors = list(reading.errors)
        for region in reading.regions:
            size = sizes[region.to_name, region.item_index]
            try:
                regions.append(region if size == (region.width, region.height) else at_image_size(region, *size))
            except MalformedValue as error:
                result = region.result[0]
                errors.append(
                    RegionError(task.id, annotation.id, result.id, error.field, error.reason, source=result.raw)
                )
        placed.append((annotation, replace(reading, regions=tuple(regions), errors=tuple(errors))))
    return placed


def stated_split(policy: SplitPolicy, url: str, data: Mapping[str, Any]) -> tuple[str, Tally]:
    """Return the split of an image by its address and the data of its task, and its notes."""
    if explicit := policy.explicit_split(data):
        return explicit, NOTHING
    group = policy.group(url, data)
    notes = (
        (("notes", NO_SPLIT), int(bool(policy.key))),
        (("notes", NO_GROUP), int(policy.groups_by_data and not group)),
    )
    return policy.assign(url, group), Tally(notes)


def moved_to(task: int | None, url: str, split: str, wanted: str) -> Tally:
    """Return the tally of an image that an earlier task has too, if it is in another split for that."""
    return moved_image(task, url, split, wanted, "with the same image") if split != wanted else NOTHING


def _is_drawn_on(readings: Sequence[Reading], images: Sequence[TaskImage], image: TaskImage) -> bool:
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
    readings: Sequence[Reading], images: Sequence[TaskImage], image: TaskImage
) -> tuple[int, int] | None:
    """Return the image size stated by the regions on an image."""
    for _, reading in readings:
        for region in reading.regions:
            if find_image(images, region) is image:
                return region.width, region.height
    return None
