"""A web server on a real socket that answers as a test says."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request. Names of `headers` are found in any case."""

    method: str
    path: str
    headers: Message
    body: bytes


class WebServer(ThreadingHTTPServer):
    """Answers each request with `answer(asked)`: (status, body) or (status, body, headers). Use it as a context.

    A body that is not bytes is sent as JSON.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], tuple[Any, ...]], host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.answer_to = answer
        self.url = f"http://{host}:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer, *headers = self.server.answer_to(Asked(self.command, self.path, self.headers, body))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):  # who asked may have given up
            self.wfile.write(data)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass
