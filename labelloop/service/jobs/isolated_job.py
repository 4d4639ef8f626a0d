"""Run a job that takes long or killed its worker in a separate process with a memory limit."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Claim, Event
from labelloop.service.jobs.jobs import Handler, Reject

# Added to the niceness of the child, so that the worker's other jobs go first.
NICENESS = 10
# Maximum size of an encoded outcome: fits into the pipe buffer before the parent reads.
_MAX_OUTCOME_BYTES = 60_000


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of an isolated job.

    Attributes:
        kind: `done`; `retry` (failed, a retry may help); `dead` (failed, a retry would not help); `exhausted` (out of
            memory or time); `killed` (ended by a signal).
        reason: Why it failed; empty if done.
    """

    kind: Literal["done", "retry", "dead", "exhausted", "killed"]
    reason: str = ""


class _JobRequest(msgspec.Struct, frozen=True):
    topic: str
    subject: str
    events: tuple[Event, ...]
    memory_bytes: int


class IsolatedJobRunner:
    """Run one job at a time in a child process.

    Args:
        command: Command line of the child, which calls `run_child`; the file descriptor number is appended.
        memory_bytes: Memory limit of the child, in bytes.
        time_s: Time limit of the child, in seconds; a child that hangs would keep all later isolated jobs waiting.
    """

    def __init__(self, command: Sequence[str], memory_bytes: int, time_s: float) -> None:
        self._command, self._memory_bytes, self._time_s = tuple(command), memory_bytes, time_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, claim: Claim) -> Outcome:
        """Handle a claim's events in a child process and wait for it; the child exits with this process."""
        request = _JobRequest(claim.topic, claim.subject, claim.events, self._memory_bytes)
        read_end, write_end = os.pipe()
        try:
            with self._lock:
                if self._stopped:
                    return Outcome("retry", "the worker was stopped")
                child = self._child = subprocess.Popen(
                    [*self._command, str(write_end)],
                    stdin=subprocess.PIPE,
                    pass_fds=[write_end],
                    start_new_session=True,
                )
            os.close(write_end)
            write_end = -1
            with child:
                assert child.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # the child has already exited; see its exit status
                    child.stdin.write(msgspec.json.encode(request) + b"\n")
                    child.stdin.flush()  # stays open: the child exits when it closes
                code = self._wait(child)
            os.set_blocking(read_end, False)
            with contextlib.suppress(BlockingIOError, msgspec.DecodeError):
                return msgspec.json.decode(os.read(read_end, _MAX_OUTCOME_BYTES), type=Outcome)
        finally:
            self._child = None
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        if code is None:
            return Outcome("exhausted", f"did not end within {self._time_s:.0f} s (LABELLOOP_JOB_ISOLATED_S)")
        if code < 0:
            return Outcome("killed", f"was ended by signal {-code} ({_signal_name(-code)})")
        return Outcome("retry", f"its process ended with exit status {code}")

    def _wait(self, child: subprocess.Popen[bytes]) -> int | None:
        """Wait for the child to end; None if it was killed because it ran out of time."""
        try:
            return child.wait(self._time_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own: its children end too
            child.wait()
            return None

    def stop(self) -> None:
        """Kill the child, if one runs, and refuse new jobs."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()


def run_child(handler_of: Callable[[str], Handler], descriptor: int) -> None:
    """Child process: read the job from standard input, handle it, and write the outcome to a file descriptor.

    Args:
        handler_of: Creates the handler of a topic; called after the memory limit is set.
        descriptor: File descriptor for the outcome.
    """
    os.set_inheritable(descriptor, False)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=_JobRequest)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.nice(NICENESS)
    prefer_for_oom_kill()
    limit_memory(request.memory_bytes)
    outcome = _handle(request, handler_of)
    shortened = msgspec.structs.replace(outcome, reason=outcome.reason[:2000])
    os.write(descriptor, msgspec.json.encode(shortened))


def _handle(request: _JobRequest, handler_of: Callable[[str], Handler]) -> Outcome:
    try:
        handler_of(request.topic)(request.subject, request.events)
    except Reject as error:
        return Outcome("dead", str(error))
    except Exception as error:  # noqa: BLE001 - the worker decides what to do with it
        if _is_memory_error(error):
            return Outcome("exhausted", "ran out of memory")
        return Outcome("retry", str(error) if isinstance(error, LabelloopError) else f"{type(error).__name__}: {error}")
    return Outcome("done")


def _is_memory_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def limit_memory(limit: int) -> None:
    """Set RLIMIT_DATA (written memory) on Linux, elsewhere RLIMIT_AS (reserved memory)."""
    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    hard = resource.getrlimit(which)[1]
    with contextlib.suppress(ValueError, OSError):  # a stricter limit is set
        resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def prefer_for_oom_kill() -> None:
    """Make the Linux OOM killer choose this process, not the worker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin: its lock, held by this thread, aborts the interpreter at its end
    os._exit(1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
