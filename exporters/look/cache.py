"""Keep the fingerprints of images: on this machine's disk, and with a data set in its store.

Images are known by an identity: a digest of the content, or of the address with what tells that the file is the same.
A fingerprint is computed once per identity. With a data set, each check adds one file of new fingerprints under
``look/`` in the store, so that other machines need not read the images again.
"""

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.look.fingerprint import SIDE, Fingerprint
from labelloop.service.store import ObjectNotFound, Store, StoreError

FOLDER = "look/"
# The form of the fingerprints; another number starts afresh.
_FORM = 1
# Fingerprints per file in the store, and files before they are merged.
_PER_FILE = 20_000
_MAX_FILES = 32
_BATCH = 500
# Fingerprints written at once while images are read.
_WRITTEN = 256

Entry = tuple[bytes, Fingerprint]


def identity_of(text: str) -> bytes:
    """Return the identity of an image (16 bytes) from a text that says which it is."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def cache_file(place: str, home: Path) -> Path:
    """Return the file of the fingerprints of a data set, by its address, below a home folder."""
    return home / "look" / f"{identity_of(place).hex()}.sqlite"


class FingerprintCache:
    """Fingerprints by identity, in a SQLite file; several processes may use it.

    Args:
        file: The file, created on first use.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, timeout=60)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")  # a cache: what is lost is computed again
        with self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS look (identity BLOB PRIMARY KEY, width INT, height INT, thumbnail BLOB)"
            )
            self._database.execute("CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def missing(self, identities: Sequence[bytes]) -> list[int]:
        """Return the positions of the identities that have no fingerprint yet."""
        cached: set[bytes] = set()
        for start in range(0, len(identities), _BATCH):
            part = identities[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            query = f"SELECT identity FROM look WHERE identity IN ({marks})"  # noqa: S608 - marks only
            cached |= {row[0] for row in self._database.execute(query, part)}
        return [position for position, identity in enumerate(identities) if identity not in cached]

    def add(self, entries: Iterable[Entry]) -> None:
        """Store fingerprints; they stay if the process is stopped."""
        rows = ((key, look.width, look.height, look.thumbnail.tobytes()) for key, look in entries)
        with self._database:
            self._database.executemany("INSERT OR IGNORE INTO look VALUES (?, ?, ?, ?)", rows)

    def add_read(
        self,
        outcomes: Iterable[tuple[int, Fingerprint | str]],
        identities: Sequence[bytes],
        *,
        failed: Callable[[int, str], None],
        progress: Callable[[int], None],
    ) -> list[bytes]:
        """Store fingerprints while images are read.

        Args:
            outcomes: Position of each image with its fingerprint, or why it cannot be read: `read_fingerprints`.
            identities: Identities of the images by position.
            failed: Called with the position and the reason of an image that cannot be read.
            progress: Called with the number of images read so far.

        Returns:
            The identities that got a fingerprint, each once.
        """
        added: dict[bytes, None] = {}
        batch: list[Entry] = []
        for done, (position, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, str):
                failed(position, outcome)
            else:
                batch.append((identities[position], outcome))
                added[identities[position]] = None
            if len(batch) >= _WRITTEN:
                self.add(batch)
                batch = []
            progress(done)
        self.add(batch)
        return list(added)

    def load(self, identities: Sequence[bytes], to: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Collect the fingerprints of images.

        Args:
            identities: The images; all of them have a fingerprint, or their row stays zero.
            to: A file for the thumbnails, so that they need not be held in memory.

        Returns:
            The thumbnails (n, side, side) uint8, mapped from the file, and (width, height) of the images (n, 2).
        """
        sizes = np.zeros((len(identities), 2), np.int64)
        if not identities:
            return np.zeros((0, SIDE, SIDE), np.uint8), sizes
        thumbnails = np.memmap(to, np.uint8, "w+", shape=(len(identities), SIDE, SIDE))
        for position, identity in enumerate(identities):
            row = self._database.execute(
                "SELECT width, height, thumbnail FROM look WHERE identity = ?", (identity,)
            ).fetchone()
            if row is not None:
                sizes[position] = row[:2]
                thumbnails[position] = np.frombuffer(row[2], np.uint8).reshape(SIDE, SIDE)
        return thumbnails, sizes

    def fetch(self, store: Store) -> None:
        """Add the fingerprints kept with a data set. A damaged file is skipped: its images are read again."""
        cached = {row[0] for row in self._database.execute("SELECT key FROM files")}
        for key in [key for key in store.list(_prefix()) if f"{store.url} {key}" not in cached]:
            if entries := _read(store, key):
                self.add(entries)
                self._mark(f"{store.url} {key}")

    def publish(self, store: Store, identities: Sequence[bytes]) -> str:
        """Keep fingerprints with a data set. Return why it is not possible; empty if it was done.

        Args:
            store: The data set's store.
            identities: The images whose fingerprints are new there.
        """
        try:
            keys = list(store.list(_prefix()))
            for start in range(0, len(identities), _PER_FILE):
                self._put(store, identities[start : start + _PER_FILE])
            if len(keys) > _MAX_FILES:
                self._merge(store, keys)
        except (StoreError, OSError) as error:
            return str(error)
        return ""

    def _merge(self, store: Store, keys: Sequence[str]) -> None:
        """Write the fingerprints of many small files as few large ones."""
        found: set[bytes] = set()
        for name in keys:
            entries = _read(store, name)
            self.add(entries)  # another machine may have added the file since `fetch`
            found.update(key for key, _ in entries)
        identities = sorted(found)
        written = {
            self._put(store, identities[start : start + _PER_FILE]) for start in range(0, len(identities), _PER_FILE)
        }
        for name in keys:
            if name not in written:
                store.delete(name)

    def _put(self, store: Store, identities: Sequence[bytes]) -> str:
        data = _pack(self._entries(identities))
        key = f"{_prefix()}{hashlib.sha256(data).hexdigest()[:32]}"
        store.put(key, data)
        self._mark(f"{store.url} {key}")
        return key

    def _entries(self, identities: Sequence[bytes]) -> Iterator[Entry]:
        for identity in identities:
            row = self._database.execute(
                "SELECT width, height, thumbnail FROM look WHERE identity = ?", (identity,)
            ).fetchone()
            if row is not None:
                yield identity, Fingerprint(np.frombuffer(row[2], np.uint8).reshape(SIDE, SIDE), row[0], row[1])

    def _mark(self, key: str) -> None:
        with self._database:
            self._database.execute("INSERT OR IGNORE INTO files VALUES (?)", (key,))


class _Packed(msgspec.Struct):
    """The fingerprints of some images as stored: identities, sizes (int32) and thumbnails, one after the other."""

    identities: bytes
    sizes: bytes
    thumbnails: bytes


def _prefix() -> str:
    return f"{FOLDER}{_FORM}-"


def _pack(entries: Iterable[Entry]) -> bytes:
    entries = list(entries)
    return zlib.compress(
        msgspec.msgpack.encode(
            _Packed(
                b"".join(key for key, _ in entries),
                np.array([(look.width, look.height) for _, look in entries], np.int32).tobytes(),
                b"".join(look.thumbnail.tobytes() for _, look in entries),
            )
        ),
        level=1,
    )


def _read(store: Store, key: str) -> list[Entry]:
    """Return the fingerprints of a file; none if it is damaged, or another check has merged it."""
    try:
        return list(_unpack(store.get(key)))
    except (ObjectNotFound, msgspec.DecodeError, zlib.error, ValueError):
        return []


def _unpack(data: bytes) -> Iterator[Entry]:
    packed = msgspec.msgpack.decode(zlib.decompress(data), type=_Packed)
    thumbnails = np.frombuffer(packed.thumbnails, np.uint8).reshape(-1, SIDE, SIDE)
    sizes = np.frombuffer(packed.sizes, np.int32).reshape(-1, 2)
    if not len(thumbnails) == len(sizes) == len(packed.identities) // 16:
        raise ValueError("its columns differ in length")
    for row, thumbnail in enumerate(thumbnails):
        width, height = sizes[row].tolist()
        yield packed.identities[16 * row : 16 * row + 16], Fingerprint(thumbnail, width, height)
