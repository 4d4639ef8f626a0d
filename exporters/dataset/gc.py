"""What of a data set nobody refers to any more, and its removal, safe beside exporters that are at work.

Exporters refer to objects that lie in the store before they write the manifest that names them. So:

- an object is only removed where it was written longer ago than the grace period, which must be longer than any export
  takes: an exporter writes again what the version that it builds on does not name;
- a version is only removed where a later one was published longer ago than the grace period: no exporter builds on it;
- before it looks at anything, the removal moves ``gc.json``. An exporter that finds it moved before it writes its
  manifest looks whether everything it names is still there, and exports again where it is not (`is_whole`).
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from exporters.dataset.shards import read_table
from exporters.dataset.versions import manifest_key, read_head, version_number, versions
from exporters.errors import BadOption
from exporters.model.manifest import PHOTOS, Manifest, Photo, object_key
from labelloop.service.scratch import leftover_folders, size_of
from labelloop.service.store import Entry, Leftovers, NotThere, Store

KEY = "gc.json"
GRACE_H = 24.0
_FOLDERS = ("objects/", "files/", "photos/")
_THREADS = 16


class Garbage(msgspec.Struct, frozen=True):
    """What may go: versions (oldest first), and objects by key with their bytes; ``young`` must wait for the grace.

    ``unfinished`` counts the partial writes of killed exports: in the store, and below this machine's temporary files.
    """

    versions: tuple[str, ...]
    objects: tuple[tuple[str, int], ...]
    kept_versions: tuple[str, ...]
    kept_objects: int
    young: int
    unfinished: int = 0
    unfinished_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the objects that may go."""
        return sum(size for _, size in self.objects)


def look(store: Store, *, keep: int | None = None, grace_h: float = GRACE_H, now: float | None = None) -> Garbage:
    """What may go; nothing is changed.

    Args:
        store: where the data set lives.
        keep: how many published versions stay, counted from the newest; None: all of them.
        grace_h: what was written or replaced more recently, hours, stays.
        now: the time by the store's clock, which dates what is in it; None: it is taken to be as ours.

    Raises:
        BadOption: an option is out of its range.
        DatasetDamaged: a manifest cannot be read; then nothing is known to be garbage.
    """
    if keep is not None and keep < 1:
        raise BadOption("--keep", str(keep), "1 or more versions")
    if not grace_h >= 0:
        raise BadOption("--grace", str(grace_h), "hours, 0 or more")
    before = (time.time() if now is None else now) - grace_h * 3600
    written = {entry.key: entry.modified for entry in store.entries("versions/")}
    manifests = {each.version: each for each in versions(store)}
    expired = _expired(store, manifests, written, keep, before)
    staying = [each for name, each in manifests.items() if name not in expired]
    live = set().union(*(_named(store, each) for each in staying)) if staying else set()
    objects: list[tuple[str, int]] = []
    kept = young = 0
    for entry in _entries(store):
        if entry.key in live:
            kept += 1
        elif entry.modified > before:
            young += 1
        else:
            objects.append((entry.key, entry.size))
    left = _unfinished(store, before)
    return Garbage(
        tuple(sorted(expired)),
        tuple(objects),
        tuple(each.version for each in staying),
        kept,
        young,
        unfinished=left.count,
        unfinished_bytes=left.bytes,
    )


def collect(
    store: Store,
    *,
    keep: int | None = None,
    grace_h: float = GRACE_H,
    progress: Callable[[int, int], None] | None = None,
) -> Garbage:
    """Remove what may go, the manifests first; gives what was removed. Takes what `look` takes.

    One that is cut off leaves a whole data set: what it did not get to is found the next time.
    """
    move(store)
    now = next(entry.modified for entry in store.entries(KEY))  # our clock may be wrong by more than the grace
    found = look(store, keep=keep, grace_h=grace_h, now=now)
    for version in found.versions:
        store.delete(manifest_key(version))
    before = now - grace_h * 3600
    seen = {entry.key: entry.modified for entry in _entries(store)} if found.objects else {}
    # once more, at the last moment: an exporter may have written an object anew since
    keys = [(key, size) for key, size in found.objects if seen.get(key, before + 1) <= before]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gc") as threads:
        for done, _ in enumerate(threads.map(lambda each: store.delete(each[0]), keys), start=1):
            if progress:
                progress(done, len(keys))
    left = _unfinished(store, before, remove=True)
    return msgspec.structs.replace(found, objects=tuple(keys), unfinished=left.count, unfinished_bytes=left.bytes)


def epoch(store: Store) -> str:
    """What `collect` changes before it looks at anything; an exporter compares it before it writes its manifest."""
    try:
        return store.read(KEY)[1]
    except NotThere:
        return ""


def move(store: Store) -> None:
    """Change `epoch`."""
    store.put(KEY, msgspec.json.encode({"began": time.time_ns()}) + b"\n")


def is_whole(store: Store, manifest: Manifest) -> bool:
    """Whether everything that a manifest names is in the store."""
    return _named(store, manifest) <= {entry.key for entry in _entries(store)}


def _unfinished(store: Store, before: float, *, remove: bool = False) -> Leftovers:
    """Unfinished writes in the store, and scratch folders here whose process was killed."""
    folders = leftover_folders(Path(tempfile.gettempdir()))
    here = sum(size_of(folder) for folder in folders)
    for folder in folders if remove else ():
        shutil.rmtree(folder, ignore_errors=True)
    there = store.leftovers(before=before, remove=remove)
    return Leftovers(len(folders) + there.count, here + there.bytes)


def _entries(store: Store) -> Iterator[Entry]:
    for folder in _FOLDERS:
        yield from store.entries(folder)
    head = read_head(store)[0]
    for entry in store.entries("versions/"):
        _, version, name = entry.key.split("/", 2)
        if head and name != "manifest.json" and version_number(version) <= version_number(head.version):
            yield entry  # a claim that an exporter left which was killed: see `exporters.dataset.versions`


def _expired(
    store: Store, manifests: dict[str, Manifest], written: dict[str, float], keep: int | None, before: float
) -> set[str]:
    head, _ = read_head(store)
    if keep is None or head is None:
        return set()
    published = sorted((name for name, each in manifests.items() if each.published), key=version_number)
    kept = {head.version, *published[-keep:]}
    old = [name for name in published if written.get(manifest_key(name), before + 1) <= before]
    # somebody may still build on a version that was the newest a short while ago
    newest_old = max(map(version_number, old), default=0)
    return {name for name in manifests if name not in kept and version_number(name) < newest_old}


def _named(store: Store, manifest: Manifest) -> set[str]:
    """The keys of everything that a version is made of."""
    keys = {object_key(sha256) for sha256 in manifest.shards()} | {file.key for file in manifest.files}
    if any(PHOTOS in generation.tables for generation in manifest.generations):
        keys |= _photo_keys(msgspec.json.decode(each.body, type=Photo) for each in read_table(store, manifest, PHOTOS))
    return keys


def _photo_keys(photos: Iterable[Photo]) -> set[str]:
    return {photo.place for photo in photos}
