"""TCP ports: find a free one, check one, and name the program that uses it."""

import socket
from pathlib import Path

from labelloop.stack.errors import StackError


def free_port() -> int:
    """A TCP port of the loopback address that is free at the time of the call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(port: int, name: str, *, option: str) -> None:
    """Check that no program listens on a port, on any address of this machine.

    Args:
        port: The port.
        name: The part that needs it, for the message.
        option: The option that selects another port, for the message.

    Raises:
        StackError: The port is in use; the message names the program if the system reveals it.
    """
    if _listens(port) or not _bindable(port):
        program = port_owner(port)
        raise StackError(
            f"Port {port}, which {name} needs, is in use{f' by {program}' if program else ''}.",
            fix=f"Stop that program, or choose another port: labelloop up {option} {free_port()}.",
            code="port_taken",
        )


def port_owner(port: int) -> str:
    """The program that listens on a port, e.g. "python -m http.server 8080 (process 4711)"; "" if unknown."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"{words[:80]} (process {process.name})"
        except OSError:  # another user's process, or one that has just exited
            continue
    return ""


def _listening_inodes(port: int) -> list[str]:
    inodes = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            # proc(5): local_address is hex "ADDRESS:PORT", state 0A is LISTEN, the tenth column the inode
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.append(columns[9])
    return inodes


def _listens(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(1)
                if probe.connect_ex((host, port)) == 0:
                    return True
        except OSError:  # no IPv6 on this machine
            continue
    return False


def _bindable(port: int) -> bool:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
