"""`labelloop up` reports what prevents its start in one line with the fix, before it installs or starts anything."""

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
    """Run `labelloop up`, which must fail; return its error output."""

    def run(*words, home=tmp_path / "home", **chosen_ports):
        monkeypatch.setenv("LABELLOOP_HOME", str(home))
        ports = {name: free_port() for name in ("port", "ml_port", "qc_port")} | chosen_ports
        with pytest.raises(SystemExit) as ended:
            main(["up", *words, *(f"--{name.replace('_', '-')}={number}" for name, number in ports.items())])
        output = capsys.readouterr()
        assert (ended.value.code, output.out) == (1, "")
        assert not (home / "label-studio" / "venv").exists()
        assert not (home / "data").exists()
        return output.err

    return run


def test_a_home_that_cannot_be_written(up, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory.\n→ Set LABELLOOP_HOME" in up(home=tmp_path / "file" / "home")


def test_a_missing_image_folder(up, tmp_path):
    assert "does not exist" in up(f"--images={tmp_path / 'missing'}")


def test_a_port_in_use(up):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        output = up(qc_port=port)
    assert f"Port {port}, which quality control needs, is in use" in output
    assert "another port: labelloop up --qc-port" in output


def test_too_little_disk(up, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 10**8))
    assert "has 0.1 GB free.\n→ Free disk space" in up()


def test_a_second_one_in_the_same_home(up, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with sole_supervisor(home, "http://localhost:8123"):
        assert "running already" in up(home=home)


@pytest.mark.parametrize("command", [["up"], ["worker"], ["qc", "serve"], ["ml", "serve"]], ids=" ".join)
def test_a_database_of_a_newer_labelloop_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    engine = open_database(Settings())
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_future'"))
    engine.dispose()
    with pytest.raises(SystemExit) as ended:
        main(command)
    output = capsys.readouterr().err
    assert ended.value.code == 1
    assert "was written by a newer labelloop (schema 9999_future)" in output
    assert output.count("\n") == 2, "one sentence and its fix"


def test_a_state_file_of_a_newer_labelloop(up, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.json").write_text('{"format": 2}')
    assert "state.json was written by a newer labelloop (format 2)" in up()


@pytest.mark.parametrize("command", [["up"], ["worker"], ["qc", "serve"], ["ml", "serve"]], ids=" ".join)
@pytest.mark.parametrize(("error", "message"), [(errno.EROFS, "Read-only"), (errno.ENOSPC, "No space left")])
def test_an_unwritable_home_folder_is_named(tmp_path, monkeypatch, capsys, command, error, message):
    def refuse(*_args, **_more):
        raise OSError(error, os.strerror(error))

    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("labelloop.service.readiness.tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(SystemExit) as ended:
        main(command)
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert f"The home folder {tmp_path / 'home'} cannot be written: {message}" in printed.err


def test_a_home_on_a_nearly_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 10**7))
    with pytest.raises(HomeUnusable, match=r"its disk has 10 MiB free.*LABELLOOP_MIN_FREE_BYTES"):
        require_home(Settings(home=tmp_path))
