"""What `make test` relies on: each system test is run, and what it installs is not linted."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from labelloop import VERSION

ROOT = Path(__file__).parents[1]


def test_each_file_of_system_tests_has_the_mark_that_make_looks_for():
    """The first run leaves tests/system out, and the second takes files with this mark."""
    assert "'mark\\.system'" in (ROOT / "Makefile").read_text()
    files = sorted((ROOT / "tests" / "system").glob("test_*.py"))
    assert files
    assert [file.name for file in files if "mark.system" not in file.read_text()] == []


def test_pythons_of_make_are_those_of_the_package():
    """Where pip would compile for minutes, make and the metadata refuse; the workflow tests each of the others."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, end = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", package["requires-python"]).groups())
    pythons = [f"3.{minor}" for minor in range(first, end)]
    assert f"(3, {first}) <= sys.version_info < (3, {end})" in (ROOT / "Makefile").read_text()
    named = [name.rpartition(" ")[2] for name in package["classifiers"] if "Python :: 3." in name]
    assert named == pythons
    workflow = (ROOT / ".github/workflows/checks.yml").read_text()
    assert all(f'"{python}"' in workflow for python in pythons)


def test_make_refuses_another_python(tmp_path):
    """The check alone, by a program that answers as Python 3.14."""
    old = tmp_path / "python3.14"
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info, sys.version = (3, 14, 1), '3.14.1'\nexec(sys.argv[2])"
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", f"{tmp_path / 'venv'}/.installed"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"labelloop needs Python 3.11 to 3.13, and {old} is 3.14.1." in done.stderr
    assert not (tmp_path / "venv").exists()


def test_version_of_a_release_is_the_same_everywhere():
    """The workflow compares the tag with `labelloop --version`."""
    newest = re.search(
        r"^## \[(?!Unreleased)([^\]]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest[1] == VERSION
    assert f"image: labelloop:{VERSION}\n" in (ROOT / "docker-compose.yml").read_text()
    assert (
        'test "v$(.venv/bin/labelloop --version)" = "$GITHUB_REF_NAME"'
        in (ROOT / ".github/workflows/release.yml").read_text()
    )


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


def test_a_folder_of_images_may_have_spaces_in_its_name():
    command = subprocess.run(
        ["make", "--dry-run", "up", "IMAGES=/photos of 2026"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "labelloop up --images '/photos of 2026'" in command.stdout
