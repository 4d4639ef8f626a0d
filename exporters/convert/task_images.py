"""The images of a task: which keys of its data hold them, and how large they are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from exporters.model.file_names import EXTENSIONS, source_name
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import LARGEST, Annotation, Prediction, Task

ITEMS_A_LIST = 10_000  # an image beyond it is out of the data set, as a slot must fit its number
_USUAL_KEYS = ("image", "img", "photo", "picture", "image_url", "url")


class TaskImage(msgspec.Struct, frozen=True):
    """One image of a task: the object tag and data key it belongs to, its place in a list, its source.

    ``slot`` numbers a task's images: 0 for the first (and, in most projects, only) one.
    """

    slot: int
    name: str
    key: str
    item_index: int
    url: str


def task_images(task: Task, config: LabelConfig | None) -> list[TaskImage]:
    """The images of a task by its label config, or by what looks like an image where there is no config.

    Values that are no text, or lists with other than text, hold no image.
    """
    tags = [(tag.name, tag.value) for tag in config.images] if config else [("", key) for key in guess(task.data)]
    return [
        TaskImage(slot=number * ITEMS_A_LIST + index, name=name, key=key, item_index=index, url=url)
        for number, (name, key) in enumerate(tags)
        for index, url in enumerate(_urls(task.data.get(key)))
        if url and index < ITEMS_A_LIST
    ]


def guess(data: Mapping[str, Any]) -> list[str]:
    """The key of a task's data that holds its image, as it looks without a label config; none where none does."""
    alike = [key for key, value in data.items() if any(_looks_like_image(url) for url in _urls(value))]
    for usual in _USUAL_KEYS:
        if usual in alike:
            return [usual]
    if alike:
        return sorted(alike)[:1]
    return [usual for usual in _USUAL_KEYS if any(_looks_like_place(url) for url in _urls(data.get(usual)))][:1]


def find_image(images: list[TaskImage], region: Region) -> TaskImage | None:
    """The image that a region is drawn on; its object tag decides only where the task has several.

    A region whose object was renamed in the label config still belongs to the one image that there is.
    """
    if len(images) == 1:
        return images[0] if images[0].item_index == region.item_index else None
    at_index = [image for image in images if image.item_index == region.item_index]
    if len({image.name for image in images}) <= 1:
        return at_index[0] if at_index else None
    return next((image for image in at_index if image.name == region.to_name), None)


class Headers(Protocol):
    """Reads an image's size from its header: ``labelloop.service.media.Media``."""

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """(width, height) in pixels, as it is shown. Raises `MediaError`."""


class LateHeaders:
    """Headers whose reader is opened when the first size is asked for: most exports know every size."""

    def __init__(self, opening: Callable[[], Headers]) -> None:
        self._opening = opening
        self._opened: Headers | None = None

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """See `Headers`."""
        if self._opened is None:
            self._opened = self._opening()
        return self._opened.size(url, task_id=task_id)


class Sizes:
    """Finds the size of an image: in the regions of the task, in its data, last in the image's header."""

    def __init__(self, headers: Headers | None) -> None:
        self._headers = headers
        self.looks = headers is not None
        """Whether headers are read at all."""
        self.read = 0

    def known(self, task: Task, image: TaskImage, *, alone: bool) -> tuple[int, int] | None:
        """What the task's own JSON says, in any annotation or prediction: ``alone`` where it has one image only."""
        sources: list[Annotation | Prediction] = [*task.annotations, *task.predictions]
        for source in sources:
            for result in source.results:
                here = alone or ((result.item_index or 0), result.to_name) == (image.item_index, image.name)
                if here and result.original_width and result.original_height:
                    return result.original_width, result.original_height
        width, height = task.data.get("width"), task.data.get("height")
        if alone and type(width) is int and type(height) is int and 0 < width < LARGEST and 0 < height < LARGEST:
            return width, height
        return None

    def header(self, image: TaskImage, task_id: int | None) -> tuple[int, int] | str:
        """What the image's header says, or why it cannot be had."""
        if self._headers is None:
            return "the regions do not tell it, and reading image headers is off"
        from labelloop.service.media import MediaError  # with it comes an HTTP client, which most exports never need

        try:
            size = self._headers.size(image.url, task_id=task_id)
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()
        self.read += 1
        return size


def _urls(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(url, str) for url in value):
        return value
    return ()


def _looks_like_image(url: str) -> bool:
    if url.startswith("data:image/"):
        return True
    return "\n" not in url and f".{source_name(url).rpartition('.')[2].lower()}" in EXTENSIONS


def _looks_like_place(url: str) -> bool:
    try:
        return bool(urlsplit(url).scheme) or url.startswith("/")
    except ValueError:
        return False
