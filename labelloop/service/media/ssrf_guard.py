"""Which network addresses images may come from: the address that is checked is the one connected to.

A task's data is written by users. Without this rule a task whose image is `http://169.254.169.254/...` or
`http://localhost:6379/` would make labelloop read what only its own machine may.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any

import httpcore
import httpx

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressForbidden(Exception):
    """The host's only addresses are private or reserved."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(f"{host} is {address}, an address of a private or reserved network")
        self.host = host
        self.address = address


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public Internet, also when it is an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Deadlines(threading.local):
    """When the fetch that runs in this thread must be over, by `time.monotonic`."""

    at: float | None = None


class _Stream(httpcore.NetworkStream):
    """A connection whose every read ends by the fetch's deadline, so that a host cannot drip bytes for hours."""

    def __init__(self, stream: httpcore.NetworkStream, deadlines: _Deadlines) -> None:
        self._stream = stream
        self._deadlines = deadlines

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadlines, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadlines, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._deadlines, timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadlines)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, trusted: Collection[str], deadlines: _Deadlines, *, allow_private: bool) -> None:
        self._trusted = trusted
        self._deadlines = deadlines
        self._allow_private = allow_private
        self._tcp = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadlines, timeout, httpcore.ConnectTimeout)
        failure: Exception | None = None
        for address in self._addresses(host, port):
            try:
                stream = self._tcp.connect_tcp(address, port, left, local_address, socket_options)
                return _Stream(stream, self._deadlines)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"host {host} is not known ({error})") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if self._allow_private or host.lower() in self._trusted or f"{host.lower()}:{port}" in self._trusted:
            return addresses
        public = [address for address in addresses if is_public(address)]
        if addresses and not public:
            raise AddressForbidden(host, addresses[0])
        return public

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise httpcore.UnsupportedProtocol("no sockets of this machine")


class GuardedTransport(httpx.HTTPTransport):
    """An httpx transport that connects to public addresses alone, to the very address that was checked.

    It uses no proxy of the environment: a proxy would look the name up again, elsewhere.

    Args:
        trusted: Hosts (`name`) and servers (`name:port`) that may be private all the same.
        allow_private: Check nothing.
    """

    def __init__(self, trusted: Collection[str], *, allow_private: bool) -> None:
        context = httpx.create_ssl_context()
        super().__init__(verify=context)
        self._deadlines = _Deadlines()
        self._pool.close()
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Backend(trusted, self._deadlines, allow_private=allow_private),
        )

    def end_by(self, at: float) -> None:
        """Every connect, read and write of this thread ends by then (`time.monotonic`)."""
        self._deadlines.at = at


def _left(deadlines: _Deadlines, timeout: float | None, late: type[Exception]) -> float | None:
    if deadlines.at is None:
        return timeout
    left = deadlines.at - time.monotonic()
    if left <= 0:
        raise late("the deadline has passed")
    return left if timeout is None else min(timeout, left)
