"""Files that readers take straight from the store: what `Format.whole` formats lay out, put there as it is.

A file lies at ``files/<SHA-256 of its content>/<its name>``: it never changes, and versions with equal files share one.
"""

import hashlib
from pathlib import Path

import msgspec

from exporters.dataset.folder import Folder
from exporters.dataset.shards import read_table
from exporters.formats import FORMATS
from exporters.formats.base import Job, held
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import File, Manifest
from labelloop.service.store import Store


def job_of(manifest: Manifest) -> Job:
    """What the formats of a version are told when they are laid out."""
    skeleton = Skeleton(manifest.keypoints, manifest.skeleton) if manifest.keypoints else None
    return Job(tuple(manifest.splits), tuple(manifest.classes), skeleton, manifest.categories)


def publish_plain_files(store: Store, manifest: Manifest, scratch: Path) -> Manifest:
    """Lay out the formats that want it and put their files into the store; gives the manifest that lists them."""
    files: list[File] = []
    waiting: list[tuple[str, Path]] = []
    for name in manifest.formats:
        if not FORMATS[name].publish_plain:
            continue
        root = scratch / f"whole-{name}"
        FORMATS[name](job_of(manifest)).write_files(held(read_table(store, manifest, name)), Folder(root))
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            key = f"files/{digest}/{path.name}"
            files.append(File(f"{name}/{path.relative_to(root).as_posix()}", key, path.stat().st_size, digest))
            waiting.append((key, path))
    if waiting:
        store.put_many(waiting)
    return msgspec.structs.replace(manifest, files=tuple(files))
