"""`ReceivingWorker`: gunicorn's threaded worker, whose threads take a request only once it has arrived.

A client that sends half a request, or a byte a second, holds a place in the worker's poller and never a thread; it is
cut off after `RECEIVE_S`. So does one that does not close its side after the answer. Bodies of more than
`BUFFER_BYTES` go on arriving in the thread, within a time that `labelloop.service.web.app` sets.
"""

import re
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from labelloop.service.web.app import BUFFER_BYTES, RECEIVE_S

LINGER_S = 2.0
"""Time a client gets to close its side after the last answer, as gunicorn gives it."""

DRAIN_S = 0.05
"""Time to drop a body that nobody read: as much as has arrived. A longer one ends the connection."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-f]{1,12})[ \t]*(?=[;\r])", re.IGNORECASE)
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_NO_END = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def missing_bytes(data: bytes) -> int:
    """How many bytes have to arrive, at least, before a thread can read a request without waiting; 0: none.

    Args:
        data: What has arrived, at most `BUFFER_BYTES` bytes.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return 1
    head += b"\r\n"
    room = BUFFER_BYTES - len(head) - len(end)
    if _CHUNKED.search(head):
        return max(0, min(_missing_of_chunks(body), room - len(body)))
    length = _LENGTH.search(head)
    return max(0, min(int(length[1]), room) - len(body)) if length else 0


def _missing_of_chunks(body: bytes) -> int:
    """As `missing_bytes`, of a chunked body (RFC 9112, section 7.1); 0 also where it is malformed."""
    place = 0
    while (end := body.find(b"\r\n", place)) >= 0:
        size = _CHUNK.match(body, place)
        if size is None:
            return 0
        if int(size[1], 16) == 0:  # trailers, then an empty line
            return 0 if b"\r\n\r\n" in body[end:] else 1
        place = end + 2 + int(size[1], 16) + 2
        if place > len(body):
            return place - len(body)
    return 1


class ReceivingWorker(ThreadWorker):
    """See the module. All but `_keepalive_after` runs in the worker's main thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving: dict[Any, float] = {}
        self._lingering: dict[Any, float] = {}

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread, once its request has arrived."""
        self._receive(conn, time.monotonic() + RECEIVE_S, wanted=1)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep the connection, or wait in the poller until the client closes it; gunicorn waits for that itself."""
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
            self._lingering[conn] = time.monotonic() + LINGER_S

    def murder_pending(self) -> None:
        """Also cut off the connections whose request is late, and those that nobody closes."""
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn, deadline in self._receiving.items() if deadline < now]:
            del self._receiving[conn]
            self._forget(conn.sock)
            self._refuse(conn, _TOO_SLOW)
        for conn in [conn for conn, deadline in self._lingering.items() if deadline < now]:
            self._end_lingering(conn)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """As gunicorn's, but the thread waits for nothing that has not arrived."""
        return bool(keepalive) and bool(conn.parser.finish_body(deadline=time.monotonic() + DRAIN_S))

    def _receive(self, conn: Any, deadline: float, *, wanted: int, going_on: bool = False) -> None:
        """Look at what has arrived, and wait for the rest in the poller.

        Args:
            conn: The connection.
            deadline: When it is cut off.
            wanted: Bytes on the socket that were waited for.
            going_on: The client was told to send the body.
        """
        # What came with the last request on this connection is in its parser, not on the socket any more.
        before = conn.parser.unreader.buf.getvalue() if conn.parser is not None else b""
        missing = missing_bytes(before[:BUFFER_BYTES]) if before else 1
        arrived = b""
        if missing:
            try:
                conn.sock.setblocking(False)
                arrived = conn.sock.recv(max(1, BUFFER_BYTES - len(before)), socket.MSG_PEEK)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(conn)
                return
            else:
                if len(arrived) < wanted:  # readable, and less than asked for: the client has closed its side
                    self._drop(conn)
                    return
                missing = missing_bytes((before + arrived)[:BUFFER_BYTES])
        if missing and len(before) + len(arrived) >= BUFFER_BYTES:
            self._refuse(conn, _NO_END)
            return
        wanted = len(arrived) + missing if missing else 1
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        if not missing:
            conn.data_ready = True
            super().enqueue_req(conn)
            return
        head, end, _ = (before + arrived).partition(b"\r\n\r\n")
        if end and not going_on and _CONTINUE.search(head):
            going_on = True
            with suppress(OSError):
                conn.sock.send(_GO_ON)
        self._receiving[conn] = deadline
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_received, conn, wanted, going_on))

    def _on_received(self, conn: Any, wanted: int, going_on: bool, client: socket.socket) -> None:
        self.poller.unregister(client)
        self._receive(conn, self._receiving.pop(conn), wanted=wanted, going_on=going_on)

    def _on_lingering(self, conn: Any, client: socket.socket) -> None:
        try:
            left = client.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            left = b""
        if not left:
            self._end_lingering(conn)

    def _end_lingering(self, conn: Any) -> None:
        del self._lingering[conn]
        self._forget(conn.sock)
        self._drop(conn)

    def _forget(self, sock: socket.socket) -> None:
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(sock)

    def _refuse(self, conn: Any, answer: bytes) -> None:
        with suppress(OSError):
            conn.sock.send(answer)
        self._drop(conn)

    def _drop(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()
