"""The index of a generation: which tasks it holds, by which text each was converted, and what became of it.

With it the next export knows which tasks are as they were, and a reader in which order and where the records are.
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
NO_DIGEST = bytes(DIGEST_BYTES)
_MAP, _BYTES = 0x80, 0xC6  # of MessagePack: a map of fewer than 16 entries, bytes with a length of four
"""Of a task that is converted again each time: its part in the data set hangs on more than its own text."""

NameKeys = tuple[int, int]
"""(the stem's key, the source's key) of an image's name: see `exporters.model.file_names.Names`."""


class Page(msgspec.Struct, frozen=True):
    """The index as it is stored (MessagePack): a row for each task, in the order of the source.

    Attributes:
        keys: int64 a row: the task's number, or its place in the source, negative, where it has none of its own.
        digests: 16 bytes a row: of the text that the task was converted from, or ``NO_DIGEST``.
        bills: uint32 a row: which of ``known_bills`` is the task's.
        images: uint32 a row: how many names of ``names`` are the task's.
        names: two uint64 for each image of a task that has a digest: its ``NameKeys``.
        removed: int64 each: tasks of older generations that are gone.
        known_bills: The bills of the tasks, equal ones once.
    """

    keys: bytes
    digests: bytes
    bills: bytes
    images: bytes
    names: bytes
    removed: bytes
    known_bills: tuple[TaskAccount, ...]


class PageWriter:
    """A page being filled."""

    def __init__(self) -> None:
        self._keys, self._digests = bytearray(), bytearray()
        self._bills, self._images = bytearray(), bytearray()
        self._names = bytearray()

    def __len__(self) -> int:
        return len(self._keys) // 8

    def add(
        self,
        keys: Sequence[int],
        digests: Sequence[bytes],
        bills: Sequence[int],
        names: Sequence[Sequence[NameKeys]],
    ) -> None:
        """Add the rows of some tasks: the number of a bill is the one of before it was joined with others."""
        self._keys += pack(keys, "q")
        self._digests += b"".join(digests)
        self._bills += pack(bills, "I")
        self._images += pack(list(map(len, names)), "I")
        self._names += pack(list(chain.from_iterable(chain.from_iterable(names))), "Q")

    def columns(self, bills: Sequence[int]) -> tuple[bytes | bytearray, ...]:
        """The first five columns of `Page`; ``bills`` has for each number of a bill the one that it is to have."""
        numbers = np.array(bills, np.uint32)[np.frombuffer(self._bills, np.uint32)].tobytes() if self._bills else b""
        return self._keys, self._digests, numbers, self._images, self._names


class PageFile:
    """A page on the disk, filled a stretch of rows at a time: it may be larger than what memory is there for it."""

    def __init__(self, folder: Path) -> None:
        self._columns = [folder / f"page-{name}" for name in Page.__struct_fields__[:5]]
        for path in self._columns:
            path.touch()
        self._path = folder / "page"

    def add(self, columns: Sequence[bytes | bytearray]) -> None:
        """Add the columns of some rows: see `PageWriter.columns`."""
        for path, data in zip(self._columns, columns, strict=True):
            with path.open("ab") as file:
                file.write(data)

    def whole(self, known_bills: tuple[TaskAccount, ...], removed: Iterable[int]) -> Path:
        """The page as it is stored: MessagePack, a map by the names of `Page`."""
        with self._path.open("wb") as file:
            file.write(struct.pack("B", _MAP | len(Page.__struct_fields__)))
            for name, path in zip(Page.__struct_fields__, self._columns, strict=False):
                file.write(msgspec.msgpack.encode(name) + struct.pack(">BI", _BYTES, path.stat().st_size))
                with path.open("rb") as column:
                    shutil.copyfileobj(column, file)
                path.unlink()
            rest = {"removed": array("q", removed).tobytes(), "known_bills": known_bills}
            file.write(b"".join(msgspec.msgpack.encode(part) for item in rest.items() for part in item))
        return self._path


