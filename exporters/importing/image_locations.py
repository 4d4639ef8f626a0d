"""Locate the images of a data set for Label Studio: a file to upload, an address, or an existing task."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

import msgspec

from exporters.errors import ImportFailed
from exporters.importing.existing_tasks import ExistingTask, ExistingTasks
from exporters.model.file_names import public_url
from labelloop.service.datasets import DataSet, DatasetImage, DatasetProblem, DatasetSource
from labelloop.service.media import Media, MediaError

ImageMode = Literal["upload", "reference", "existing"]
_FIX = (
    "Pass the image folder: --images-from DIR; or their address in Label Studio: --image-base s3://BUCKET/PREFIX,"
    " https://... or /data/local-files/?d=DIR."
)


class LocatedImage(msgspec.Struct, frozen=True):
    """An image that Label Studio can show.

    Attributes:
        image: The image, with its size if it has objects.
        identity: A unique id that is stable between imports.
        path: The file to upload; None for a referenced image.
        url: The address for the task's data; empty for an upload.
        existing_task: Its existing task; None if a task is to be created.
    """

    image: DatasetImage
    identity: str
    path: Path | None = None
    url: str = ""
    existing_task: ExistingTask | None = None


def default_mode(data: DataSet, source: DatasetSource) -> ImageMode:
    """The default mode: COCO results refer to existing tasks, local files are uploaded, others are referenced."""
    if data.format == "coco-results":
        return "existing"
    is_local = bool(source.images.names) and source.images.files.path(source.images.names[0]) is not None
    return "upload" if is_local else "reference"


class ImageLocator:
    """Locates each image once.

    Args:
        source: The data set.
        existing_tasks: The tasks of the project.
        mode: What to do with the images.
        base_url: Address prefix of referenced images; empty: their addresses in the data set.
        local_root: Root folder of Label Studio's local files, if set.
        media: Reads the sizes of images of existing tasks; None: not available.
    """

    def __init__(
        self,
        source: DatasetSource,
        existing_tasks: ExistingTasks,
        mode: ImageMode,
        *,
        base_url: str,
        local_root: Path | None,
        media: Media | None,
    ) -> None:
        self._source = source
        self._existing_tasks = existing_tasks
        self._mode = mode
        self._base_url = base_url
        self._local_root = local_root
        self._media = media
        self._seen: dict[str, str] = {}

    def find(self, image: DatasetImage) -> LocatedImage | DatasetProblem:
        """Locate an image, or give the reason why it cannot be imported.

        Raises:
            ImportFailed: The image cannot be referenced, since its address is unknown.
        """
        locate = {"upload": self._upload, "reference": self._reference, "existing": self._existing}
        located = locate[self._mode](image)
        if isinstance(located, DatasetProblem):
            return located
        if (first := self._seen.get(located.identity)) is not None:
            duplicate = f"it is a duplicate of {first}"
            return DatasetProblem(
                image.name, duplicate if first != image.name else "it is listed twice; the first labels count"
            )
        self._seen[located.identity] = image.name
        if image.objects and not (located.image.width and located.image.height):
            return DatasetProblem(image.name, "its size in pixels is unknown")
        return located

    def _upload(self, image: DatasetImage) -> LocatedImage | DatasetProblem:
        name = self._source.images.find(image.name)
        path = None if name is None else self._source.images.files.path(name)
        if name is None or path is None:
            return DatasetProblem(image.name, f"no image or several match in {self._source.images.files.location}")
        measured = self._with_size(image, name)
        if isinstance(measured, DatasetProblem):
            return measured
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        identity = _digest(f"{PurePosixPath(name).name} {digest}")
        return LocatedImage(measured, identity, path, existing_task=self._existing_tasks.find(identity))

    def _reference(self, image: DatasetImage) -> LocatedImage | DatasetProblem:
        name = self._source.images.find(image.name)
        url = self._address(image, name)
        is_local = name is not None and self._source.images.files.path(name) is not None
        measured = self._with_size(image, name) if name is not None and (is_local or not image.width) else image
        if isinstance(measured, DatasetProblem):
            return measured
        identity = _digest(public_url(url))
        return LocatedImage(measured, identity, url=url, existing_task=self._existing_tasks.find(identity, url))

    def _existing(self, image: DatasetImage) -> LocatedImage | DatasetProblem:
        tasks = self._existing_tasks
        existing = tasks.by_id(image.task) if image.task else None
        if existing is None and image.url:
            existing = tasks.find("", image.url)
        if existing is None and self._base_url:
            existing = tasks.find("", self._address(image, self._source.images.find(image.name)))
        if existing is None and not image.task:
            existing = tasks.by_name(image.name)
        if existing is None:
            return DatasetProblem(image.name, "no task or several of the project match this image")
        if image.objects and not image.width:
            size = existing.size if existing.size[0] else self._stored_size(existing)
            if isinstance(size, str):
                return DatasetProblem(image.name, size)
            image = msgspec.structs.replace(image, width=size[0], height=size[1])
        return LocatedImage(image, f"task {existing.task}", url=existing.url, existing_task=existing)

    def _with_size(self, image: DatasetImage, name: str) -> DatasetImage | DatasetProblem:
        """The image with its size; a `DatasetProblem` if the file has another size than the data set states."""
        size = self._source.images.size(name)
        if isinstance(size, str):
            return DatasetProblem(image.name, size)
        if image.width and (image.width, image.height) != size:
            stated = f"{image.width} x {image.height}"
            return DatasetProblem(
                image.name, f"the data set states {stated}, the image file has {size[0]} x {size[1]} pixels"
            )
        return msgspec.structs.replace(image, width=size[0], height=size[1])

    def _address(self, image: DatasetImage, name: str | None) -> str:
        relative = name or image.name
        if self._base_url:
            is_object_key = self._base_url.startswith(
                ("s3://", "gs://", "azure-blob://")
            )  # object keys are not URL-encoded
            slash = "" if self._base_url.endswith(("/", "=")) else "/"
            return self._base_url + slash + (relative if is_object_key else quote(relative))
        path = None if name is None else self._source.images.files.path(name)
        if name is not None and path is None:
            return self._source.images.files.url(name)
        if image.url:
            return image.url
        if (
            path is not None
            and self._local_root is not None
            and path.resolve().is_relative_to(self._local_root.resolve())
        ):
            return f"/data/local-files/?d={quote(path.resolve().relative_to(self._local_root.resolve()).as_posix())}"
        raise ImportFailed(f"The address of {image.name} for Label Studio is unknown.", fix=_FIX)

    def _stored_size(self, existing: ExistingTask) -> tuple[int, int] | str:
        if self._media is None:
            return "its size in pixels is unknown"
        try:
            return self._media.size(existing.url, task_id=existing.task)
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
