"""`Bucket`: what a cloud provider's object store does, object by object, with compare-and-swap."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from labelloop.service.store.base import ObjectInfo

# The `match` of a write whose object must not exist.
ABSENT = ""


class Bucket(Protocol):
    """A bucket of a cloud provider. Names are whole object names; every method raises `StoreError`."""

    @property
    def url(self) -> str:
        """Its address, such as `gs://bucket`."""
        ...

    def write(self, name: str, data: bytes | Path, *, content_type: str, match: str | None = None) -> str:
        """Write or replace an object.

        Args:
            name: Its name.
            data: The content, or a local file that is streamed.
            content_type: Its MIME type.
            match: The etag that the object must have; `ABSENT`: it must not exist; None: whatever there is.

        Returns:
            The new etag.

        Raises:
            ObjectChanged: The object does not match; nothing was written.
        """
        ...

    def read(self, name: str) -> tuple[bytes, str]:
        """The content of an object and its etag. Raises `ObjectNotFound`."""
        ...

    def start(self, name: str, size: int) -> bytes:
        """Read the first ``size`` bytes of an object, or all of a shorter one, and no others.

        Raises `ObjectNotFound`.
        """
        ...

    def download(self, name: str, into: BinaryIO) -> None:
        """Write the content of an object of any size to a file, part by part. Raises `ObjectNotFound`."""
        ...

    def head(self, name: str) -> ObjectInfo | None:
        """The metadata of an object; None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose names start with a string, by name."""
        ...

    def copy(self, name: str, to: str, *, bucket: str = "", state: ObjectInfo | None = None) -> ObjectInfo:
        """Copy an object on the server side.

        Args:
            name: The name of the object.
            to: The name of the copy.
            bucket: The address of another bucket that has the object.
            state: Copy this state of the object only; None: whatever there is.

        Raises:
            ObjectNotFound: There is no such object.
            ObjectChanged: It has another state.
            StoreError: The server cannot copy it.
        """
        ...

    def sibling(self, url: str) -> "Bucket | None":
        """Another bucket of the same provider, from which `copy` can read; None: it cannot."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object; a missing one is not an error."""
        ...

    def sign(self, name: str, seconds: int) -> str:
        """An address from which anybody can read an object for a limited time."""
        ...
