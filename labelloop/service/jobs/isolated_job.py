"""Jobs that ended their worker: run once more in a process of their own, with a memory limit."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Claim, Event

if TYPE_CHECKING:
    from labelloop.service.jobs.jobs import Handler

NICENESS = 5
"""Added to the process' niceness: the worker's other jobs go first."""

_TOLD_BYTES = 60_000
"""Most bytes of an outcome: what fits into a pipe that nobody reads yet."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a job that ran alone.

    Attributes:
        kind: `done`; `retry` (it failed, trying again may help); `dead` (trying again would not help); `killed` (it ran
            out of memory, or a signal ended it).
        reason: Why, in words; empty when done.
    """

    kind: Literal["done", "retry", "dead", "killed"]
    reason: str = ""


class _Order(msgspec.Struct, frozen=True):
    topic: str
    subject: str
    events: tuple[Event, ...]
    memory_bytes: int


class AloneRunner:
    """Runs one job at a time in a child process.

    Args:
        command: Starts the child, which calls `answer`; the number of a file descriptor is appended.
        memory_bytes: Most memory of the child.
    """

    def __init__(self, command: Sequence[str], memory_bytes: int) -> None:
        self._command, self._memory_bytes = tuple(command), memory_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, claim: Claim) -> Outcome:
        """Handle a claim's events in a child process and wait for it; the child ends with this process."""
        order = _Order(claim.topic, claim.subject, claim.events, self._memory_bytes)
        told, tell = os.pipe()
        try:
            with self._lock:
                if self._stopped:
                    return Outcome("retry", "the worker was stopped")
                child = self._child = subprocess.Popen(
                    [*self._command, str(tell)], stdin=subprocess.PIPE, pass_fds=[tell], start_new_session=True
                )
            os.close(tell)
            tell = -1
            with child:
                assert child.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit status says how
                    child.stdin.write(msgspec.json.encode(order) + b"\n")
                    child.stdin.flush()  # and left open: its end is how the child notices ours
                code = child.wait()
            os.set_blocking(told, False)
            with contextlib.suppress(BlockingIOError, msgspec.DecodeError):
                return msgspec.json.decode(os.read(told, _TOLD_BYTES), type=Outcome)
        finally:
            self._child = None
            os.close(told)
            if tell >= 0:
                os.close(tell)
        if code < 0:
            return Outcome("killed", f"was ended by signal {-code} ({_name(-code)})")
        return Outcome("retry", f"its process ended with exit status {code}")

    def stop(self) -> None:
        """End the child, if one runs, and start no other."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()


def answer(handlers: Callable[[], Mapping[str, Handler]], descriptor: int) -> None:
    """The child's side: read the job from standard input, handle it, and write the outcome to a descriptor.

    Args:
        handlers: Makes the handlers; called once the memory is limited.
        descriptor: Where the outcome goes.
    """
    os.set_inheritable(descriptor, False)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Order)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    os.nice(NICENESS)
    _offer_to_the_oom_killer()
    _limit_memory(order.memory_bytes)
    outcome = _handled(order, handlers)
    shortened = msgspec.structs.replace(outcome, reason=outcome.reason[:2000])
    os.write(descriptor, msgspec.json.encode(shortened))


def _handled(order: _Order, handlers: Callable[[], Mapping[str, Handler]]) -> Outcome:
    from labelloop.service.jobs.jobs import Reject

    try:
        handlers()[order.topic](order.subject, order.events)
    except Reject as error:
        return Outcome("dead", str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker judges it
        if _lacked_memory(error):
            return Outcome("killed", "ran out of memory")
        return Outcome("retry", str(error) if isinstance(error, LabelloopError) else f"{type(error).__name__}: {error}")
    return Outcome("done")


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit_memory(most: int) -> None:
    """RLIMIT_DATA counts what is written to; RLIMIT_AS, where there is no better, what is reserved as well."""
    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    hard = resource.getrlimit(which)[1]
    with contextlib.suppress(ValueError, OSError):  # a stricter limit stands already
        resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _offer_to_the_oom_killer() -> None:
    """Where the machine runs out of memory first, Linux ends this process and not the worker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_the_worker() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
