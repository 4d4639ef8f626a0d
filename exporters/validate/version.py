"""A version of ours in its store: every object there, its size and checksum the manifest's, and the numbers right."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from exporters.dataset.shards import compare, read_index, read_photo, read_table
from exporters.dataset.versions import manifest_key, read_version
from exporters.errors import DatasetDamaged
from exporters.model.manifest import IMAGES, PHOTOS, Manifest, Photo, object_key
from exporters.model.records import Image
from exporters.model.splits import APART
from exporters.validate.issues import Problems
from labelloop.service.store import Store

_THREADS = 8
_T = TypeVar("_T")


def verify(store: Store, version: str = "latest") -> tuple[Manifest | None, Problems]:
    """Read every object of a version and compare it with the manifest; ``None`` where the manifest is no good.

    Raises:
        VersionNotFound: there is no such version.
        StoreError: the store cannot be read.
    """
    problems = Problems()
    try:
        manifest = read_version(store, version)
    except DatasetDamaged as error:
        problems.add("version-manifest", error.key, detail=error.message)
        return None, problems
    objects = [(object_key(each.sha256), each.sha256, each.size) for each in manifest.shards().values()]
    _look(store, [*objects, *((file.key, file.sha256, file.size) for file in manifest.files)], problems)
    if not problems:
        photos = {photo.place: photo for photo in _photos(store, manifest)}
        _look_at(photos.values(), lambda photo: read_photo(store, photo), problems)
        _count(store, manifest, problems)
    return manifest, problems


def _look(store: Store, objects: Iterable[tuple[str, str, int]], problems: Problems) -> None:
    _look_at(objects, lambda each: compare(store, *each), problems)


def _look_at(things: Iterable[_T], read: Callable[[_T], bytes], problems: Problems) -> None:
    def fault(each: _T) -> tuple[str, str]:
        try:
            read(each)
        except DatasetDamaged as error:
            return error.key, error.reason
        return "", ""

    with ThreadPoolExecutor(_THREADS) as threads:
        for key, reason in threads.map(fault, things):
            problems.looked_at["objects"] += 1
            if reason:
                problems.add("version-file", key, detail=reason)


def _photos(store: Store, manifest: Manifest) -> Iterable[Photo]:
    return (msgspec.json.decode(each.body, type=Photo) for each in read_table(store, manifest, PHOTOS))


def _splits(store: Store, manifest: Manifest, problems: Problems) -> Counter[str]:
    """How many images each split has; a photo that two of them have is a leak."""
    found: Counter[str] = Counter()
    addresses: dict[int, str] = {}  # a short digest a photo: a million take some 100 MB
    contents = {photo.file_name: photo.content for photo in _photos(store, manifest)}
    key = manifest_key(manifest.version)
    for each in read_table(store, manifest, IMAGES):
        image = msgspec.json.decode(each.body, type=Image)
        found[image.split] += 1
        if image.split == APART:  # nobody trains on it
            continue
        for what in filter(None, (image.url, contents.get(image.file_name))):
            other = addresses.setdefault(_short(what), image.split)
            if other != image.split:
                problems.add("version-leak", key, image.file_name, f"{image.url} is in {other} and in {image.split}")
                break
    return found


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _count(store: Store, manifest: Manifest, problems: Problems) -> None:
    key = manifest_key(manifest.version)
    if not manifest.accounts.balanced:
        problems.add("version-counts", key, "accounts", "the sums do not match")
    tasks = len(read_index(store, manifest))
    if tasks != manifest.accounts.tasks.input:
        problems.add("version-counts", key, "tasks", f"{manifest.accounts.tasks.input}, its index has {tasks}")
    splits = _splits(store, manifest, problems)
    stated = {split: number for split, number in manifest.splits.items() if number}
    if dict(splits) != stated:
        problems.add("version-counts", key, "splits", f"{stated}, the table of images has {dict(splits)}")
    for name in manifest.formats:
        records = sum(1 for _ in read_table(store, manifest, name))
        if records != splits.total():
            problems.add("version-counts", key, name, f"{records} records for {splits.total()} images")
    largest = max(manifest.classes.values(), default=0)
    if sorted(manifest.classes.values()) != list(range(1, largest + 1)):
        problems.add("version-counts", key, "classes", "the numbers are not 1, 2, 3 ...")
