"""Cache of optimised ONNX graphs and trial runs, so that a model reopens in a fraction of the time.

Graph optimisation and the trial run for layout recognition take most of the opening time. Both are deterministic on one
machine with one ONNX Runtime version.
"""

import fcntl
import hashlib
import json
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.checksums import file_checksum
from ml_backend.detection.onnx_graph import Arrays

# Keys stored with the trial outputs: layout, reason, checksum of the optimised graph (empty: none), why it is not cut,
# and what its first operators say of pixels.
_LAYOUT, _WHY, _GRAPH, _UNCUT = "labelloop layout", "labelloop why", "labelloop graph", "labelloop uncut"
_PIXELS = "labelloop pixels"

_KEYS = frozenset({_LAYOUT, _WHY, _GRAPH, _UNCUT, _PIXELS})


@dataclass(frozen=True)
class CachedSession:
    """A cached opening of a model.

    Attributes:
        graph: The optimised graph; None where there is none.
        layout: Key of `LAYOUTS`.
        why: Why the layout was chosen.
        trial_outputs: Outputs of the run on a grey image.
        uncut: Why its input cannot be cut, see `cut_graph`; empty where it can, or has no padding.
        pixels: `Graph.pixels`.
    """

    graph: Path | None
    layout: str
    why: str
    trial_outputs: Arrays
    uncut: str = ""
    pixels: Mapping[str, Any] = field(default_factory=dict)


class OnnxSessionCache:
    """Cache of one model file on this machine, in its own folder. Safe across processes."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder's path; the folder is created on first use.

        Args:
            folder: For one model file with its names and its forced layout.
        """
        self._folder = folder

    def load(self) -> CachedSession | None:
        """Load the entry of this machine, ONNX Runtime and labelloop version, where it is complete."""
        file, graph = self._files()
        try:
            with np.load(file, allow_pickle=False) as archive:
                trial_outputs = {name: archive[name] for name in archive.files if name not in _KEYS}
                uncut = str(archive[_UNCUT]) if _UNCUT in archive.files else ""
                layout, why, checksum = str(archive[_LAYOUT]), str(archive[_WHY]), str(archive[_GRAPH])
                pixels = {
                    key: tuple(value) if isinstance(value, list) else value
                    for key, value in json.loads(str(archive[_PIXELS])).items()
                }
            if checksum and file_checksum(graph) != checksum:
                return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return CachedSession(graph if checksum else None, layout, why, trial_outputs, uncut, pixels)

    @contextmanager
    def locked(self) -> Iterator[Path]:
        """Hold the folder's lock; yields a path for the optimised graph, which is not read before `store`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            graph = self._folder / ".graph.onnx"
            try:
                yield graph
            finally:
                graph.unlink(missing_ok=True)

    def store(self, graph: Path, session: CachedSession) -> None:
        """Store an entry whose optimised graph is `graph`, if that exists; call it within `locked`.

        Write errors, such as a full disk, are ignored.
        """
        file, stored_graph = self._files()
        with suppress(OSError):
            checksum = file_checksum(graph) if graph.is_file() else ""
            if checksum:
                graph.replace(stored_graph)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".seen-", delete=False) as part:
                words = {
                    _LAYOUT: session.layout, _WHY: session.why, _GRAPH: checksum, _UNCUT: session.uncut,
                    _PIXELS: json.dumps(session.pixels),
                }  # fmt: skip
                entries = {key: np.array(text) for key, text in words.items()}
                np.savez(part, **entries, **session.trial_outputs)  # type: ignore[arg-type]
            Path(part.name).replace(file)

    def invalidate(self) -> None:
        """Remove an unusable entry."""
        for file in self._files():
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _files(self) -> tuple[Path, Path]:
        return self._folder / f"{host_fingerprint()}.npz", self._folder / f"{host_fingerprint()}.onnx"


@cache
def host_fingerprint() -> str:
    """Hash of CPU features and versions: optimised graphs are specific to them."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        parts = [platform.machine(), processor, version("onnxruntime"), version("labelloop")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"{platform.machine()}-{platform.processor()}-{version('onnxruntime')}-{version('labelloop')}"
