"""The photos of a pull: from the version's copies, from an earlier pull, or from their source; each laid out once."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.dataset.exif import lies, turned
from exporters.dataset.shards import read_photo
from exporters.model.manifest import Photo
from exporters.model.records import Image
from labelloop.service.media import Media, MediaError
from labelloop.service.store import Store

IN_THE_TASK = "the task itself holds its bytes; an export with --copy-images puts them into the data set"
Places = Callable[[str, str], list[Path]]
"""(split, file name) -> the names of a photo in the folders of the formats; none where a format packs photos."""


class PulledPhotos:
    """Lays photos out.

    Args:
        store: Where the data set lives.
        media: Reads photos from their source; ``None``: only copies are laid out.
        places: Where a photo goes.
        earlier: Where it lies in an earlier pull.
        there: The photos of the earlier pull: file name -> (address, split).
        link: Whether a photo that is a file of this machine becomes a symbolic link to it.
        upright: Whether the pixels of a photo that lies on its side are turned: see `exporters.dataset.exif`.

    Attributes:
        lying: How many photos lie on their side, of those that came anew; with ``upright`` they were turned.
    """

    def __init__(
        self,
        store: Store,
        media: Media | None,
        *,
        places: Places,
        earlier: Places,
        there: Mapping[str, tuple[str, str]],
        link: bool,
        upright: bool,
    ) -> None:
        self._store, self._media = store, media
        self._places, self._earlier, self._there = places, earlier, there
        self._link, self._upright = link, upright
        self._count = threading.Lock()
        self.lying = 0

    def copy(self, each: tuple[str, Photo]) -> None:
        """Lay out the version's own copy of a photo of a split, compared with its checksum.

        Raises:
            DatasetDamaged: It is not there, or is not what the manifest says.
        """
        split, photo = each
        places = self._places(split, photo.file_name)
        before = self._before(photo.file_name)
        if before is not None and photo.sha256 and _sha256(before) == photo.sha256 and not self._turns(before):
            _put(places, before)
            return
        data = read_photo(self._store, photo)
        link = None
        if self._link and self._store.url.startswith("file://"):
            link = Path(unquote(urlsplit(self._store.url).path)) / photo.place
        self._lay(places, data, link)

    def fetch(self, image: Image) -> str | None:
        """Lay out a photo from its source, or say why it cannot be had."""
        assert self._media is not None
        places = self._places(image.split, image.file_name)
        before = self._before(image.file_name) if self._there.get(image.file_name, ("",))[0] == image.url else None
        if before is not None and not self._turns(before):
            _put(places, before)
            return None
        if image.url.startswith("data:"):
            return IN_THE_TASK
        try:
            path = self._media.path(image.url, task_id=image.task)
            link = path.absolute() if self._link and self._media.lies_here(image.url) else None
            self._lay(places, path.read_bytes(), link)  # at once: the cache may drop it
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _turns(self, path: Path) -> bool:
        """Whether a photo of an earlier pull is to be turned now."""
        return self._upright and lies(path.read_bytes())

    def _lay(self, places: list[Path], data: bytes, link: Path | None) -> None:
        """Lay out a photo that came anew: itself, turned, or a link to where it lies."""
        lying = lies(data)
        if lying:
            with self._count:
                self.lying += 1
        if lying and self._upright:
            link = None
            with suppress(OSError, ValueError):  # one that is damaged stays as it is, and `validate` says so
                data = turned(data)
        if link:
            _put_link(places, link)
        else:
            _write(places, data)

    def _before(self, file_name: str) -> Path | None:
        """The photo in the earlier pull."""
        if file_name not in self._there:
            return None
        found = self._earlier(self._there[file_name][1], file_name)
        return next((path for path in found if path.is_file()), None)


def images_there(images: Iterable[Image]) -> dict[str, tuple[str, str]]:
    """File name -> (address, split)."""
    return {image.file_name: (image.url, image.split) for image in images}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(places: list[Path], source: Path) -> None:
    """One file under each of the names, linked where the disk can; ``source`` is one of ours."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if source.is_symlink():
            place.symlink_to(source.readlink())
            continue
        try:
            place.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, place)


def _put_link(places: list[Path], source: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(source)


def _write(places: list[Path], data: bytes) -> None:
    first, *others = places
    first.parent.mkdir(parents=True, exist_ok=True)
    first.unlink(missing_ok=True)  # a link of another pull keeps what it has
    first.write_bytes(data)
    _put(others, first)
