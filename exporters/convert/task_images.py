"""Find the images of a task in its data, and their sizes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from exporters.model.file_names import EXTENSIONS, public_url, source_name
from labelloop.labeling.region import Region
from labelloop.labeling.result import MAX_IMAGE_SIDE
from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task

# Images of a list; later ones are left out, as image ids have limited room for slots.
ITEMS_A_LIST = 10_000
_COMMON_KEYS = ("image", "img", "photo", "picture", "image_url", "url")


class TaskImage(msgspec.Struct, frozen=True):
    """One image of a task: its object tag and data key, its index in a list, its address.

    ``slot`` numbers the images of a task: 0 for the first (and, in most projects, only) one.
    """

    slot: int
    name: str
    key: str
    item_index: int
    url: str


def task_images(task: Task, config: LabelConfig | None) -> list[TaskImage]:
    """Return the images of a task by its label config; without a config, by the values that look like images.

    Values that are neither text nor a list of texts hold no image.
    """
    tags = (
        [(tag.name, tag.value) for tag in config.images]
        if config
        else [("", key) for key in guess_image_key(task.data)]
    )
    return [
        TaskImage(slot=number * ITEMS_A_LIST + index, name=name, key=key, item_index=index, url=url)
        for number, (name, key) in enumerate(tags)
        for index, url in enumerate(_urls(data_value(task.data, key)))
        if url and index < ITEMS_A_LIST
    ]


def guess_image_key(data: Mapping[str, Any]) -> list[str]:
    """Guess the key of a task's data that holds its image, without a label config; empty if there is none."""
    image_keys = [key for key, value in data.items() if any(_is_image_address(url) for url in _urls(value))]
    for common_key in _COMMON_KEYS:
        if common_key in image_keys:
            return [common_key]
    if image_keys:
        return sorted(image_keys)[:1]
    return [common_key for common_key in _COMMON_KEYS if any(_is_address(url) for url in _urls(data.get(common_key)))][
        :1
    ]


def find_image(images: Sequence[TaskImage], region: Region) -> TaskImage | None:
    """Return the image that a region is drawn on; with several images its object tag decides.

    In a task with one image, a region whose object tag was renamed still belongs to that image.
    """
    if len(images) == 1:
        return images[0] if images[0].item_index == region.item_index else None
    at_index = [image for image in images if image.item_index == region.item_index]
    if len({image.name for image in images}) <= 1:
        return at_index[0] if at_index else None
    return next((image for image in at_index if image.name == region.to_name), None)


class ImageSizeReader(Protocol):
    """Reads an image's size from its header: ``labelloop.service.media.Media``."""

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """Return (width, height) in pixels, after EXIF rotation. Raises `MediaError`."""


class LazyImageSizeReader:
    """Opens a reader when the first size is requested: most exports know every size."""

    def __init__(self, opening: Callable[[], ImageSizeReader]) -> None:
        self._opening = opening
        self._opened: ImageSizeReader | None = None

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """See `ImageSizeReader`."""
        if self._opened is None:
            self._opened = self._opening()
        return self._opened.size(url, task_id=task_id)


class ImageSizes:
    """Finds the size of an image: in the regions of the task, in its data, then in the header of the image."""

    def __init__(self, headers: ImageSizeReader | None) -> None:
        self._headers = headers
        # Whether headers are read.
        self.reads_headers = headers is not None
        # The first image whose header could not be read, and why.
        self.warnings: tuple[str, ...] = ()

    def from_task(self, task: Task, image: TaskImage, *, alone: bool) -> tuple[int, int] | None:
        """Return the size stated in an annotation, prediction or the data of the task; ``alone``: it has one image."""
        sources: list[Annotation | ModelPrediction] = [*task.annotations, *task.predictions]
        for source in sources:
            for result in source.results:
                on_image = alone or ((result.item_index or 0), result.to_name) == (image.item_index, image.name)
                if on_image and result.original_width and result.original_height:
                    return result.original_width, result.original_height
        return data_size(task.data) if alone else None

    def from_header(self, image: TaskImage, task_id: int | None) -> tuple[int, int] | str:
        """Return the size in the header of the image, or the reason why it is not available."""
        if self._headers is None:
            return "the regions do not tell it, and reading image headers is off"
        from labelloop.service.media import MediaError  # imports an HTTP client, which most exports never need

        try:
            return self._headers.size(image.url, task_id=task_id)
        except MediaError as error:
            reason = f"{error.reason}. {error.fix}".rstrip()
            first = f"the size of {public_url(image.url):.200} cannot be read: {reason.rstrip('.')}"
            self.warnings = self.warnings or (first,)
            return reason


def data_size(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size of the image that a task's data states."""
    width, height = data.get("width"), data.get("height")
    if type(width) is not int or type(height) is not int or max(width, height) >= MAX_IMAGE_SIDE:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _urls(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(url, str) for url in value):
        return value
    return ()


def _is_image_address(url: str) -> bool:
    if url.startswith("data:image/"):
        return True
    return "\n" not in url and f".{source_name(url).rpartition('.')[2].lower()}" in EXTENSIONS


def _is_address(url: str) -> bool:
    try:
        return bool(urlsplit(url).scheme) or url.startswith("/")
    except ValueError:
        return False
