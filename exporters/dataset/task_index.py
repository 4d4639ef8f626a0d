"""The index of a generation: its tasks, a digest of the text of each, and its account.

With it the next export knows which tasks are unchanged, and a reader knows the order and location of the records.
"""

import shutil
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.model.accounting import TaskAccount
from exporters.structures.arrays import offsets, pack

DIGEST_BYTES = 16
# Digest of a task that is converted again each time, because its result depends on more than its own text.
NO_DIGEST = bytes(DIGEST_BYTES)
# MessagePack codes: a map of fewer than 16 entries, bytes with a 4-byte length.
_MAP, _BYTES = 0x80, 0xC6

# Keys of the stem and of the source of an image name: see `exporters.model.file_names.FileNames`.
NameKeys = tuple[int, int]


class IndexPage(msgspec.Struct, frozen=True):
    """The index as stored (MessagePack): one row per task, in the order of the source.

    Attributes:
        keys: int64 per row: the task's id, or its position in the source, negative, if it has no id.
        digests: 16 bytes per row: of the text that the task was converted from, or ``NO_DIGEST``.
        bills: uint32 per row: the index into ``known_bills``.
        images: uint32 per row: the number of the task's entries in ``names``.
        names: two uint64 per image of a task that has a digest: its ``NameKeys``.
        removed: int64 each: removed tasks of older generations.
        known_bills: The distinct accounts of the tasks.
    """

    keys: bytes
    digests: bytes
    bills: bytes
    images: bytes
    names: bytes
    removed: bytes
    known_bills: tuple[TaskAccount, ...]


class PageWriter:
    """Collects the rows of a page in memory."""

    def __init__(self) -> None:
        self._keys, self._digests = bytearray(), bytearray()
        self._accounts, self._images = bytearray(), bytearray()
        self._names = bytearray()

    def __len__(self) -> int:
        return len(self._keys) // 8

    def add(
        self,
        keys: Sequence[int],
        digests: Sequence[bytes],
        accounts: Sequence[int],
        names: Sequence[Sequence[NameKeys]],
    ) -> None:
        """Add rows; ``accounts`` are account numbers of the segment, before it is merged with others."""
        self._keys += pack(keys, "q")
        self._digests += b"".join(digests)
        self._accounts += pack(accounts, "I")
        self._images += pack(list(map(len, names)), "I")
        self._names += pack(list(chain.from_iterable(chain.from_iterable(names))), "Q")

    def columns(self, account_numbers: Sequence[int]) -> tuple[bytes | bytearray, ...]:
        """Return the first five columns of `IndexPage`; ``account_numbers`` maps numbers here to those of the page."""
        numbers = (
            np.array(account_numbers, np.uint32)[np.frombuffer(self._accounts, np.uint32)].tobytes()
            if self._accounts
            else b""
        )
        return self._keys, self._digests, numbers, self._images, self._names


class PageFile:
    """A page on the disk, written a segment of rows at a time: it may be larger than memory."""

    def __init__(self, folder: Path) -> None:
        self._columns = [folder / f"page-{name}" for name in IndexPage.__struct_fields__[:5]]
        for path in self._columns:
            path.touch()
        self._path = folder / "page"

    def add(self, columns: Sequence[bytes | bytearray]) -> None:
        """Add the columns of some rows: see `PageWriter.columns`."""
        for path, data in zip(self._columns, columns, strict=True):
            with path.open("ab") as file:
                file.write(data)

    def finish(self, known_bills: tuple[TaskAccount, ...], removed: Iterable[int]) -> Path:
        """Write the page as stored: a MessagePack map with the fields of `IndexPage`."""
        with self._path.open("wb") as file:
            file.write(struct.pack("B", _MAP | len(IndexPage.__struct_fields__)))
            for name, path in zip(IndexPage.__struct_fields__, self._columns, strict=False):
                file.write(msgspec.msgpack.encode(name) + struct.pack(">BI", _BYTES, path.stat().st_size))
                with path.open("rb") as column:
                    shutil.copyfileobj(column, file)
                path.unlink()
            rest = {"removed": array("q", removed).tobytes(), "known_bills": known_bills}
            file.write(b"".join(msgspec.msgpack.encode(part) for item in rest.items() for part in item))
        return self._path


class Rows(msgspec.Struct, frozen=True):
    """A decoded page: arrays with one entry per row.

    The names of row ``i`` are ``names[first_name[i] : first_name[i + 1]]``.
    """

    keys: NDArray[np.int64]
    digests: NDArray[np.uint64]  # (rows, 2)
    bills: NDArray[np.uint32]
    first_name: NDArray[np.int64]
    names: NDArray[np.uint64]  # (names, 2)
    removed: NDArray[np.int64]
    known_bills: tuple[TaskAccount, ...]


