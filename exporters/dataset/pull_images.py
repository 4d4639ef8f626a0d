"""Write the images of a pull: from the version's copies, an earlier pull, or their source."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.dataset.exif import needs_rotation, rotate_upright
from exporters.dataset.shards import read_image_copy
from exporters.model.manifest import ImageCopy
from exporters.model.records import Image
from labelloop.service.media import Media, MediaError
from labelloop.service.store import Store

IN_THE_TASK = "the task itself holds its bytes; an export with --copy-images puts them into the data set"
# (split, file name) -> the paths of an image in the folders of the formats; none if a format packs images.
Places = Callable[[str, str], list[Path]]


class ImageLayout:
    """Writes images to the folders of the formats.

    Args:
        store: Where the data set lives.
        media: Reads images from their source; ``None``: only copies are written.
        places: The paths of an image in this pull.
        earlier: Its paths in an earlier pull.
        sources: The images of the earlier pull: file name -> (address, split).
        link: Whether an image that is a file of this machine becomes a symbolic link to it.
        upright: Whether pixels are rotated by the EXIF orientation: see `exporters.dataset.exif`.

    Attributes:
        rotated: The number of new images whose EXIF orientation is not upright; with ``upright`` they were rotated.
    """

    def __init__(
        self,
        store: Store,
        media: Media | None,
        *,
        places: Places,
        earlier: Places,
        sources: Mapping[str, tuple[str, str]],
        link: bool,
        upright: bool,
    ) -> None:
        self._store, self._media = store, media
        self._places, self._earlier, self._sources = places, earlier, sources
        self._link, self._upright = link, upright
        self._count = threading.Lock()
        self.rotated = 0

    def copy(self, item: tuple[str, ImageCopy]) -> None:
        """Write the version's own copy of an image, given as (split, copy), with its checksum verified.

        Raises:
            DatasetDamaged: the copy is missing or does not match the manifest.
        """
        split, image_copy = item
        paths = self._places(split, image_copy.file_name)
        previous = self._previous_file(image_copy.file_name)
        if (
            previous is not None
            and image_copy.sha256
            and _sha256(previous) == image_copy.sha256
            and not self._must_rotate(previous)
        ):
            _link_file(paths, previous)
            return
        data = read_image_copy(self._store, image_copy)
        link = None
        if self._link and self._store.url.startswith("file://"):
            link = Path(unquote(urlsplit(self._store.url).path)) / image_copy.store_key
        self._write_new(paths, data, link)

    def fetch(self, image: Image) -> str | None:
        """Write an image from its source. Return the reason if it is not available."""
        assert self._media is not None
        paths = self._places(image.split, image.file_name)
        previous = (
            self._previous_file(image.file_name) if self._sources.get(image.file_name, ("",))[0] == image.url else None
        )
        if previous is not None and not self._must_rotate(previous):
            _link_file(paths, previous)
            return None
        if image.url.startswith("data:"):
            return IN_THE_TASK
        try:
            path = self._media.path(image.url, task_id=image.task)
            link = path.absolute() if self._link and self._media.is_local(image.url) else None
            self._write_new(paths, path.read_bytes(), link)  # at once: the cache may drop it
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _must_rotate(self, path: Path) -> bool:
        """Whether an image of an earlier pull must be rotated now."""
        return self._upright and needs_rotation(path.read_bytes())

    def _write_new(self, paths: list[Path], data: bytes, link: Path | None) -> None:
        """Write a new image: unchanged, rotated, or as a link to its source."""
        is_rotated = needs_rotation(data)
        if is_rotated:
            with self._count:
                self.rotated += 1
        if is_rotated and self._upright:
            link = None
            with suppress(OSError, ValueError):  # a damaged image is written unchanged; `validate` reports it
                data = rotate_upright(data)
        if link:
            _link_source(paths, link)
        else:
            _write_file(paths, data)

    def _previous_file(self, file_name: str) -> Path | None:
        """Return the file of an image in the earlier pull."""
        if file_name not in self._sources:
            return None
        paths = self._earlier(self._sources[file_name][1], file_name)
        return next((path for path in paths if path.is_file()), None)


def image_sources(images: Iterable[Image]) -> dict[str, tuple[str, str]]:
    """Return file name -> (address, split)."""
    return {image.file_name: (image.url, image.split) for image in images}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link_file(paths: list[Path], source: Path) -> None:
    """Create each path as a hard link to ``source``, a file of a pull, or as a copy if that fails."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if source.is_symlink():
            path.symlink_to(source.readlink())
            continue
        try:
            path.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, path)


def _link_source(paths: list[Path], source: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(source)


def _write_file(paths: list[Path], data: bytes) -> None:
    first, *others = paths
    first.parent.mkdir(parents=True, exist_ok=True)
    first.unlink(missing_ok=True)  # never write through a hard link of an earlier pull
    first.write_bytes(data)
    _link_file(others, first)
