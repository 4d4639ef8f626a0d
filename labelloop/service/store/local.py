"""`FolderStore`: objects as files in a local folder, written atomically and durably."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from labelloop.service.scratch import LOCK_NAME, disk_usage, is_in_use, is_older, scratch_folder
from labelloop.service.store.base import Capabilities, Leftovers, ObjectInfo, Progress
from labelloop.service.store.bulk_put import move_parts, sync_folder, write_parts
from labelloop.service.store.errors import ObjectChanged, ObjectExists, ObjectNotFound, StoreError, lock_timeout
from labelloop.service.store.keys import INTERNAL_PREFIX, validate_key
from labelloop.service.store.probe import probe

_MAX_BATCH_FILES = 512
_MAX_BATCH_BYTES = 16 << 20
_LEFTOVER_AGE_S = 7 * 24 * 3600
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
_LOCK_POLL_S = 0.05
_SETTING = " (LABELLOOP_STORE_URL by default)"
_KEY_BELOW_OBJECT = "A key cannot be below another object's key."
_FIXES = {
    errno.ENOSPC: "Free disk space.",
    errno.EACCES: f"Let this user write there, or choose another folder{_SETTING}.",
    errno.EROFS: f"Choose a writable folder{_SETTING}.",
    errno.ENOENT: f"Choose a folder that can be created{_SETTING}.",
    errno.ENOTDIR: _KEY_BELOW_OBJECT,
    errno.EEXIST: _KEY_BELOW_OBJECT,
    errno.EISDIR: "A key cannot be the folder of other objects' keys.",
}


class FolderStore:
    """A store in a local folder. The etag is the SHA-256 of the content; the content type is not kept.

    A write goes to a temporary file, is synced to disk and then renamed, under a lock file for all threads and
    processes of this machine. The subfolder `.labelloop/` has the lock files and temporary files.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder

    @property
    def url(self) -> str:
        """The folder's `file://` address."""
        return self._url

    @property
    def write_settle_s(self) -> float:
        """See `Store.write_settle_s`. The file system is atomic."""
        return 0.0

    @property
    def upload_concurrency(self) -> int:
        """See `Store.upload_concurrency`. A sync blocks all writers of a disk."""
        return 1

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """See `Store.put`."""
        del content_type
        return self._write(key, data, lambda part, path: part.replace(path))

    def create(self, key: str, data: bytes, *, exclusive_until: float = 0.0) -> str:
        """See `Store.create`."""
        del exclusive_until

        def link_part(part: Path, path: Path) -> None:
            try:
                os.link(part, path)
            except FileExistsError:
                raise ObjectExists(self._url, key) from None
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                if path.exists():  # no hard links on this file system: the lock excludes other writers
                    raise ObjectExists(self._url, key) from None
                part.replace(path)

        return self._write(key, data, link_part)

    def swap(self, key: str, data: bytes, *, etag: str | None, exclusive_until: float = 0.0) -> str:
        """See `Store.swap`."""
        del exclusive_until

        def replace_if_unchanged(part: Path, path: Path) -> None:
            current = _etag_of(path.read_bytes()) if path.is_file() else None
            if current != etag:
                raise ObjectChanged(self._url, key)
            part.replace(path)

        return self._write(key, data, replace_if_unchanged)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.start(key, -1)

    def start(self, key: str, size: int) -> bytes:
        """See `Store.start`; a negative size means all."""
        path = self._path(key)
        with self._translate_errors(key):
            try:
                with path.open("rb") as file:
                    return file.read(size)
            except (IsADirectoryError, NotADirectoryError):  # the folder of other objects, or below another object
                raise ObjectNotFound(self._url, key) from None

    def read(self, key: str) -> tuple[bytes, str]:
        """See `Store.read`."""
        data = self.get(key)
        return data, _etag_of(data)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`. The order is that of S3."""
        start = prefix.rpartition("/")[0]
        if start:
            validate_key(self._url, start)
        yield from self._walk(f"{start}/" if start else "", prefix)

    def entries(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.entries`."""
        for key in self.list(prefix):
            try:
                stat = self._path(key).stat()
            except FileNotFoundError:  # deleted during the listing
                continue
            yield ObjectInfo(key, stat.st_size, stat.st_mtime, f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}")

    def download(self, key: str, to: Path) -> None:
        """See `Store.download`."""
        path, part = self._path(key), to.with_name(f"{to.name}.part")
        try:
            with self._translate_errors(key):
                if not path.is_file():
                    raise ObjectNotFound(self._url, key)
                shutil.copyfile(path, part)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def copy_from(self, url: str, name: Callable[[ObjectInfo], str]) -> ObjectInfo | None:
        """See `Store.copy_from`. A folder has no server, so nothing is copied."""
        del url, name
        return None

    def copy(self, key: str, to: str) -> None:
        """See `Store.copy`. A hard link, or a copy where the file system has none."""
        source, path = self._path(key), self._path(to)
        part = self._internal_folder("parts") / uuid.uuid4().hex
        try:
            with self._translate_errors(key):
                link_or_copy(source, part)
                with self._locked(to):
                    self._publish(part, path, lambda part, path: part.replace(path))
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str, *, wait_s: float) -> Iterator[Callable[[], bool]]:
        """See `Store.lock`. A file lock, which ends with its process."""
        deadline = time.monotonic() + wait_s
        with (self._internal_folder("locks") / f"name-{_etag_of(key.encode())}").open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise lock_timeout(self._url, key, wait_s) from None
                    time.sleep(_LOCK_POLL_S)
            yield lambda: True

    def delete(self, key: str) -> None:
        """See `Store.delete`. Empty folders are removed."""
        path = self._path(key)
        with self._translate_errors(key), self._locked(key):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._folder or not _remove_if_empty(parent):
                    break

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """See `Store.put_many`. Files are synced to disk in batches, not one by one."""
        done = written_bytes = 0
        remaining = iter(items)
        while batch := _next_batch(remaining):
            sizes = [_size_of_item(data) for _, data in batch]
            self._put_batch(batch)
            for length in sizes:
                done, written_bytes = done + 1, written_bytes + length
                if progress is not None:
                    progress(done, written_bytes)
        return done

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """See `Store.leftovers`. Files in `.labelloop/parts/` that no running process uses."""
        parts = self._folder / INTERNAL_PREFIX / "parts"
        leftovers = [path for path in (parts.iterdir() if parts.is_dir() else ()) if _is_leftover(path, before)]
        size = sum(disk_usage(path) for path in leftovers)
        for path in leftovers if remove else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return Leftovers(len(leftovers), size)

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Store.scratch`. The folder is on the same disk, so files are moved, not copied.

        Deletes leftovers of killed processes that are older than a week.
        """
        self.leftovers(before=time.time() - _LEFTOVER_AGE_S, remove=True)
        return scratch_folder(self._internal_folder("parts"))

    def self_test(self) -> Capabilities:
        """See `Store.self_test`."""
        return probe(self)

    def _path(self, key: str) -> Path:
        return self._folder / validate_key(self._url, key)

    def _write(self, key: str, data: bytes | Path, publish: Callable[[Path, Path], object]) -> str:
        path = self._path(key)
        part = self._internal_folder("parts") / uuid.uuid4().hex
        try:
            with self._translate_errors(key):
                etag = _write_part(data, part)
                with self._locked(key):
                    self._publish(part, path, publish)
            return etag
        finally:
            part.unlink(missing_ok=True)

    def _put_batch(self, items: Sequence[tuple[str, bytes | Path]]) -> None:
        targets = [f"{self._folder}/{validate_key(self._url, key)}" for key, _ in items]
        folder = self._internal_folder("parts") / uuid.uuid4().hex
        try:
            folder.mkdir()
            parts = write_parts(items, str(folder), move_from=str(folder.parent))
            with ExitStack() as locks:  # in a fixed order, to avoid deadlocks between batches
                for stripe in sorted({_stripe(key) for key, _ in items}):
                    locks.enter_context(self._locked_stripe(stripe))
                move_parts(parts, targets)
        except OSError as error:
            key = str(error.filename2 or error.filename or targets[0]).removeprefix(f"{self._folder}/")
            raise self._error(key, error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _publish(part: Path, path: Path, publish: Callable[[Path, Path], object]) -> None:
        for last in (False, False, False, True):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                publish(part, path)
                break
            except FileNotFoundError:  # the empty folder was removed in the meantime
                if last:
                    raise
        sync_folder(path.parent)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self._folder / folder) as entries:
                names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            key = folder + name
            if key == INTERNAL_PREFIX:
                continue
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                yield key

    def _internal_folder(self, name: str) -> Path:
        folder = self._folder / INTERNAL_PREFIX / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error("", error) from None
        return folder

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        with self._locked_stripe(_stripe(key)):
            yield

    @contextmanager
    def _locked_stripe(self, stripe: int) -> Iterator[None]:
        with (self._internal_folder("locks") / f"{stripe:02x}").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ObjectNotFound(self._url, key) from None
        except OSError as error:
            raise self._error(key, error) from None

    def _error(self, key: str, error: OSError) -> StoreError:
        first = next((path for path in (self._folder, *self._folder.parents) if path.exists()), self._folder)
        if error.errno in {errno.ENOTDIR, errno.EEXIST} and first.is_file():
            return StoreError(self._url, "", f"{first} is a file", fix=f"Choose a folder{_SETTING}.")
        return StoreError(self._url, key, error.strerror or str(error), fix=_FIXES.get(error.errno or 0, ""))


