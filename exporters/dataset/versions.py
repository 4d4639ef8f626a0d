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
from typing import TYPE_CHECKING

import msgspec

from exporters.errors import DatasetDamaged, StoreBusy, VersionNotFound
from exporters.model.manifest import Head, Manifest, decode_manifest, encode_manifest
from labelloop.service.store import AlreadyThere, Changed, NotThere, Store

if TYPE_CHECKING:
    from exporters.dataset.turn import VersionClaim

HEAD = "HEAD.json"
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


def commit(store: Store, manifest: Manifest, turn: "VersionClaim") -> tuple[Manifest, str, float]:
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
