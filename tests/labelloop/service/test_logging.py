"""What a log line shows and what it never shows."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import structlog

from labelloop.service.logging import redact, setup_logging
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioUnreachable

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"
SIGNED = "https://b.s3.amazonaws.com/a%20b.jpg?X-Amz-Credential=AKIA&X-Amz-Date=1&X-Amz-Signature=deadbeef"


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def lines(capsys, tmp_path):
    """lines(**settings) turns logging on and returns a function that reads what was logged, one dict a line."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)

    def start(**values):
        setup_logging(Settings(home=tmp_path, log_format="json", **values))
        return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield start
    root.handlers[:], root.level = before
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Authorization: Token 0123456789abcdef", "Authorization: Token ********"),
        ("Bearer abcdefgh.ijk", "Bearer ********"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ********"),
        (f"key {JWT} refused", "key ******** refused"),
        ("postgresql://u:pw@h/d is away", "postgresql://u:********@h/d is away"),
        ("redis://:pw@h/0", "redis://:********@h/0"),
        (
            SIGNED,
            "https://b.s3.amazonaws.com/a%20b.jpg?X-Amz-Credential=********&X-Amz-Date=1&X-Amz-Signature=********",
        ),
        ("https://h/a?token=abc&x=1", "https://h/a?token=********&x=1"),
        ("{'password': 'hunter2', 'user': 'me'}", "{'password': '********', 'user': 'me'}"),
        ("api_key=hunter2", "api_key=********"),
        # What is no secret stays: a log that hides too much is of no use.
        ("task 7 has 3 annotations", "task 7 has 3 annotations"),
        ("http://localhost:8080/projects/1", "http://localhost:8080/projects/1"),
        ("the token is missing", "the token is missing"),
        ("basic auth is off", "basic auth is off"),
    ],
)
def test_redact(text, redacted):
    assert redact(text) == redacted


def test_given_secrets_are_hidden_wherever_they_stand():
    assert redact("GET /hook/s3cr3t?x", ["s3cr3t"]) == "GET /hook/********?x"


def test_secrets_of_the_settings_appear_in_no_line(lines, tmp_path):
    secrets = ("api-key-1", "hook-secret-2", "s3-secret-3", "db-password-4", "basic-pw-5")
    read = lines(
        label_studio_api_key=secrets[0], webhook_secret=secrets[1], s3_access_key_id="AK", basic_auth_user="u",
        basic_auth_password=secrets[4], s3_secret_access_key=secrets[2],
        database_url=f"postgresql://u:{secrets[3]}@h/d",
    )  # fmt: skip
    log = structlog.get_logger("test")
    for secret in secrets:
        nested = {"deep": [secret, {"more": secret}]}
        log.info("event %s", secret, value=secret, nested=nested, error=ValueError(secret))
        logging.getLogger("library").warning("with %s", secret, extra={"more": secret})
        try:
            fail(RuntimeError(secret))
        except RuntimeError:
            log.exception("failed")
            logging.getLogger("library").exception("failed")
    text = json.dumps(read())
    assert text.count("********") >= 5 * len(secrets)
    for secret in secrets:
        assert secret not in text


def test_values_under_telling_names_are_hidden(lines):
    read = lines()
    headers = {"Authorization": "whatever", "X-Labelloop-Secret": "short", "Accept": "*/*", "Cookie": "sessionid=1"}
    structlog.get_logger().info("request", headers=headers, api_key="k", password="")
    (line,) = read()
    assert line["headers"] == {
        "Authorization": "********", "X-Labelloop-Secret": "********", "Accept": "*/*", "Cookie": "********",
    }  # fmt: skip
    assert line["api_key"] == "********"
    assert line["password"] == ""


def test_lines_carry_level_time_logger_and_bound_context(lines):
    read = lines()
    with structlog.contextvars.bound_contextvars(task=7):
        structlog.get_logger("ours").info("scored", seconds=0.5, boxes=(1, 2), none=None)
        logging.getLogger("library_event").warning("careful: %d", 3)
    our_event, library_event = read()
    assert (our_event["event"], our_event["level"], our_event["logger"], our_event["task"]) == (
        "scored",
        "info",
        "ours",
        7,
    )
    assert (our_event["seconds"], our_event["boxes"], our_event["none"]) == (0.5, [1, 2], None)
    assert (library_event["event"], library_event["level"], library_event["task"]) == ("careful: 3", "warning", 7)
    assert our_event["timestamp"].endswith("Z")


def test_the_level_holds_for_ours_and_theirs(lines):
    read = lines(log_level="warning")
    structlog.get_logger().info("no")
    logging.getLogger("library").info("no")
    structlog.get_logger().warning("yes")
    assert [line["event"] for line in read()] == ["yes"]


def test_a_traceback_is_logged_with_the_line_that_raised(lines):
    read = lines()
    try:
        fail(KeyError("there"))
    except KeyError:
        structlog.get_logger().exception("failed", task=1)
    (line,) = read()
    assert "KeyError: 'there'" in line["exception"]
    assert 'fail(KeyError("there"))' in line["exception"]


def test_console_lines_are_for_people(capsys, lines, tmp_path):
    lines()
    setup_logging(Settings(home=tmp_path))
    structlog.get_logger("x").warning("slow", seconds=3)
    text = capsys.readouterr().err
    assert "slow" in text
    assert "seconds" in text
    assert not text.startswith("{")


def test_lazy_logging_starts_at_the_first_record_and_redacts_it(tmp_path):
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from labelloop.service.logging import setup_lazy_logging; from labelloop.service.settings import Settings\n"
        f"setup_lazy_logging(Settings(home=Path({str(tmp_path)!r}), webhook_secret='hunter-2'))\n"
        "logging.getLogger('a').debug('too low'); assert 'structlog' not in sys.modules\n"
        "logging.getLogger('botocore').info('chatty')\n"
        "for n in (1, 2): logging.getLogger('labelloop.x').info('it is hunter-2', extra={'line': n})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stderr.splitlines()
    assert "it is ********" in first
    assert "line=1" in first
    assert "line=2" in second
    assert "labelloop.x" in second


def test_a_retry_says_why_and_when(lines):
    read = lines()
    with pytest.raises(StudioUnreachable):
        Studio("http://127.0.0.1:1", "0123456789abcdef0123456789abcdef01234567").me()
    events = read()
    assert [line["attempt"] for line in events] == [2, 3, 4]
    assert {line["event"] for line in events} == {"trying_again"}
    assert all("Label Studio does not answer at http://127.0.0.1:1" in line["reason"] for line in events)
