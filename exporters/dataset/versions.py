"""Versions of a data set in a store: objects first, then the manifest create-only, last the head by compare-and-swap.

```
HEAD.json                           the published version and its manifest's checksum
classes.json                        the class map, only ever appended to
versions/v000001/manifest.json      what the version is: its objects, source, rules, class numbers, bill
versions/v000002/claim.json         somebody is about to write this one: see ``turn``; gone when it is there
objects/ab/ab12...                  shards and copied photos, named by the SHA-256 of their content, shared by versions
photos/ab/ab12...                   photos that the S3 server copied by itself, named by their source and its etag
files/ab12.../dataset.ndjson        files of formats that are read straight from the store, named likewise
```

A reader that starts at ``HEAD.json`` never sees half a version, and a kill at any write leaves the last one whole: what
it left are objects that no manifest names. They are not taken away here, because another exporter may be about to name
an object of the same content.
"""

import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Self

import msgspec

from exporters.errors import DatasetDamaged, StoreBusy, VersionNotFound
from exporters.model.manifest import Head, Manifest, decode_manifest, encode_manifest
from labelloop.service.store import AlreadyThere, Changed, NotThere, Store, StoreError

HEAD = "HEAD.json"
CONTEST_WINDOW_S = 1.0
"""Seconds that manifest and head may take after the look, and that others wait after their mark."""
_CLAIM, _MARK = "claim.json", "contested.json"
_LATE_S = 5.0
"""Seconds after which others may have given up waiting for a write of the head: see `labelloop.service.store.s3_lease`.
"""
_WITHOUT_HEAD = (
    f"Pull a version by its number, or remove {HEAD}: the next `labelloop export` publishes a version again."
)


def version_name(number: int) -> str:
    """The name of a version, so that names sort as numbers do."""
    return f"v{number:06d}"


def version_number(name: str) -> int:
    """The number in a version's name; 0 where it is none."""
    return int(name[1:]) if name[:1] == "v" and name[1:].isdecimal() else 0


def manifest_key(version: str) -> str:
    """Where a version's manifest is in the store."""
    return f"versions/{version}/manifest.json"


HeadRead = tuple[Head | None, str | None]
"""The head and its etag, as `read_head` gives them."""


def read_head(store: Store) -> HeadRead:
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
        raise DatasetDamaged(store.url, HEAD, str(error), fix=_WITHOUT_HEAD) from error


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


def commit(store: Store, manifest: Manifest, turn: VersionClaim) -> tuple[Manifest, str, float]:
    """Write the manifest under the next free number, which makes the version.

    Two exporters never get one number: the manifest is written only where there is none, and the one that comes second
    takes the next.

    Args:
        store: where the data set lives; everything that the manifest refers to is there.
        manifest: the manifest without ``version``; with its parent.
        turn: ours.

    Returns:
        The manifest as it was written, its checksum, and until when nobody else moves the head: see `Turn`.

    Raises:
        StoreBusy: a thousand numbers in a row were taken.
    """
    first = turn.first()
    for number in range(first, first + 1000):
        named = msgspec.structs.replace(manifest, version=version_name(number))
        data = encode_manifest(named)
        alone_until = turn.exclusive_until(number)
        try:
            store.create(manifest_key(named.version), data, alone_until=alone_until)
        except AlreadyThere:
            continue
        turn.written(number)
        return named, hashlib.sha256(data).hexdigest(), alone_until
    raise StoreBusy(store.url, manifest_key(version_name(first)))


def publish(store: Store, version: str, sha256: str, *, alone_until: float = 0.0, seen: HeadRead | None = None) -> None:
    """Move the head to a version, never back: where a later one is published already, that one stays.

    Args:
        store: where the data set lives.
        version: the version, which is there.
        sha256: its manifest's checksum.
        alone_until: what `commit` gave.
        seen: the head, where it was read when it was known already that nobody else moves it.

    Raises:
        StoreBusy: others moved the head at each of our attempts.
    """
    head = msgspec.json.encode(Head(version, manifest_key(version), sha256)) + b"\n"
    for attempt in range(10):
        current, etag = seen or read_head(store)
        seen = None
        if current and version_number(current.version) >= version_number(version):
            return
        if version_number(current.version if current else "") != version_number(version) - 1:
            alone_until = 0.0  # what came between may still be on its way
        late = alone_until or time.monotonic() + _LATE_S
        try:
            store.swap(HEAD, head, etag=etag, alone_until=alone_until)
        except Changed:
            alone_until = 0.0
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter, not a secret
            continue
        if time.monotonic() > late:
            _publish_later(store, version)
        return
    raise StoreBusy(store.url, HEAD)


def _publish_later(store: Store, version: str) -> None:
    """Move the head to the last published version where our move came so late that it may have gone over that one."""
    for name in reversed(version_names(store)):
        if version_number(name) <= version_number(version):
            return
        data = store.get(manifest_key(name))
        if decode_manifest(data, url=store.url, key=manifest_key(name)).published:
            publish(store, name, hashlib.sha256(data).hexdigest())
            return


def version_names(store: Store) -> list[str]:
    """The names of the versions that are whole, oldest first."""
    keys = (key.split("/") for key in store.list("versions/"))
    return [key[1] for key in keys if len(key) == 3 and key[2] == "manifest.json"]


def versions(store: Store) -> Iterator[Manifest]:
    """The manifests of the versions that are whole, oldest first."""
    for key in map(manifest_key, version_names(store)):
        yield decode_manifest(store.get(key), url=store.url, key=key)


def read_version(store: Store, version: str = "latest") -> Manifest:
    """The manifest of a version; ``latest`` is the published one, and its checksum is checked.

    A number alone names a version too: ``3`` and ``v3`` are ``v000003``.

    Raises:
        VersionNotFound: there is no such version, or none was published yet.
        DatasetDamaged: the manifest is not what the head says.
    """
    if version == "latest":
        if (manifest := published(store)) is None:
            raise VersionNotFound(store.url, version, version_names(store))
        return manifest
    number = version.removeprefix("v")
    key = manifest_key(version_name(int(number)) if number.isdecimal() else version)
    try:
        data = store.get(key)
    except NotThere as error:
        raise VersionNotFound(store.url, version, version_names(store)) from error
    return decode_manifest(data, url=store.url, key=key)


def published(store: Store) -> Manifest | None:
    """The manifest of the published version, its checksum checked; None where none was published yet.

    Raises:
        DatasetDamaged: the head names a manifest that is not there or is another one.
    """
    head, _ = read_head(store)
    if head is None:
        return None
    try:
        data = store.get(head.manifest)
    except NotThere as error:
        reason = f"{HEAD} names it and it is not there"
        raise DatasetDamaged(store.url, head.manifest, reason, fix=_WITHOUT_HEAD) from error
    if hashlib.sha256(data).hexdigest() != head.sha256:
        reason = "its checksum is not the one that the head names"
        raise DatasetDamaged(store.url, head.manifest, reason, fix=_WITHOUT_HEAD)
    return decode_manifest(data, url=store.url, key=head.manifest)
