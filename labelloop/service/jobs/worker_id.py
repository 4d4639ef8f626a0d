"""Who a worker is: host, process and its start time, so that a survivor can tell whether another has ended."""

import os
import socket
from pathlib import Path

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """A worker process. `host` also tells apart containers that share a host name; `started` outlives a reused pid."""

    host: str
    pid: int
    started: str


def this_worker() -> str:
    """This process, as the text that is stored with its claims."""
    pid = os.getpid()
    return msgspec.json.encode(Identity(_host(), pid, _started(pid) or "")).decode()


def is_dead(worker: str) -> bool:
    """Whether that worker's process is surely gone; False for workers of other hosts, of which we cannot know."""
    try:
        other = msgspec.json.decode(worker, type=Identity)
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
    """The process' start in clock ticks since boot: field 22 of /proc/PID/stat, see proc(5). A zombie has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
