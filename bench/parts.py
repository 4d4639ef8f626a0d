"""Long benches in parts: each part is measured once for a state of the code, so that a command takes minutes at most.

A bench names its parts (a table of a data set). A run measures those that are missing until its time is up; the next
run of the same command goes on, and the last one has them all.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Seconds after which a run begins no further part.
SECONDS = float(os.environ.get("LABELLOOP_BENCH_SECONDS", "150"))


class Parts:
    """The parts of one bench, kept in a JSON file below LABELLOOP_HOME.

    Attributes:
        missing: Names of the parts for which this run had no time.
    """

    def __init__(self, bench: str, packages: Sequence[str]) -> None:
        """Read what earlier runs measured.

        Args:
            bench: Name of the bench.
            packages: Folders of code and models that the figures depend on; their change makes every part missing.
        """
        home = Path(os.environ.get("LABELLOOP_HOME", str(ROOT / ".labelloop"))) / "bench"
        self._file = home / f"{bench}.json"
        self._code = _checksum([ROOT / "bench" / f"{bench}.py", *(ROOT / name for name in packages)])
        self._end = time.monotonic() + SECONDS
        self._measured_now = 0
        self.missing: list[str] = []
        self._rows: dict[str, list[str]] = {}
        if self._file.is_file():
            stored = json.loads(self._file.read_text())
            self._rows = stored["rows"] if stored["code"] == self._code else {}

    def rows(self, name: str, measure: Callable[[], list[str]]) -> list[str]:
        """The rows of a part: measured before, measured now, or none once the time is up.

        A part without rows, such as one whose data is not there, is measured again by the next run.
        """
        if name not in self._rows:
            if self._measured_now and time.monotonic() > self._end:
                self.missing.append(name)
                return []
            rows = measure()
            if not rows:
                return []
            self._rows[name] = rows
            self._measured_now += 1
            print(*rows, sep="\n", flush=True)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial")
            partial.write_text(json.dumps({"code": self._code, "rows": self._rows}, indent=1))
            partial.replace(self._file)
        return self._rows[name]

    @property
    def remark(self) -> str:
        """What is missing, and how to measure it; empty if nothing is."""
        if not self.missing:
            return ""
        return f"**Not measured yet** (run the same command again): {', '.join(self.missing)}."


def _checksum(paths: Sequence[Path]) -> str:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
