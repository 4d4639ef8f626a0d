"""Owns openings: what opening a model took, kept on this machine, so that it opens again in a fraction of the time.

Most of that time goes into optimising the graph and into the trial run that says what its outputs mean. Both come out
alike every time, on one machine and with one ONNX Runtime: so the optimised graph and the trial's outputs are kept.
"""

import fcntl
import hashlib
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ml_backend.checksums import checksum_now
from ml_backend.detection.onnx_graph import Arrays

_LAYOUT, _WHY, _GRAPH = "labelloop layout", "labelloop why", "labelloop graph"
"""Beside the trial's outputs: the layout, why it was chosen, and the checksum of the optimised graph; empty: none."""


@dataclass(frozen=True)
class CachedSession:
    """What a model was found to be.

    Attributes:
        graph: The optimised graph; None where there is none.
        layout: Key of `LAYOUTS`, and `why` it was chosen.
        seen: What a trial run on a grey photo gave.
    """

    graph: Path | None
    layout: str
    why: str
    seen: Arrays


class OnnxSessionCache:
    """The opening of one model file by this machine, in a folder of its own. Safe to use from many processes."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing.

        Args:
            folder: Belongs to one model file with its names and its forced layout; made where it is missing.
        """
        self._folder = folder

    def find(self) -> CachedSession | None:
        """The opening, where one was kept by this machine, ONNX Runtime and labelloop, and is whole."""
        file, graph = self._files()
        try:
            with np.load(file, allow_pickle=False) as kept:
                seen = {name: kept[name] for name in kept.files if name not in {_LAYOUT, _WHY, _GRAPH}}
                layout, why, checksum = str(kept[_LAYOUT]), str(kept[_WHY]), str(kept[_GRAPH])
            if checksum and checksum_now(graph) != checksum:
                return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return CachedSession(graph if checksum else None, layout, why, seen)

    @contextmanager
    def locked(self) -> Iterator[Path]:
        """One process at a time; gives the path for the optimised graph, which nobody reads before `keep`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            graph = self._folder / ".graph.onnx"
            try:
                yield graph
            finally:
                graph.unlink(missing_ok=True)

    def store(self, graph: Path, *, layout: str, why: str, seen: Arrays) -> None:
        """Keeps an opening; call it within `turn`. A full disk costs nothing but the time next time."""
        file, place = self._files()
        with suppress(OSError):
            checksum = checksum_now(graph) if graph.is_file() else ""
            if checksum:
                graph.replace(place)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".seen-", delete=False) as part:
                said = {_LAYOUT: np.array(layout), _WHY: np.array(why), _GRAPH: np.array(checksum)}
                np.savez(part, **said, **seen)  # type: ignore[arg-type]
            Path(part.name).replace(file)

    def invalidate(self) -> None:
        """Removes an opening that turned out to be of no use."""
        for file in self._files():
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _files(self) -> tuple[Path, Path]:
        return self._folder / f"{host_fingerprint()}.npz", self._folder / f"{host_fingerprint()}.onnx"


@cache
def host_fingerprint() -> str:
    """Names what an opening holds for: an optimised graph uses what the processor has."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        said = [platform.machine(), processor, version("onnxruntime"), version("labelloop")]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
    return f"{platform.machine()}-{platform.processor()}-{version('onnxruntime')}-{version('labelloop')}"
