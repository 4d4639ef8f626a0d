"""The `Store` protocol: an object store by key, on local disk or S3."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Called by `put_many` after each object with (objects written, bytes written).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of a store, as measured by its self-test.

    Attributes:
        writable: An object was written, read back unchanged, listed and deleted.
        create_only: **The server** refused a second `create` of a key and kept the first content.
        compare_and_swap: **The server** refused a `swap` with a stale etag and kept the newer content.
        detail: What is missing and what labelloop does instead; empty if nothing is missing.
    """

    writable: bool
    create_only: bool
    compare_and_swap: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Number and total bytes of incomplete writes of killed processes."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing.

    Attributes:
        key: Its key.
        size: Its size in bytes.
        modified: Time of the last write by the store's clock, Unix time in seconds.
        tag: Changes with the content; not the etag that `swap` takes.
        etag: The etag that `swap` takes, where a listing has it; else empty.
    """

    key: str
    size: int
    modified: float
    tag: str
    etag: str = ""


class Store(Protocol):
    """An object store. Keys are relative paths with `/`; `labelloop.service.store.keys` lists invalid ones."""

    @property
    def url(self) -> str:
        """The address of the store, without secrets."""
        ...

    @property
    def upload_concurrency(self) -> int:
        """The number of concurrent `put_many` calls that gives the best throughput."""
        ...

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """Write or replace an object atomically.

        Args:
            key: Its key.
            data: The content, or a local file that is streamed.
            content_type: MIME type; default: guessed from the key's extension. Local stores do not keep it.

        Returns:
            The new etag, an opaque string that changes with the content.
        """
        ...

    @property
    def write_settle_s(self) -> float:
        """Minimum seconds that `create` waits to detect concurrent creators; 0 if the store decides atomically."""
        ...

    def create(self, key: str, data: bytes, *, exclusive_until: float = 0.0) -> str:
        """Write an object that must not exist; of concurrent writers exactly one succeeds.

        Args:
            key: Its key.
            data: The content.
            exclusive_until: `time.monotonic` time until which no other process creates the key, as the caller knows.
                If the write completes earlier, the settle delay is skipped.

        Returns:
            The new etag.

        Raises:
            ObjectExists: The key exists; its content is unchanged.
        """
        ...

    def swap(self, key: str, data: bytes, *, etag: str | None, exclusive_until: float = 0.0) -> str:
        """Compare-and-swap: replace an object only if its etag is unchanged.

        Args:
            key: Its key.
            data: The new content.
            etag: The etag from `read`, `put` or an earlier `swap`; None: the key must not exist.
            exclusive_until: As in `create`; the key must have been read within this exclusive period.

        Returns:
            The new etag.

        Raises:
            ObjectChanged: The object was written, created or deleted in between; nothing was written.
        """
        ...

    def get(self, key: str) -> bytes:
        """The content of an object. Raises `ObjectNotFound`."""
        ...

    def start(self, key: str, size: int) -> bytes:
        """The first ``size`` bytes of an object, or all of a shorter one. Raises `ObjectNotFound`."""
        ...

    def read(self, key: str) -> tuple[bytes, str]:
        """The content of an object and its etag for `swap`. Raises `ObjectNotFound`."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """The keys that start with `prefix` (a string prefix, not a folder), sorted; fetched page by page."""
        ...

    def entries(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `list`, with the metadata that the listing has of each object."""
        ...

    def download(self, key: str, to: Path) -> None:
        """Download an object of any size to a file, which is replaced atomically. Raises `ObjectNotFound`."""
        ...

    def copy_from(self, url: str, name: Callable[[ObjectInfo], str]) -> ObjectInfo | None:
        """Copy an object on the server side, without downloading it.

        Args:
            url: Address of the source object, such as `s3://bucket/some key`.
            name: Returns the target key for the source's metadata (`tag` is the server's etag); empty: do not copy.

        Returns:
            The metadata of the copy (`tag` is the server's etag); None if it was not copied: another server, no
            permission, no such object. Reading the object then raises the reason.
        """
        ...

    def copy(self, key: str, to: str) -> None:
        """Copy an object of this store without moving its bytes through this machine; a folder makes a hard link.

        Raises:
            ObjectNotFound: No object has the key.
            StoreError: The server refuses, for example for an object over 5 GB.
        """
        ...

    def lock(self, key: str, *, wait_s: float) -> AbstractContextManager[Callable[[], bool]]:
        """Exclude other processes, on all machines, that lock the same name; the lock of a dead process is taken over.

        Args:
            key: A name, not the key of an object.
            wait_s: Seconds to wait for others.

        Returns:
            A context manager. It yields a function that tells whether the lock is still held.

        Raises:
            StoreError: Others held it all the time.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object; a missing key is not an error."""
        ...

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """Write many objects in parallel with bounded memory; stops at the first error and raises it.

        Returns:
            The number of objects written.
        """
        ...

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """Incomplete writes of killed processes: partial files and incomplete multipart uploads.

        Args:
            before: Only those last written before this time, Unix time in seconds.
            remove: Delete them.
        """
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A temporary folder for files to be stored, deleted at the end of the block.

        `put_many` may move files out of it instead of copying them.
        """
        ...

    def self_test(self) -> Capabilities:
        """Test writing, reading, listing, `create` and `swap` with small objects under a new key, then delete them.

        Raises:
            StoreError: The store cannot be reached or written.
        """
        ...
