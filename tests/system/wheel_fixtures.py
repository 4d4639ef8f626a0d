"""Fixture `installed`: the package as its users have it, built into a wheel and installed outside any checkout."""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """The wheel, and the Python of a fresh environment that it is installed in."""

    wheel: Path
    python: Path

    @property
    def command(self) -> Path:
        """The console script."""
        return self.python.parent / "labelloop"


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Installed:
    """Its dependencies are those of this environment, found by a path file: 1 GB is not installed twice."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    # The folder alone: path files inside it, that of the editable install among them, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(wheel, python)
