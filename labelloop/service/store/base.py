"""The `Store` protocol: what a place that keeps objects by key must do, whoever keeps them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called after each object of `put_many` with (objects written so far, bytes written so far)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store was seen to do, by doing it.

    Attributes:
        writable: An object was written, read back the same, listed and deleted.
        create_only: A second `create` of one key was refused **by the server** and the first bytes were kept.
        compare_and_swap: A `swap` with an old etag was refused **by the server** and the newer bytes were kept.
        detail: Plain words: what is missing, what labelloop does instead, and the fix. Empty when nothing is missing.
    """

    writable: bool
    create_only: bool
    compare_and_swap: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Unfinished writes of processes that were killed: how many, and their bytes."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing.

    Attributes:
        key: Where it is.
        size: Bytes.
        modified: When it was written last, seconds since 1970 by the store's clock.
        tag: Differs whenever the object was written anew with other content; no etag for `swap`.
    """

    key: str
    size: int
    modified: float
    tag: str


class Store(Protocol):
    """Objects by key. Keys are relative paths with `/`; see `labelloop.service.store.keys` for what is refused."""

    @property
    def url(self) -> str:
        """The address the store was opened with, without any secret."""
        ...

    @property
    def upload_concurrency(self) -> int:
        """How many calls of `put_many` at the same time are better than one after the other."""
        ...

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """Writes an object, replacing what was there; a reader sees the old bytes or the new, never a mixture.

        Args:
            key: Where.
            data: The bytes, or a local file whose bytes are streamed.
            content_type: MIME type; guessed from the key's ending when not given. Folders do not keep it.

        Returns:
            The new etag: opaque; it differs whenever the content does.
        """
        ...

    @property
    def write_settle_s(self) -> float:
        """Seconds that a creation waits at least to see who of several at the same moment has won; 0: it is known."""
        ...

    def create(self, key: str, data: bytes, *, alone_until: float = 0.0) -> str:
        """Writes an object that must not exist yet; of two writers at once exactly one succeeds.

        Args:
            key: Where.
            data: The bytes.
            alone_until: By `time.monotonic`, until when nobody else creates the key, as the caller knows. Where the
                answer comes before, nothing is waited for.

        Raises:
            AlreadyThere: The key is taken; its bytes were kept.
        """
        ...

    def swap(self, key: str, data: bytes, *, etag: str | None, alone_until: float = 0.0) -> str:
        """Writes an object only if it is still as it was read: compare-and-swap.

        Args:
            key: Where.
            data: The new bytes.
            etag: The etag that `read`, `put` or an earlier `swap` gave; None: the key must not exist.
            alone_until: As in `create`; the key must have been read when it was known already.

        Raises:
            Changed: Somebody wrote in between (or the key appeared or vanished); nothing was written.
        """
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises `NotThere`."""
        ...

    def read(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and the etag that `swap` takes. Raises `NotThere`."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with `prefix` (a plain text prefix, not a folder), sorted, in pages."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """As `list`, with what the listing itself says of each object."""
        ...

    def download(self, key: str, to: Path) -> None:
        """Brings an object of any size into a file, which is replaced when all of it is there. Raises `NotThere`."""
        ...

    def copy_in(self, url: str, name: Callable[[Entry], str]) -> Entry | None:
        """Copies an object of the same server in; its bytes do not pass through here.

        Args:
            url: The object's address, such as `s3://bucket/some key`.
            name: Gives the key from what the server says of the object (its `tag` is the server's etag); empty: not
                that one.

        Returns:
            The copy, its `tag` the server's etag; None where it cannot be done so: another server, no right to read
            it, no such object. Reading the object then says why.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes the object; a key that is not there is no error."""
        ...

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """Writes many objects in parallel, with a bounded number in memory; stops at the first error and raises it.

        Returns:
            How many were written.
        """
        ...

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """Unfinished writes of killed processes: partial files, multipart uploads that were never completed.

        Args:
            before: Only what was last written before this time, seconds since the epoch.
            remove: Remove them.
        """
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder for files on their way here, gone at the end.

        `put_many` may take a file from it without copying it: then it is not there any more.
        """
        ...

    def self_test(self) -> Capabilities:
        """Writes, reads, lists, re-creates and swaps small objects under a fresh key, removes them, and says what held.

        Raises:
            StoreError: The store cannot be reached or written at all; the message says why and the fix.
        """
        ...
