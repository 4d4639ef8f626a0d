"""`FolderStore`: objects as files below one folder. Nothing is ever half written, whoever is killed when."""

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

from labelloop.service.scratch import LOCK_NAME, is_in_use, is_older, scratch_folder, size_of
from labelloop.service.store.base import Capabilities, Entry, Leftovers, Progress
from labelloop.service.store.bulk_put import place_parts, sync_folder, write_parts
from labelloop.service.store.errors import AlreadyThere, Changed, NotThere, StoreError
from labelloop.service.store.keys import OWN, checked
from labelloop.service.store.probe import probe

_BATCH_FILES = 512
_BATCH_BYTES = 16 << 20
_LEFT_S = 7 * 24 * 3600
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
_NAMED_BY = " (LABELLOOP_STORE_URL, where no other was given)"
_BELOW = "A key may not lie below another object's key."
_FIXES = {
    errno.ENOSPC: "Free some room on that disk.",
    errno.EACCES: f"Let this user write there, or choose another folder{_NAMED_BY}.",
    errno.EROFS: f"Choose a folder that can be written{_NAMED_BY}.",
    errno.ENOENT: f"Choose a folder that can be made{_NAMED_BY}.",
    errno.ENOTDIR: _BELOW,
    errno.EEXIST: _BELOW,
    errno.EISDIR: "A key may not be the folder of other objects' keys.",
}