def read_page(data: bytes) -> Rows:
    """Decode a page.

    Raises:
        msgspec.DecodeError: the data is not a page.
        ValueError: its columns differ in length.
    """
    page = msgspec.msgpack.decode(data, type=IndexPage)
    images = np.frombuffer(page.images, np.uint32)
    rows = Rows(
        keys=np.frombuffer(page.keys, np.int64),
        digests=np.frombuffer(page.digests, np.uint64).reshape(-1, 2),
        bills=np.frombuffer(page.bills, np.uint32),
        first_name=offsets(images),
        names=np.frombuffer(page.names, np.uint64).reshape(-1, 2),
        removed=np.frombuffer(page.removed, np.int64),
        known_bills=page.known_bills,
    )
    if not len(rows.keys) == len(rows.digests) == len(rows.bills) == len(images) or rows.first_name[-1] != len(
        rows.names
    ):
        raise ValueError("its columns differ in length")
    return rows


class TaskIndex:
    """The tasks of a version in the order of their source, from the pages of its generations.

    A task of a later page keeps its position; a new task is appended.
    """

    def __init__(self, pages: Sequence[Rows]) -> None:
        self.pages = pages
        keys: NDArray[np.int64] = np.empty(0, np.int64)
        generation: NDArray[np.uint32] = np.empty(0, np.uint32)
        row: NDArray[np.uint32] = np.empty(0, np.uint32)
        for number, page in enumerate(pages):
            if page.removed.size:
                remaining = ~np.isin(keys, page.removed)
                keys, generation, row = keys[remaining], generation[remaining], row[remaining]
            rows = np.arange(len(page.keys), dtype=np.uint32)
            positions = find_positions(keys, page.keys)
            existing = positions >= 0
            generation[positions[existing]], row[positions[existing]] = number, rows[existing]
            new = ~existing
            keys = np.concatenate((keys, page.keys[new]))
            generation = np.concatenate((generation, np.full(int(new.sum()), number, np.uint32)))
            row = np.concatenate((row, rows[new]))
        self.keys, self.generation, self.row = keys, generation, row

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def stored(self) -> int:
        """The number of tasks in all generations, including replaced and removed ones."""
        return sum(len(page.keys) for page in self.pages)

    def locations(self) -> Iterator[tuple[int, int]]:
        """Yield (generation, row) of each task."""
        return zip(self.generation.tolist(), self.row.tolist(), strict=True)

    def digests(self, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the digests of the tasks at some positions: (positions, 2)."""
        generation, row = self.generation[positions], self.row[positions]
        digests = np.empty((len(positions), 2), np.uint64)
        for number, page in enumerate(self.pages):
            in_page = generation == number
            digests[in_page] = page.digests[row[in_page]]
        return digests

    def account(self, position: int) -> TaskAccount:
        """Return the account of the task at a position."""
        page = self.pages[self.generation[position]]
        account: TaskAccount = page.known_bills[page.bills[self.row[position]]]
        return account

    def names(self, position: int) -> list[NameKeys]:
        """Return the keys of the names of its images."""
        page, row = self.pages[self.generation[position]], self.row[position]
        return [
            (int(stem), int(source)) for stem, source in page.names[page.first_name[row] : page.first_name[row + 1]]
        ]


class ByDigest:
    """Finds the tasks of an index by the digest of their text."""

    def __init__(self, index: TaskIndex) -> None:
        self._index = index
        halves = np.empty(len(index), np.uint64)  # the first half of each digest; the second is compared afterwards
        for number, page in enumerate(index.pages):
            in_page = index.generation == number
            halves[in_page] = page.digests[index.row[in_page], 0]
        self._order = np.argsort(halves, kind="stable").astype(np.uint32)
        self._sorted = halves[self._order]

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Return the position of each digest's task; -1 if there is none."""
        if not digests or not self._order.size:
            return [-1] * len(digests)
        wanted = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        nearest = np.minimum(np.searchsorted(self._sorted, wanted[:, 0]), self._order.size - 1)
        candidates = self._order[nearest].astype(np.int64)
        same = (self._index.digests(candidates) == wanted).all(axis=1) & wanted.any(axis=1)
        positions: list[int] = np.where(same, candidates, -1).tolist()
        return positions


def find_positions(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each of ``wanted`` among the unique ``keys``, in any order; -1 if it is not there."""
    if not keys.size:
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    insertion = np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)
    positions = order[insertion]
    return np.where(keys[positions] == wanted, positions, -1)
