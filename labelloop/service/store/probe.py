"""The self-test of a store: what it does is found out by doing it, on a fresh key that is removed again."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from labelloop.service.store.base import Capabilities, Store
from labelloop.service.store.errors import AlreadyThere, Changed, StoreError

_PREFIX = "labelloop-self-test"
NO_CREATE = (
    "The server overwrites although asked to create only (If-None-Match). labelloop looks first, writes, waits until "
    "others must have ended and looks whose bytes stayed: safe among its own writers, slower, and not safe against "
    "other programs that write the same keys."
)
NO_SWAP = (
    "The server has no compare-and-swap (If-Match). labelloop takes a lock object for each swap instead: safe among "
    "its own writers, slower, and not safe against other programs that write the same keys."
)
NEITHER = (
    "The server has neither create-only nor compare-and-swap writes (If-None-Match, If-Match). labelloop looks first, "
    "writes, waits until others must have ended and looks whose bytes stayed, and takes a lock object for each swap: "
    "safe among its own writers, slower, and not safe against other programs that write the same keys."
)

RACE = (
    "Of several creations at the same moment the server lets more than one through. labelloop waits after each until "
    "the others must have ended and looks whose bytes stayed: one creator wins all the same, and creating takes longer."
)
_RACERS = 8


class Conditional(Protocol):
    """What is tested: writes whose condition the SERVER checks, without any fallback."""

    def create_by_server(self, key: str, data: bytes) -> str: ...

    def swap_by_server(self, key: str, data: bytes, etag: str) -> str: ...


def probe(store: Store, conditional: Conditional | None = None) -> Capabilities:
    """Runs the self-test.

    Args:
        store: What is tested.
        conditional: Its writes that have no fallback; None: its `create` and `swap` have none.

    Raises:
        StoreError: It cannot be written or read at all.
    """
    key = f"{_PREFIX}/{uuid.uuid4().hex}"
    try:
        store.put(key, b"first")
        if store.get(key) != b"first" or not store.exists(key) or key not in store.list(f"{_PREFIX}/"):
            raise StoreError(store.url, key, "what was written is not read back or not listed")
        create_only = _keeps(store, conditional, key)
        compare_and_swap = _compares(store, conditional, key)
        races = create_only and conditional is not None and _races(store, conditional, f"{key}-race")
    finally:
        with suppress(StoreError):
            store.delete(key)
    detail = {(True, True): "", (True, False): NO_SWAP, (False, True): NO_CREATE, (False, False): NEITHER}
    return Capabilities(
        writable=True,
        create_only=create_only,
        compare_and_swap=compare_and_swap,
        detail=" ".join(filter(None, (detail[create_only, compare_and_swap], RACE if races else ""))),
    )


def _keeps(store: Store, conditional: Conditional | None, key: str) -> bool:
    """Whether a second creation is refused and the first bytes stay."""
    try:
        if conditional is None:
            store.create(key, b"second")
        else:
            conditional.create_by_server(key, b"second")
    except AlreadyThere:
        return store.get(key) == b"first"
    except NotImplementedError:
        return False
    return False


def _races(store: Store, conditional: Conditional, key: str) -> bool:
    """Whether more than one of several creations at the same moment is let through."""
    start = threading.Barrier(_RACERS)

    def won(racer: int) -> bool:
        start.wait()
        try:
            conditional.create_by_server(key, b"%d" % racer)
        except AlreadyThere:
            return False
        return True

    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            return sum(pool.map(won, range(_RACERS))) > 1
    finally:
        with suppress(StoreError):
            store.delete(key)


def _compares(store: Store, conditional: Conditional | None, key: str) -> bool:
    """Whether a swap with the right etag is done, and one with the old etag refused and the newer bytes kept."""

    def swap(data: bytes, etag: str) -> str:
        if conditional is None:
            return store.swap(key, data, etag=etag)
        return conditional.swap_by_server(key, data, etag)

    old = store.put(key, b"first")
    try:
        swap(b"third", old)
    except (Changed, NotImplementedError):
        return False
    try:
        swap(b"fourth", old)
    except (Changed, NotImplementedError):
        return store.get(key) == b"third"
    return False
