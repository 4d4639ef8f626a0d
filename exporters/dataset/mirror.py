"""Make a folder of a store equal to a set of files: write what differs, remove what is not in the set.

`BucketMirror` compares by the MD5 of the listing, without reading an object; `FolderMirror` reads the files. An
interruption leaves a mixture, which the next run makes equal.
"""

import hashlib
import os
import re
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.dataset.folder import local_folder, safe_join
from exporters.dataset.shards import read_image_copy
from exporters.model.file_names import hash_key
from exporters.model.manifest import ImageCopy
from exporters.structures.integer_sets import SpillingSet
from labelloop.service.store import Store, StoreError, StoreUnreachable
from labelloop.service.store.bulk_put import sync_disk, write_new_file
from labelloop.service.store.local import link_or_copy

_THREADS = 16
_OBJECTS = "objects/"
_MD5 = re.compile("[0-9a-f]{32}")


class MirrorCounts(msgspec.Struct):
    """The numbers of files that were written, removed and left alone, and the bytes that were sent.

    ``unverified`` of the written files were written because the server's etags are not checksums of the content.
    """

    written: int = 0
    removed: int = 0
    same: int = 0
    bytes: int = 0
    unverified: int = 0


class Mirror(Protocol):
    """A folder of a store that is made equal to a set of files. Paths are relative to it."""

    counts: MirrorCounts

    def add(self, path: str, data: bytes) -> None:
        """A file of the set."""

    def add_file(self, path: str, file: Path, key: str = "") -> None:
        """A large file of the set; ``key`` is an object of the store with the same content."""

    def add_image(self, path: str, copy: ImageCopy) -> None:
        """An image of the set: a copy in the store."""

    def finish(self) -> None:
        """Wait for all writes, then remove every file that is not in the set."""


# Called with the number of files done.
OnFiles = Callable[[int], None]
# Called with the path of a file that differs, and how; with it, nothing is written or removed.
OnDifference = Callable[[str, str], None]
# Yields the path and the tag of each file that was written last: `content_tag`, and `image_tag` of an image.
PreviousFiles = Callable[[], Iterable[tuple[str, int]]]
MISSING, DIFFERENT, EXTRA = "missing", "another content", "not of the version"


