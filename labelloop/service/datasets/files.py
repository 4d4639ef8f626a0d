"""Access to the files of a data set in a folder, a zip archive or an S3 prefix, and to its image files."""

import io
import re
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Protocol
from urllib.parse import unquote

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.mask_files import mask_folders
from labelloop.service.media import MediaError, image_size
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import ObjectNotFound, Store, is_bucket_url, open_store
from labelloop.service.store.addresses import to_studio_url

# Share of the free disk space that an unpacked archive may use.
_MAX_DISK_SHARE = 0.9
# Prefix of the files that are uploaded to Label Studio.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"})


class DatasetFiles(Protocol):
    """Files by relative name with ``/``."""

    @property
    def location(self) -> str:
        """The path or address, for messages."""

    @property
    def names(self) -> tuple[str, ...]:
        """All files except hidden ones, sorted."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `DatasetError`."""

    def start(self, name: str, size: int) -> bytes:
        """The first ``size`` bytes of a file, or all of a shorter one. Raises `DatasetError`."""

    def path(self, name: str) -> Path | None:
        """The local path; None for an object in a bucket."""

    def url(self, name: str) -> str:
        """The address as Label Studio's tasks have it; empty for a local file."""


class FolderFiles:
    """The files of a folder and its subfolders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def location(self) -> str:
        """See `DatasetFiles.location`."""
        return str(self._folder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `DatasetFiles.names`."""
        paths = (path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file())
        return tuple(sorted(path.as_posix() for path in paths if not _hidden(path.parts)))

    def read(self, name: str) -> bytes:
        """See `DatasetFiles.read`."""
        return self.start(name, -1)

    def start(self, name: str, size: int) -> bytes:
        """See `DatasetFiles.start`; a negative size means all."""
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise DatasetError(f"{self.location}/{name}", error.strerror or str(error)) from None

    def path(self, name: str) -> Path | None:
        """See `DatasetFiles.path`."""
        return self._folder / name

    def url(self, name: str) -> str:
        """See `DatasetFiles.url`."""
        del name
        return ""


class ZipFiles(FolderFiles):
    """The files of a zip archive, unpacked into a temporary folder that is deleted with this object.

    Raises:
        DatasetError: The archive is damaged or encrypted, or the disk is too small for it.
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
        except RuntimeError:  # zipfile raises it for an encrypted archive
            raise DatasetError(archive, "the zip archive is encrypted", fix="Unpack it, and pass the folder.") from None
        except OSError as error:
            raise DatasetError(archive, error.strerror or str(error), fix="Unpack it, and pass the folder.") from None

    @property
    def location(self) -> str:
        """See `DatasetFiles.location`."""
        return str(self._archive)

    def _unpack(self, packed: zipfile.ZipFile) -> None:
        members = [member for member in packed.infolist() if not member.is_dir()]
        size, free = sum(member.file_size for member in members), shutil.disk_usage(self._folder).free
        if size > free * _MAX_DISK_SHARE:
            raise DatasetError(
                self._archive,
                f"unpacked it needs {size / 1e9:,.1f} GB, and {self._folder.parent} has {free / 1e9:,.1f} GB free",
                fix="Set TMPDIR to a folder with more free space, or unpack it and pass the folder.",
            )
        for member in members:
            member.filename = member.filename.replace("\\", "/")  # some Windows tools write backslashes
            if not _hidden(member.filename.split("/")):
                packed.extract(member, self._folder)


class SubfolderFiles:
    """A subset of other files.

    Args:
        files: All files.
        folder: The subfolder; empty: all files.
        without: Subfolders to exclude.
    """

    def __init__(self, files: DatasetFiles, folder: str = "", *, exclude: Iterable[str] = ()) -> None:
        self._files = files
        self._start = f"{folder}/" if folder else ""
        self._without = tuple(f"{name}/" for name in exclude)

    @property
    def location(self) -> str:
        """See `DatasetFiles.location`."""
        return f"{self._files.location}/{self._start}".rstrip("/")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `DatasetFiles.names`."""
        below = (name for name in self._files.names if name.startswith(self._start))
        return tuple(rest for name in below if not (rest := name[len(self._start) :]).startswith(self._without))

    def read(self, name: str) -> bytes:
        """See `DatasetFiles.read`."""
        return self._files.read(self._start + name)

    def start(self, name: str, size: int) -> bytes:
        """See `DatasetFiles.start`."""
        return self._files.start(self._start + name, size)

    def path(self, name: str) -> Path | None:
        """See `DatasetFiles.path`."""
        return self._files.path(self._start + name)

    def url(self, name: str) -> str:
        """See `DatasetFiles.url`."""
        return self._files.url(self._start + name)


