"""The turn of one exporter to write the next version, so that it need not wait where nobody else is at work.

Where a store cannot say at once who of several creators has won (`Store.write_settle_s`), whoever creates something waits
until others must have ended, and looks whose bytes stayed. An export creates or moves several things; it would wait for
each. Instead it claims the next version's number at its beginning, and the claim settles while tasks are converted:

- whoever has the claim looks, when all else is written, whether anybody has put a mark beside it. If not, it writes
  manifest and head within ``MARK_S`` of that look, without waiting. What takes longer is looked at again after all.
- whoever finds the number claimed puts the mark, waits ``MARK_S`` before it writes anything that others write too, and
  then waits for each write, as everybody must who knows of others.

A mark that was put before that look is seen by it; one that was put after it belongs to somebody whose writes begin
when those of the holder have ended. So two never write the same key at the same moment. An exporter that is killed
leaves its claim: the next one puts a mark and goes the long way, once. See docs/why/exports-at-once.md.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Self

import msgspec

from exporters.dataset.versions import HeadRead, manifest_key, read_head, version_name
from labelloop.service.store import AlreadyThere, Store, StoreError

CONTEST_WINDOW_S = 1.0
"""Seconds that manifest and head may take after the look, and that others wait after their mark."""
_CLAIM, _MARK = "claim.json", "contested.json"


Look = tuple[float, HeadRead | None]
"""Until when nobody else writes, and what the head is till then; (0, None): others may write."""


class VersionClaim:
    """The turn to write the first free version after a number. Use it as a context: it takes away what it put.

    Args:
        store: where the data set lives.
        after: the published version's number; 0: there is none.
    """

    def __init__(self, store: Store, after: int) -> None:
        self._store = store
        self._after = after
        self._marked: dict[int, float] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="turn")
        self._claiming: Future[tuple[int, bool]] | None = None
        self._looking: Future[Look] | None = None
        self._clearing: Future[None] | None = None
        if store.write_settle_s:
            self._claiming = self._threads.submit(self._claim)

    def first(self) -> int:
        """The number that is to be tried first."""
        return self._claiming.result()[0] if self._claiming else self._after + 1

    def begin_check(self) -> None:
        """Begin the look of `alone_until`, beside the last steps before the first write. It reads the head as well."""
        if self._claiming is not None:
            self._looking = self._threads.submit(self._look, self._claiming)

    def exclusive_until(self, number: int) -> float:
        """Until when nobody else writes this version or moves the head: see `Store.create`; 0: others may.

        It is to be asked right before the first write. Where others are at work it waits until they know of us.
        """
        if self._claiming is None:
            return 0.0
        if self._claiming.result() == (number, True):
            return self._looked()[0]
        self._mark(number)
        time.sleep(max(0.0, self._marked[number] + CONTEST_WINDOW_S - time.monotonic()))
        return 0.0

    @property
    def head(self) -> HeadRead | None:
        """The head as it was read after the look, so that it stays so for as long as we are alone; None: we are not."""
        return self._looked()[1] if self._claiming is not None else None

    def written(self, number: int) -> None:
        """The version is there: claims and marks up to it mean nothing any more, and are taken away beside."""
        if self._claiming is not None:
            self._clearing = self._threads.submit(self._clear, self._claiming, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._claiming is not None and self._clearing is None:
            self._threads.submit(self._clear, self._claiming, 0)
        self._threads.shutdown()

    def _claim(self) -> tuple[int, bool]:
        """The first number without a manifest, and whether we have it.

        Where it is not the next after the head, another exporter may be about to move the head: then none is claimed.
        """
        number = self._after + 1
        while self._store.exists(manifest_key(version_name(number))):
            number += 1
        if number == self._after + 1:
            try:
                self._store.create(_key(number, _CLAIM), msgspec.json.encode({"began": time.time()}) + b"\n")
            except AlreadyThere:
                pass
            else:
                return number, True
        self._mark(number)
        return number, False

    def _looked(self) -> Look:
        if self._looking is None:
            self.begin_check()
        assert self._looking is not None
        return self._looking.result()

    def _look(self, claiming: Future[tuple[int, bool]]) -> Look:
        number, won = claiming.result()
        now = time.monotonic()
        if not won or self._store.exists(_key(number, _MARK)):
            return 0.0, None
        return now + CONTEST_WINDOW_S, read_head(self._store)

    def _clear(self, claiming: Future[tuple[int, bool]], written: int) -> None:
        """Take away what we put. A mark stays until its version is there: it warns whoever has the claim."""
        if claiming.exception() is not None:
            return
        number, won = claiming.result()
        gone = {_key(number, _CLAIM)} if won else set()
        if self._marked and written:  # and what somebody left who gave up, such as we ourselves before another attempt
            passed = range(max(self._after, 1), written + 1)
            gone |= {_key(each, name) for each in passed for name in (_CLAIM, _MARK)}
        with suppress(StoreError):  # they are small, and `dataset gc` takes them away
            for key in sorted(gone):
                self._store.delete(key)

    def _mark(self, number: int) -> None:
        if number not in self._marked:
            self._store.put(_key(number, _MARK), b"{}\n")
            self._marked[number] = time.monotonic()


def _key(number: int, name: str) -> str:
    return f"versions/{version_name(number)}/{name}"
