"""Owns the copies of model versions on this machine: each whole and checked, under its checksum."""

import fcntl
import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from ml_backend.checksums import checksum_now
from ml_backend.errors import ModelBroken
from ml_backend.serving.registry import Manifest, Registry

log = structlog.get_logger(__name__)

KEPT = 10
"""Copies that stay when another is fetched: those fetched last."""


OPENED = "opened"
"""Folder beside a copy in which what opening it took is kept: see `Openings`."""


class _Note(msgspec.Struct, frozen=True):
    """A manifest as it is kept here: its JSON, and the checksum of that."""

    manifest: str
    sha256: str


class ModelCache:
    """A folder of copies. Any number of processes may fetch the same at once: one does, the others wait for it."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing: the folder is made by the first fetch."""
        self._folder = folder

    def manifest(self, registry: Registry, version: str) -> Manifest:
        """The manifest of a version: from here where its copy is here (it never changes), else from the store.

        Raises:
            UnknownVersion: There is no such version.
            StoreError: The store cannot be read.
        """
        with suppress(OSError, msgspec.MsgspecError):
            note = msgspec.json.decode(self._note(version).read_bytes(), type=_Note)
            kept = msgspec.json.decode(note.manifest, type=Manifest)
            whole = hashlib.sha256(note.manifest.encode()).hexdigest() == note.sha256 and kept.version == version
            if whole and (self._folder / kept.checksum / kept.model).is_file():
                return kept
        return registry.manifest(version)

    def fetch(self, registry: Registry, manifest: Manifest) -> Path:
        """The ONNX file of a version, with what belongs to it beside it. A copy that was damaged is fetched again.

        Raises:
            StoreError: The store cannot be read.
            ModelBroken: What it holds is not what was added.
        """
        place = self.place(manifest)
        if not _is_whole(place, manifest):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(place, manifest):
                    self._download(registry, manifest, place)
                    self._sweep(place)
        if not self._note(manifest.version).is_file():
            with suppress(OSError):
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as part:
                    text = msgspec.json.encode(manifest).decode()
                    part.write(msgspec.json.encode(_Note(text, hashlib.sha256(text.encode()).hexdigest())))
                Path(part.name).replace(self._note(manifest.version))
        return place / manifest.model

    def place(self, manifest: Manifest) -> Path:
        """The folder of a version's copy, which need not be there."""
        return self._folder / manifest.checksum

    def _note(self, version: str) -> Path:
        return self._folder / f"{version}.json"

    def opening(self, checksum: str) -> Path:
        """Folder for the opening of the model of this checksum: of a version's, or of any name without a slash."""
        return self._folder / checksum / OPENED

    def _download(self, registry: Registry, manifest: Manifest, place: Path) -> None:
        # Under the lock nobody else is at work: what else is called so was left by a process that was killed.
        for left in self._folder.glob(".part-*"):
            shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._folder))
        try:
            for name, wanted in manifest.files.items():
                data = registry.get(manifest.version, name)
                if hashlib.sha256(data).hexdigest() != wanted.sha256:
                    raise ModelBroken(
                        Path(name),
                        f"its bytes on the store are not those of version {manifest.version}.",
                        fix="Add the model again under another file name.",
                    )
                (part / Path(name).name).write_bytes(data)
            if place.is_dir():  # what serves it has it in memory
                log.warning("model_copy_damaged", model_version=manifest.version, folder=str(place))
                shutil.rmtree(place)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _sweep(self, newest: Path) -> None:
        copies = [one for one in self._folder.iterdir() if one.is_dir() and one != newest]
        with suppress(OSError):
            copies.sort(key=lambda one: one.stat().st_mtime, reverse=True)
            for old in copies[KEPT - 1 :]:
                shutil.rmtree(old, ignore_errors=True)


def _is_whole(place: Path, manifest: Manifest) -> bool:
    """Whether every file of a version lies in a folder with the bytes that were added."""
    try:
        return all(checksum_now(place / Path(name).name) == one.sha256 for name, one in manifest.files.items())
    except OSError:
        return False
