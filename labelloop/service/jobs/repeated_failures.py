"""Log failures of periodic jobs that repeat: once, then at growing intervals, and their end."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

# Seconds until a failure that goes on is logged again; doubles each time.
FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 3600.0
# Subjects that a line names.
MAX_NAMED = 10

log = structlog.get_logger(__name__)


@dataclass
class _Failure:
    since: float
    due_at: float
    pause_s: float = FIRST_PAUSE_S
    count: int = 0
    projects: set[int] = field(default_factory=set)


class RepeatedFailures:
    """The failures of one periodic job, by reason: one that concerns all projects is logged once. Thread-safe.

    Args:
        event: Name of the log event; `<event>_ended` is logged when no project fails for the reason any more.
        clock: Returns seconds.
    """

    def __init__(self, event: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._event, self._ended, self._clock = event, f"{event}_ended", clock
        self._lock = threading.Lock()
        self._failures: dict[str, _Failure] = {}

    def failed(self, project: int, reason: str) -> None:
        """Count a failure of a project, and log it if it is new or the last line is old enough."""
        with self._lock:
            now = self._clock()
            self._end(project, now, other_than=reason)
            failure = self._failures.setdefault(reason, _Failure(since=now, due_at=now))
            failure.count += 1
            failure.projects.add(project)
            if now < failure.due_at:
                return
            failure.due_at, next_s = now + failure.pause_s, failure.pause_s
            failure.pause_s = min(2 * failure.pause_s, MAX_PAUSE_S)
            log.warning(
                self._event, projects=sorted(failure.projects)[:MAX_NAMED], reason=reason, failures=failure.count,
                seconds=round(now - failure.since), said_again_after_s=round(next_s),
            )  # fmt: skip

    def succeeded(self, project: int) -> None:
        """Log the end of a failure that concerned no other project."""
        with self._lock:
            self._end(project, self._clock())

    def _end(self, project: int, now: float, *, other_than: str = "") -> None:
        for reason, failure in list(self._failures.items()):
            if reason != other_than and project in failure.projects:
                failure.projects.remove(project)
                if not failure.projects:
                    del self._failures[reason]
                    log.info(self._ended, reason=reason, seconds=round(now - failure.since))