class BucketMirror:
    """A mirror in a bucket.

    Args:
        store: The store.
        prefix: The folder, with a slash at its end.
        keep: A path in it that is neither written nor removed.
        on_files: Called after each file.
        on_difference: Called for each difference instead of making the folder equal.
        previous: The files that were written last, for servers whose etags are no checksums; None if that is not known.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        keep: str,
        on_files: OnFiles,
        on_difference: OnDifference | None = None,
        previous: PreviousFiles | None = None,
    ) -> None:
        self._store, self._prefix, self._keep, self._on_files = store, prefix, keep, on_files
        self._on_difference = on_difference
        self._existing = _listing(store, prefix)
        stated = self._existing.see(keep)
        # KMS: etags look like MD5s but are none
        self._has_md5 = not stated or stated == content_tag(store.get(prefix + keep))
        if not self._has_md5:
            self._existing.clear_tags()
        self._objects: FileTags | None = None
        self._previous = previous
        self._previous_tags: FileTags | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="latest")
        self._pending: deque[Future[object]] = deque()
        self._done = 0
        self.counts = MirrorCounts()

    def add(self, path: str, data: bytes) -> None:
        """See `Mirror.add`."""
        if not self._is_same(path, lambda: content_tag(data)):
            self.counts.bytes += len(data)
            self._change(lambda: self._store.put(self._prefix + path, data))

    def add_file(self, path: str, file: Path, key: str = "") -> None:
        """See `Mirror.add_file`. The server copies the object if there is one."""

        def write() -> None:
            if not (key and self._copy(key, path)):
                self._store.put(self._prefix + path, file)

        if not self._is_same(path, lambda: file_tag(file)):
            self.counts.bytes += 0 if key else file.stat().st_size
            self._change(write)

    def add_image(self, path: str, copy: ImageCopy) -> None:
        """See `Mirror.add_image`. The server copies it."""
        if not self._is_same(path, lambda: self._tag_of(copy), lambda: image_tag(copy)):
            self._change(
                lambda: (
                    self._copy(copy.store_key, path)
                    or self._store.put(self._prefix + path, read_image_copy(self._store, copy))
                )
            )

    def finish(self) -> None:
        """See `Mirror.finish`."""
        self._wait(0)
        if self._existing.unseen:
            for entry in self._store.entries(self._prefix):
                path = entry.key.removeprefix(self._prefix)
                if path != self._keep and self._existing.is_unseen(path):
                    self.counts.removed += 1
                    if self._on_difference:
                        self._on_difference(path, EXTRA)
                    self._change(lambda key=entry.key: self._store.delete(key))  # type: ignore[misc]
            self._wait(0)
        self._threads.shutdown()

    def close(self) -> None:
        """Stop the threads; pending writes are abandoned."""
        self._threads.shutdown(cancel_futures=True)

    def _copy(self, key: str, path: str) -> bool:
        """Let the server copy an object. Return False if it does not: over 5 GB, or without the operation."""
        try:
            self._store.copy(key, self._prefix + path)
        except StoreUnreachable:
            raise
        except StoreError:
            return False
        return True

    def _tag_of(self, copy: ImageCopy) -> int:
        """Return the tag of an image. Of one that this program uploaded the manifest has the SHA-256 only."""
        if copy.etag:
            tag = etag_tag(copy.etag)
        else:
            if self._objects is None:
                self._objects = _listing(self._store, _OBJECTS)
                if not self._has_md5:
                    self._objects.clear_tags()
            tag = self._objects.see(copy.store_key.removeprefix(_OBJECTS)) or 0
        return tag if tag or not self._on_difference else content_tag(read_image_copy(self._store, copy))

    def _is_same(self, path: str, tag: Callable[[], int], previous_tag: Callable[[], int] | None = None) -> bool:
        stated = self._existing.see(path)
        if stated is None:
            self.counts.written += 1
            if self._on_difference:
                self._on_difference(path, MISSING)
            return False
        if not stated and self._on_difference:
            stated = etag_tag(hashlib.md5(self._store.get(self._prefix + path), usedforsecurity=False).hexdigest())
        if not stated and self._previous:
            if self._previous_tags is None:
                self._previous_tags = FileTags(self._previous())
            stated, tag = self._previous_tags.see(path) or 0, previous_tag or tag
        if stated and stated == tag():
            self.counts.same += 1
            self._advance()
            return True
        self.counts.written += 1
        self.counts.unverified += not stated
        if self._on_difference:
            self._on_difference(path, DIFFERENT)
        return False

    def _change(self, write: Callable[[], object]) -> None:
        if self._on_difference:
            return
        self._wait(2 * _THREADS)
        self._pending.append(self._threads.submit(write))

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending.popleft().result()
            self._advance()

    def _advance(self) -> None:
        self._done += 1
        self._on_files(self._done)


class FileTags:
    """The paths and contents of a set of files, as hashes: 16 bytes each.

    Args:
        tagged: The path and the tag of each file: `etag_tag` of its MD5, 0 if that is not known.
    """

    def __init__(self, tagged: Iterable[tuple[str, int]]) -> None:
        paths, tags = array("Q"), array("Q")
        for path, tag in tagged:
            paths.append(hash_key(path))
            tags.append(tag)
        keys: NDArray[np.uint64] = np.frombuffer(paths, np.uint64) if paths else np.empty(0, np.uint64)
        order = np.argsort(keys)
        self._keys: NDArray[np.uint64] = keys[order]
        self._tags = np.frombuffer(tags, np.uint64)[order] if tags else keys
        self._seen = np.zeros(len(keys), np.bool_)

    @property
    def unseen(self) -> int:
        """The number of files that `see` was not called for."""
        return int(np.count_nonzero(~self._seen))

    def see(self, path: str) -> int | None:
        """Return the hash of a file's MD5, 0 if it is not stated; None if there is no such file."""
        at = self._find(path)
        if at < 0:
            return None
        self._seen[at] = True
        return int(self._tags[at])

    def clear_tags(self) -> None:
        """Forget the tags: they say nothing about the contents."""
        self._tags = np.zeros_like(self._tags)

    def is_unseen(self, path: str) -> bool:
        """Whether a file was listed and not seen."""
        at = self._find(path)
        return at >= 0 and not self._seen[at]

    def _find(self, path: str) -> int:
        key = np.uint64(hash_key(path))
        at = int(np.searchsorted(self._keys, key))
        return at if at < len(self._keys) and self._keys[at] == key else -1


def _listing(store: Store, prefix: str) -> FileTags:
    """Return the files below a prefix of a bucket."""
    return FileTags((entry.key.removeprefix(prefix), etag_tag(entry.tag)) for entry in store.entries(prefix))


def content_tag(data: bytes) -> int:
    """Return the tag of a file with this content."""
    return etag_tag(hashlib.md5(data, usedforsecurity=False).hexdigest())


def file_tag(file: Path) -> int:
    """Return the tag of a file on the disk."""
    with file.open("rb") as content:
        return etag_tag(hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest())


def image_tag(copy: ImageCopy) -> int:
    """Return the tag of an image, of which the key names the content."""
    return hash_key(copy.store_key) or 1


def etag_tag(etag: str) -> int:
    """Return 64 bits of an etag that is an MD5; 0 for one that is not: of an encrypted or a multipart object."""
    etag = etag.strip('"')
    return int(etag[:16], 16) or 1 if _MD5.fullmatch(etag) else 0


