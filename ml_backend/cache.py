"""Owns the copies of model versions on this machine: each whole and checked, under its checksum."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from ml_backend.errors import ModelBroken
from ml_backend.registry import Manifest, Registry

KEPT = 10
"""Copies that stay when another is fetched: those fetched last."""


OPENED = "opened"
"""Folder beside a copy in which what opening it took is kept: see `Openings`."""


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
            kept = msgspec.json.decode(self._note(version).read_bytes(), type=Manifest)
            if (self._folder / kept.checksum / kept.model).is_file():
                return kept
        return registry.manifest(version)

    def fetch(self, registry: Registry, manifest: Manifest) -> Path:
        """The ONNX file of a version, with what belongs to it beside it.

        Raises:
            StoreError: The store cannot be read.
            ModelBroken: What it holds is not what was added.
        """
        place = self.place(manifest)
        if not place.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not place.is_dir():
                    self._download(registry, manifest, place)
                    self._sweep(place)
        if not self._note(manifest.version).is_file():
            with suppress(OSError):
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as part:
                    part.write(msgspec.json.encode(manifest))
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
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _sweep(self, newest: Path) -> None:
        copies = [one for one in self._folder.iterdir() if one.is_dir() and one != newest]
        with suppress(OSError):
            copies.sort(key=lambda one: one.stat().st_mtime, reverse=True)
            for old in copies[KEPT - 1 :]:
                shutil.rmtree(old, ignore_errors=True)
