"""Lay out the plain files of a version on the disk of this machine: an archive or a folder for each format.

They are written once per export, from the records of the version, and serve both the files of the version
(`exporters.pipeline.plain_version`) and ``latest/`` (`exporters.dataset.latest`).
"""

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Generic, Self, TypeVar

import msgspec

from exporters.dataset.folder import DiskTree
from exporters.dataset.shards import read_image_copy, read_index, read_table
from exporters.dataset.zip_file import ZipWriter, read_files
from exporters.formats.base import Format, FormatContext, ImageReader, Record, included
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import DROPPED, IMAGES, PHOTOS, DatasetManifest, ImageCopy
from exporters.tasks.formats.base import TaskFormat
from exporters.tasks.table import format_class
from labelloop.service.store import Store

_T = TypeVar("_T")
# Images read ahead.
_AHEAD = 8
# Bytes that must stay free on the disk in addition to an archive with images.
_SPARE_BYTES = 1 << 30


class PlainFormat:
    """The files of one format: in an archive if the format has a file for each image, else in a folder.

    Attributes:
        name: The format.
        archive: The archive; None for a format of a few large files.
        labels: The number of files in the archive without the images.
        root: The folder.
        files: The path and the location of each file in the folder, when the format is finished.
    """

    def __init__(self, name: str, context: FormatContext, scratch: Path) -> None:
        self.name = name
        self.format: Format | TaskFormat = format_class(name)(context)
        self.root = scratch / name
        self.root.mkdir()
        self.archive = ZipWriter(scratch / f"{name}.zip") if self.format.file_per_image else None
        self.labels = 0
        self.files: dict[str, Path] = {}

    def write(self, records: Iterable[Record]) -> None:
        """Write the labels."""
        if self.archive is None:
            self.format.write_files(records, DiskTree(self.root))
        else:
            self.format.write_files(records, _ArchiveTree(self.archive, self.root))
            self.labels = self.archive.files

    def finish(self, images: ImageReader | None) -> None:
        """Finish the files in the folder: see `Format.finish`."""
        if self.archive is None:
            self.format.finish(self.root, images)
            paths = sorted(path for path in self.root.rglob("*") if path.is_file())
            self.files = {f"{self.name}/{path.relative_to(self.root).as_posix()}": path for path in paths}

    def archived_labels(self) -> Iterator[tuple[str, bytes]]:
        """Yield the path and the content of each file in the archive, without the images."""
        if self.archive is not None:
            self.archive.flush()
            for name, data in read_files(self.archive.path, self.labels):
                yield f"{self.name}/{name}", data


