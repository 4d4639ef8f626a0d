"""Model versions on the object store. A version exists once its manifest is written.

    models/versions/<version>/<model>.onnx, its weights and names
    models/versions/<version>/<kind>.head.npz  one per head, see `ml_backend.heads`
    models/versions/<version>/manifest.json    written last, once
    models/versions/<version>/refused.json     why a server could not load it, if one failed

A version's name includes a checksum of everything that determines its predictions, so adding one twice has no effect.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from labelloop.service.scratch import scratch_folder
from labelloop.service.store import ObjectExists, ObjectNotFound, Store
from ml_backend.errors import ModelError, ModelMissing
from ml_backend.heads import head_file, serialized
from ml_backend.heads.base import Head
from ml_backend.inference.version_id import model_version
from ml_backend.layouts.image_processor import processor_of
from ml_backend.layouts.layout_file import layout_file_of
from ml_backend.serving.smoke_test import ModelSummary, check_model

FOLDER = "models/versions"
MANIFEST, REFUSED = "manifest.json", "refused.json"


class FileChecksum(msgspec.Struct, frozen=True):
    """Checksum and size in bytes of one file of a version."""

    sha256: str
    size: int


class VersionManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a model version.

    Attributes:
        version: Its name, returned by `/setup` and stored with every prediction.
        model: Name of the ONNX file among `files`.
        files: Checksum of every file, by name.
        checksum: Checksum of all files together, hex; see `checksum_of`.
        classes: Class names, in the model's order.
        layout: Forced output layout; empty: detected.
        thresholds: Lowest score of a pre-label by class, if the version has its own.
        metrics: Metrics by name.
        parent: The version it was trained from; empty: none.
        project: The project it was trained for; empty: any.
        note: Its origin, as text.
        created_at: ISO 8601, UTC.
        heads: Name among `files` of each head, by kind; see `ml_backend.heads`.
    """

    version: str
    model: str
    files: Mapping[str, FileChecksum]
    checksum: str
    classes: tuple[str, ...]
    layout: str = ""
    thresholds: Mapping[str, float] = {}
    metrics: Mapping[str, Any] = {}
    parent: str = ""
    project: str = ""
    note: str = ""
    created_at: str = ""
    heads: Mapping[str, str] = {}


