"""`ReceivingWorker`: gunicorn's threaded worker, whose threads take a request only once it has arrived.

A client that sends half a request, or a byte a second, holds a place in the worker's poller and never a thread; it is
cut off after `RECEIVE_S`. Bodies of more than `BUFFER_BYTES` go on arriving in the thread, within a time that
`labelloop.service.web` sets.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from labelloop.service.web import BUFFER_BYTES, RECEIVE_S

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_NO_END = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def missing_bytes(data: bytes) -> int:
    """How many bytes have to arrive before a thread can read a request without waiting; 0: none.

    Args:
        data: What has arrived, at most `BUFFER_BYTES` bytes.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return 1
    head += b"\r\n"
    length = _LENGTH.search(head)
    if length is None or _CONTINUE.search(head):
        return 0
    return max(0, min(int(length[1]), BUFFER_BYTES - len(head) - len(end)) - len(body))


class ReceivingWorker(ThreadWorker):
    """See the module. All of it runs in the worker's main thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving: dict[Any, float] = {}

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread, once its request has arrived."""
        if conn.parser is not None and conn.parser.unreader.buf.getvalue():
            super().enqueue_req(conn)  # the next request was read with the last one
            return
        self._receive(conn, time.monotonic() + RECEIVE_S, wanted=1)

    def murder_pending(self) -> None:
        """Also cut off the connections whose request is late."""
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn, deadline in self._receiving.items() if deadline < now]:
            del self._receiving[conn]
            with suppress(OSError, KeyError, ValueError):
                self.poller.unregister(conn.sock)
            self._refuse(conn, _TOO_SLOW)

    def _receive(self, conn: Any, deadline: float, *, wanted: int) -> None:
        try:
            conn.sock.setblocking(False)
            data = conn.sock.recv(BUFFER_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            missing, data = 1, b""
        except OSError:
            self._drop(conn)
            return
        else:
            if len(data) < wanted:  # readable, and less than asked for: the client has closed its side
                self._drop(conn)
                return
            missing = missing_bytes(data)
        if missing and len(data) >= BUFFER_BYTES:
            self._refuse(conn, _NO_END)
            return
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + missing if missing else 1)
        if not missing:
            conn.data_ready = True
            super().enqueue_req(conn)
            return
        self._receiving[conn] = deadline
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_received, conn, len(data) + missing))

    def _on_received(self, conn: Any, wanted: int, client: socket.socket) -> None:
        self.poller.unregister(client)
        self._receive(conn, self._receiving.pop(conn), wanted=wanted)

    def _refuse(self, conn: Any, answer: bytes) -> None:
        with suppress(OSError):
            conn.sock.send(answer)
        self._drop(conn)

    def _drop(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()
