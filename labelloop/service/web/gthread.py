"""`BufferingWorker`: gunicorn's threaded worker, whose threads handle a request only after it has arrived.

A client that sends an incomplete or slow request occupies a slot in the worker's poller, never a thread, and is
disconnected after `RECEIVE_TIMEOUT_S`. The same holds for a client that does not close its side after the response.
Bodies larger than `BUFFER_BYTES` are read by the thread, within the time limit of `request_body`.
"""

import re
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from labelloop.service.web.request_body import BUFFER_BYTES, RECEIVE_TIMEOUT_S

# Time for a client to close its side after the last response, as in gunicorn.
LINGER_TIMEOUT_S = 2.0
# Time to discard an unread body; a body that takes longer closes the connection.
DRAIN_TIMEOUT_S = 0.05

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-f]{1,12})[ \t]*(?=[;\r])", re.IGNORECASE)
_CONTINUE_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def missing_bytes(data: bytes) -> int:
    """Minimum number of bytes that must still arrive before a thread can read the request without waiting.

    Args:
        data: The bytes received so far, at most `BUFFER_BYTES`.

    Returns:
        0 if the request, or its first `BUFFER_BYTES`, is complete.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return 1
    head += b"\r\n"
    room = BUFFER_BYTES - len(head) - len(end)
    if _CHUNKED.search(head):
        return max(0, min(_missing_chunk_bytes(body), room - len(body)))
    length = _LENGTH.search(head)
    return max(0, min(int(length[1]), room) - len(body)) if length else 0


def _missing_chunk_bytes(body: bytes) -> int:
    """As `missing_bytes`, for a chunked body (RFC 9112, section 7.1); 0 also if it is malformed."""
    position = 0
    while (end := body.find(b"\r\n", position)) >= 0:
        size = _CHUNK.match(body, position)
        if size is None:
            return 0
        if int(size[1], 16) == 0:  # trailers, then an empty line
            return 0 if b"\r\n\r\n" in body[end:] else 1
        position = end + 2 + int(size[1], 16) + 2
        if position > len(body):
            return position - len(body)
    return 1


class BufferingWorker(ThreadWorker):
    """Buffers requests in the poller. Everything except `_keepalive_after` runs in the worker's main thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving: dict[Any, float] = {}
        self._lingering: dict[Any, float] = {}

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to a thread once its request has arrived."""
        self._receive(conn, time.monotonic() + RECEIVE_TIMEOUT_S, wanted=1)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep the connection, or wait in the poller until the client closes it (gunicorn would block a thread)."""
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_lingering, conn))
        except (OSError, ValueError, KeyError):
            self._drop(conn)
        else:
            self._lingering[conn] = time.monotonic() + LINGER_TIMEOUT_S

    def murder_pending(self) -> None:
        """Also close connections whose request is late or that the client does not close."""
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn, deadline in self._receiving.items() if deadline < now]:
            del self._receiving[conn]
            self._unregister(conn.sock)
            self._refuse(conn, _TOO_SLOW)
        for conn in [conn for conn, deadline in self._lingering.items() if deadline < now]:
            self._end_lingering(conn)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """As in gunicorn, but the thread does not wait for data that has not arrived."""
        return bool(keepalive) and bool(conn.parser.finish_body(deadline=time.monotonic() + DRAIN_TIMEOUT_S))

    def _receive(self, conn: Any, deadline: float, *, wanted: int, continued: bool = False) -> None:
        """Check the received data, and wait for the rest in the poller.

        Args:
            conn: The connection.
            deadline: When the connection is closed.
            wanted: Bytes on the socket that were waited for.
            continued: Whether "100 Continue" was sent.
        """
        # Data that arrived with the previous request is in the parser, no longer on the socket.
        buffered = conn.parser.unreader.buf.getvalue() if conn.parser is not None else b""
        missing = missing_bytes(buffered[:BUFFER_BYTES]) if buffered else 1
        arrived = b""
        if missing:
            try:
                conn.sock.setblocking(False)
                arrived = conn.sock.recv(max(1, BUFFER_BYTES - len(buffered)), socket.MSG_PEEK)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(conn)
                return
            else:
                if len(arrived) < wanted:  # readable, but less than requested: the client has closed its side
                    self._drop(conn)
                    return
                missing = missing_bytes((buffered + arrived)[:BUFFER_BYTES])
        if missing and len(buffered) + len(arrived) >= BUFFER_BYTES:
            self._refuse(conn, _HEAD_TOO_LARGE)
            return
        wanted = len(arrived) + missing if missing else 1
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        if not missing:
            conn.data_ready = True
            super().enqueue_req(conn)
            return
        head, end, _ = (buffered + arrived).partition(b"\r\n\r\n")
        if end and not continued and _CONTINUE.search(head):
            continued = True
            with suppress(OSError):
                conn.sock.send(_CONTINUE_RESPONSE)
        self._receiving[conn] = deadline
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_received, conn, wanted, continued))

    def _on_received(self, conn: Any, wanted: int, continued: bool, client: socket.socket) -> None:
        self.poller.unregister(client)
        self._receive(conn, self._receiving.pop(conn), wanted=wanted, continued=continued)

    def _on_lingering(self, conn: Any, client: socket.socket) -> None:
        try:
            data = client.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_lingering(conn)

    def _end_lingering(self, conn: Any) -> None:
        del self._lingering[conn]
        self._unregister(conn.sock)
        self._drop(conn)

    def _unregister(self, sock: socket.socket) -> None:
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(sock)

    def _refuse(self, conn: Any, answer: bytes) -> None:
        with suppress(OSError):
            conn.sock.send(answer)
        self._drop(conn)

    def _drop(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()