class Registry:
    """The model versions of one store. Safe to use from several machines at once."""

    def __init__(self, store: Store) -> None:
        """Reads nothing yet."""
        self.store = store

    def add(
        self,
        model: Path,
        *,
        names: Path | None = None,
        layout: str = "",
        thresholds: Mapping[str, float] | None = None,
        metrics: Mapping[str, Any] | None = None,
        parent: str = "",
        project: str = "",
        note: str = "",
        summary: ModelSummary | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> VersionManifest:
        """Add a model to the store as a version, after loading and running it once. Idempotent.

        Args:
            model: The ONNX file; external weights (`<file>.data`) and its layout file are added too.
            names: File of its class names; None: from the model's metadata or the file next to it.
            layout: Forced layout; empty: detected.
            thresholds: Lowest score of a pre-label by class.
            metrics: Metrics; any JSON value.
            parent: The version it was trained from.
            project: The project it was trained for.
            note: Its origin, as text.
            summary: Result of `check_model` if the caller has one; None: the model is loaded once in another process.
            heads: Learned heads by kind, see `ml_backend.heads`.

        Raises:
            ModelError: It cannot be served.
            StoreError: The store cannot be written.
        """
        summary = summary or check_model(model, layout=layout, names=names)
        thresholds = dict(sorted((thresholds or {}).items()))
        contents = serialized(heads or {})
        with scratch_folder() as folder:
            copies = _collect_files(
                model, folder, summary.names if summary.source != "metadata" else (), declared=not layout
            )
            version = model_version(copies[0], layout=layout, thresholds=thresholds, heads=contents)
            for name, content in contents.items():
                copies.append(folder / head_file(name))
                copies[-1].write_bytes(content)
            files = {file.name: FileChecksum(_sha256(file), file.stat().st_size) for file in copies}
            manifest = VersionManifest(
                version=version,
                model=copies[0].name,
                files=files,
                checksum=checksum_of(files),
                classes=summary.names,
                layout=layout,
                thresholds=thresholds,
                metrics=metrics or {},
                parent=parent,
                project=project,
                note=note,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                heads={name: head_file(name) for name in contents},
            )
            existing = self.find(version)
            if existing is not None:
                return existing
            for file in copies:
                self.store.put(f"{FOLDER}/{version}/{file.name}", file)
        try:
            self.store.create(f"{FOLDER}/{version}/{MANIFEST}", msgspec.json.encode(manifest))
        except ObjectExists:
            return self.manifest(version)
        return manifest

    def find(self, version: str) -> VersionManifest | None:
        """Return the manifest of a version; None if it does not exist."""
        try:
            manifest = msgspec.json.decode(self.store.get(f"{FOLDER}/{version}/{MANIFEST}"), type=VersionManifest)
        except ObjectNotFound:
            return None
        except msgspec.MsgspecError as error:
            raise ModelError(
                f"The manifest of the model version {version} cannot be read: {error}.", fix="Add the model again."
            ) from None
        if (
            manifest.version != version
            or checksum_of(manifest.files) != manifest.checksum
            or not {manifest.model, *manifest.heads.values()} <= set(manifest.files)
        ):
            raise ModelError(
                f"The manifest of the model version {version} is inconsistent: it was modified.",
                fix="Add the model again.",
            )
        return manifest

    def manifest(self, version: str) -> VersionManifest:
        """Return the manifest of a version; raises ModelError if it does not exist."""
        manifest = self.find(version) if version else None
        if manifest is None:
            raise ModelError(
                f"There is no model version {version!r} on {self.store.url}.",
                fix="List the versions with `labelloop models list`, or add one with"
                " `labelloop models add MODEL.onnx`.",
                code="model_version_unknown",
                status=404,
            )
        return manifest

    def versions(self) -> tuple[VersionManifest, ...]:
        """Return every version, oldest first."""
        end = f"/{MANIFEST}"
        names = [key[len(FOLDER) + 1 : -len(end)] for key in self.store.list(f"{FOLDER}/") if key.endswith(end)]
        manifests = [manifest for name in names if (manifest := self.find(name)) is not None]
        return tuple(sorted(manifests, key=lambda manifest: (manifest.created_at, manifest.version)))

    def get(self, version: str, file: str) -> bytes:
        """Return the bytes of one file of a version."""
        return self.store.get(f"{FOLDER}/{version}/{file}")

    def remove(self, version: str) -> None:
        """Delete a version. Never delete an active one: workers that start later could not load it."""
        keys = list(self.store.list(f"{FOLDER}/{version}/"))
        for key in sorted(
            keys, key=lambda key: not key.endswith(f"/{MANIFEST}")
        ):  # manifest first: the version is gone at once
            self.store.delete(key)

    def mark_refused(self, version: str, reason: str) -> None:
        """Mark a version as failed to load; the first reason is kept."""
        mark = {"reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        with suppress(ObjectExists):
            self.store.create(f"{FOLDER}/{version}/{REFUSED}", msgspec.json.encode(mark))

    def refusal_reason(self, version: str) -> str:
        """Return why a version could not be loaded; empty if it is not marked."""
        try:
            return str(msgspec.json.decode(self.store.get(f"{FOLDER}/{version}/{REFUSED}"))["reason"])
        except ObjectNotFound:
            return ""

    def clear_refused(self, version: str) -> None:
        """Remove the mark of a version that loads again."""
        self.store.delete(f"{FOLDER}/{version}/{REFUSED}")


def checksum_of(files: Mapping[str, FileChecksum]) -> str:
    """Return the SHA-256 of all file names and checksums, sorted by name."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _collect_files(model: Path, folder: Path, names: tuple[str, ...], *, declared: bool) -> list[Path]:
    """Link the model and its weights into `folder`, model first; class names are written to a file if given.

    With `declared`, the model's layout file goes too, and `preprocessor_config.json` always.
    """
    copies = []
    for file in (model, model.with_name(f"{model.name}.data")):
        if not file.is_file():
            if file == model:
                raise ModelMissing(path=model)
            continue
        copies.append(folder / file.name)
        copies[-1].symlink_to(file.resolve())
    layout_file = layout_file_of(model) if declared else None
    if layout_file is not None:
        copies.append(folder / f"{model.name}.layout.toml")
        copies[-1].symlink_to(layout_file.resolve())
    processor = processor_of(model)
    if processor is not None:
        copies.append(folder / processor.name)
        copies[-1].symlink_to(processor.resolve())
    if names:
        copies.append(folder / f"{model.name}.names")
        copies[-1].write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return copies


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
