"""Failures that repeat are said once, then at growing intervals; their end is said, too."""

from __future__ import annotations

from structlog.testing import capture_logs

from labelloop.service.jobs.repeated_failures import RepeatedFailures


def test_an_outage_of_a_night_is_a_few_lines_and_its_end_one():
    now = [0.0]
    failures = RepeatedFailures("poll_failed", clock=lambda: now[0])
    with capture_logs() as lines:
        while now[0] < 8 * 3600:
            for project in range(50):
                failures.failed(project, "Label Studio does not answer")
            now[0] += 15
        for project in range(50):
            failures.succeeded(project)
        failures.succeeded(3)
    warnings, ends = lines[:-1], lines[-1]
    assert [line["seconds"] for line in warnings[:5]] == [0, 60, 180, 420, 900]
    assert len(warnings) < 16
    assert warnings[1]["failures"] == 4 * 50 + 1
    assert warnings[1]["projects"] == list(range(10)), "a line names ten at most"
    assert (ends["event"], ends["log_level"], ends["seconds"]) == ("poll_failed_ended", "info", 8 * 3600)


def test_another_reason_is_said_at_once_and_ends_the_one_before():
    failures = RepeatedFailures("poll_failed")
    with capture_logs() as lines:
        for reason in ("refused", "refused", "unauthorized", "unauthorized"):
            failures.failed(7, reason)
        failures.failed(8, "no such project")
        failures.succeeded(8)
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("poll_failed", "refused"), ("poll_failed_ended", "refused"), ("poll_failed", "unauthorized"),
        ("poll_failed", "no such project"), ("poll_failed_ended", "no such project"),
    ]  # fmt: skip
