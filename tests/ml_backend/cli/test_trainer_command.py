"""Options of `labelloop trainer` that cannot be used; no message has a secret."""

import pytest

from labelloop.service.errors import SettingsError
from ml_backend.cli.trainer import trainer

URL = "http://labels.example.org:9090"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    monkeypatch.delenv("LABELLOOP_TRAINER_TOKEN", raising=False)


@pytest.mark.parametrize(
    "url", ["htps://me:secret@host", "https://me:secret@[host", "https://me:secret@host:x", "labels.example.org", ""]
)
def test_addresses_that_are_none_are_refused_without_their_password(url):
    with pytest.raises(SettingsError, match="--url is not the address") as refused:
        trainer(url=url, token="a-token-of-the-tests")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("token", ["secret-t\u00f6ken", "secret\ntoken-of-tests", "secret\x7f"])
def test_tokens_that_no_header_takes_are_refused(token):
    with pytest.raises(SettingsError, match="cannot be sent in a header") as refused:
        trainer(url=URL, token=token)
    assert "secret" not in str(refused.value)


def test_without_a_token_the_fix_names_the_variable():
    with pytest.raises(SettingsError, match="LABELLOOP_TRAINER_TOKEN"):
        trainer(url=URL, token=" ")


def test_secrets_on_the_command_line_are_warned_of_without_naming_them(capsys, monkeypatch):
    monkeypatch.setattr("ml_backend.cli.trainer.require_torch", lambda: (_ for _ in ()).throw(SystemExit(1)))
    with pytest.raises(SystemExit):
        trainer(url="http://me:secret-password@labels.example.org", token="secret-token-of-tests")
    said = capsys.readouterr().err
    assert "--url. Set LABELLOOP_BASIC_AUTH_USER" in said
    assert "--token. Set LABELLOOP_TRAINER_TOKEN" in said
    assert "secret-" not in said
    monkeypatch.setenv("LABELLOOP_TRAINER_TOKEN", "a-token-of-the-tests")
    with pytest.raises(SystemExit):
        trainer(url=URL)
    assert not capsys.readouterr().err
