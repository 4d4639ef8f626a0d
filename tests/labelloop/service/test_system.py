"""Files of the home folder are readable by their owner alone."""

import stat
import subprocess
import sys
from pathlib import Path

from labelloop.service.system import restrict_to_owner


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_home_and_new_files_are_accessible_to_the_owner_only(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "logs").mkdir(mode=0o755)
    (home / "state.json").write_text("{}")
    (home / "state.json").chmod(0o644)
    program = home / "run.sh"
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    restrict_to_owner(home)
    subprocess.run([sys.executable, "-c", "open('made', 'w'); import os; os.mkdir('folder')"], cwd=home, check=True)
    modes = {path.name: mode(path) for path in (home, *home.iterdir())}
    assert modes == {
        "home": 0o700, "logs": 0o700, "state.json": 0o600, "run.sh": 0o700, "made": 0o600, "folder": 0o700,
    }  # fmt: skip


def test_an_open_home_is_restricted_except_virtual_environments(tmp_path):
    home = tmp_path / "home"
    for folder in ("logs", "store/deep", "label-studio/venv/bin"):
        (home / folder).mkdir(parents=True)
        (home / folder / "file").write_text("")
    (home / "label-studio/venv/pyvenv.cfg").write_text("")
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    (home / "logs").chmod(0o700)
    restrict_to_owner(home)
    left = {str(path.relative_to(home)) for path in home.rglob("*") if mode(path) & 0o077}
    assert left == {f"label-studio/venv/{name}" for name in ("pyvenv.cfg", "bin", "bin/file")}


def test_files_that_cannot_be_changed_are_skipped(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to("/etc/hostname")
    before = mode(home / "link") if Path("/etc/hostname").exists() else None
    restrict_to_owner(home)
    if before is not None:
        assert mode(home / "link") == before
