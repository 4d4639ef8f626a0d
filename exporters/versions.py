"""Versions of a data set in a store: files first, the manifest create-only and last, then the head by compare-and-swap.

A reader that starts at ``HEAD.json`` never sees half a version, and a kill at any write leaves the last one whole.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from exporters.errors import DatasetDamaged, StoreBusy, VersionNotFound
from exporters.manifest import File, Head, Manifest, decode_manifest, encode_manifest
from labelloop.service.store import AlreadyThere, Changed, NotThere, Store, StoreError

HEAD = "HEAD.json"
BATCH_FILES = 512
BATCH_BYTES = 8 << 20


def version_name(number: int) -> str:
    """The name of a version, so that names sort as numbers do."""
    return f"v{number:06d}"


def version_number(name: str) -> int:
    """The number in a version's name; 0 where it is none."""
    return int(name[1:]) if name[:1] == "v" and name[1:].isdecimal() else 0


class NewVersion:
    """A version being written.

    Its number is reserved create-only before its first file, so two exporters never write into one folder: the one that
    comes second takes the next number. The number of an export that was killed stays unused.
    """

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store = store
        self._name = ""
        self._parent: str | None = None
        self._sealed = False
        self._batch: list[tuple[str, bytes | Path]] = []
        self._batch_bytes = 0
        self._paths: list[str] = []
        self._listing = (scratch / "files.jsonl").open("wb+")
        self.files = 0
        self.bytes = 0

    @property
    def name(self) -> str:
        """The version's name; reserves it at the first call.

        Raises:
            StoreBusy: a thousand numbers in a row were taken.
        """
        if not self._name:
            head, _ = read_head(self._store)
            self._parent = head.version if head else None
            first = version_number(self._parent or "") + 1
            for number in range(first, first + 1000):
                try:
                    self._store.create(f"versions/{version_name(number)}/reservation.json", _reservation())
                except AlreadyThere:
                    continue
                self._name = version_name(number)
                break
            else:
                raise StoreBusy(self._store.url, f"versions/{version_name(first)}")
        return self._name

    @property
    def parent(self) -> str | None:
        """The version that was published when this one got its number."""
        return self._parent if self.name else None

    def write(self, path: str, data: bytes) -> None:
        """Write a small file; many go to the store together."""
        self._add(path, data, len(data), hashlib.sha256(data).hexdigest())

    def write_file(self, path: str, local: Path) -> None:
        """Write a file from the disk; it must stay there until ``flush``."""
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._add(path, local, local.stat().st_size, digest)

    def folder(self, name: str) -> "Folder":
        """A folder of the version as a sink of its own."""
        return Folder(self, name)

    def flush(self) -> None:
        """Send what waits to the store."""
        if self._batch:
            prefix = f"versions/{self.name}/"
            self._store.put_many((prefix + path, data) for path, data in self._batch)
            self._batch, self._batch_bytes = [], 0

    def commit(self, manifest: Manifest) -> str:
        """Write the manifest, which makes the version; gives its checksum. ``manifest.files`` comes from here.

        Raises:
            StoreBusy: somebody wrote a manifest under our reserved number.
        """
        self.flush()
        self._listing.seek(0)
        data = encode_manifest(manifest, (line.rstrip(b"\n") for line in self._listing))
        self._listing.close()
        key = manifest_key(self.name)
        self._sealed = True
        try:
            self._store.create(key, data)
        except AlreadyThere as error:
            raise StoreBusy(self._store.url, key) from error
        return hashlib.sha256(data).hexdigest()

    def abandon(self) -> None:
        """Take away what was written and give the number back, as far as the store lets us.

        Once the manifest is on its way nothing is touched: it may be there although its answer was lost.
        """
        self._listing.close()
        if self._name and not self._sealed:
            with suppress(StoreError):  # nobody reads a version without a manifest
                reservation = f"versions/{self._name}/reservation.json"
                for key in list(self._store.list(f"versions/{self._name}/")):
                    if key != reservation:
                        self._store.delete(key)
                self._store.delete(reservation)

    def _add(self, path: str, data: bytes | Path, size: int, digest: str) -> None:
        self._listing.write(msgspec.json.encode(File(path, size, digest)) + b"\n")
        self._batch.append((path, data))
        self._batch_bytes += size if isinstance(data, bytes) else 0
        self.files += 1
        self.bytes += size
        if len(self._batch) >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
            self.flush()


class Folder:
    """A folder of a version being written."""

    def __init__(self, version: NewVersion, name: str) -> None:
        self._version, self._name = version, name

    def write(self, key: str, data: bytes) -> None:
        """Write a small file."""
        self._version.write(f"{self._name}/{key}", data)

    def write_file(self, key: str, path: Path) -> None:
        """Write a file from the disk."""
        self._version.write_file(f"{self._name}/{key}", path)


def manifest_key(version: str) -> str:
    """Where a version's manifest is in the store."""
    return f"versions/{version}/manifest.json"


def read_head(store: Store) -> tuple[Head | None, str | None]:
    """The head and its etag; (None, None) for a data set without a published version.

    Raises:
        DatasetDamaged: ``HEAD.json`` is there and is not a head.
    """
    try:
        data, etag = store.read(HEAD)
    except NotThere:
        return None, None
    try:
        return msgspec.json.decode(data, type=Head), etag
    except msgspec.DecodeError as error:
        raise DatasetDamaged(store.url, HEAD, str(error)) from error


def publish(store: Store, version: str, sha256: str) -> None:
    """Move the head to a version, never back: where a later one is published already, that one stays.

    Raises:
        StoreBusy: others moved the head at each of our attempts.
    """
    head = msgspec.json.encode(Head(version, manifest_key(version), sha256)) + b"\n"
    for attempt in range(10):
        current, etag = read_head(store)
        if current and version_number(current.version) >= version_number(version):
            return
        try:
            store.swap(HEAD, head, etag=etag)
        except Changed:
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter, not a secret
            continue
        return
    raise StoreBusy(store.url, HEAD)


def versions(store: Store) -> Iterator[Manifest]:
    """The manifests of the versions that are whole, oldest first."""
    for key in store.list("versions/"):
        if key.count("/") == 2 and key.endswith("/manifest.json"):
            yield decode_manifest(store.get(key), url=store.url, key=key)


def read_version(store: Store, version: str = "latest") -> Manifest:
    """The manifest of a version; ``latest`` is the published one, and its checksum is checked.

    Raises:
        VersionNotFound: there is no such version, or none was published yet.
        DatasetDamaged: the manifest is not what the head says.
    """
    head = read_head(store)[0] if version == "latest" else None
    if version == "latest" and head is None:
        raise VersionNotFound(store.url, version)
    key = head.manifest if head else manifest_key(version)
    try:
        data = store.get(key)
    except NotThere as error:
        raise VersionNotFound(store.url, version) from error
    if head and hashlib.sha256(data).hexdigest() != head.sha256:
        raise DatasetDamaged(store.url, key, "its checksum is not the one that the head names")
    return decode_manifest(data, url=store.url, key=key)


def _reservation() -> bytes:
    return msgspec.json.encode({"reserved_by": uuid.uuid4().hex}) + b"\n"
