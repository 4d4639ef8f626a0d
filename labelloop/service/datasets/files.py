"""The files that a data set is made of: in a folder, in a zip archive, or under a prefix of a bucket."""

import re
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.media import MediaError, photo_size
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import NotThere, Store, open_store

_FILLED = 0.9
"""How much of the free disk an archive may fill."""
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"})


class Files(Protocol):
    """Files by relative name, with ``/``."""

    @property
    def place(self) -> str:
        """Where they are, for a person."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every file, sorted; hidden ones left out."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises `DatasetError`."""

    def path(self, name: str) -> Path | None:
        """The file on this machine; None where it lies in a bucket."""

    def address(self, name: str) -> str:
        """The file's ``s3://`` address; empty on this machine."""


class FolderFiles:
    """The files of a folder and its folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        """See `Files.place`."""
        return str(self._folder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `Files.names`."""
        found = (path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file())
        return tuple(sorted(each.as_posix() for each in found if not _hidden(each.parts)))

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"{self.place}/{name}", error.strerror or str(error)) from None

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        return self._folder / name

    def address(self, name: str) -> str:
        """See `Files.address`."""
        del name
        return ""


class ZipFiles(FolderFiles):
    """The files of a zip archive, unpacked into a temporary folder that goes with this object.

    Raises:
        DatasetError: It is damaged or encrypted, or there is no room for it.
    """

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        scratch = ExitStack()
        weakref.finalize(self, scratch.close)
        super().__init__(scratch.enter_context(scratch_folder()))
        try:
            with zipfile.ZipFile(archive) as packed:
                self._unpack(packed)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
            raise DatasetError(archive, f"the zip archive is damaged ({error})", fix="Download it again.") from None
        except RuntimeError:  # what zipfile raises for a password
            raise DatasetError(archive, "the zip archive is encrypted", fix="Unpack it, and give the folder.") from None
        except OSError as error:
            raise DatasetError(archive, error.strerror or str(error), fix="Unpack it, and give the folder.") from None

    @property
    def place(self) -> str:
        """See `Files.place`."""
        return str(self._archive)

    def _unpack(self, packed: zipfile.ZipFile) -> None:
        members = [each for each in packed.infolist() if not each.is_dir()]
        size, free = sum(each.file_size for each in members), shutil.disk_usage(self._folder).free
        if size > free * _FILLED:
            raise DatasetError(
                self._archive,
                f"unpacked it has {size / 1e9:,.1f} GB, and {self._folder.parent} has {free / 1e9:,.1f} GB free",
                fix="Set TMPDIR to a folder with more room, or unpack it and give the folder.",
            )
        for each in members:
            each.filename = each.filename.replace("\\", "/")  # some Windows tools write it so
            if not _hidden(each.filename.split("/")):
                packed.extract(each, self._folder)


class PartFiles:
    """Some files of others.

    Args:
        files: The others.
        folder: The folder that is meant; empty: all of them.
        without: Folders that are left out.
    """

    def __init__(self, files: Files, folder: str = "", *, without: Iterable[str] = ()) -> None:
        self._files = files
        self._start = f"{folder}/" if folder else ""
        self._without = tuple(f"{each}/" for each in without)

    @property
    def place(self) -> str:
        """See `Files.place`."""
        return f"{self._files.place}/{self._start}".rstrip("/")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `Files.names`."""
        found = (name for name in self._files.names if name.startswith(self._start))
        return tuple(rest for name in found if not (rest := name[len(self._start) :]).startswith(self._without))

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return self._files.read(self._start + name)

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        return self._files.path(self._start + name)

    def address(self, name: str) -> str:
        """See `Files.address`."""
        return self._files.address(self._start + name)


class BucketFiles:
    """The objects under a prefix of a bucket."""

    def __init__(self, url: str, store: Store) -> None:
        self._url = url.rstrip("/")
        self._store = store

    @property
    def place(self) -> str:
        """See `Files.place`."""
        return self._url

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `Files.names`."""
        return tuple(name for name in self._store.list() if not name.endswith("/") and not _hidden(name.split("/")))

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        try:
            return self._store.get(name)
        except NotThere:
            raise DatasetError(self.address(name), "there is no such object") from None

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        del name
        return None

    def address(self, name: str) -> str:
        """See `Files.address`."""
        return f"{self._url}/{name}"


def open_files(place: str, settings: Settings) -> Files:
    """The files of a folder, of a zip archive, or of ``s3://BUCKET/PREFIX``.

    Raises:
        DatasetError: There is no such folder, or the archive cannot be unpacked.
    """
    if place.startswith("s3://") and place.lower().endswith(".zip"):
        raise DatasetError(place, "archives are read from this machine only", fix="Download it, and give the file.")
    if place.startswith("s3://"):
        return BucketFiles(place, open_store(place, settings))
    folder = Path(place.removeprefix("file://")).expanduser()
    if folder.is_file() and folder.suffix.lower() == ".zip":
        return ZipFiles(folder)
    if not folder.is_dir():
        raise DatasetError(
            folder, "there is no such folder", fix="Give a folder, a zip, a JSON file or s3://BUCKET/PREFIX."
        )
    return FolderFiles(folder)


class Photos:
    """The photos among some files: found by the names that annotations give them, and measured."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.names = tuple(name for name in files.names if is_photo(name))
        self._sizes: dict[str, tuple[int, int] | str] = {}

    @cached_property
    def _by_ending(self) -> Mapping[str, list[str]]:
        """File name, and file name without its extension -> the photos of that name."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            found.setdefault(path.name, []).append(name)
            found.setdefault(f"{path.stem}.", []).append(name)
        return found

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def find(self, told: str) -> str | None:
        """The photo that an annotation calls ``told``; None where there is none, or several to choose from.

        By the whole name, else by the longest ending of it that fits, else by the file name, with its extension or
        without (``a`` and ``a.png`` for ``a.jpg``); else by the name that the photo had before it was uploaded to Label
        Studio (``0a1b2c3d-%C3%BC.jpg``).
        """
        return self._find(told) or next(filter(None, map(self._find, uploaded(told))), None)

    def _find(self, told: str) -> str | None:
        told = told.replace("\\", "/").removeprefix("./")
        if told in self._known:
            return told
        path = PurePosixPath(told)
        named = self._by_ending.get(path.name)
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        found = named or self._by_ending.get(f"{stem}.", [])
        if len(found) > 1:
            wanted = told.split("/")
            for length in range(len(wanted), 1, -1):
                ending = "/" + "/".join(wanted[-length:])
                close = [name for name in found if f"/{name}".endswith(ending)]
                if len(close) == 1:
                    return close[0]
        return found[0] if len(found) == 1 else None

    def size(self, name: str) -> tuple[int, int] | str:
        """Its upright (width, height) in pixels from the file's header, or why it cannot be had. Read once."""
        known = self._sizes.get(name)
        if known is None:
            path = self.files.path(name)
            try:
                known = photo_size(path if path is not None else self.files.read(name), name=name)
            except MediaError as error:
                known = f"{error.reason}. {error.fix}".rstrip()
            self._sizes[name] = known
        return known


def uploaded(name: str) -> Iterator[str]:
    """What a photo was called whose address in Label Studio ends in this: without escapes, without the prefix."""
    plain = unquote(name)
    if plain != name:
        yield plain
    folder, slash, file = plain.rpartition("/")
    if (bare := _UPLOADED.sub("", file)) != file:
        yield folder + slash + bare


def is_photo(name: str) -> bool:
    """Whether a file's name is an image's."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
