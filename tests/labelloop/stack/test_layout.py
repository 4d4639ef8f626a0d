"""The plan of a local stack: what `--reset` deletes, and what our programs are started with."""

from labelloop.stack.environment import write_env
from labelloop.stack.layout import StackLayout
from labelloop.stack.state import StackState, write_state


def test_reset_keeps_the_installation_the_exports_and_the_logs(tmp_path):
    environment = ["label-studio/venv/bin/python", "store/photos/latest.json", "logs/worker.log", "settings.env"]
    gone = ["data/label_studio.sqlite3", "photos/cat-1.jpg", "state.json", "labelloop.sqlite3", "labelloop.sqlite3-wal",
            "queue.sqlite3"]  # fmt: skip
    for name in environment + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x=1")
    plan = StackLayout.for_home(tmp_path)
    plan.delete_data()
    plan.delete_data()
    assert [name for name in environment + gone if (tmp_path / name).exists()] == environment


def test_services_prefer_the_settings_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_URL", "http://of-the-shell:1")
    monkeypatch.setenv("LABELLOOP_LOG_LEVEL", "DEBUG")
    write_env(tmp_path, {"LABELLOOP_LABEL_STUDIO_URL": "http://localhost:8123"})
    for part in StackLayout.for_home(tmp_path).services():
        assert "LABELLOOP_LABEL_STUDIO_URL" not in part.env  # settings.env has it
        assert part.env["LABELLOOP_LOG_LEVEL"] == "DEBUG"
        assert part.env["LABELLOOP_HOME"] == str(tmp_path)


def test_secrets_are_not_in_the_repr_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_WEBHOOK_SECRET", "s3cret")
    assert all("s3cret" not in repr(part) for part in StackLayout.for_home(tmp_path).services())


def test_installation_of_the_last_run_is_used_again(tmp_path):
    elsewhere, home = tmp_path / "shared", tmp_path / "home"
    home.mkdir()
    write_state(home, StackState(label_studio=str(elsewhere)))
    assert StackLayout.for_home(home).label_studio.folder == home / "label-studio"  # it is gone
    elsewhere.mkdir()
    assert StackLayout.for_home(home).label_studio.folder == elsewhere
    assert StackLayout.for_home(home, label_studio=home / "other").label_studio.folder == home / "other"