class PlainVersion:
    """The plain files of a version. Use it as a context manager: it closes unfinished archives.

    Args:
        store: Where the data set lives.
        manifest: The version.
        scratch: A folder on this machine's disk, which holds the files.

    Attributes:
        manifest: The version.
        store: Where it is read from.
        report: Its report, if it is on the disk.

    Raises:
        DatasetDamaged: an object is missing or does not match the manifest.
    """

    def __init__(self, store: Store, manifest: DatasetManifest, scratch: Path) -> None:
        self.manifest = manifest
        self.store = store
        self.report: Path | None = None
        self._scratch = scratch
        self._index = read_index(store, manifest) if len(manifest.generations) > 1 else None
        context = format_context(manifest)
        self.formats = [PlainFormat(name, context, scratch) for name in manifest.formats]
        for plain in self.formats:
            plain.write(self._records(plain.name))
        self.tables = dict(self._write_table(name) for name in (IMAGES, DROPPED))
        if not self._has_copies:
            self._finish(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for plain in self.formats:
            if plain.archive is not None:
                plain.archive.discard()

    def pack_images(self, *, archives: bool = True) -> str:
        """Pack the copies of the images into the files of the formats that hold images, and into the archives.

        Args:
            archives: Whether the archives get them.

        Returns:
            Why the images are not packed; empty if they are, or if the version has no copies.
        """
        if not self._has_copies:
            return ""
        waiting = [
            (plain.archive, _Peekable(self._image_paths(plain)))
            for plain in self.formats
            if archives and plain.archive is not None
        ]
        packed = len(waiting) + sum(plain.name == _PACKED for plain in self.formats)
        needed = sum(copy.size for _, copy in self.copies()) * packed
        if packed and needed + _SPARE_BYTES > (free := shutil.disk_usage(self._scratch).free):
            self._finish(None)
            return (
                f"archives without images: they need {needed / 1e9:,.1f} GB on the disk of {self._scratch.parent},"
                f" {free / 1e9:,.1f} GB are free. Set TMPDIR to a larger disk"
            )
        self._finish(_CopyReader(self.store, self.copies))
        if waiting:
            for copy, data in _read_ahead(self.store, (copy for _, copy in self.copies())):
                for archive, paths in waiting:
                    if paths.head is not None and paths.head[1] == copy:
                        archive.add(paths.head[0], data, compress=False)
                        paths.advance()
        return ""

    def close(self) -> None:
        """Complete the archives."""
        for plain in self.formats:
            if plain.archive is not None:
                plain.archive.close()

    def version_files(self) -> dict[str, Path]:
        """Return the files of a version, by their path in it: archives, and the files of formats without one."""
        files = dict(self.tables)
        for plain in self.formats:
            files |= {f"{plain.name}.zip": plain.archive.path} if plain.archive is not None else plain.files
        return files

    def moved(self, folder: Path) -> None:
        """Take note that files of the version were moved to a folder, instead of copied."""

        def place(path: str, file: Path) -> Path:
            return file if file.exists() else folder / path

        if self.report is not None:
            self.report = place(self.report.name, self.report)
        self.tables = {path: place(path, file) for path, file in self.tables.items()}
        for plain in self.formats:
            plain.files = {path: place(path, file) for path, file in plain.files.items()}
            if plain.archive is not None:
                plain.archive.path = place(f"{plain.name}.zip", plain.archive.path)

    def image_paths(self) -> Iterator[tuple[str, ImageCopy]]:
        """Yield the path and the copy of each image next to the labels, format by format."""
        for plain in self.formats if self._has_copies else ():
            for path, copy in self._image_paths(plain):
                yield f"{plain.name}/{path}", copy

    def copies(self) -> Iterator[tuple[str, ImageCopy]]:
        """Yield the split and the copy of each image of the version."""
        decode = msgspec.json.Decoder(ImageCopy).decode
        for record in read_table(self.store, self.manifest, PHOTOS, index=self._index):
            yield record.split, decode(record.body)

    @property
    def _has_copies(self) -> bool:
        return any(PHOTOS in generation.tables for generation in self.manifest.generations)

    def _finish(self, images: "_CopyReader | None") -> None:
        for plain in self.formats:
            plain.finish(images)

    def _image_paths(self, plain: PlainFormat) -> Iterator[tuple[str, ImageCopy]]:
        return plain.format.image_paths(self._records(plain.name), self.copies()) or iter(())

    def _records(self, name: str) -> Iterator[Record]:
        return included(read_table(self.store, self.manifest, name, index=self._index))

    def _write_table(self, name: str) -> tuple[str, Path]:
        path = self._scratch / f"{name}.jsonl"
        with path.open("wb") as file:
            records = read_table(self.store, self.manifest, name, index=self._index)
            while part := list(islice(records, 256)):
                file.write(b"".join([bytes(record.body) + b"\n" for record in part]))
        return path.name, path


# The format whose own files hold the images.
_PACKED = "webdataset"


def format_context(manifest: DatasetManifest) -> FormatContext:
    """Return the settings of the formats of a version, for `Format.write_files`."""
    skeleton = Skeleton(manifest.keypoints, manifest.skeleton) if manifest.keypoints else None
    return FormatContext(tuple(manifest.splits), tuple(manifest.classes), skeleton, manifest.categories)


class _ArchiveTree:
    """An `exporters.formats.base.OutputTree` in an archive; large files go by way of the disk."""

    def __init__(self, archive: ZipWriter, scratch: Path) -> None:
        self._archive, self._scratch = archive, scratch

    def write(self, path: str, data: bytes) -> None:
        self._archive.add(path, data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            yield file.file  # type: ignore[misc]
            file.flush()
            self._archive.add_file(path, Path(file.name))

    def scratch(self) -> AbstractContextManager[BinaryIO]:
        return tempfile.TemporaryFile(dir=self._scratch)


class _CopyReader:
    """See `exporters.formats.base.ImageReader`."""

    def __init__(self, store: Store, copies: Callable[[], Iterator[tuple[str, ImageCopy]]]) -> None:
        self._store, self._copies = store, copies

    def split(self, split: str) -> Callable[[str], bytes | None]:
        images = _Peekable(_read_ahead(self._store, (copy for its_split, copy in self._copies() if its_split == split)))

        def read(name: str) -> bytes | None:
            if images.head is None or images.head[0].file_name != name:
                return None
            data = images.head[1]
            images.advance()
            return data

        return read


class _Peekable(Generic[_T]):
    """An iterator whose next item, ``head``, can be looked at; None at its end."""

    def __init__(self, items: Iterator[_T]) -> None:
        self._items = items
        self.head: _T | None = None
        self.advance()

    def advance(self) -> None:
        """Go to the next item."""
        self.head = next(self._items, None)


def _read_ahead(store: Store, copies: Iterable[ImageCopy]) -> Iterator[tuple[ImageCopy, bytes]]:
    """Read images in order, a few at a time. Raises `DatasetDamaged`."""
    pending: deque[tuple[ImageCopy, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="images") as threads:
        for copy in copies:
            pending.append((copy, threads.submit(read_image_copy, store, copy)))
            if len(pending) >= _AHEAD:
                first, reading = pending.popleft()
                yield first, reading.result()
        for first, reading in pending:
            yield first, reading.result()
