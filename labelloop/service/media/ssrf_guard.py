"""Protection against server-side request forgery: images come from public addresses or trusted hosts only.

Users write the data of tasks. Without this check a task with the image `http://169.254.169.254/...` or
`http://localhost:6379/` would make labelloop read data that only its own machine may access. The checked IP address is
the one that is connected to, so DNS rebinding has no effect.
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
    """All addresses of the host are private or reserved."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(f"{host} is {address}, an address of a private or reserved network")
        self.host = host
        self.address = address


def is_public(address: str) -> bool:
    """Whether an IP address is public; an IPv4 address embedded in an IPv6 address is checked itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Deadlines(threading.local):
    """The deadline of the download in this thread, by `time.monotonic`."""

    at: float | None = None


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes end by the deadline, so that a slow host cannot block for hours."""

    def __init__(self, stream: httpcore.NetworkStream, deadlines: _Deadlines) -> None:
        self._stream = stream
        self._deadlines = deadlines

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining(self._deadlines, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _remaining(self._deadlines, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        remaining = _remaining(self._deadlines, timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, remaining), self._deadlines)

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
        remaining = _remaining(self._deadlines, timeout, httpcore.ConnectTimeout)
        failure: Exception | None = None
        for address in self._addresses(host, port):
            try:
                stream = self._tcp.connect_tcp(address, port, remaining, local_address, socket_options)
                return _Stream(stream, self._deadlines)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"host {host} cannot be resolved ({error})") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        if self._allow_private or host.lower() in self._trusted or f"{host.lower()}:{port}" in self._trusted:
            return addresses
        public = [address for address in addresses if is_public(address)]
        if addresses and not public:
            raise AddressForbidden(host, addresses[0])
        return public

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise httpcore.UnsupportedProtocol("Unix sockets are not supported")


class GuardedTransport(httpx.HTTPTransport):
    """An httpx transport that connects to public addresses only.

    It ignores proxies of the environment, since a proxy would resolve the name again.

    Args:
        trusted: Hosts (`name`) and servers (`name:port`) that may be private.
        allow_private: Disable the check.
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
        """Set the deadline of every connect, read and write of this thread (`time.monotonic`)."""
        self._deadlines.at = at


def _remaining(deadlines: _Deadlines, timeout: float | None, error: type[Exception]) -> float | None:
    if deadlines.at is None:
        return timeout
    remaining = deadlines.at - time.monotonic()
    if remaining <= 0:
        raise error("the deadline has passed")
    return remaining if timeout is None else min(timeout, remaining)