class FolderStore:
    """A folder. The etag is the SHA-256 of the content; the content type is not kept.

    A write goes to a file of its own, is synced to the disk and then renamed, under a lock file that any number of
    threads and processes of this machine respect. `.labelloop/` below the folder holds locks and unfinished files.
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
        """See `Store.write_settle_s`. The disk decides at once."""
        return 0.0

    @property
    def upload_concurrency(self) -> int:
        """See `Store.upload_concurrency`: a disk that is synced is synced for all."""
        return 1

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """See `Store.put`."""
        del content_type
        return self._write(key, data, lambda part, path: part.replace(path))

    def create(self, key: str, data: bytes, *, alone_until: float = 0.0) -> str:
        """See `Store.create`."""
        del alone_until

        def place(part: Path, path: Path) -> None:
            try:
                os.link(part, path)
            except FileExistsError:
                raise AlreadyThere(self._url, key) from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if path.exists():  # a disk without hard links: the lock alone keeps others out
                    raise AlreadyThere(self._url, key) from None
                part.replace(path)

        return self._write(key, data, place)

    def swap(self, key: str, data: bytes, *, etag: str | None, alone_until: float = 0.0) -> str:
        """See `Store.swap`."""
        del alone_until

        def place(part: Path, path: Path) -> None:
            now = _etag(path.read_bytes()) if path.is_file() else None
            if now != etag:
                raise Changed(self._url, key)
            part.replace(path)

        return self._write(key, data, place)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        path = self._path(key)
        with self._plain(key):
            try:
                return path.read_bytes()
            except (IsADirectoryError, NotADirectoryError):  # other objects' folder, or below another object
                raise NotThere(self._url, key) from None

    def read(self, key: str) -> tuple[bytes, str]:
        """See `Store.read`."""
        data = self.get(key)
        return data, _etag(data)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`. Keys come in the order in which S3 gives them."""
        start = prefix.rpartition("/")[0]
        if start:
            checked(self._url, start)
        yield from self._walk(f"{start}/" if start else "", prefix)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`."""
        for key in self.list(prefix):
            try:
                found = self._path(key).stat()
            except FileNotFoundError:  # removed while it was listed
                continue
            yield Entry(key, found.st_size, found.st_mtime, f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}")

    def download(self, key: str, to: Path) -> None:
        """See `Store.download`."""
        path, part = self._path(key), to.with_name(f"{to.name}.part")
        try:
            with self._plain(key):
                if not path.is_file():
                    raise NotThere(self._url, key)
                shutil.copyfile(path, part)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def copy_in(self, url: str, name: Callable[[Entry], str]) -> Entry | None:
        """See `Store.copy_in`. A folder has no server."""
        del url, name
        return None

    def delete(self, key: str) -> None:
        """See `Store.delete`. Folders that become empty go too."""
        path = self._path(key)
        with self._plain(key), self._locked(key):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._folder or not _removed(parent):
                    break

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """See `Store.put_many`. Files reach the disk batch by batch, not one by one; all have when this returns."""
        done = size = 0
        rest = iter(items)
        while batch := _batch(rest):
            sizes = [_length(data) for _, data in batch]
            self._put_batch(batch)
            for length in sizes:
                done, size = done + 1, size + length
                if progress is not None:
                    progress(done, size)
        return done

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """See `Store.leftovers`. Files in `.labelloop/parts/` that no living process has."""
        parts = self._folder / OWN / "parts"
        found = [each for each in (parts.iterdir() if parts.is_dir() else ()) if _is_left(each, before)]
        size = sum(size_of(each) for each in found)
        for each in found if remove else ():
            shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
        return Leftovers(len(found), size)

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Store.scratch`: on the disk of the folder, so that a file of it is only renamed.

        What killed processes left there long ago goes.
        """
        self.leftovers(before=time.time() - _LEFT_S, remove=True)
        return scratch_folder(self._own("parts"))

    def self_test(self) -> Capabilities:
        """See `Store.self_test`."""
        return probe(self)

    def _path(self, key: str) -> Path:
        return self._folder / checked(self._url, key)

    def _write(self, key: str, data: bytes | Path, place: Callable[[Path, Path], object]) -> str:
        path = self._path(key)
        part = self._own("parts") / uuid.uuid4().hex
        try:
            with self._plain(key):
                etag = _save(data, part)
                with self._locked(key):
                    self._placed(part, path, place)
            return etag
        finally:
            part.unlink(missing_ok=True)

    def _put_batch(self, items: Sequence[tuple[str, bytes | Path]]) -> None:
        places = [f"{self._folder}/{checked(self._url, key)}" for key, _ in items]
        folder = self._own("parts") / uuid.uuid4().hex
        try:
            folder.mkdir()
            parts = write_parts(items, str(folder), taken_from=str(folder.parent))
            with ExitStack() as locks:  # in one order, so that two batches never wait for each other
                for stripe in sorted({_stripe(key) for key, _ in items}):
                    locks.enter_context(self._locked_stripe(stripe))
                place_parts(parts, places)
        except OSError as error:
            key = str(error.filename2 or error.filename or places[0]).removeprefix(f"{self._folder}/")
            raise self._error(key, error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _placed(part: Path, path: Path, place: Callable[[Path, Path], object]) -> None:
        for last in (False, False, False, True):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                place(part, path)
                break
            except FileNotFoundError:  # somebody removed the emptied folder in between
                if last:
                    raise
        sync_folder(path.parent)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self._folder / folder) as entries:
                found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in found:
            key = folder + name
            if key == OWN:
                continue
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                yield key

    def _own(self, name: str) -> Path:
        folder = self._folder / OWN / name
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
        with (self._own("locks") / f"{stripe:02x}").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _plain(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise NotThere(self._url, key) from None
        except OSError as error:
            raise self._error(key, error) from None

    def _error(self, key: str, error: OSError) -> StoreError:
        return StoreError(self._url, key, error.strerror or str(error), fix=_FIXES.get(error.errno or 0, ""))


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save(data: bytes | Path, part: Path) -> str:
    """Writes the content to a new file, down to the disk; gives its etag."""
    with part.open("xb") as file:
        if isinstance(data, bytes):
            file.write(data)
            etag = _etag(data)
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


def _length(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _batch(rest: Iterator[tuple[str, bytes | Path]]) -> list[tuple[str, bytes | Path]]:
    batch = []
    size = 0
    for key, data in rest:
        batch.append((key, data))
        size += len(data) if isinstance(data, bytes) else 0
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            break
    return batch


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _is_left(path: Path, before: float) -> bool:
    if (path / LOCK_NAME).exists():
        return not is_in_use(path)
    return is_older(path, before)
