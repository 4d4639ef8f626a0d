"""Where a photo of the data set is for Label Studio: a file to upload, an address, or a task that is there already."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

import msgspec

from exporters.importing.errors import ImportFailed
from exporters.importing.existing_tasks import ExistingTasks, Known
from exporters.model.names import public_url
from labelloop.service.datasets import DataSet, LabelledPhoto, Place, Problem
from labelloop.service.media import Media, MediaError

Images = Literal["upload", "reference", "existing"]
_BASE = (
    "Say where the photos are: --images-from DIR; or where Label Studio finds them: --image-base s3://BUCKET/PREFIX,"
    " https://... or /data/local-files/?d=DIR."
)


class Located(msgspec.Struct, frozen=True):
    """A photo that Label Studio can show.

    Attributes:
        photo: As read, with its size where anything is drawn on it.
        identity: What tells it from every other: the same in a second import.
        path: The file to upload; None where there is an address.
        url: The address for the task's data; empty for an upload.
        known: The task that it is already; None: a task is to be made.
    """

    photo: LabelledPhoto
    identity: str
    path: Path | None = None
    url: str = ""
    known: Known | None = None


def usual_images(data: DataSet, place: Place) -> Images:
    """What is done with photos where the user does not say: results are of tasks, files here are uploaded."""
    if data.format == "coco-results":
        return "existing"
    here = bool(place.photos.names) and place.photos.files.path(place.photos.names[0]) is not None
    return "upload" if here else "reference"


class Locator:
    """Finds each photo once. Raises `ImportFailed` where no photo can be referenced at all."""

    def __init__(
        self,
        place: Place,
        board: ExistingTasks,
        images: Images,
        *,
        base: str,
        local_root: Path | None,
        media: Media | None,
    ) -> None:
        self._place = place
        self._board = board
        self._images = images
        self._base = base
        self._root = local_root
        self._media = media
        self._seen: dict[str, str] = {}

    def find(self, photo: LabelledPhoto) -> Located | Problem:
        """Where a photo is, or why it cannot be imported."""
        ways = {"upload": self._upload, "reference": self._reference, "existing": self._existing}
        found = ways[self._images](photo)
        if isinstance(found, Problem):
            return found
        if (first := self._seen.get(found.identity)) is not None:
            same = f"it is the same photo as {first}, which came before"
            return Problem(photo.name, same if first != photo.name else "its labels are there twice; the first count")
        self._seen[found.identity] = photo.name
        if photo.drawn and not (found.photo.width and found.photo.height):
            return Problem(photo.name, "nothing tells its size in pixels")
        return found

    def _upload(self, photo: LabelledPhoto) -> Located | Problem:
        name = self._place.photos.find(photo.name)
        path = None if name is None else self._place.photos.files.path(name)
        if name is None or path is None:
            return Problem(photo.name, f"there is no such photo in {self._place.photos.files.place}, or several")
        measured = self._measured(photo, name)
        if isinstance(measured, Problem):
            return measured
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        identity = _digest(f"{PurePosixPath(name).name} {digest}")
        return Located(measured, identity, path, known=self._board.made_from(identity))

    def _reference(self, photo: LabelledPhoto) -> Located | Problem:
        name = self._place.photos.find(photo.name)
        url = self._address(photo, name)
        here = name is not None and self._place.photos.files.path(name) is not None
        measured = self._measured(photo, name) if name is not None and (here or not photo.width) else photo
        if isinstance(measured, Problem):
            return measured
        identity = _digest(public_url(url))
        return Located(measured, identity, url=url, known=self._board.made_from(identity, url))

    def _existing(self, photo: LabelledPhoto) -> Located | Problem:
        board = self._board
        known = board.number(photo.task) if photo.task else None
        if known is None and photo.address:
            known = board.made_from("", photo.address)
        if known is None and self._base:
            known = board.made_from("", self._address(photo, self._place.photos.find(photo.name)))
        if known is None and not photo.task:
            known = board.named(photo.name)
        if known is None:
            return Problem(photo.name, "the project has no task of this photo, or several")
        if photo.drawn and not photo.width:
            size = known.size if known.size[0] else self._header(known)
            if isinstance(size, str):
                return Problem(photo.name, size)
            photo = msgspec.structs.replace(photo, width=size[0], height=size[1])
        return Located(photo, f"task {known.task}", url=known.url, known=known)

    def _measured(self, photo: LabelledPhoto, name: str) -> LabelledPhoto | Problem:
        """The photo with its size; a `Problem` where the file has another one than the data set says."""
        size = self._place.photos.size(name)
        if isinstance(size, str):
            return Problem(photo.name, size)
        if photo.width and (photo.width, photo.height) != size:
            told = f"{photo.width} x {photo.height}"
            return Problem(photo.name, f"the data set says {told}, the photo has {size[0]} x {size[1]} pixels")
        return msgspec.structs.replace(photo, width=size[0], height=size[1])

    def _address(self, photo: LabelledPhoto, name: str | None) -> str:
        relative = name or photo.name
        if self._base:
            bare = self._base.startswith(("s3://", "gs://", "azure-blob://"))  # their keys are written as they are
            slash = "" if self._base.endswith(("/", "=")) else "/"
            return self._base + slash + (relative if bare else quote(relative))
        path = None if name is None else self._place.photos.files.path(name)
        if name is not None and path is None:
            return self._place.photos.files.address(name)
        if photo.address:
            return photo.address
        if path is not None and self._root is not None and path.resolve().is_relative_to(self._root.resolve()):
            return f"/data/local-files/?d={quote(path.resolve().relative_to(self._root.resolve()).as_posix())}"
        raise ImportFailed(f"Nothing tells where Label Studio finds {photo.name}.", fix=_BASE)

    def _header(self, known: Known) -> tuple[int, int] | str:
        if self._media is None:
            return "nothing tells its size in pixels"
        try:
            return self._media.size(known.url, task_id=known.task)
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
