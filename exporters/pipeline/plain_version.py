"""Write the plain files of a version to ``versions/vNNNNNN/``: archives, COCO files, README.md and report.html."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporters.dataset.latest import README, REPORT
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

    What is in the parent already, such as the archives of a version in which nothing changed, is copied by the store.

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
    copied = _copy_unchanged(store, listed, parent) if parent else set()
    store.put_many((folder + path, file) for path, file in files.items() if folder + path not in copied)
    plain.report = files[REPORT]
    if root is not None:
        plain.moved(root / folder)
    plain.manifest = msgspec.structs.replace(manifest, files=tuple(listed))
    return plain.manifest


def _copy_unchanged(store: Store, files: Sequence[PlainFile], parent: DatasetManifest) -> set[str]:
    """Copy the files that the parent has too within the store. Return their keys."""
    known = {(file.path, file.size, file.sha256): file.key for file in parent.files}
    copied = set()
    for file in files:
        if (key := known.get((file.path, file.size, file.sha256))) is not None:
            with suppress(StoreError):  # it is gone, or larger than the server copies: it is written like the others
                store.copy(key, file.key)
                copied.add(file.key)
    return copied


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
