"""A new webhook secret: both are accepted until every project uses the new one."""

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError, LabelloopError, SettingsError
from labelloop.service.settings import Settings
from labelloop.service.web.webhook_secret import WebhookSecrets
from labelloop.stack import rotate as rotation
from labelloop.stack.environment import read_env, write_env
from labelloop.stack.rotate import PREVIOUS, SECRET, rotate
from qc_webhooks.store.projects import ProjectStore


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a secret and two connected projects."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("LABELLOOP_HOME", str(home))
    write_env(home, {SECRET: "first-secret", "LABELLOOP_LABEL_STUDIO_API_KEY": "token"})
    for project in (1, 2):
        ProjectStore(open_database(Settings())).add(project)
    return home


@pytest.fixture
def connected(monkeypatch):
    """Project -> the secret of its webhooks; projects in `down` cannot be connected."""
    carried, down = {}, set()

    def connect(project, settings, **_):
        if project in down:
            raise LabelloopError("Label Studio does not answer.")
        carried[project] = settings.webhook_secret.get_secret_value()

    monkeypatch.setattr(rotation, "connect", connect)
    return carried, down


def test_a_rotation_loses_no_event_and_ends_the_old_secret(home, connected, capsys):
    carried, _ = connected
    secrets = WebhookSecrets(Settings())  # a service that runs meanwhile
    assert rotate() == 0
    new = read_env(home)[SECRET]
    assert new != "first-secret"
    assert carried == {1: new, 2: new}
    assert secrets.accepted() == (new.encode(), b"first-secret")
    assert rotate(finish=True) == 0
    assert secrets.accepted() == (new.encode(),)
    assert new not in capsys.readouterr().out
    assert rotate(finish=True) == 0
    assert read_env(home)[SECRET] == new


def test_a_project_that_cannot_be_reached_keeps_the_old_secret_valid(home, connected, capsys):
    carried, down = connected
    down.add(2)
    assert rotate() == 1
    assert "Projects 2 still use" in capsys.readouterr().out
    new = read_env(home)[SECRET]
    assert rotate(finish=True) == 1
    assert read_env(home)[PREVIOUS] == "first-secret"
    down.clear()
    assert rotate() == 0
    assert (read_env(home)[SECRET], carried[2]) == (new, new), "no third secret is created"


def test_a_home_without_a_database_is_not_given_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    with pytest.raises(DatabaseError, match="no service has run with this home folder"):
        rotate()
    assert not list(tmp_path.iterdir())


def test_a_rotation_without_projects_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    write_env(tmp_path, {SECRET: "first-secret", "LABELLOOP_LABEL_STUDIO_API_KEY": "token"})
    open_database(Settings()).dispose()
    assert rotate() == 0
    assert "No project is connected." in capsys.readouterr().out


def test_a_secret_of_the_environment_is_not_rotated(home, connected, monkeypatch):
    monkeypatch.setenv(SECRET, "from-the-environment")
    with pytest.raises(SettingsError, match=PREVIOUS):
        rotate()
    assert read_env(home)[SECRET] == "first-secret"
