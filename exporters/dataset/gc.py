"""Garbage-collect a data set: remove what no version refers to, safe while exporters run.

Exporters refer to objects in the store before they write the manifest that names them. Therefore:

- An object is only removed if it was written longer ago than the grace period, which must be longer than any export:
  an exporter writes objects again unless the version that it builds on names them.
- A version is only removed if a later one was published longer ago than the grace period: no exporter builds on it.
- The collection first changes ``gc.json``. An exporter that finds it changed before it writes its manifest verifies
  that everything it names exists, and exports again if not (`is_complete`).
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from exporters.dataset.latest import read_latest
from exporters.dataset.shards import read_table
from exporters.dataset.versions import CLAIMS, manifest_key, read_head, version_number, versions
from exporters.errors import BadOption
from exporters.model.manifest import PHOTOS, DatasetManifest, ImageCopy, object_key
from labelloop.service.scratch import disk_usage, leftover_folders
from labelloop.service.store import Leftovers, ObjectInfo, ObjectNotFound, Store

KEY = "gc.json"
GRACE_H = 24.0
_FOLDERS = ("objects/", "files/", "photos/")
_THREADS = 16


class Garbage(msgspec.Struct, frozen=True):
    """What can be removed.

    Attributes:
        versions: Names of versions, oldest first.
        objects: Keys of objects, with their sizes in bytes.
        kept_versions: Names of the remaining versions.
        kept_objects: The number of objects that versions refer to.
        young: The number of unreferenced objects within the grace period.
        unfinished: The number of partial writes of killed exports, in the store and below this machine's temporary
            folder.
        unfinished_bytes: Their size.
    """

    versions: tuple[str, ...]
    objects: tuple[tuple[str, int], ...]
    kept_versions: tuple[str, ...]
    kept_objects: int
    young: int
    unfinished: int = 0
    unfinished_bytes: int = 0

    @property
    def has_data_set(self) -> bool:
        """Whether there was a version or an object, removed or kept."""
        return any((self.versions, self.kept_versions, self.objects, self.young))

    @property
    def bytes(self) -> int:
        """Bytes of the objects to remove."""
        return sum(size for _, size in self.objects)


def find_garbage(
    store: Store, *, keep: int | None = None, grace_h: float = GRACE_H, now: float | None = None
) -> Garbage:
    """Find what can be removed, without changing anything.

    Args:
        store: where the data set lives.
        keep: how many published versions stay, counted from the newest; None: all of them.
        grace_h: objects and versions written or replaced within the last ``grace_h`` hours stay.
        now: the current time of the store's clock, which dates its objects; None: the local clock.

    Raises:
        BadOption: an option is out of its range.
        DatasetDamaged: a manifest cannot be read, so that garbage cannot be told from data.
    """
    if keep is not None and keep < 1:
        raise BadOption("--keep", str(keep), "1 or more versions")
    if not grace_h >= 0:
        raise BadOption("--grace", str(grace_h), "hours, 0 or more")
    before = (time.time() if now is None else now) - grace_h * 3600
    written = {entry.key: entry.modified for entry in store.entries("versions/")}
    manifests = {manifest.version: manifest for manifest in versions(store)}
    expired = _expired(store, manifests, written, keep, before)
    kept_versions = [manifest for name, manifest in manifests.items() if name not in expired]
    referenced = (
        set().union(*(_referenced_keys(store, manifest) for manifest in kept_versions)) if kept_versions else set()
    )
    objects: list[tuple[str, int]] = []
    kept_objects = young = 0
    for entry in _collectable(store):
        if entry.key in referenced:
            kept_objects += 1
        elif entry.modified > before:
            young += 1
        else:
            objects.append((entry.key, entry.size))
    leftovers = _unfinished(store, before)
    return Garbage(
        tuple(sorted(expired)),
        tuple(objects),
        tuple(manifest.version for manifest in kept_versions),
        kept_objects,
        young,
        unfinished=leftovers.count,
        unfinished_bytes=leftovers.bytes,
    )


def collect_garbage(
    store: Store,
    *,
    keep: int | None = None,
    grace_h: float = GRACE_H,
    progress: Callable[[int, int], None] | None = None,
) -> Garbage:
    """Remove garbage, manifests first. Return what was removed. See `find_garbage` for the arguments.

    An interrupted collection leaves an intact data set; the next one removes the rest.
    """
    change_epoch(store)
    # the local clock may be wrong by more than the grace period
    now = next(entry.modified for entry in store.entries(KEY))
    garbage = find_garbage(store, keep=keep, grace_h=grace_h, now=now)
    for version in garbage.versions:
        store.delete(manifest_key(version))
    before = now - grace_h * 3600
    modified = {entry.key: entry.modified for entry in _collectable(store)} if garbage.objects else {}
    # check again at the last moment: an exporter may have rewritten an object
    keys = [(key, size) for key, size in garbage.objects if modified.get(key, before + 1) <= before]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gc") as threads:
        for done, _ in enumerate(threads.map(lambda item: store.delete(item[0]), keys), start=1):
            if progress:
                progress(done, len(keys))
    leftovers = _unfinished(store, before, remove=True)
    return msgspec.structs.replace(
        garbage, objects=tuple(keys), unfinished=leftovers.count, unfinished_bytes=leftovers.bytes
    )


def epoch(store: Store) -> str:
    """Return the etag of ``gc.json``, which each collection changes first; exporters compare it before committing."""
    try:
        return store.read(KEY)[1]
    except ObjectNotFound:
        return ""


def change_epoch(store: Store) -> None:
    """Change `epoch`."""
    store.put(KEY, msgspec.json.encode({"began": time.time_ns()}) + b"\n")


def is_complete(store: Store, manifest: DatasetManifest) -> bool:
    """Whether everything that a manifest names is in the store; its plain files were just written."""
    own = {file.key for file in manifest.files}
    return _referenced_keys(store, manifest) - own <= {entry.key for entry in _collectable(store)}


def _unfinished(store: Store, before: float, *, remove: bool = False) -> Leftovers:
    """Count, or remove, unfinished writes in the store and scratch folders here whose process was killed."""
    folders = leftover_folders(Path(tempfile.gettempdir()))
    local_bytes = sum(disk_usage(folder) for folder in folders)
    for folder in folders if remove else ():
        shutil.rmtree(folder, ignore_errors=True)
    remote = store.leftovers(before=before, remove=remove)
    return Leftovers(len(folders) + remote.count, local_bytes + remote.bytes)


def _collectable(store: Store) -> Iterator[ObjectInfo]:
    for folder in _FOLDERS:
        yield from store.entries(folder)
    head = read_head(store)[0]
    for entry in store.entries("versions/"):
        _, version, name = entry.key.split("/", 2)
        if head and name != "manifest.json" and version_number(version) <= version_number(head.version):
            yield entry  # a plain file of a version or, if no manifest names it, of a killed export
    for entry in store.entries(CLAIMS):
        name = entry.key.removeprefix(CLAIMS).partition(".")[0]
        if head and version_number(name) <= version_number(head.version):
            yield entry  # of a killed export: see `exporters.dataset.versions.VersionClaim`


def _expired(
    store: Store, manifests: dict[str, DatasetManifest], written: dict[str, float], keep: int | None, before: float
) -> set[str]:
    head, _ = read_head(store)
    if keep is None or head is None:
        return set()
    published = sorted((name for name, manifest in manifests.items() if manifest.published), key=version_number)
    latest = read_latest(store)  # `validate` compares it with its manifest
    kept_names = {head.version, *published[-keep:], *((latest.version, latest.previous) if latest else ())}
    old = [name for name in published if written.get(manifest_key(name), before + 1) <= before]
    # an exporter may still build on a version that was the newest a short while ago
    newest_old = max(map(version_number, old), default=0)
    return {name for name in manifests if name not in kept_names and version_number(name) < newest_old}


def _referenced_keys(store: Store, manifest: DatasetManifest) -> set[str]:
    """Return the keys of everything that a version refers to."""
    keys = {object_key(sha256) for sha256 in manifest.shards()} | {file.key for file in manifest.files}
    if any(PHOTOS in generation.tables for generation in manifest.generations):
        keys |= _copy_keys(
            msgspec.json.decode(record.body, type=ImageCopy) for record in read_table(store, manifest, PHOTOS)
        )
    return keys


def _copy_keys(copies: Iterable[ImageCopy]) -> set[str]:
    return {copy.store_key for copy in copies}
