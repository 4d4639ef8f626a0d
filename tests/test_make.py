"""What `make test` relies on: each system test is run, and what it installs is not linted."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_file_of_system_tests_has_the_mark_that_make_looks_for():
    """The first run leaves tests/system out, and the second takes files with this mark."""
    assert "'mark\\.system'" in (ROOT / "Makefile").read_text()
    files = sorted((ROOT / "tests" / "system").glob("test_*.py"))
    assert files
    assert [file.name for file in files if "mark.system" not in file.read_text()] == []


def test_linter_leaves_out_what_the_tests_install_outside_git_too(tmp_path):
    """`setup` installs while `check` lints; an archive of the source has no repository whose .gitignore would count."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder, text in ((".labelloop/test/swift", "import os,sys"), ("own", '"""Sound."""\n')):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text(text)
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
