"""What keeps `labelloop up` from starting is said in one line with the fix, before anything is installed or started."""

import errno
import os
import shutil
import socket
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from labelloop.cli.main import main
from labelloop.service.db.engine import open_database
from labelloop.service.errors import HomeUnusable
from labelloop.service.readiness import require_home
from labelloop.service.settings import Settings
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


@pytest.mark.parametrize("command", [["up"], ["worker"], ["qc", "serve"], ["ml", "serve"]], ids=" ".join)
def test_a_database_of_a_newer_labelloop_is_said_in_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    engine = open_database(Settings())
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_future'"))
    engine.dispose()
    with pytest.raises(SystemExit) as ended:
        main(command)
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "was written by a newer labelloop (schema 9999_future)" in said
    assert said.count("\n") == 2, "one sentence and its fix"


def test_a_state_file_of_a_newer_labelloop(up, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.json").write_text('{"format": 2}')
    assert "state.json was written by a newer labelloop (format 2)" in up()


@pytest.mark.parametrize("command", [["up"], ["worker"], ["qc", "serve"], ["ml", "serve"]], ids=" ".join)
@pytest.mark.parametrize(("error", "said"), [(errno.EROFS, "Read-only"), (errno.ENOSPC, "No space left")])
def test_a_home_that_takes_no_file_is_named_within_a_second(tmp_path, monkeypatch, capsys, command, error, said):
    def refuse(*_args, **_more):
        raise OSError(error, os.strerror(error))

    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("labelloop.service.readiness.tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(SystemExit) as ended:
        main(command)
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert f"The home folder {tmp_path / 'home'} cannot be written: {said}" in printed.err


def test_a_home_on_a_nearly_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 10**7))
    with pytest.raises(HomeUnusable, match=r"its disk has 10 MiB free.*LABELLOOP_MIN_FREE_BYTES"):
        require_home(Settings(home=tmp_path))
