"""Verify a published version: size and checksum of every object, the numbers of the manifest, and split leaks."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from exporters.dataset.shards import read_image_copy, read_index, read_table, read_verified
from exporters.dataset.versions import manifest_key, read_version
from exporters.errors import DatasetDamaged
from exporters.model.manifest import IMAGES, PHOTOS, DatasetManifest, ImageCopy, PlainFile, object_key
from exporters.model.records import Image
from exporters.model.splits import DISPUTED_SPLIT
from exporters.tasks.table import TASK_FORMATS
from exporters.validate.issues import IssueReport
from labelloop.service.store import ObjectNotFound, Store

_THREADS = 8
_T = TypeVar("_T")


def verify(store: Store, version: str = "latest") -> tuple[DatasetManifest | None, IssueReport]:
    """Read every object of a version and compare it with the manifest.

    Returns:
        The manifest (``None`` if it is missing or damaged) and the report.

    Raises:
        VersionNotFound: There is no such version.
        StoreError: The store cannot be read.
    """
    report = IssueReport()
    try:
        manifest = read_version(store, version)
    except DatasetDamaged as error:
        report.add("version-manifest", error.key, detail=error.message)
        return None, report
    objects = [(object_key(shard.sha256), shard.sha256, shard.size) for shard in manifest.shards().values()]
    _check_objects(store, objects, report)
    _check_plain_files(store, manifest.files, report)
    if not report:
        copies = {copy.store_key: copy for copy in _copies(store, manifest)}
        _read_all(copies.values(), lambda copy: read_image_copy(store, copy), report)
        _check_counts(store, manifest, report)
    return manifest, report


def _check_objects(store: Store, objects: Iterable[tuple[str, str, int]], report: IssueReport) -> None:
    _read_all(objects, lambda entry: read_verified(store, *entry), report)


def _check_plain_files(store: Store, files: Sequence[PlainFile], report: IssueReport) -> None:
    """Check the plain files of a version, by way of the disk: an archive may be larger than memory."""
    if not files:
        return
    with store.scratch() as scratch:
        for file in files:
            report.checked["objects"] += 1
            try:
                store.download(file.key, copy := scratch / "file")
            except ObjectNotFound:
                report.add("version-file", file.key, detail="the manifest lists it and it is not there")
                continue
            with copy.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    report.add("version-file", file.key, detail="its SHA-256 is not the manifest's")
            copy.unlink()


def _read_all(items: Iterable[_T], read: Callable[[_T], bytes], report: IssueReport) -> None:
    def error_of(item: _T) -> tuple[str, str]:
        try:
            read(item)
        except DatasetDamaged as error:
            return error.key, error.reason
        return "", ""

    with ThreadPoolExecutor(_THREADS) as threads:
        for key, reason in threads.map(error_of, items):
            report.checked["objects"] += 1
            if reason:
                report.add("version-file", key, detail=reason)


def _copies(store: Store, manifest: DatasetManifest) -> Iterable[ImageCopy]:
    return (msgspec.json.decode(record.body, type=ImageCopy) for record in read_table(store, manifest, PHOTOS))


def _splits(store: Store, manifest: DatasetManifest, report: IssueReport) -> Counter[str]:
    """The number of images by split; reports images that are in two splits."""
    counts: Counter[str] = Counter()
    addresses: dict[int, str] = {}  # 64-bit digest -> split; about 100 MB for a million images
    contents = {copy.file_name: copy.content_key for copy in _copies(store, manifest)}
    key = manifest_key(manifest.version)
    for record in read_table(store, manifest, IMAGES):
        image = msgspec.json.decode(record.body, type=Image)
        counts[image.split] += 1
        if image.split == DISPUTED_SPLIT:  # not used for training
            continue
        for identity in filter(None, (image.url, contents.get(image.file_name))):
            other = addresses.setdefault(_digest(identity), image.split)
            if other != image.split:
                report.add("version-leak", key, image.file_name, f"{image.url} is in {other} and in {image.split}")
                break
    return counts


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _check_counts(store: Store, manifest: DatasetManifest, report: IssueReport) -> None:
    key = manifest_key(manifest.version)
    if not manifest.accounts.balanced:
        report.add("version-counts", key, "accounts", "the totals do not match")
    tasks = len(read_index(store, manifest))
    if tasks != manifest.accounts.tasks.input:
        report.add("version-counts", key, "tasks", f"{manifest.accounts.tasks.input}, the index has {tasks}")
    splits = _splits(store, manifest, report)
    stated = {split: number for split, number in manifest.splits.items() if number}
    if dict(splits) != stated:
        report.add("version-counts", key, "splits", f"{stated}, the table of images has {dict(splits)}")
    for name in manifest.formats:
        records = sum(1 for _ in read_table(store, manifest, name))
        is_of_tasks = name in TASK_FORMATS
        wanted = sum(manifest.lines.values()) if is_of_tasks else splits.total()
        if records != wanted:
            what = "lines of tasks" if is_of_tasks else "images"
            report.add("version-counts", key, name, f"{records} records for {wanted} {what}")
    largest = max(manifest.classes.values(), default=0)
    if sorted(manifest.classes.values()) != list(range(1, largest + 1)):
        report.add("version-counts", key, "classes", "the ids are not 1, 2, 3 ...")
