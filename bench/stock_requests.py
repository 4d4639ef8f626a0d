"""Whose seconds pass between a submit and its version: requests by Label Studio's log, processor time by program."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

# Program -> a word of its command line.
PROGRAMS = {"Label Studio": b"label_studio.server", "worker": b"worker", "ML backend": b"ml"}


@dataclass
class Spent:
    """Of all watched submits of one project."""

    home: Path
    submits: int = 0
    wall_s: float = 0.0
    cpu_s: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Add what is spent while the block runs."""
        log = self.home / "logs" / "label-studio.log"
        offset, cpu, started = log.stat().st_size, _cpu_s(self.home), time.monotonic()
        yield
        self.wall_s += time.monotonic() - started
        self.cpu_s.update({name: seconds - cpu[name] for name, seconds in _cpu_s(self.home).items()})
        with log.open("rb") as file:
            file.seek(offset)
            lines = dict.fromkeys(file.read().decode(errors="replace").splitlines())  # some are logged twice
        found = (re.search(r'"([A-Z]+) (\S+) HTTP', line) for line in lines)
        self.requests.update(f"{one[1]} {_what(one[2])}" for one in found if one)
        self.submits += 1

    def rows(self) -> str:
        """In words and a table: per submit."""
        count = max(self.submits, 1)
        cpu = ", ".join(f"{name} {self.cpu_s[name] / count:.1f} s" for name in PROGRAMS)
        lines = [
            f"Per submit {self.wall_s / count:.1f} s; processor time: {cpu}.",
            "",
            "| request | times |",
            "|---|---|",
        ]
        return "\n".join([*lines, *(f"| `{name}` | {n / count:.1f} |" for name, n in self.requests.most_common())])


def _what(address: str) -> str:
    """A request without its numbers: its path, the fields that it names, and what it filters by."""
    parts = urlsplit(address)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    said = [re.sub(r"[0-9]+", "N", parts.path), query.get("include", "")]
    if "query" in query:
        asked = json.loads(unquote(query["query"]))
        filters = [item["filter"].rpartition(":")[2] for item in (asked.get("filters") or {}).get("items", ())]
        said.append(" ".join(["by id"] * ("selectedItems" in asked) + filters))
    return " ".join(filter(None, said))


def _cpu_s(home: Path) -> dict[str, float]:
    """Processor seconds of each program so far, with all its processes."""
    spent, ticks = dict.fromkeys(PROGRAMS, 0.0), os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            program = next((name for name, word in PROGRAMS.items() if word in words), None)
            if program and os.fsencode(home) in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                spent[program] += (int(fields[11]) + int(fields[12])) / ticks
    return spent
