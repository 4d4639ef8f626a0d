"""A backup is whole though everything goes on meanwhile; a restore is whole, or leaves everything as it was."""

from __future__ import annotations

import gzip
import io
import shutil
import sqlite3
import tarfile
import threading
from pathlib import Path

import msgspec
import pytest

from labelloop.cli.main import main
from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError, SchemaTooNew
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.stack.backup import MANIFEST, BackupError, restore_backup, write_backup
from ml_backend.inference.detector import embedded_model
from ml_backend.serving.active_versions import read_pointer, set_active
from ml_backend.serving.registry import Registry


@pytest.fixture(scope="module")
def model_store(tmp_path_factory):
    """A store with one version, active: opening a model takes seconds."""
    home = tmp_path_factory.mktemp("models")
    store = open_store(f"file://{home}/store", Settings(home=home))
    set_active(store, Registry(store).add(embedded_model(), thresholds={"person": 0.7}).version)
    return home / "store"


@pytest.fixture
def home(tmp_path, model_store):
    """A home folder that was used."""
    home = tmp_path / "home"
    open_database(Settings(home=home)).dispose()
    shutil.copytree(model_store, home / "store")
    written = {
        "settings.env": "LABELLOOP_WEBHOOK_SECRET=hunter2hunter2\n", "qc/policy.toml": "agreement = 0.6\n",
        "state.json": "{}", "logs/worker.log": "x", "media/cached": "x", "label-studio/venv/bin/python": "x",
        "store/datasets/cars/manifest.json": "{}", "data/.env": "SECRET_KEY=k", "data/media/upload/1/a.jpg": "photo",
        "data/export/big.json": "x",
    }  # fmt: skip
    for name, text in written.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    with sqlite3.connect(home / "data" / "label_studio.sqlite3") as studio:
        studio.execute("CREATE TABLE task_completion (id INTEGER)")
        studio.execute("INSERT INTO task_completion VALUES (42)")
    studio.close()
    return home


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def back_up(home, target, **options):
    chosen = {"database": True, "label_studio": True, "datasets": False} | options
    return write_backup(Settings(home=home), target, **chosen)


def test_an_online_backup_restores_into_an_empty_home(home, tmp_path, monkeypatch, capsys):
    inbox = Inbox(open_database(Settings(home=home)))
    inbox.put("qc.task", "1:7", "before", {"a": 1})
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            inbox.put("qc.task", f"1:{number}", f"during {number}", {})
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    file = tmp_path / "backup.tar.gz"
    monkeypatch.setenv("LABELLOOP_HOME", str(home))
    try:
        run("backup", str(file))
    finally:
        stop.set()
        writer.join()
    inbox.engine.dispose()
    message = capsys.readouterr().out
    assert "hunter2" not in message
    assert "Not included: the data sets" in message
    assert file.stat().st_mode & 0o777 == 0o600

    other = tmp_path / "other"
    monkeypatch.setenv("LABELLOOP_HOME", str(other))
    run("restore", str(file))
    settings = Settings()
    assert settings.webhook_secret.get_secret_value() == "hunter2hunter2"
    assert (other / "settings.env").stat().st_mode & 0o777 == 0o600
    assert not [path for path in (other, *other.rglob("*")) if path.stat().st_mode & 0o077]
    assert (other / "qc" / "policy.toml").read_text() == "agreement = 0.6\n"
    assert (other / "data" / "media" / "upload" / "1" / "a.jpg").read_text() == "photo"
    assert (other / "data" / ".env").read_text() == "SECRET_KEY=k"
    left_out = ("logs", "media", "label-studio", "data/export", "store/datasets", "queue.sqlite3")
    assert not [name for name in left_out if (other / name).exists()]
    with sqlite3.connect(other / "data" / "label_studio.sqlite3") as studio:
        assert studio.execute("SELECT id FROM task_completion").fetchall() == [(42,)]
    studio.close()
    restored = Inbox(open_database(settings))
    (event,) = restored.claim("qc.task", "1:7", "me").events[:1]
    assert event.payload == {"a": 1}
    restored.engine.dispose()
    store = open_store(settings.store_url, settings)
    assert Registry(store).find(read_pointer(store)[0].active()) is not None


def test_options_select_the_parts_of_a_backup(home, tmp_path):
    written = back_up(home, tmp_path / "b", database=False, label_studio=False, datasets=True)
    names = written.manifest.files
    assert "home/store/datasets/cars/manifest.json" in names
    assert not [name for name in names if name.startswith(("label-studio", "database"))]
    assert {what.partition(",")[0].partition("(")[0].strip() for what in written.missing} == {
        "the database", "Label Studio's data"
    }  # fmt: skip