def _etag_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a new file with the content of another one: a hard link, or a copy where there are none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS | {errno.EXDEV}:
            raise
        shutil.copyfile(source, target)


def _write_part(data: bytes | Path, part: Path) -> str:
    """Write the content to a new file and sync it to disk; return its etag."""
    with part.open("xb") as file:
        if isinstance(data, bytes):
            file.write(data)
            etag = _etag_of(data)
        else:
            with data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
            with data.open("rb") as source:
                etag = hashlib.file_digest(source, "sha256").hexdigest()
        file.flush()
        os.fsync(file.fileno())
    return etag


def _stripe(key: str) -> int:
    return hashlib.sha256(key.encode()).digest()[3]  # of 256


def _size_of_item(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _next_batch(remaining: Iterator[tuple[str, bytes | Path]]) -> list[tuple[str, bytes | Path]]:
    batch = []
    size = 0
    for key, data in remaining:
        batch.append((key, data))
        size += len(data) if isinstance(data, bytes) else 0
        if len(batch) >= _MAX_BATCH_FILES or size >= _MAX_BATCH_BYTES:
            break
    return batch


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _is_leftover(path: Path, before: float) -> bool:
    if (path / LOCK_NAME).exists():
        return not is_in_use(path)  # without a lock by now: its process is removing it
    return is_older(path, before)
