"""Versions of a data set in a store: claim a number, commit the manifest create-only, then publish the head.

```
HEAD.json                           the published version and the SHA-256 of its manifest
classes.json                        the class map, append-only
versions/v000001/manifest.json      the version: its objects, source, rules, class numbers and accounts
versions/v000002/claim.json         an exporter is about to write this version; removed when it is committed
versions/v000002/contested.json     another exporter wants the same number
objects/ab/ab12...                  shards and image copies, content-addressed by SHA-256, shared by versions
photos/ab/ab12...                   server-side image copies, addressed by their source and its etag
files/ab12.../dataset.ndjson        files of formats that are read directly from the store, content-addressed
```

A reader that starts at ``HEAD.json`` never sees an incomplete version, and an interruption at any write leaves the last
version intact. The objects it leaves behind stay: another exporter may be about to refer to the same content.
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
from exporters.model.manifest import DatasetHead, DatasetManifest, decode_manifest, encode_manifest
from labelloop.service.store import ObjectChanged, ObjectExists, ObjectNotFound, Store, StoreError

HEAD = "HEAD.json"
# Seconds that the writes of manifest and head may take after the check, and that contestants wait after their mark.
CONTEST_WINDOW_S = 1.0
_CLAIM, _CONTESTED = "claim.json", "contested.json"
# Seconds after which others may have stopped waiting for a write of the head: see `labelloop.service.store.s3_lease`.
_LATE_S = 5.0
_WITHOUT_HEAD = (
    f"Pull a version by its number, or remove {HEAD}: the next `labelloop export` publishes a version again."
)


def version_name(number: int) -> str:
    """Return the name of a version; names sort like numbers."""
    return f"v{number:06d}"


def version_number(name: str) -> int:
    """Return the number in a version's name; 0 if it is not one."""
    return int(name[1:]) if name[:1] == "v" and name[1:].isdecimal() else 0


def manifest_key(version: str) -> str:
    """Return the key of a version's manifest."""
    return f"versions/{version}/manifest.json"


# The head and its etag, as returned by `read_head`.
HeadRead = tuple[DatasetHead | None, str | None]


def read_head(store: Store) -> HeadRead:
    """Read the head and its etag; (None, None) for a data set without a published version.

    Raises:
        DatasetDamaged: ``HEAD.json`` is not a head.
    """
    try:
        data, etag = store.read(HEAD)
    except ObjectNotFound:
        return None, None
    try:
        return msgspec.json.decode(data, type=DatasetHead), etag
    except msgspec.DecodeError as error:
        raise DatasetDamaged(url=store.url, key=HEAD, reason=str(error), fix=_WITHOUT_HEAD) from error


# The deadline of exclusive writes (`time.monotonic`), and the head until then; (0, None) if there is contention.
_Check = tuple[float, HeadRead | None]


