"""A child process in a process group of its own, with a log file and a record by which a later run can find it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

POLL_S = 0.1
TAIL_BYTES = 100_000
STARTING_S = 300.0


@dataclass(frozen=True)
class Part:
    """One program of the stack: how it is started and where it writes.

    Attributes:
        name: What users read, e.g. "ML backend".
        key: What files are named after, e.g. "ml-backend".
        command: The program and its arguments.
        env: Its whole environment.
        log: Its standard output and error, appended.
        url: Where it answers, "" when it serves nothing.
        health: The address that answers 2xx once the part works, "" when there is none.
        bad_sign: Words in its log that mean that it runs but not as it was told to, "" when there are none.
    """

    name: str
    key: str
    command: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    url: str = ""
    health: str = ""
    bad_sign: str = ""


class Child:
    """A running part. `stop` ends its whole process group, so that no grandchild outlives it."""

    def __init__(self, part: Part, records: Path) -> None:
        self.part = part
        part.log.parent.mkdir(parents=True, exist_ok=True)
        records.mkdir(parents=True, exist_ok=True)
        with part.log.open("ab") as log:
            log.write(f"\n---- {time.strftime('%Y-%m-%d %H:%M:%S')} starting {part.name}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                list(part.command),
                env=dict(part.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._born_at = time.monotonic()
        self._record = records / f"{part.key}.json"
        self._record.write_bytes(msgspec.json.encode(_Record(part.name, self.pid, _born(self.pid))))

    @property
    def pid(self) -> int:
        """The process id, which is the process group's too."""
        return self._process.pid

    @property
    def lived_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._born_at

    def ended(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send the polite signal to the group's first process; programs pass it on to their workers themselves."""
        if self.ended() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def stop(self, *, grace_s: float = 10.0) -> None:
        """End the part: politely, then by force whatever of its group is left."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        end_group(self.pid)
        self._process.wait()
        self._record.unlink(missing_ok=True)

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines that this run wrote to its log."""
        return self._output().splitlines()[-lines:]

    def shows_bad_sign(self) -> bool:
        """Whether this run's log has the part's `bad_sign`, which is written while it starts or not at all."""
        return bool(self.part.bad_sign) and self.lived_s < STARTING_S and self.part.bad_sign in self._output()

    def _output(self) -> str:
        with self.part.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")


class _Record(msgspec.Struct, frozen=True):
    name: str
    pid: int
    born: str

    @property
    def alive(self) -> bool:
        return bool(self.born) and _born(self.pid) == self.born


def end_group(pid: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_leftovers(records: Path, *, grace_s: float = 5.0) -> list[str]:
    """End parts that a killed supervisor could not end.

    A record is believed only while the process still has the start time that was noted, so that a number used again
    by another program is never touched.

    Returns:
        The names of the parts that were still running.
    """
    found = [_read_record(path) for path in sorted(records.glob("*.json"))]
    left = [record for record in found if record is not None and record.alive]
    for record in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGTERM)
    until = time.monotonic() + grace_s
    while any(record.alive for record in left) and time.monotonic() < until:
        time.sleep(POLL_S)
    for record in left:
        end_group(record.pid)
    for path in records.glob("*.json"):
        path.unlink(missing_ok=True)
    return [record.name for record in left]


def _read_record(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except msgspec.DecodeError:  # cut short by the kill
        return None


def _born(pid: int) -> str:
    """When a process started, to tell it from a later one of the same number; "" when there is none but its zombie."""
    try:
        # proc(5): the name in parentheses may hold spaces; state follows it, start time in ticks is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    else:
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, born = shown.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else born.strip()
