"""Model files found in public repositories: what each is recognised as, or why it is refused.

The files are those of `bench/sources.toml`, read out of git mirrors in the folder LABELLOOP_MIRRORS, each at
`<owner>+<name>/repo`. None of them is part of this project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path

from ml_backend.errors import ModelError, UnknownLayout
from ml_backend.inference.detector import load_detector

SOURCES = Path(__file__).parent / "sources.toml"
LONGEST = 260


def run() -> str:
    """Open every file and give the table."""
    mirrors = Path(os.environ.get("LABELLOOP_MIRRORS", ""))
    rows = ["| file | what it is | recognised as | why, or why not |", "|---|---|---|---|"]
    wanted = [one for one in tomllib.loads(SOURCES.read_text())["source"] if "layouts_found" in one["benches"]]
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        for one in wanted:
            data = _read(mirrors, one)
            if data is None:
                missing.append(one["path"])
                continue
            file = Path(folder) / Path(one["path"]).name
            file.write_bytes(data)
            layout, why = _opened(file)
            rows.append(f"| {one['repo']}: {one['path']} | {one['what']} | {layout} | {why} |")
    if missing:
        rows += ["", f"Not there (set LABELLOOP_MIRRORS to a folder of git mirrors): {', '.join(missing)}."]
    return "\n".join(rows)


def _read(mirrors: Path, one: dict[str, str]) -> bytes | None:
    git = mirrors / one["repo"].replace("/", "+") / "repo"
    if not git.is_dir():
        return None
    found = subprocess.run(
        ["git", f"--git-dir={git}", "show", f"{one['commit']}:{one['path']}"], capture_output=True, check=False
    )  # fmt: skip
    if found.returncode or hashlib.sha256(found.stdout).hexdigest() != one["sha256"]:
        return None
    return found.stdout


def _opened(file: Path) -> tuple[str, str]:
    try:
        detector = load_detector(file, allow_numbered=True)
    except UnknownLayout as error:
        said = error.message.partition(" matches")[2].strip(" :.").partition(". Its outputs")[0]
        return "refused", said.replace("|", "/")[:LONGEST]
    except ModelError as error:
        return "refused", error.message.partition(": ")[2].replace("|", "/")[:LONGEST]
    return detector.layout, f"{detector.why}; {len(detector.names.names)} classes"


if __name__ == "__main__":
    print(run())
