"""The tables of a version: records in content-addressed shards, written per generation and read as one table.

A shard has lines of JSON: ``{"seq":12,"split":"train","record":{...}}``. ``seq`` is the row of the record's task in the
index of its generation; a task may have any number of records in a table. Lines are ordered by ``seq``.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader, BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import msgspec

from exporters.dataset.folder import local_folder
from exporters.dataset.task_index import Rows, TaskIndex, read_page
from exporters.errors import DatasetDamaged
from exporters.formats.base import Record
from exporters.model.manifest import DatasetManifest, Generation, ImageCopy, Shard, object_key
from labelloop.service.store import ObjectNotFound, Store

SHARD_BYTES = 8 << 20
# What the names of local files of images start with; those of others are of shards.
IMAGE_FILE = "photo-"
_AHEAD = 2
_MD5 = re.compile("[0-9a-f]{32}")
_WAITING_BYTES = 16 << 20
# Lines are kilobytes: the usual buffer of 8 KB would be filled for each of them.
_BUFFER_BYTES = 1 << 18
# The parts of a line before its record: see `line_heads`.
_ROW, _SPLIT, _RECORD = b'{"seq":', b',"split":"', b',"record":'


class ObjectUploader:
    """Uploads content-addressed objects in the background; existing objects are not sent again.

    For a folder, files are batched so that the disk is synced once per batch; for a bucket, they wait for one of a few
    upload threads. Use it as a context manager: it stops pending uploads.

    Args:
        store: where the data set lives.
        existing: SHA-256 of objects that exist.
        keep: a folder for shards that were uploaded, so that they need not be downloaded again: see `LocalFirst`.
    """

    def __init__(self, store: Store, existing: Iterable[str] = (), *, keep: Path | None = None) -> None:
        self._store = store
        self._keep = keep
        self._known = set(existing)
        self._waiting: list[tuple[str, Path]] = []
        self._bytes = 0
        self._lanes = store.upload_concurrency
        self._threads = ThreadPoolExecutor(self._lanes, thread_name_prefix="objects")
        self._sending: deque[Future[None]] = deque()
        self.written = self.written_bytes = 0

    def put_file(self, path: Path, sha256: str) -> None:
        """Upload a file; it is deleted afterwards."""
        size = path.stat().st_size
        if sha256 in self._known:
            path.unlink()
            return
        self._known.add(sha256)
        self._waiting.append((object_key(sha256), path))
        self._bytes += size
        self.written, self.written_bytes = self.written + 1, self.written_bytes + size
        if self._bytes >= _WAITING_BYTES // self._lanes or (self._lanes > 1 and self._free()):
            self._start_upload()

    def count_remote(self, objects: int, size: int) -> None:
        """Count objects that another process uploaded."""
        self.written, self.written_bytes = self.written + objects, self.written_bytes + size

    def flush(self) -> None:
        """Upload pending files; all of them are in the store when this returns."""
        if self._waiting:
            self._start_upload()
        while self._sending:
            self._sending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _start_upload(self) -> None:
        """Upload the pending files in the background. Raises the error of an earlier upload."""
        while self._sending and (self._sending[0].done() or not self._free()):
            self._sending.popleft().result()
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        self._sending.append(self._threads.submit(self._send, waiting))

    def _free(self) -> bool:
        return len(self._sending) < self._lanes or self._sending[0].done()

    def _send(self, files: Sequence[tuple[str, Path]]) -> None:
        self._store.put_many(files)
        for key, path in files:
            if self._keep is not None and not path.name.startswith(IMAGE_FILE):
                path.rename(self._keep / key.rpartition("/")[2])
            else:
                path.unlink(missing_ok=True)


class LocalFirst:
    """A store for reading whose content-addressed objects may lie in a folder of this machine too."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        file = self.local(key)
        return file.read_bytes() if file is not None else self._store.get(key)

    def local(self, key: str) -> Path | None:
        """Return the file of an object in the folder; None if it has none."""
        file = self._folder / key.rpartition("/")[2]
        return file if key.startswith("objects/") and file.is_file() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class TableWriter:
    """Writes one table of a generation: lines go to a file, full files become shards."""

    def __init__(self, name: str, scratch: Path, objects: ObjectUploader) -> None:
        self._name, self._scratch, self._objects = name, scratch, objects
        self._shards: list[Shard] = []
        self._digest = hashlib.sha256()
        self._size = self._records = 0
        self._path = scratch / f"{name}-0"
        self._file = self._path.open("wb")

    def add(self, heads: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Write records, each with the head of its line: see `line_heads`."""
        if not records:
            return
        parts = [b"}\n"] * (3 * len(records))
        parts[::3], parts[1::3] = heads, records
        data = b"".join(parts)
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)
        self._records += len(records)
        if self._size >= SHARD_BYTES:
            self._roll()

    def finish(self) -> tuple[Shard, ...]:
        """Return the shards of the table."""
        if self._size:
            self._roll()
        self.close()
        return tuple(self._shards)

    def close(self) -> None:
        """Close and delete the file; lines not uploaded are lost."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _roll(self) -> None:
        self._file.close()
        digest = self._digest.hexdigest()
        self._shards.append(Shard(digest, self._size, self._records))
        self._objects.put_file(self._path, digest)
        self._digest = hashlib.sha256()
        self._size = self._records = 0
        self._path = self._scratch / f"{self._name}-{len(self._shards)}"
        self._file = self._path.open("wb")


# A line of a shard: the row of its task, its split and its record.
_Line = tuple[int, str, msgspec.Raw]


def line_heads(rows: Sequence[int], splits: Sequence[str]) -> list[bytes]:
    """Return the text before each record in the lines of a shard; a split is one of ``SPLITS`` or empty."""
    rest = {split: f'"split":"{split}","record":'.encode() for split in set(splits)}
    return [b'{"seq":%d,%b' % (row, rest[split]) for row, split in zip(rows, splits, strict=True)]


def read_table(
    store: Store, manifest: DatasetManifest, name: str, *, index: TaskIndex | None = None
) -> Iterator[Record]:
    """Yield the current records of a table, in the order of the version's tasks.

    Args:
        store: where the data set lives.
        manifest: the version.
        name: a format, or ``images``, ``dropped`` or ``photos``.
        index: the version's index, if the caller has it.

    Raises:
        DatasetDamaged: a shard is missing or does not match its name.
    """
    generations = manifest.generations
    if len(generations) == 1:
        for _, split, record in _lines(store, generations[0], name):
            yield Record(split, record)
        return
    readers = [_lines(store, generation, name) for generation in generations]
    heads = [next(reader, None) for reader in readers]
    for generation, row in (read_index(store, manifest) if index is None else index).locations():
        head, reader = heads[generation], readers[generation]
        while head is not None and head[0] < row:
            head = next(reader, None)
        while head is not None and head[0] == row:
            yield Record(*head[1:])
            head = next(reader, None)
        heads[generation] = head


def read_rows(store: Store, generation: Generation, name: str, rows: AbstractSet[int]) -> Iterator[bytes]:
    """Yield the records of a generation for some rows of its index. Raises `DatasetDamaged`."""
    for row, _, record in _lines(store, generation, name):
        if row in rows:
            yield bytes(record)


def read_index(store: Store, manifest: DatasetManifest) -> TaskIndex:
    """Read the index of a version. Raises `DatasetDamaged`."""
    return TaskIndex([_page(store, generation.index) for generation in manifest.generations])


def read_object(store: Store, sha256: str, size: int) -> bytes:
    """Read a content-addressed object and verify it. Raises `DatasetDamaged`."""
    return read_verified(store, object_key(sha256), sha256, size)


def read_image_copy(store: Store, copy: ImageCopy) -> bytes:
    """Read the copy of an image and verify it. Raises `DatasetDamaged`."""
    if not copy.key:
        return read_object(store, copy.sha256, copy.size)
    try:
        data = store.get(copy.key)
    except ObjectNotFound as error:
        raise DatasetDamaged(url=store.url, key=copy.key, reason="the manifest lists it and it is not there") from error
    if len(data) != copy.size:
        raise DatasetDamaged(url=store.url, key=copy.key, reason=f"{len(data)} bytes, the manifest says {copy.size}")
    # a server's etag is the MD5 of the content, except of what was uploaded in parts or encrypted
    if _MD5.fullmatch(copy.etag) and hashlib.md5(data, usedforsecurity=False).hexdigest() != copy.etag:
        raise DatasetDamaged(
            url=store.url, key=copy.key, reason="its MD5 is not the one that the server returned when it was copied"
        )
    return data


def read_verified(store: Store, key: str, sha256: str, size: int) -> bytes:
    """Read an object and verify its size and SHA-256. Raises `DatasetDamaged`."""
    try:
        data = store.get(key)
    except ObjectNotFound as error:
        raise DatasetDamaged(url=store.url, key=key, reason="the manifest lists it and it is not there") from error
    if len(data) != size:
        raise DatasetDamaged(url=store.url, key=key, reason=f"{len(data)} bytes, the manifest says {size}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetDamaged(url=store.url, key=key, reason="its SHA-256 is not the manifest's")
    return data


def _page(store: Store, shard: Shard) -> Rows:
    try:
        return read_page(read_object(store, shard.sha256, shard.size))
    except (msgspec.DecodeError, ValueError) as error:
        raise DatasetDamaged(url=store.url, key=object_key(shard.sha256), reason=f"no index: {error}") from error


def _lines(store: Store, generation: Generation, name: str) -> Iterator[_Line]:
    for shard, lines in _contents(store, generation.tables.get(name, ())):
        try:
            for text in lines:
                # the content is verified: what `line_heads` and `TableWriter` wrote is taken apart, not parsed
                head, _, record = text.partition(_RECORD)
                row, _, split = head.removeprefix(_ROW).partition(_SPLIT)
                yield int(row), split[:-1].decode(), msgspec.Raw(record[:-2])
        except ValueError as error:
            reason = f"a line is not as an export writes it ({error})"
            raise DatasetDamaged(url=store.url, key=object_key(shard.sha256), reason=reason) from error


def _contents(store: Store, shards: Sequence[Shard]) -> Iterator[tuple[Shard, BufferedReader | BytesIO]]:
    """Yield each shard with its content: from the disk, or from the store, a few shards ahead."""
    files = [_local_file(store, shard) for shard in shards]
    missing = [shard for shard, file in zip(shards, files, strict=True) if file is None]
    with ThreadPoolExecutor(1 if len(missing) < 2 else _AHEAD) as threads:

        def read(shard: Shard) -> Future[bytes]:
            return threads.submit(read_object, store, shard.sha256, shard.size)

        coming = deque(map(read, missing[:_AHEAD]))
        following = iter(missing[_AHEAD:])
        for shard, file in zip(shards, files, strict=True):
            if file is not None:
                with cast(BufferedReader, file.open("rb", buffering=_BUFFER_BYTES)) as content:
                    _verify_file(store, shard, content)
                    yield shard, content
            else:
                data = coming.popleft().result()
                coming.extend(map(read, islice(following, 1)))
                yield shard, BytesIO(data)


def _local_file(store: Store, shard: Shard) -> Path | None:
    """Return the file of a shard on this machine's disk, not in memory."""
    key = object_key(shard.sha256)
    if isinstance(store, LocalFirst):
        return store.local(key)
    folder = local_folder(store)
    file = folder / key if folder is not None else None
    return file if file is not None and file.is_file() else None


def _verify_file(store: Store, shard: Shard, content: BufferedReader) -> None:
    """Compare a file with the manifest; then it is at its start again. Raises `DatasetDamaged`."""
    key, size = object_key(shard.sha256), content.seek(0, 2)
    if size != shard.size:
        raise DatasetDamaged(url=store.url, key=key, reason=f"{size} bytes, the manifest says {shard.size}")
    content.seek(0)
    if hashlib.file_digest(content, "sha256").hexdigest() != shard.sha256:
        raise DatasetDamaged(url=store.url, key=key, reason="its SHA-256 is not the manifest's")
    content.seek(0)
