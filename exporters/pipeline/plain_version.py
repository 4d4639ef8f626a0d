"""Write the plain files of a version to ``versions/vNNNNNN/``: archives, COCO files, README.md and report.html."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporters.dataset.latest import README, REPORT
from exporters.dataset.mirror import etag_tag, file_tag
from exporters.dataset.plain_files import PlainVersion
from exporters.dataset.readme import readme
from exporters.model.manifest import DatasetManifest, PlainFile
from labelloop.service.store import Store, StoreError

if TYPE_CHECKING:
    from exporters.report.statistics import VersionStatistics

# Images drawn in the report. Only copies are read: it must not wait for foreign hosts.
SAMPLES = 12


def publish_plain_version(
    store: Store,
    plain: PlainVersion,
    scratch: Path,
    *,
    root: Path | None = None,
    statistics: "VersionStatistics | None" = None,
    parent: DatasetManifest | None = None,
) -> DatasetManifest:
    """Write the files of a claimed version. Return its manifest, which lists them.

    The server of a bucket copies the files that the parent version has too, such as archives in which nothing changed.
    In a folder each version has files of its own: a file that is edited there belongs to one version only.

    Args:
        store: where the data set lives.
        plain: the laid-out files of the version, with their images.
        scratch: a folder on this machine's disk, from which `Store.put_many` may move files.
        root: the folder of the store, if it is on this machine's disk.
        statistics: those of all images of the version, with `SAMPLES` samples; None: they are collected here.
        parent: the version before it.
    """
    from exporters.report.page import html_report

    manifest = plain.manifest
    folder = f"versions/{manifest.version}/"
    plain.close()
    texts = {
        README: readme(store.url, manifest, folder=folder),
        REPORT: html_report(plain.store, manifest, media=None, samples=SAMPLES, statistics=statistics),
    }
    files = plain.version_files()
    for name, text in texts.items():
        files[name] = scratch / name
        files[name].write_text(text, encoding="utf-8")
    listed = [PlainFile(path, folder + path, file.stat().st_size, _sha256(file)) for path, file in files.items()]
    copied = _copy_unchanged(store, listed, files, parent) if parent and root is None else set()
    store.put_many((folder + path, file) for path, file in files.items() if folder + path not in copied)
    plain.report = files[REPORT]
    if root is not None:
        plain.moved(root / folder)
    plain.manifest = msgspec.structs.replace(manifest, files=tuple(listed))
    return plain.manifest


def _copy_unchanged(
    store: Store, listed: Sequence[PlainFile], files: Mapping[str, Path], parent: DatasetManifest
) -> set[str]:
    """Let the server copy the files that the parent version has too. Return the keys of the copies.

    A file of the parent that is gone, or that is listed with another size or MD5 than its manifest says, is not copied.
    """
    known = {(file.path, file.size, file.sha256): file.key for file in parent.files}
    copied = set()
    with suppress(StoreError):
        stored = {entry.key: entry for entry in store.entries(f"versions/{parent.version}/")} if known else {}
        for file in listed:
            entry = stored.get(known.get((file.path, file.size, file.sha256), ""))
            if entry is None or entry.size != file.size or etag_tag(entry.tag) not in {0, file_tag(files[file.path])}:
                continue
            with suppress(StoreError):  # it was removed, or is larger than the server copies
                store.copy(entry.key, file.key)
                copied.add(file.key)
    return copied


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