class PrefixFiles:
    """The objects under a prefix of a bucket."""

    def __init__(self, url: str, store: Store) -> None:
        self._url = url.rstrip("/")
        self._store = store

    @property
    def location(self) -> str:
        """See `DatasetFiles.location`."""
        return self._url

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See `DatasetFiles.names`."""
        return tuple(name for name in self._store.list() if not name.endswith("/") and not _hidden(name.split("/")))

    def read(self, name: str) -> bytes:
        """See `DatasetFiles.read`."""
        with self._existing(name):
            return self._store.get(name)

    def start(self, name: str, size: int) -> bytes:
        """See `DatasetFiles.start`."""
        with self._existing(name):
            return self._store.start(name, size)

    @contextmanager
    def _existing(self, name: str) -> Iterator[None]:
        try:
            yield
        except ObjectNotFound:
            raise DatasetError(self.url(name), "the object does not exist") from None

    def path(self, name: str) -> Path | None:
        """See `DatasetFiles.path`."""
        del name
        return None

    def url(self, name: str) -> str:
        """See `DatasetFiles.url`."""
        return to_studio_url(f"{self._url}/{name}")


def open_files(location: str, settings: Settings) -> DatasetFiles:
    """Open a folder, a zip archive or ``s3://BUCKET/PREFIX``, also ``gs://`` and ``az://``.

    Raises:
        DatasetError: The folder does not exist, or the archive cannot be unpacked.
    """
    if is_bucket_url(location) and location.lower().endswith(".zip"):
        raise DatasetError(location, "archives are read from local disk only", fix="Download it, and pass the file.")
    if is_bucket_url(location):
        return PrefixFiles(location, open_store(location, settings))
    folder = Path(location.removeprefix("file://")).expanduser()
    if folder.is_file() and folder.suffix.lower() == ".zip":
        return ZipFiles(folder)
    if not folder.is_dir():
        raise DatasetError(
            folder,
            "the folder does not exist",
            fix="Pass a folder, a zip, a JSON file or the s3://, gs:// or az:// address of a prefix.",
        )
    return FolderFiles(folder)


class ImageFiles:
    """The image files of a data set: lookup by the names used in annotations, and image sizes."""

    def __init__(self, files: DatasetFiles) -> None:
        self.files = files
        masks = mask_folders(files.names)
        self.names = tuple(name for name in files.names if is_image_name(name) and not name.startswith(masks))
        self._sizes: dict[str, tuple[int, int] | str] = {}

    @cached_property
    def _by_file_name(self) -> Mapping[str, list[str]]:
        """File name, with and without extension -> the images of that name."""
        by_name: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            by_name.setdefault(path.name, []).append(name)
            by_name.setdefault(f"{path.stem}.", []).append(name)
        return by_name

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    def find(self, name: str) -> str | None:
        """Find the image that an annotation refers to.

        Matches the full path, else the longest unique path suffix, else the file name with or without extension (``a``
        and ``a.png`` match ``a.jpg``), else the original name of a file uploaded to Label Studio
        (``0a1b2c3d-%C3%BC.jpg``).

        Args:
            name: The name in the annotation.

        Returns:
            The name of the image file; None if no image or several match.
        """
        return self._find(name) or next(filter(None, map(self._find, original_names(name))), None)

    def _find(self, reference: str) -> str | None:
        reference = reference.replace("\\", "/").removeprefix("./")
        if reference in self._name_set:
            return reference
        path = PurePosixPath(reference)
        same_name = self._by_file_name.get(path.name)
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        candidates = same_name or self._by_file_name.get(f"{stem}.", [])
        if len(candidates) > 1:
            parts = reference.split("/")
            for length in range(len(parts), 1, -1):
                ending = "/" + "/".join(parts[-length:])
                matches = [name for name in candidates if f"/{name}".endswith(ending)]
                if len(matches) == 1:
                    return matches[0]
        return candidates[0] if len(candidates) == 1 else None

    def size(self, name: str) -> tuple[int, int] | str:
        """The upright (width, height) in pixels from the file header, or the reason it cannot be read. Cached."""
        size = self._sizes.get(name)
        if size is None:
            path = self.files.path(name)
            try:
                size = image_size(path if path is not None else self.files.read(name), name=name)
            except MediaError as error:
                size = f"{error.reason}. {error.fix}".rstrip()
            self._sizes[name] = size
        return size


def open_binary(files: DatasetFiles, name: str) -> IO[bytes]:
    """Open a file for reading; an object in a bucket is held in memory. Raises `DatasetError`."""
    path = files.path(name)
    if path is None:
        return io.BytesIO(files.read(name))
    try:
        return path.open("rb")
    except OSError as error:
        raise DatasetError(f"{files.location}/{name}", error.strerror or str(error)) from None


def original_names(name: str) -> Iterator[str]:
    """The possible original names of a file uploaded to Label Studio: URL-decoded, and without the upload prefix."""
    plain = unquote(name)
    if plain != name:
        yield plain
    folder, slash, file = plain.rpartition("/")
    if (bare := _UPLOAD_PREFIX.sub("", file)) != file:
        yield folder + slash + bare


def is_image_name(name: str) -> bool:
    """Whether a file name has the extension of an image format."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
