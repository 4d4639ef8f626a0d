"""Owns the model versions on the object store: each a folder of files that are whole, or not a version.

    models/versions/<version>/<model>.onnx, its weights and names
    models/versions/<version>/manifest.json    written last, once: from then on the version is there
    models/versions/<version>/refused.json     why a server could not load it, where one tried

A version's name holds a checksum of all that decides what it predicts, so adding the same twice adds one.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from labelloop.service.scratch import scratch_folder
from labelloop.service.store import AlreadyThere, NotThere, Store
from ml_backend.errors import ModelError, ModelMissing
from ml_backend.inference.version_id import model_version
from ml_backend.serving.smoke_test import Checked, check_model

FOLDER = "models/versions"
MANIFEST, REFUSED = "manifest.json", "refused.json"


class UnknownVersion(ModelError):
    """No version of that name is on the store."""

    code: ClassVar[str] = "model_version_unknown"
    status: ClassVar[int] = 404

    def __init__(self, version: str, store: str) -> None:
        super().__init__(
            f"There is no model version {version!r} on {store}.",
            fix="`labelloop models list` names those that are there; `labelloop models add MODEL.onnx` adds one.",
        )
        self.version = version


class FileSum(msgspec.Struct, frozen=True):
    """What a file of a version holds."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a version is.

    Attributes:
        version: Its name, which `/setup` answers and every prediction carries.
        model: Name of the ONNX file among `files`.
        files: Every file of the version with its checksum.
        checksum: Of all of them together, in hex.
        classes: Names of the model's classes, in its order.
        layout: The layout that was forced; empty: it is recognised.
        thresholds: Lowest score of a pre-label by class, where the version has its own.
        metrics: What it was measured to do, by name.
        parent: The version that it was made from; empty: none.
        project: The project that it was made for; empty: any.
        note: Where it is from, in words.
        created_at: ISO 8601, UTC.
    """

    version: str
    model: str
    files: Mapping[str, FileSum]
    checksum: str
    classes: tuple[str, ...]
    layout: str = ""
    thresholds: Mapping[str, float] = {}
    metrics: Mapping[str, Any] = {}
    parent: str = ""
    project: str = ""
    note: str = ""
    created_at: str = ""


class Registry:
    """The versions of one store. Safe to use from any number of machines."""

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
        found: Checked | None = None,
    ) -> Manifest:
        """Puts a model on the store as a version, after it was opened and tried once. Adding it again changes nothing.

        Args:
            model: The ONNX file; weights beside it (`<file>.data`) come along.
            names: File of its class names; None: those in the model, or beside it.
            layout: Forced layout; empty: recognised.
            thresholds: Lowest score of a pre-label by class.
            metrics: What it was measured to do; anything that JSON holds.
            parent: The version that it was made from.
            project: The project that it was made for.
            note: Where it is from.
            found: What it is, where the caller has opened it already; None: it is opened once, in another process.

        Raises:
            ModelError: It cannot be served.
            StoreError: The store does not take it.
        """
        found = found or check_model(model, layout=layout, names=names)
        thresholds = dict(sorted((thresholds or {}).items()))
        with scratch_folder() as folder:
            copies = _lay_out(model, folder, found.names if found.source != "metadata" else ())
            version = model_version(copies[0], layout=layout, thresholds=thresholds)
            files = {file.name: FileSum(_sha256(file), file.stat().st_size) for file in copies}
            manifest = Manifest(
                version=version,
                model=copies[0].name,
                files=files,
                checksum=checksum_of(files),
                classes=found.names,
                layout=layout,
                thresholds=thresholds,
                metrics=metrics or {},
                parent=parent,
                project=project,
                note=note,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            there = self.find(version)
            if there is not None:
                return there
            for file in copies:
                self.store.put(f"{FOLDER}/{version}/{file.name}", file)
        try:
            self.store.create(f"{FOLDER}/{version}/{MANIFEST}", msgspec.json.encode(manifest))
        except AlreadyThere:
            return self.manifest(version)
        return manifest

    def find(self, version: str) -> Manifest | None:
        """The manifest of a version; None where there is no such version."""
        try:
            found = msgspec.json.decode(self.store.get(f"{FOLDER}/{version}/{MANIFEST}"), type=Manifest)
        except NotThere:
            return None
        except msgspec.MsgspecError as error:
            raise ModelError(
                f"The manifest of the model version {version} cannot be read: {error}.", fix="Add the model again."
            ) from None
        if found.version != version or checksum_of(found.files) != found.checksum or found.model not in found.files:
            raise ModelError(
                f"The manifest of the model version {version} does not fit itself: it was changed.",
                fix="Add the model again.",
            )
        return found

    def manifest(self, version: str) -> Manifest:
        """As `find`; raises UnknownVersion where there is none."""
        found = self.find(version) if version else None
        if found is None:
            raise UnknownVersion(version, self.store.url)
        return found

    def versions(self) -> tuple[Manifest, ...]:
        """Every version, the oldest first."""
        end = f"/{MANIFEST}"
        names = [key[len(FOLDER) + 1 : -len(end)] for key in self.store.list(f"{FOLDER}/") if key.endswith(end)]
        found = [manifest for name in names if (manifest := self.find(name)) is not None]
        return tuple(sorted(found, key=lambda manifest: (manifest.created_at, manifest.version)))

    def get(self, version: str, file: str) -> bytes:
        """One file of a version."""
        return self.store.get(f"{FOLDER}/{version}/{file}")

    def remove(self, version: str) -> None:
        """Removes a version. What is active must not be removed: workers that start later could not load it."""
        keys = list(self.store.list(f"{FOLDER}/{version}/"))
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):  # from the first on it is not there
            self.store.delete(key)

    def refuse(self, version: str, reason: str) -> None:
        """Marks a version as one that could not be loaded; the first reason stays."""
        mark = {"reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        with suppress(AlreadyThere):
            self.store.create(f"{FOLDER}/{version}/{REFUSED}", msgspec.json.encode(mark))

    def refused(self, version: str) -> str:
        """Why a version could not be loaded; empty where nobody said so."""
        try:
            return str(msgspec.json.decode(self.store.get(f"{FOLDER}/{version}/{REFUSED}"))["reason"])
        except NotThere:
            return ""

    def forgive(self, version: str) -> None:
        """Takes the mark away: it could be loaded after all."""
        self.store.delete(f"{FOLDER}/{version}/{REFUSED}")


def checksum_of(files: Mapping[str, FileSum]) -> str:
    """One checksum of all files: SHA-256 of their names and checksums, in order."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _lay_out(model: Path, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The version's files, the model first, as links or copies; its names written out where the model has none."""
    copies = []
    for file in (model, model.with_name(f"{model.name}.data")):
        if not file.is_file():
            if file == model:
                raise ModelMissing(model)
            continue
        copies.append(folder / file.name)
        copies[-1].symlink_to(file.resolve())
    if names:
        copies.append(folder / f"{model.name}.names")
        copies[-1].write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return copies


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
