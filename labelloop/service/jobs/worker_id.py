"""Identify a worker by host, process id and start time, so that other workers can detect that it is dead."""

import os
import socket
from pathlib import Path

import msgspec


class WorkerIdentity(msgspec.Struct, frozen=True):
    """A worker process. `host` includes the PID namespace (containers); `started` guards against reused PIDs."""

    host: str
    pid: int
    started: str


def current_worker() -> str:
    """The identity of this process as JSON, as stored with its claims."""
    pid = os.getpid()
    return msgspec.json.encode(WorkerIdentity(_host(), pid, _started(pid) or "")).decode()


def is_dead(worker: str) -> bool:
    """Whether the worker's process has certainly ended; False for workers of other hosts."""
    try:
        other = msgspec.json.decode(worker, type=WorkerIdentity)
    except msgspec.DecodeError:
        return False
    if other.host != _host():
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(other.pid)
    return started is not None and bool(other.started) and started != other.started


def _host() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _started(pid: int) -> str | None:
    """The process start in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); "ended" for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
