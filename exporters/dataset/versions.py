"""Versions of a data set in a store: claim a number, write its files, commit the manifest, then publish the head.

```
HEAD.json                           the published version and the SHA-256 of its manifest
classes.json                        the class map, append-only
claims/v000002.json                 an exporter writes this version; removed when the version is published
versions/v000001/manifest.json      the version: its objects, source, rules, class numbers and accounts
versions/v000001/...                its plain files: archives, COCO files, README.md, report.html
latest/                             a mirror of the published version's plain files: see `exporters.dataset.latest`
objects/ab/ab12...                  shards and image copies, content-addressed by SHA-256, shared by versions
photos/ab/ab12...                   server-side image copies, addressed by their source and its etag
files/ab12.../dataset.ndjson        plain files of versions made by earlier releases, content-addressed
```

A reader that starts at ``HEAD.json`` never sees an incomplete version, and an interruption at any write leaves the last
version intact. The objects it leaves behind stay: another exporter may be about to refer to the same content.
"""

import hashlib
import math
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Self

import msgspec

from exporters.errors import DatasetDamaged, StoreBusy, VersionNotFound
from exporters.model.manifest import DatasetHead, DatasetManifest, decode_manifest, encode_manifest
from labelloop.service.store import ObjectChanged, ObjectExists, ObjectNotFound, Store, StoreError

HEAD = "HEAD.json"
CLAIMS = "claims/"
# Seconds that the write of the head may take after the check, and that others wait after their claim.
CONTEST_WINDOW_S = 1.0
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
    """The exclusive right to write a version: its number belongs to one exporter from the start of the export.

    The number is the next one without a claim and without a manifest. A killed exporter leaves its claim: its number
    is never used, and `exporters.dataset.gc` removes what it wrote. An exporter that fails removes its files and its
    claim.

    The claim also tells whether another exporter may move the head, so that a store which cannot tell at once which of
    several writers won (`Store.write_settle_s`) need not make every exporter wait:

    - The holder of the number after the head checks for claims on later numbers after all other writes. Without one it
      writes the head within `CONTEST_WINDOW_S` of the check, without waiting. A write that takes longer is verified as
      usual.
    - The holder of any later number waits `CONTEST_WINDOW_S` after its claim before it writes the head, and then takes
      the store's slow path.

    The check sees every claim confirmed before it; the holder of a later one writes after the first holder's write has
    ended. So two exporters never write the head at the same time. See docs/why/exports-at-once.md.

    Use it as a context manager: it removes its claim.

    Args:
        store: where the data set lives.
        after: the number of the published version; 0 if there is none.
    """

    def __init__(self, store: Store, after: int) -> None:
        self._store = store
        self._after = after
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._claiming: Future[_Claimed] | None = None
        self._checking: Future[_Check] | None = None
        self._released = False
        if store.write_settle_s:  # the claim settles while tasks are converted
            self._claiming = self._threads.submit(self._claim)

    @property
    def version(self) -> str:
        """The name of the claimed version. Raises `StoreBusy`."""
        return version_name(self._claimed().number)

    def begin_check(self) -> None:
        """Start the check of `exclusive_until` in the background; it also reads the head."""
        self._claimed()
        self._checking = self._threads.submit(self._check)

    def exclusive_until(self) -> float:
        """Return until when no other exporter writes the head: see `Store.create`; 0 if another one may.

        Call it right before that write. If others are at work, it waits until they know of this exporter.
        """
        if self._checking is None:
            self.begin_check()
        assert self._checking is not None
        until = self._checking.result()[0]
        if not until and self._store.write_settle_s:
            time.sleep(max(0.0, self._claimed().at + CONTEST_WINDOW_S - time.monotonic()))
        return until

    @property
    def head(self) -> HeadRead | None:
        """The head as read by the check, valid until `exclusive_until`; None if others may move it."""
        return self._checking.result()[1] if self._checking is not None else None

    def release(self) -> None:
        """Remove the claim, in the background: the version is published, or exists unpublished."""
        self._released = True
        self._threads.submit(self._delete, [_claim_key(self._claimed().number)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._claiming is not None and not self._released:
            self._threads.submit(self._abandon, self._claiming)
        self._threads.shutdown()

    def _claimed(self) -> "_Claimed":
        if self._claiming is None:
            self._claiming = self._threads.submit(self._claim)
        return self._claiming.result()

    def _claim(self) -> "_Claimed":
        for number in range(self._after + 1, self._after + 1 + _MAX_NUMBERS):
            if self._store.exists(manifest_key(version_name(number))):
                continue
            try:
                self._store.create(_claim_key(number), msgspec.json.encode({"began": time.time()}) + b"\n")
            except ObjectExists:
                continue
            if self._store.exists(manifest_key(version_name(number))):  # committed and released in between
                self._delete([_claim_key(number)])
                continue
            return _Claimed(number, time.monotonic())
        raise StoreBusy(url=self._store.url, key=manifest_key(version_name(self._after + 1)))

    def _check(self) -> _Check:
        number, now = self._claimed().number, time.monotonic()
        others = (version_number(key.removeprefix(CLAIMS).partition(".")[0]) for key in self._store.list(CLAIMS))
        if number != self._after + 1 or any(other > number for other in others):
            return 0.0, None
        return now + CONTEST_WINDOW_S, read_head(self._store)

    def _abandon(self, claiming: "Future[_Claimed]") -> None:
        """Remove the files of a version without a manifest, then the claim; if that fails, the number is lost."""
        if claiming.exception() is None:
            number = claiming.result().number
            with suppress(StoreError):
                keys = list(self._store.list(f"versions/{version_name(number)}/"))
                if manifest_key(version_name(number)) not in keys:
                    for key in keys:
                        self._store.delete(key)
                self._store.delete(_claim_key(number))

    def _delete(self, keys: Iterable[str]) -> None:
        with suppress(StoreError):  # they are small, and `dataset gc` takes them away
            for key in keys:
                self._store.delete(key)


class _Claimed(msgspec.Struct, frozen=True):
    """A claimed number, and when the claim was confirmed (`time.monotonic`)."""

    number: int
    at: float


# Numbers that are tried for a claim.
_MAX_NUMBERS = 1000


def _claim_key(number: int) -> str:
    return f"{CLAIMS}{version_name(number)}.json"


def commit_version(store: Store, manifest: DatasetManifest) -> str:
    """Write the manifest, which creates the version. Return its SHA-256.

    Args:
        store: where the data set lives; everything that the manifest refers to is in it.
        manifest: the manifest; its version is claimed by this exporter.

    Raises:
        StoreBusy: the version exists: a release without claims wrote it.
    """
    data = encode_manifest(manifest)
    try:
        store.create(manifest_key(manifest.version), data, exclusive_until=math.inf)
    except ObjectExists:
        raise StoreBusy(url=store.url, key=manifest_key(manifest.version)) from None
    return hashlib.sha256(data).hexdigest()


def publish_version(
    store: Store, version: str, sha256: str, *, exclusive_until: float = 0.0, expected: HeadRead | None = None
) -> None:
    """Move the head to a version, never back: a later published version stays.

    Args:
        store: where the data set lives.
        version: a committed version.
        sha256: the SHA-256 of its manifest.
        exclusive_until: as returned by `VersionClaim.exclusive_until`.
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
