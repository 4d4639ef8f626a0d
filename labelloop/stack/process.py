"""Child processes: each in its own process group, with a log file and a record that a later run can find it by."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

# Folder in the home folder with a record of each running part.
RECORDS = "run"
POLL_S = 0.1
TAIL_BYTES = 100_000
STARTING_S = 300.0


@dataclass(frozen=True)
class ServiceSpec:
    """How to start one part of the stack.

    Attributes:
        name: Display name, e.g. "ML backend".
        key: Base name of its files, e.g. "ml-backend".
        command: The program and its arguments.
        env: The complete environment.
        log: File that standard output and error are appended to.
        url: The address it serves; "" if none.
        health: The address that answers 2xx once the part works; "" if none.
        failure_marker: Text in the log that means that the part runs with wrong settings; "" if none.
    """

    name: str
    key: str
    command: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    url: str = ""
    health: str = ""
    failure_marker: str = ""


class Child:
    """A running part. `stop` kills its whole process group, including grandchildren."""

    def __init__(self, part: ServiceSpec, records: Path) -> None:
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
        """The process id, which is also the process group id."""
        return self._process.pid

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._born_at

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal number), None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send SIGTERM to the group leader; programs forward it to their workers."""
        if self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Send SIGTERM, wait up to `grace_s` seconds, then SIGKILL the process group."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        kill_group(self.pid)
        self._process.wait()
        self._record.unlink(missing_ok=True)

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines of this run's log."""
        return self._output().splitlines()[-lines:]

    def logged_failure(self) -> bool:
        """Whether this run's log has the part's `failure_marker`, which is written during the start only."""
        return (
            bool(self.part.failure_marker) and self.uptime_s < STARTING_S and self.part.failure_marker in self._output()
        )

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


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def stop_orphans(records: Path, *, grace_s: float = 5.0) -> list[str]:
    """Stop parts that a killed supervisor left running. The caller holds the lock of the home folder.

    A record counts only if the process has the recorded start time, so that a reused process id is never signalled.

    Returns:
        The names of the parts that were still running.
    """
    all_records = [_read_record(path) for path in sorted(records.glob("*.json"))]
    orphans = [record for record in all_records if record is not None and record.alive]
    for record in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(record.alive for record in orphans) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for record in orphans:
        if _born(record.pid) in {"", record.born}:  # otherwise its group has ended, and another process has the id
            kill_group(record.pid)
    for path in records.glob("*.json"):
        path.unlink(missing_ok=True)
    return [record.name for record in orphans]


def _read_record(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except msgspec.DecodeError:  # truncated by the kill
        return None


def _born(pid: int) -> str:
    """The start time of a process, which distinguishes reused process ids; "" if it does not run or is a zombie."""
    try:
        # proc(5): the name in parentheses may hold spaces; state follows it, start time in ticks is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    else:
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"
    listing = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, born = listing.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else born.strip()
