"""Installing stock Label Studio: no network, too little disk space and partial installations are reported."""

import io
import shutil
import sys
from typing import NamedTuple

import pytest
from rich.console import Console

from labelloop.stack.errors import StackError
from labelloop.stack.label_studio import LabelStudioInstallation, require_disk, server_env
from labelloop.stack.progress import Steps


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def steps():
    return Steps(Console(file=io.StringIO()))


def installed(folder, version="1.23.2", *, finished=True):
    site = folder / "venv" / "lib" / "python3.11" / "site-packages" / f"label_studio-{version}.dist-info"
    site.mkdir(parents=True)
    (folder / "venv" / "bin").mkdir()
    (folder / "venv" / "bin" / "python").touch()
    if finished:
        (site / "RECORD").touch()
    return LabelStudioInstallation(folder)


def test_an_installation_of_the_right_version_is_reused(tmp_path, steps):
    studio = installed(tmp_path)
    studio.template_data.mkdir()
    studio.prepare(steps)
    assert not (tmp_path / "install.lock").exists()


@pytest.mark.parametrize(("version", "finished"), [("1.22.0", True), ("1.23.2", False)], ids=["old", "interrupted"])
def test_an_old_or_interrupted_installation_is_none(tmp_path, version, finished):
    assert not installed(tmp_path, version, finished=finished).installed


def test_too_little_disk_is_reported_before_the_download(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 4 * 10**8))
    with pytest.raises(StackError, match=r"needs 1.5 GB, and the disk of .* has 0.4 GB free.*LABELLOOP_HOME"):
        LabelStudioInstallation(tmp_path / "label-studio").prepare(steps)
    assert not (tmp_path / "label-studio" / "venv").exists()


def test_the_disk_of_a_missing_folder_is_checked(tmp_path):
    require_disk(tmp_path / "a" / "b", 1, what="Nothing much")
    with pytest.raises(StackError):
        require_disk(tmp_path / "a" / "b", 10**18, what="Too much")


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Lets the script given stand for the interpreter of a virtual environment that exists already."""

    def use(script):
        python = tmp_path / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr("sys.executable", "/bin/true")  # makes no virtual environment over this one

    return use


def test_a_failed_download_names_the_fix(tmp_path, steps, pip, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing answers
    pip(f'exec {sys.executable} "$@"')  # the real pip
    with pytest.raises(StackError, match=r"could not be downloaded: the package index did not answer.*network"):
        LabelStudioInstallation(tmp_path).prepare(steps)
    assert "127.0.0.1" in (tmp_path / "install.log").read_text()
    assert not LabelStudioInstallation(tmp_path).installed


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk filled up"),
        ("ERROR: No matching distribution found for label-studio==1.23.2", "No matching distribution.*Python 3.10"),
    ],
)
def test_other_errors_of_pip_are_quoted(tmp_path, steps, pip, output, message):
    pip(f"echo '{output}'; exit 1")
    with pytest.raises(StackError, match=message):
        LabelStudioInstallation(tmp_path).prepare(steps)


def test_label_studio_does_not_inherit_conflicting_variables(tmp_path, monkeypatch):
    for name in ("LABEL_STUDIO_HOST", "HEARTEX_PORT", "PYTHONPATH", "SECRET_KEY", "LABELLOOP_WEBHOOK_SECRET", "PORT"):
        monkeypatch.setenv(name, "from the shell")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intranet")
    env = server_env(tmp_path, {"LABEL_STUDIO_USERNAME": "a@example.com"})
    assert "from the shell" not in env.values()
    assert env["HTTP_PROXY"] == "http://proxy:3128"
    assert env["NO_PROXY"] == "intranet,localhost,127.0.0.1"
    assert env["LABEL_STUDIO_USERNAME"] == "a@example.com"
    assert (env["COLLECT_ANALYTICS"], env["SENTRY_DSN"]) == ("false", "")
