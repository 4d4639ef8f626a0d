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
