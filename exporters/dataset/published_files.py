"""Publish files that readers fetch directly from the store: those of formats with `Format.publish_plain`.

The key of a file is ``files/<SHA-256 of its content>/<its name>``: it never changes, and versions share equal files.
"""

import hashlib
from pathlib import Path

import msgspec

from exporters.dataset.folder import DiskTree
from exporters.dataset.shards import read_table
from exporters.formats import FORMATS
from exporters.formats.base import FormatContext, included
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import DatasetManifest, PlainFile
from labelloop.service.store import Store


def format_context(manifest: DatasetManifest) -> FormatContext:
    """Return the settings of the formats of a version, for `Format.write_files`."""
    skeleton = Skeleton(manifest.keypoints, manifest.skeleton) if manifest.keypoints else None
    return FormatContext(tuple(manifest.splits), tuple(manifest.classes), skeleton, manifest.categories)


def publish_plain_files(store: Store, manifest: DatasetManifest, scratch: Path) -> DatasetManifest:
    """Write the files of formats with `publish_plain` into the store. Return the manifest that lists them."""
    files: list[PlainFile] = []
    waiting: list[tuple[str, Path]] = []
    for name in manifest.formats:
        if not FORMATS[name].publish_plain:
            continue
        root = scratch / f"whole-{name}"
        FORMATS[name](format_context(manifest)).write_files(included(read_table(store, manifest, name)), DiskTree(root))
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            key = f"files/{digest}/{path.name}"
            files.append(PlainFile(f"{name}/{path.relative_to(root).as_posix()}", key, path.stat().st_size, digest))
            waiting.append((key, path))
    if waiting:
        store.put_many(waiting)
    return msgspec.structs.replace(manifest, files=tuple(files))
