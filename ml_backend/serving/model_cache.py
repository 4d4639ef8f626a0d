"""Local cache of model versions: complete, verified copies in folders named by checksum."""

import fcntl
import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from ml_backend.checksums import file_checksum
from ml_backend.errors import ModelBroken
from ml_backend.serving.registry import Registry, VersionManifest

log = structlog.get_logger(__name__)

# Most copies that are kept: the ones fetched last.
MAX_COPIES = 10


# Subfolder of a copy for its optimised session; see `OnnxSessionCache`.
SESSION_FOLDER = "opened"


class _CachedManifest(msgspec.Struct, frozen=True):
    """A cached manifest: its JSON and the checksum of the JSON."""

    manifest: str
    sha256: str


class ModelCache:
    """A folder of copies. Several processes may fetch one version at once: one downloads, the others wait."""

    def __init__(self, folder: Path) -> None:
        """Create nothing yet; the first fetch creates the folder."""
        self._folder = folder

    def manifest(self, registry: Registry, version: str) -> VersionManifest:
        """Return the manifest of a version: from the cache if its copy exists (it never changes), else from the store.

        Raises:
            ModelError: There is no such version.
            StoreError: The store cannot be read.
        """
        with suppress(OSError, msgspec.MsgspecError):
            note = msgspec.json.decode(self._manifest_file(version).read_bytes(), type=_CachedManifest)
            manifest = msgspec.json.decode(note.manifest, type=VersionManifest)
            intact = hashlib.sha256(note.manifest.encode()).hexdigest() == note.sha256 and manifest.version == version
            if intact and (self._folder / manifest.checksum / manifest.model).is_file():
                return manifest
        return registry.manifest(version)

    def fetch(self, registry: Registry, manifest: VersionManifest) -> Path:
        """Return the local ONNX file of a version, downloading it if missing or damaged.

        Raises:
            StoreError: The store cannot be read.
            ModelBroken: The bytes on the store do not match the manifest.
        """
        folder = self.folder_of(manifest)
        if not _is_intact(folder, manifest):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_intact(folder, manifest):
                    self._download(registry, manifest, folder)
                    self._sweep(folder)
        if not self._manifest_file(manifest.version).is_file():
            with suppress(OSError):
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as part:
                    text = msgspec.json.encode(manifest).decode()
                    part.write(msgspec.json.encode(_CachedManifest(text, hashlib.sha256(text.encode()).hexdigest())))
                Path(part.name).replace(self._manifest_file(manifest.version))
        return folder / manifest.model

    def folder_of(self, manifest: VersionManifest) -> Path:
        """Return the folder of a version's copy, which may not exist."""
        return self._folder / manifest.checksum

    def _manifest_file(self, version: str) -> Path:
        return self._folder / f"{version}.json"

    def session_folder(self, checksum: str) -> Path:
        """Return the session cache folder of a checksum; any name without a slash works."""
        return self._folder / checksum / SESSION_FOLDER

    def _download(self, registry: Registry, manifest: VersionManifest, folder: Path) -> None:
        # The lock is held, so other partial downloads were left by a killed process.
        for left in self._folder.glob(".part-*"):
            shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._folder))
        try:
            for name, wanted in manifest.files.items():
                data = registry.get(manifest.version, name)
                if hashlib.sha256(data).hexdigest() != wanted.sha256:
                    raise ModelBroken(
                        path=Path(name),
                        reason=f"its bytes on the store do not match version {manifest.version}.",
                        fix="Add the model again under another file name.",
                    )
                (part / Path(name).name).write_bytes(data)
            if folder.is_dir():  # workers that serve it have it in memory
                log.warning("model_copy_damaged", model_version=manifest.version, folder=str(folder))
                shutil.rmtree(folder)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _sweep(self, newest: Path) -> None:
        copies = [path for path in self._folder.iterdir() if path.is_dir() and path != newest]
        with suppress(OSError):
            copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for old in copies[MAX_COPIES - 1 :]:
                shutil.rmtree(old, ignore_errors=True)


def _is_intact(folder: Path, manifest: VersionManifest) -> bool:
    """Whether the folder holds every file of the version with the expected checksum."""
    try:
        return all(
            file_checksum(folder / Path(name).name) == expected.sha256 for name, expected in manifest.files.items()
        )
    except OSError:
        return False
