"""Where settings come from, what they refuse, and what they never show."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from labelloop.service.errors import SettingsError
from labelloop.service.settings import Settings, describe_settings, hide_password, settings_file, unknown_settings


def test_everything_lives_in_the_home_folder_by_default(tmp_path):
    settings = Settings(home=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/labelloop.sqlite3"
    assert settings.queue_url == f"sqlite:///{tmp_path}/queue.sqlite3"
    assert settings.store_url == f"file://{tmp_path}/store"


def test_a_relative_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings(home="state").home == tmp_path / "state"
    assert Settings().home == tmp_path / ".labelloop"


def test_keyword_beats_environment_beats_file_beats_default(monkeypatch, tmp_path):
    settings_file(tmp_path).write_text("LABELLOOP_LOG_FORMAT=json\nLABELLOOP_WEB_WORKERS=5\nLABELLOOP_WEB_THREADS=6\n")
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("LABELLOOP_WEB_WORKERS", "7")
    settings = Settings(web_threads=8)
    assert settings.home == tmp_path
    assert (settings.log_format, settings.web_workers, settings.web_threads, settings.log_level) == (
        "json",
        7,
        8,
        "INFO",
    )


def test_the_file_of_a_home_given_by_keyword_is_read(tmp_path):
    settings_file(tmp_path).write_text("LABELLOOP_LABEL_STUDIO_API_KEY='abc def'\n")
    assert Settings(home=tmp_path).label_studio_api_key.get_secret_value() == "abc def"


def test_an_empty_variable_is_no_value(monkeypatch, tmp_path):
    monkeypatch.setenv("LABELLOOP_DATABASE_URL", "")
    monkeypatch.setenv("LABELLOOP_WEB_WORKERS", "")
    settings = Settings(home=tmp_path)
    assert settings.database_url.startswith("sqlite:///")
    assert settings.web_workers == 2


@pytest.mark.parametrize(
    ("value", "used"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_postgres_urls_of_every_spelling_use_the_driver_we_ship(value, used):
    assert Settings(database_url=value).database_url == used


def test_a_queue_on_postgres_is_a_plain_url():
    assert Settings(queue_url="postgresql+psycopg://u:p@h/d").queue_url == "postgresql://u:p@h/d"


def test_hosts_are_split_at_commas(monkeypatch):
    monkeypatch.setenv("LABELLOOP_MEDIA_HOSTS", "nas.local, 10.0.0.7 ,")
    assert Settings().media_hosts == ("nas.local", "10.0.0.7")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LABELLOOP_SCORE_THRESHOLD", "1.5", "expected a number, at least 0, at most 1"),
        ("LABELLOOP_WEB_WORKERS", "many", "expected a whole number, at least 1"),
        ("LABELLOOP_LOG_FORMAT", "xml", "'console' or 'json'"),
        ("LABELLOOP_DATABASE_URL", "mysql://u:hunter2@h/d", "expected sqlite:///path or postgresql://..."),
        ("LABELLOOP_QUEUE_URL", "amqp://h", "expected sqlite:///path, redis://... or postgresql://..."),
        ("LABELLOOP_STORE_URL", "/some/folder", "expected file:///path, s3://bucket/prefix, gs://"),
        ("LABELLOOP_LABEL_STUDIO_URL", "localhost:8080", "expected a URL such as http://host:port"),
        ("LABELLOOP_MEDIA_TIMEOUT_S", "0", "expected a number, above 0"),
    ],
)
def test_an_invalid_value_is_refused_with_its_variable_name(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        Settings()
    assert f"{name}: " in str(error.value)
    assert message in str(error.value)
    assert "settings.env" in error.value.fix
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"basic_auth_user": "me"}, "LABELLOOP_BASIC_AUTH_PASSWORD"),
        ({"basic_auth_password": "pw"}, "LABELLOOP_BASIC_AUTH_USER"),
        ({"s3_access_key_id": "AK"}, "LABELLOOP_S3_SECRET_ACCESS_KEY"),
    ],
)
def test_an_incomplete_pair_is_refused(values, missing):
    with pytest.raises(SettingsError, match=f"{missing} is empty"):
        Settings(**values)


def test_a_refusal_does_not_carry_the_value_along():
    with pytest.raises(SettingsError) as error:
        Settings(webhook_secret=["hunter2"])
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_settings_cannot_be_changed(settings):
    with pytest.raises(FrozenInstanceError):
        settings.web_workers = 9


def test_no_secret_in_the_repr(tmp_path):
    secrets = {"label_studio_api_key": "token-1", "webhook_secret": "hook-2", "s3_secret_access_key": "s3-3"}
    settings = Settings(
        home=tmp_path, **secrets, s3_access_key_id="AK", basic_auth_user="u", basic_auth_password="basic-4",
        database_url="postgresql://u:database-5@h/d", queue_url="redis://:redis-6@h/0",
    )  # fmt: skip
    for text in (repr(settings), str(settings), f"{settings}"):
        for secret in (*secrets.values(), "basic-4", "database-5", "redis-6"):
            assert secret not in text
    assert "postgresql+psycopg://u:********@h/d" in repr(settings)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:pw@h:1/0", "redis://:********@h:1/0"),
        ("postgresql://u:p%40w@h/d?x=1", "postgresql://u:********@h/d?x=1"),
        ("sqlite:////a", "sqlite:////a"),
        ("http://h/p", "http://h/p"),
    ],
)
def test_hide_password(url, masked):
    assert hide_password(url) == masked


def test_every_setting_has_a_name_a_default_and_a_help():
    table = {name: (default, help_) for name, default, help_ in describe_settings()}
    assert table["LABELLOOP_DATABASE_URL"][0] == "sqlite:///<home>/labelloop.sqlite3"
    assert table["LABELLOOP_LABEL_STUDIO_API_KEY"][0] == ""
    assert table["LABELLOOP_WEB_WORKERS"][0] == "2"
    assert len(table) == len(Settings.names())
    for name, (_default, help_) in table.items():
        assert help_.endswith("."), name


def test_misspelled_variables_are_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("LABELLOOP_WEBHOOK_SECERT", "x")
    monkeypatch.setenv("LABELLOOP_WEB_WORKERS", "2")
    settings_file(tmp_path).write_text("# a comment = no\nLABELLOOP_MODLE=/m.onnx\nOTHER=1\n")
    assert unknown_settings(tmp_path) == ["LABELLOOP_MODLE", "LABELLOOP_WEBHOOK_SECERT"]
    assert unknown_settings(Path("/nowhere")) == ["LABELLOOP_WEBHOOK_SECERT"]


def test_an_option_that_does_not_exist_is_refused(settings):
    with pytest.raises(TypeError, match="no such settings: web_wrokers"):
        Settings(web_wrokers=2)
    with pytest.raises(TypeError, match="no such settings: web_wrokers"):
        settings.replace(web_wrokers=2)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Yes", True), ("1", True), ("off", False), ("0", False)])
def test_every_spelling_of_true_and_false(monkeypatch, text, value):
    monkeypatch.setenv("LABELLOOP_MEDIA_ALLOW_PRIVATE_HOSTS", text)
    assert Settings().media_allow_private_hosts is value


def test_all_errors_are_reported_at_once(monkeypatch):
    monkeypatch.setenv("LABELLOOP_WEB_WORKERS", "0")
    monkeypatch.setenv("LABELLOOP_MEDIA_ALLOW_PRIVATE_HOSTS", "perhaps")
    with pytest.raises(
        SettingsError,
        match=r"WEB_WORKERS: expected a whole number.*HOSTS: expected true or false|"
        r"HOSTS: expected true or false.*WEB_WORKERS: expected a whole number",
    ):
        Settings()
