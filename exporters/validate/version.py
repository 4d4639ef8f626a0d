"""A version of ours in its store: every file there, its size and checksum the manifest's, and the numbers right."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec

from exporters.dataset import Image
from exporters.errors import DatasetDamaged
from exporters.manifest import File, Manifest
from exporters.validate.flaws import Problems
from exporters.versions import manifest_key, read_version
from labelloop.service.store import NotThere, Store

_THREADS = 8
_OWN = ("manifest.json", "reservation.json")


def verify(store: Store, version: str = "latest") -> tuple[Manifest | None, Problems]:
    """Read every file of a version and compare it with the manifest; the manifest is ``None`` where it is no good.

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
    prefix = f"versions/{manifest.version}/"
    present = {key.removeprefix(prefix) for key in store.list(prefix)}

    def look(file: File) -> str | None:
        if file.path not in present:
            return "it is not there"
        try:
            data = store.get(prefix + file.path)
        except NotThere:
            return "it is not there"
        if len(data) != file.size:
            return f"{len(data)} bytes, the manifest says {file.size}"
        if hashlib.sha256(data).hexdigest() != file.sha256:
            return "its SHA-256 is not the manifest's"
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        for file, fault in zip(manifest.files, threads.map(look, manifest.files), strict=True):
            problems.looked_at["files"] += 1
            if fault:
                problems.add("version-file", prefix + file.path, detail=fault)
    for path in sorted(present - {file.path for file in manifest.files} - set(_OWN)):
        problems.add("version-extra", prefix + path)
    if not problems:
        _count(store, manifest, problems)
    return manifest, problems


def _count(store: Store, manifest: Manifest, problems: Problems) -> None:
    key = manifest_key(manifest.version)
    if not manifest.accounts.balanced:
        problems.add("version-counts", key, "accounts", "the sums do not match")
    catalogue = store.get(f"versions/{manifest.version}/images.jsonl").splitlines()
    splits = Counter(msgspec.json.decode(line, type=Image).split for line in catalogue)
    stated = {split: number for split, number in manifest.splits.items() if number}
    if dict(splits) != stated:
        problems.add("version-counts", key, "splits", f"{stated}, images.jsonl has {dict(splits)}")
    paths = [file.path for file in manifest.files]
    for name in manifest.formats:
        labels = sum(path.startswith((f"{name}/labels/", f"{name}/Annotations/")) for path in paths)
        if name != "coco" and labels != splits.total():
            problems.add("version-counts", key, name, f"{labels} label files for {splits.total()} images")
    largest = max(manifest.classes.values(), default=0)
    if sorted(manifest.classes.values()) != list(range(1, largest + 1)):
        problems.add("version-counts", key, "classes", "the numbers are not 1, 2, 3 ...")
