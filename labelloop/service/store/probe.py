"""The self-test of a store: measures its capabilities with objects under a new key, which it deletes."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from labelloop.service.store.base import Capabilities, Store
from labelloop.service.store.errors import AccessDenied, ObjectChanged, ObjectExists, StoreError

_PREFIX = "labelloop-self-test"
NO_CREATE = (
    "The server ignores If-None-Match and overwrites. labelloop checks that the key is free, writes, waits for "
    "concurrent writers and checks that its object stayed: safe among its own writers, slower, and not safe against "
    "other programs that write the same keys."
)
NO_SWAP = (
    "The server has no compare-and-swap (If-Match). labelloop uses a lock object for each swap instead: safe among "
    "its own writers, slower, and not safe against other programs that write the same keys."
)
NEITHER = (
    "The server has neither create-only nor compare-and-swap writes (If-None-Match, If-Match). labelloop checks that a "
    "key is free, writes, waits for concurrent writers and checks that its object stayed, and uses a lock object for "
    "each swap: safe among its own writers, slower, and not safe against other programs that write the same keys."
)

CONCURRENT_CREATES = (
    "The server accepts more than one of several concurrent creations. labelloop waits after each creation for other "
    "writers and checks that its object stayed: exactly one creator succeeds, but creating takes longer."
)
_CONCURRENT_WRITERS = 8


class ServerConditionalWriter(Protocol):
    """Conditional writes that the server checks, without a fallback."""

    def create_by_server(self, key: str, data: bytes) -> str: ...

    def swap_by_server(self, key: str, data: bytes, etag: str) -> str: ...


def probe(store: Store, conditional: ServerConditionalWriter | None = None) -> Capabilities:
    """Run the self-test.

    Args:
        store: The store.
        conditional: Its conditional writes without fallback; None: `create` and `swap` of the store have no fallback.

    Returns:
        The measured capabilities.

    Raises:
        AccessDenied: Rights are missing; all of them are named, except that nothing else is tested without writing.
        StoreError: The store cannot be written or read.
    """
    key = f"{_PREFIX}/{uuid.uuid4().hex}"
    store.put(key, b"first")
    _require_rights(store, key)
    store.put(key, b"first")
    try:
        create_only = _refuses_second_create(store, conditional, key)
        compare_and_swap = _compares_etags(store, conditional, key)
        lets_several_create = (
            create_only and conditional is not None and _lets_several_create(store, conditional, f"{key}-race")
        )
    finally:
        with suppress(StoreError):
            store.delete(key)
    detail = {(True, True): "", (True, False): NO_SWAP, (False, True): NO_CREATE, (False, False): NEITHER}
    return Capabilities(
        writable=True,
        create_only=create_only,
        compare_and_swap=compare_and_swap,
        detail=" ".join(
            filter(None, (detail[create_only, compare_and_swap], CONCURRENT_CREATES if lets_several_create else ""))
        ),
    )


def _require_rights(store: Store, key: str) -> None:
    """Read, list and delete the probe's object, which is gone afterwards.

    Raises:
        AccessDenied: Rights are missing; all of them are named.
        StoreError: It is not read back or not listed.
    """

    def read() -> bool:
        return store.get(key) == b"first" and store.exists(key)

    def list_() -> bool:
        return key in store.list(f"{_PREFIX}/")

    def delete() -> bool:
        store.delete(key)
        return True

    denied: list[AccessDenied] = []
    failed: list[StoreError] = []
    for works in (read, list_, delete):
        try:
            if not works():
                failed.append(StoreError(store.url, key, "a written object is not read back or not listed"))
        except AccessDenied as error:
            denied.append(error)
        except StoreError as error:
            failed.append(error)
    if denied:
        rights = " and ".join(dict.fromkeys(error.right for error in denied))
        raise AccessDenied(store.url, "", rights, detail=denied[0].detail, fix=denied[0].fix)
    if failed:
        raise failed[0]


def _refuses_second_create(store: Store, conditional: ServerConditionalWriter | None, key: str) -> bool:
    """Whether a second creation is refused and the first content is kept."""
    try:
        if conditional is None:
            store.create(key, b"second")
        else:
            conditional.create_by_server(key, b"second")
    except ObjectExists:
        return store.get(key) == b"first"
    except NotImplementedError:
        return False
    return False


def _lets_several_create(store: Store, conditional: ServerConditionalWriter, key: str) -> bool:
    """Whether more than one of several concurrent creations succeeds."""
    start = threading.Barrier(_CONCURRENT_WRITERS)

    def create(writer: int) -> bool:
        start.wait()
        try:
            conditional.create_by_server(key, b"%d" % writer)
        except ObjectExists:
            return False
        return True

    try:
        with ThreadPoolExecutor(_CONCURRENT_WRITERS) as pool:
            return sum(pool.map(create, range(_CONCURRENT_WRITERS))) > 1
    finally:
        with suppress(StoreError):
            store.delete(key)


def _compares_etags(store: Store, conditional: ServerConditionalWriter | None, key: str) -> bool:
    """Whether a swap with the current etag succeeds, and one with a stale etag is refused and the content kept."""

    def swap(data: bytes, etag: str) -> str:
        if conditional is None:
            return store.swap(key, data, etag=etag)
        return conditional.swap_by_server(key, data, etag)

    stale_etag = store.put(key, b"first")
    try:
        swap(b"third", stale_etag)
    except (ObjectChanged, NotImplementedError):
        return False
    try:
        swap(b"fourth", stale_etag)
    except (ObjectChanged, NotImplementedError):
        return store.get(key) == b"third"
    return False