class FolderMirror:
    """A mirror in a folder of this machine; images are hard links. See `BucketMirror`."""

    def __init__(
        self, store: Path, prefix: str, *, keep: str, on_files: OnFiles, on_difference: OnDifference | None = None
    ) -> None:
        self._store_root = store
        self._root = safe_join(store, prefix.rstrip("/"))
        self._is_new = not self._root.is_dir() or {path.name for path in self._root.iterdir()} <= {keep}
        self._keep, self._on_files, self._on_difference = keep, on_files, on_difference
        self._wanted = SpillingSet()
        self._folders: set[str] = set()
        self._done = 0
        self.counts = MirrorCounts()

    def add(self, path: str, data: bytes) -> None:
        """See `Mirror.add`."""
        self._add(path, len(data), lambda target: _has_content(target, data), lambda target: _write(target, data))

    def add_file(self, path: str, file: Path, key: str = "") -> None:
        """See `Mirror.add_file`."""
        del key  # a link would make the version's own file writable by way of the mirror
        size = file.stat().st_size
        self._add(path, size, lambda target: _have_same_content(target, file), lambda target: _copy_file(file, target))

    def add_image(self, path: str, copy: ImageCopy) -> None:
        """See `Mirror.add_image`."""
        source = self._store_root / copy.store_key
        self._add(
            path,
            0,
            lambda target: _is_linked(target, source) or _have_same_content(target, source),
            lambda target: _link_file(source, target),
        )

    def finish(self) -> None:
        """See `Mirror.finish`. Everything is synced to the disk."""
        extra = [] if self._is_new else [path for path in _files_below(self._root) if not self._is_wanted(path)]
        for path in extra:
            self.counts.removed += 1
            if self._on_difference:
                self._on_difference(path, EXTRA)
            else:
                _remove(f"{self._root}/{path}")
        for folder in {parent for path in extra for parent in (self._root / path).parents}:
            if not self._on_difference and folder.is_relative_to(self._root) and folder != self._root:
                _remove_empty(folder)
        if self._root.is_dir() and not self._on_difference:
            sync_disk(str(self._root))

    def close(self) -> None:
        """Nothing is pending."""

    def _is_wanted(self, path: str) -> bool:
        return path == self._keep or hash_key(path) in self._wanted

    def _add(self, path: str, size: int, is_same: Callable[[str], bool], write: Callable[[str], None]) -> None:
        target = f"{self._root}/{path}"
        if not self._is_new:
            self._wanted.add(hash_key(path))
        if not self._is_new and is_same(target):
            self.counts.same += 1
        else:
            self.counts.written += 1
            self.counts.bytes += size
            if self._on_difference:
                self._on_difference(path, DIFFERENT if os.path.lexists(target) else MISSING)
            else:
                self._make_folder(path, target.rpartition("/")[0])
                write(target)
        self._done += 1
        self._on_files(self._done)

    def _make_folder(self, path: str, folder: str) -> None:
        if folder not in self._folders:
            safe_join(self._root, path)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)


def _files_below(root: Path, folder: str = "") -> Iterator[str]:
    """Yield the relative path of each file, without a list of them."""
    try:
        entries = os.scandir(root / folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(root, f"{path}/")
            else:
                yield path


def _remove_empty(folder: Path) -> None:
    """Remove a folder if nothing but empty folders is in it."""
    with suppress(OSError):
        for path in folder.iterdir():
            if not path.is_dir():
                return
            _remove_empty(path)
        folder.rmdir()


def _has_content(path: str, data: bytes) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.fstat(handle).st_size == len(data) and os.read(handle, len(data) + 1) == data
    except OSError:
        return False
    finally:
        os.close(handle)


def _have_same_content(path: str, other: Path) -> bool:
    import filecmp

    try:
        return not Path(path).is_symlink() and filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _is_linked(path: str, source: Path) -> bool:
    try:
        return Path(path).samefile(source) and not Path(path).is_symlink()
    except OSError:
        return False


def _write(path: str, data: bytes) -> None:
    """Write a new file; an existing one may be a hard link and is never written through."""
    try:
        write_new_file(path, data)
    except FileExistsError:
        _remove(path)
        write_new_file(path, data)


def _copy_file(source: Path, path: str) -> None:
    _remove(path)
    shutil.copyfile(source, path)


def _link_file(source: Path, path: str) -> None:
    _remove(path)
    link_or_copy(source, Path(path))


def _remove(path: str) -> None:
    target = Path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def open_mirror(
    store: Store,
    prefix: str,
    *,
    keep: str,
    on_files: OnFiles,
    on_difference: OnDifference | None = None,
    previous: PreviousFiles | None = None,
) -> BucketMirror | FolderMirror:
    """Open the mirror that fits a store. See `BucketMirror`."""
    if (folder := local_folder(store)) is None:
        return BucketMirror(store, prefix, keep=keep, on_files=on_files, on_difference=on_difference, previous=previous)
    return FolderMirror(folder, prefix, keep=keep, on_files=on_files, on_difference=on_difference)