class VersionClaim:
    """An optimistic claim on the next version number, which avoids the settle delay when there is no contention.

    A store that cannot tell at once which of several creators won (`Store.write_settle_s`) makes every creator wait
    until competing writes have ended, and read back the result. An export creates several objects and would wait for
    each. It claims the next version number at its start instead, and the claim settles while tasks are converted:

    - The holder of the claim checks for a contest mark after all other writes. Without one it writes manifest and head
      within `CONTEST_WINDOW_S` of the check, without waiting. Writes that take longer are verified as usual.
    - An exporter that finds the number claimed writes the mark, waits `CONTEST_WINDOW_S` before it writes any shared
    key,
      and then waits for each write.

    The check sees every mark written before it; the writer of a later mark starts its writes after the holder's have
    ended. So two exporters never write one key at the same time. An exporter that is killed leaves its claim: the next
    one contests it and takes the slow path once. See docs/why/exports-at-once.md.

    Use it as a context manager: it removes its claim and marks.

    Args:
        store: where the data set lives.
        after: the number of the published version; 0 if there is none.
    """

    def __init__(self, store: Store, after: int) -> None:
        self._store = store
        self._after = after
        self._contested: dict[int, float] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._claiming: Future[tuple[int, bool]] | None = None
        self._checking: Future[_Check] | None = None
        self._clearing: Future[None] | None = None
        if store.write_settle_s:
            self._claiming = self._threads.submit(self._claim)

    def first(self) -> int:
        """Return the first number to try."""
        return self._claiming.result()[0] if self._claiming else self._after + 1

    def begin_check(self) -> None:
        """Start the check of `exclusive_until` in the background; it also reads the head."""
        if self._claiming is not None:
            self._checking = self._threads.submit(self._check, self._claiming)

    def exclusive_until(self, number: int) -> float:
        """Return until when no other exporter writes this version or the head: see `Store.create`; 0 under contention.

        Call it right before the first write. Under contention it waits until the others know of this exporter.
        """
        if self._claiming is None:
            return 0.0
        if self._claiming.result() == (number, True):
            return self._check_result()[0]
        self._contest(number)
        time.sleep(max(0.0, self._contested[number] + CONTEST_WINDOW_S - time.monotonic()))
        return 0.0

    @property
    def head(self) -> HeadRead | None:
        """The head as read by the check, valid until `exclusive_until`; None without a claim or under contention."""
        return self._check_result()[1] if self._claiming is not None else None

    def release(self, number: int) -> None:
        """Remove claims and marks up to the committed version, in the background."""
        if self._claiming is not None:
            self._clearing = self._threads.submit(self._clear, self._claiming, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._claiming is not None and self._clearing is None:
            self._threads.submit(self._clear, self._claiming, 0)
        self._threads.shutdown()

    def _claim(self) -> tuple[int, bool]:
        """Return the first number without a manifest, and whether it is claimed.

        A number that does not follow the head is not claimed: another exporter may be about to publish.
        """
        number = self._after + 1
        while self._store.exists(manifest_key(version_name(number))):
            number += 1
        if number == self._after + 1:
            try:
                self._store.create(_key(number, _CLAIM), msgspec.json.encode({"began": time.time()}) + b"\n")
            except ObjectExists:
                pass
            else:
                return number, True
        self._contest(number)
        return number, False

    def _check_result(self) -> _Check:
        if self._checking is None:
            self.begin_check()
        assert self._checking is not None
        return self._checking.result()

    def _check(self, claiming: Future[tuple[int, bool]]) -> _Check:
        number, won = claiming.result()
        now = time.monotonic()
        if not won or self._store.exists(_key(number, _CONTESTED)):
            return 0.0, None
        return now + CONTEST_WINDOW_S, read_head(self._store)

    def _clear(self, claiming: Future[tuple[int, bool]], written: int) -> None:
        """Remove our claim and marks. A mark stays until its version exists: it warns the holder of the claim."""
        if claiming.exception() is not None:
            return
        number, won = claiming.result()
        keys = {_key(number, _CLAIM)} if won else set()
        if self._contested and written:  # and those of attempts that were given up
            passed_numbers = range(max(self._after, 1), written + 1)
            keys |= {_key(passed_number, name) for passed_number in passed_numbers for name in (_CLAIM, _CONTESTED)}
        with suppress(StoreError):  # they are small, and `dataset gc` takes them away
            for key in sorted(keys):
                self._store.delete(key)

    def _contest(self, number: int) -> None:
        if number not in self._contested:
            self._store.put(_key(number, _CONTESTED), b"{}\n")
            self._contested[number] = time.monotonic()


def _key(number: int, name: str) -> str:
    return f"versions/{version_name(number)}/{name}"


def commit_version(store: Store, manifest: DatasetManifest, claim: VersionClaim) -> tuple[DatasetManifest, str, float]:
    """Write the manifest under the next free number, which creates the version.

    Two exporters never get one number: the manifest is written create-only, and the second exporter takes the next
    number.

    Args:
        store: where the data set lives; everything that the manifest refers to is in it.
        manifest: the manifest without ``version``; with its parent.
        claim: the claim on a number.

    Returns:
        The manifest as written, its SHA-256, and until when no other exporter moves the head: see `VersionClaim`.

    Raises:
        StoreBusy: a thousand numbers in a row were taken.
    """
    first = claim.first()
    for number in range(first, first + 1000):
        named = msgspec.structs.replace(manifest, version=version_name(number))
        data = encode_manifest(named)
        exclusive_until = claim.exclusive_until(number)
        try:
            store.create(manifest_key(named.version), data, exclusive_until=exclusive_until)
        except ObjectExists:
            continue
        claim.release(number)
        return named, hashlib.sha256(data).hexdigest(), exclusive_until
    raise StoreBusy(url=store.url, key=manifest_key(version_name(first)))


def publish_version(
    store: Store, version: str, sha256: str, *, exclusive_until: float = 0.0, expected: HeadRead | None = None
) -> None:
    """Move the head to a version, never back: a later published version stays.

    Args:
        store: where the data set lives.
        version: a committed version.
        sha256: the SHA-256 of its manifest.
        exclusive_until: as returned by `commit_version`.
        expected: the head, if it was read while no other exporter could move it.

    Raises:
        StoreBusy: others moved the head at each attempt.
    """
    head = msgspec.json.encode(DatasetHead(version, manifest_key(version), sha256)) + b"\n"
    for attempt in range(10):
        current, etag = expected or read_head(store)
        expected = None
        if current and version_number(current.version) >= version_number(version):
            return
        if version_number(current.version if current else "") != version_number(version) - 1:
            exclusive_until = 0.0  # what came between may still be on its way
        late = exclusive_until or time.monotonic() + _LATE_S
        try:
            store.swap(HEAD, head, etag=etag, exclusive_until=exclusive_until)
        except ObjectChanged:
            exclusive_until = 0.0
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter, not a secret
            continue
        if time.monotonic() > late:
            _publish_later(store, version)
        return
    raise StoreBusy(url=store.url, key=HEAD)


def _publish_later(store: Store, version: str) -> None:
    """Publish the latest version again if our late write of the head may have replaced it."""
    for name in reversed(version_names(store)):
        if version_number(name) <= version_number(version):
            return
        data = store.get(manifest_key(name))
        if decode_manifest(data, url=store.url, key=manifest_key(name)).published:
            publish_version(store, name, hashlib.sha256(data).hexdigest())
            return


def version_names(store: Store) -> list[str]:
    """Return the names of the committed versions, oldest first."""
    keys = (key.split("/") for key in store.list("versions/"))
    return [key[1] for key in keys if len(key) == 3 and key[2] == "manifest.json"]


def versions(store: Store) -> Iterator[DatasetManifest]:
    """Yield the manifests of the committed versions, oldest first."""
    for key in map(manifest_key, version_names(store)):
        yield decode_manifest(store.get(key), url=store.url, key=key)


def read_version(store: Store, version: str = "latest") -> DatasetManifest:
    """Return the manifest of a version; ``latest`` is the published one, whose checksum is verified.

    ``3`` and ``v3`` are short for ``v000003``.

    Raises:
        VersionNotFound: there is no such version, or none is published.
        DatasetDamaged: the manifest does not match the head.
    """
    if version == "latest":
        if (manifest := published_version(store)) is None:
            raise VersionNotFound(store.url, version, version_names(store))
        return manifest
    number = version.removeprefix("v")
    key = manifest_key(version_name(int(number)) if number.isdecimal() else version)
    try:
        data = store.get(key)
    except ObjectNotFound as error:
        raise VersionNotFound(store.url, version, version_names(store)) from error
    return decode_manifest(data, url=store.url, key=key)


def published_version(store: Store) -> DatasetManifest | None:
    """Return the manifest of the published version, its checksum verified; None if there is none.

    Raises:
        DatasetDamaged: the manifest named by the head is missing or has another checksum.
    """
    head, _ = read_head(store)
    if head is None:
        return None
    try:
        data = store.get(head.manifest)
    except ObjectNotFound as error:
        reason = f"{HEAD} names it and it is not there"
        raise DatasetDamaged(url=store.url, key=head.manifest, reason=reason, fix=_WITHOUT_HEAD) from error
    if hashlib.sha256(data).hexdigest() != head.sha256:
        reason = "its checksum is not the one that the head names"
        raise DatasetDamaged(url=store.url, key=head.manifest, reason=reason, fix=_WITHOUT_HEAD)
    return decode_manifest(data, url=store.url, key=head.manifest)
