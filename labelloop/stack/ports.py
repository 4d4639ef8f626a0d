"""Ports: whether one is free, and who has it when it is not."""

import socket
from pathlib import Path

from labelloop.stack.errors import PortTaken


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(port: int, name: str, *, option: str) -> None:
    """Refuse a port on which something listens, on any of this machine's addresses.

    Args:
        port: The port.
        name: Which part wants it.
        option: The option that moves the part elsewhere.

    Raises:
        PortTaken: Names the program that has it, where the system tells.
    """
    if _listens(port) or not _bindable(port):
        who = owner(port)
        raise PortTaken(
            f"Port {port}, which {name} needs, is taken{f' by {who}' if who else ''}.",
            fix=f"Stop that program, or choose another port: labelloop up {option} {free_port()}.",
        )


def owner(port: int) -> str:
    """The program that listens on a port, e.g. "python -m http.server 8080 (process 4711)"; "" when not to be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"{words[:80]} (process {process.name})"
        except OSError:  # another user's process, or one that has just ended
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
        except OSError:  # no IPv6 here
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