def test_an_existing_target_or_a_postgres_database_is_refused(home, tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(BackupError, match="exists already"):
        back_up(home, tmp_path / "there")
    with pytest.raises(BackupError, match="every later backup would include it"):
        back_up(home, home / "b.tar.gz")
    with pytest.raises(BackupError, match=r"no folder .*nowhere"):
        back_up(home, tmp_path / "nowhere" / "b")
    postgres = Settings(home=home, database_url="postgresql://me:hunter2@127.0.0.1/x")
    with pytest.raises(BackupError, match="pg_dump") as refused:
        write_backup(postgres, tmp_path / "b", database=True, label_studio=True, datasets=False)
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "b.part").exists()


def test_a_damaged_database_is_no_backup(home, tmp_path):
    (home / "labelloop.sqlite3").write_bytes(b"this is not a database, it is a text" * 100)
    with pytest.raises(DatabaseError, match="is damaged"):
        back_up(home, tmp_path / "b")
    assert list(tmp_path.glob("b*")) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_home_in_use_is_not_overwritten_and_force_moves_it_aside(home, tmp_path):
    file, other = tmp_path / "b", tmp_path / "other"
    back_up(home, file)
    other.mkdir()
    (other / "settings.env").write_text("LABELLOOP_POLL_SECONDS=1\n")
    with pytest.raises(BackupError, match=r"not empty: it has settings\.env"):
        restore_backup(Settings(home=other), file, force=False)
    assert contents(other) == {"settings.env": b"LABELLOOP_POLL_SECONDS=1\n"}
    moved = restore_backup(Settings(home=other), file, force=True).moved
    assert (moved / "settings.env").read_text() == "LABELLOOP_POLL_SECONDS=1\n"
    assert "hunter2" in (other / "settings.env").read_text()


def test_a_backup_that_is_not_there_is_named_first(home, tmp_path):
    with pytest.raises(BackupError, match=r"There is no backup .*/none"):
        restore_backup(Settings(home=home), tmp_path / "none", force=False)
    with pytest.raises(BackupError, match="There is no backup"):
        restore_backup(Settings(home=tmp_path / "new"), tmp_path / "none", force=False)
    assert not (tmp_path / "new").exists()


def test_a_home_whose_worker_lives_is_not_replaced(home, tmp_path):
    file = tmp_path / "b"
    back_up(home, file)
    engine = open_database(Settings(home=home))
    WorkerHeartbeats(engine).record("me")
    engine.dispose()
    with pytest.raises(BackupError, match="A worker uses the database"):
        restore_backup(Settings(home=home), file, force=True)


def rewritten(file: Path, change) -> Path:
    """A backup whose members went through `change(name, data) -> (name, data) or None`."""
    target = file.with_name("changed")
    with tarfile.open(file) as source, tarfile.open(target, "w:gz") as out:
        for member in source:
            changed = change(member.name, source.extractfile(member).read())
            if changed is not None:
                member.name, member.size = changed[0], len(changed[1])
                out.addfile(member, io.BytesIO(changed[1]))
    return target


def manifest_with(**changes):
    def change(name, data):
        return (name, msgspec.json.encode(msgspec.json.decode(data) | changes)) if name == MANIFEST else (name, data)

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda name, data: (name, data[:-1] + b"x") if name.endswith(".toml") else (name, data),
            BackupError,
            "damaged",
        ),
        (lambda name, data: None if name.endswith(".toml") else (name, data), BackupError, "damaged"),
        (lambda name, data: None if name == MANIFEST else (name, data), BackupError, "no manifest"),
        (lambda name, data: (f"home/../../{name}", data), BackupError, "nothing was restored"),
        (lambda name, data: (f"/tmp/{name}", data), BackupError, "nothing was restored"),
        (lambda name, data: (f"elsewhere/{name}", data), BackupError, "nothing was restored"),
        (manifest_with(format=2, version="9.9"), SchemaTooNew, "written by a newer labelloop .format 2, 9.9."),
        (manifest_with(schema=["9999_future"]), SchemaTooNew, "schema 9999_future"),
    ],
    ids=["changed", "missing", "no manifest", "above", "absolute", "elsewhere", "newer format", "newer schema"],
)
def test_a_changed_archive_restores_nothing(home, tmp_path, change, error, message):
    file, other = tmp_path / "b", tmp_path / "other"
    back_up(home, file)
    with pytest.raises(error, match=message):
        restore_backup(Settings(home=other), rewritten(file, change), force=False)
    assert contents(other) == {}


def test_links_in_an_archive_are_refused(home, tmp_path):
    file = tmp_path / "b"
    with tarfile.open(file, "w:gz") as out:
        link = tarfile.TarInfo("home/settings.env")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    with pytest.raises(BackupError, match="nothing was restored"):
        restore_backup(Settings(home=tmp_path / "other"), file, force=False)


@pytest.mark.parametrize("cut", [1000, 200_000])
def test_an_archive_that_was_cut_off_is_named(home, tmp_path, cut):
    file = tmp_path / "b"
    back_up(home, file)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(BackupError, match="Use another backup"):
        restore_backup(Settings(home=tmp_path / "other"), file, force=False)
    file.write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(BackupError, match="Use another backup"):
        restore_backup(Settings(home=tmp_path / "other"), file, force=False)
