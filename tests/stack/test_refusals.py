"""What keeps `labelloop up` from starting is said in one line with the fix, before anything is installed or started."""

import shutil
import socket
from typing import NamedTuple

import pytest

from labelloop.cli import main
from labelloop.stack.state import sole_supervisor


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def up(tmp_path, monkeypatch, capsys, free_port):
    """Runs `labelloop up`, which must refuse; returns what it said."""

    def run(*words, home=tmp_path / "home", **taken):
        monkeypatch.setenv("LABELLOOP_HOME", str(home))
        ports = {name: free_port() for name in ("port", "ml_port", "qc_port")} | taken
        with pytest.raises(SystemExit) as ended:
            main(["up", *words, *(f"--{name.replace('_', '-')}={number}" for name, number in ports.items())])
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (1, "")
        assert not (home / "label-studio" / "venv").exists()
        assert not (home / "data").exists()
        return said.err

    return run


def test_a_home_that_cannot_be_written(up, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory.\n→ Set LABELLOOP_HOME" in up(home=tmp_path / "file" / "home")


def test_a_folder_without_photos(up, tmp_path):
    assert "There is no folder" in up(f"--images={tmp_path / 'missing'}")


def test_a_taken_port(up):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = up(qc_port=port)
    assert f"Port {port}, which quality control needs, is taken" in said
    assert "another port: labelloop up --qc-port" in said


def test_too_little_disk(up, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 10**8))
    assert "has 0.1 GB left.\n→ Make room" in up()


def test_a_second_one_in_the_same_home(up, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with sole_supervisor(home, "http://localhost:8123"):
        assert "running already" in up(home=home)