class Rows(msgspec.Struct, frozen=True):
    """A page as it is read: arrays with an entry a row; ``first_name[i]`` is where the names of row ``i`` begin."""

    keys: NDArray[np.int64]
    digests: NDArray[np.uint64]  # (rows, 2)
    bills: NDArray[np.uint32]
    first_name: NDArray[np.int64]
    names: NDArray[np.uint64]  # (names, 2)
    removed: NDArray[np.int64]
    known_bills: tuple[TaskAccount, ...]


def read_page(data: bytes) -> Rows:
    """A page from its stored form.

    Raises:
        msgspec.DecodeError: it is not one.
        ValueError: its columns do not fit each other.
    """
    page = msgspec.msgpack.decode(data, type=Page)
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


class Index:
    """The tasks of a version in the order of their source, from the pages of its generations.

    A task of a later page stands where it stood before, a new one at the end.
    """

    def __init__(self, pages: Sequence[Rows]) -> None:
        self.pages = pages
        keys: NDArray[np.int64] = np.empty(0, np.int64)
        generation: NDArray[np.uint32] = np.empty(0, np.uint32)
        row: NDArray[np.uint32] = np.empty(0, np.uint32)
        for number, page in enumerate(pages):
            if page.removed.size:
                stay = ~np.isin(keys, page.removed)
                keys, generation, row = keys[stay], generation[stay], row[stay]
            rows = np.arange(len(page.keys), dtype=np.uint32)
            places = find(keys, page.keys)
            known = places >= 0
            generation[places[known]], row[places[known]] = number, rows[known]
            new = ~known
            keys = np.concatenate((keys, page.keys[new]))
            generation = np.concatenate((generation, np.full(int(new.sum()), number, np.uint32)))
            row = np.concatenate((row, rows[new]))
        self.keys, self.generation, self.row = keys, generation, row

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def stored(self) -> int:
        """How many tasks the generations hold, those that a later one replaced or took away included."""
        return sum(len(page.keys) for page in self.pages)

    def places(self) -> Iterator[tuple[int, int]]:
        """(generation, row) of each task."""
        return zip(self.generation.tolist(), self.row.tolist(), strict=True)

    def digests(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The digests of the tasks at some places: (places, 2)."""
        generation, row = self.generation[places], self.row[places]
        found = np.empty((len(places), 2), np.uint64)
        for number, page in enumerate(self.pages):
            here = generation == number
            found[here] = page.digests[row[here]]
        return found

    def bill(self, place: int) -> TaskAccount:
        """What became of the task at a place of the order."""
        page = self.pages[self.generation[place]]
        bill: TaskAccount = page.known_bills[page.bills[self.row[place]]]
        return bill

    def names(self, place: int) -> list[NameKeys]:
        """The keys of the names of its images."""
        page, row = self.pages[self.generation[place]], self.row[place]
        return [
            (int(stem), int(source)) for stem, source in page.names[page.first_name[row] : page.first_name[row + 1]]
        ]


class ByDigest:
    """Finds the tasks of an index by the digest of their text."""

    def __init__(self, index: Index) -> None:
        self._index = index
        halves = np.empty(len(index), np.uint64)  # the first of each digest; the other is looked at where it is found
        for number, page in enumerate(index.pages):
            here = index.generation == number
            halves[here] = page.digests[index.row[here], 0]
        self._order = np.argsort(halves, kind="stable").astype(np.uint32)
        self._sorted = halves[self._order]

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The place in the index of each digest's task; -1 where there is none."""
        if not digests or not self._order.size:
            return [-1] * len(digests)
        wanted = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        nearest = np.minimum(np.searchsorted(self._sorted, wanted[:, 0]), self._order.size - 1)
        found = self._order[nearest].astype(np.int64)
        same = (self._index.digests(found) == wanted).all(axis=1) & wanted.any(axis=1)
        places: list[int] = np.where(same, found, -1).tolist()
        return places


def find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of ``wanted`` is among ``keys`` (any order, each once); -1 where it is not."""
    if not keys.size:
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    found = np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)
    places = order[found]
    return np.where(keys[places] == wanted, places, -1)
