"""The least of an S3 server, on a real socket: for what real servers do only in a race, or when they are broken."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from labelloop.service.settings import Settings

Conditions = Literal["ignore", "refuse", "begin"]
"""What becomes of If-None-Match: ignored; refused (501); looked at when a put begins, as Swift does (If-Match: 501)."""


class BareS3(ThreadingHTTPServer):
    """Keeps objects in memory and what was asked of it: (method, key, when). Use it as a context.

    Attributes:
        slow_s: a put takes up to so long between its look at the key and its end.
        fault: called with the handler before a request is answered; True: it has dealt with it.
        opaque: etags are no checksums: of objects that were sent in "parts", or that "kms" encrypts.
        refuse_early: called with the handler instead of reading an object whose sender asks first (100-continue).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, conditions: Conditions = "begin", *, slow_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.conditions, self.slow_s = conditions, slow_s
        self.objects: dict[str, tuple[bytes, str, float]] = {}
        self.asked: list[tuple[str, str, float]] = []
        self.fault: Callable[[Handler], bool] | None = None
        self.refuse_early: Callable[[Handler], None] | None = None
        self.opaque: Literal["", "parts", "kms"] = ""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def settings(self, home, **changes) -> Settings:
        """Of a client of this server."""
        return Settings(
            home=home,
            s3_endpoint_url=f"http://127.0.0.1:{self.server_port}",
            s3_access_key_id="key",
            s3_secret_access_key="not-told",
            label_studio_api_key="",
        ).replace(**changes)

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


MODIFIED = "<LastModified>2026-01-02T03:04:05Z</LastModified>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    @property
    def key(self):
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]  # after the bucket

    def asked(self):
        """Whether somebody else has answered."""
        self.server.asked.append((self.command, self.key, time.monotonic()))
        return bool(self.server.fault and self.server.fault(self))

    def handle_expect_100(self):
        if self.server.refuse_early is None:
            return super().handle_expect_100()
        self.server.asked.append((self.command, self.key, time.monotonic()))
        self.server.refuse_early(self)
        return False

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.asked():
            return
        conditions, objects = self.server.conditions, self.server.objects
        if self.headers["If-Match"] and conditions != "ignore":
            self.refuse(501, "NotImplemented")
            return
        if self.headers["If-None-Match"] and conditions == "refuse":
            self.refuse(501, "NotImplemented")
            return
        if self.headers["If-None-Match"] and conditions == "begin" and self.key in objects:
            self.refuse(412, "PreconditionFailed")
            return
        if source := self.headers["x-amz-copy-source"]:
            copied = objects.get(unquote(source).lstrip("/").partition("/")[2])
            if copied is None:
                self.refuse(404, "NoSuchKey")
                return
            data = copied[0]
        time.sleep(random.uniform(0, self.server.slow_s))
        objects[self.key] = (data, self.headers["x-amz-meta-labelloop-writer"] or "", time.time())
        etag = self.etag(self.key)
        answer = f"<CopyObjectResult><ETag>{etag}</ETag>{MODIFIED}</CopyObjectResult>" if source else ""
        encryption = {"x-amz-server-side-encryption": "aws:kms"} if self.server.opaque == "kms" else {}
        self.answer(200, answer.encode(), ETag=etag, **encryption)

    def etag(self, key):
        data, _, when = self.server.objects[key]
        if self.server.opaque:
            return f'"{hashlib.md5(data + repr(when).encode()).hexdigest()}{"-1" * (self.server.opaque == "parts")}"'
        return f'"{hashlib.md5(data).hexdigest()}"'

    def do_GET(self):
        if self.asked():
            return
        query = parse_qs(urlsplit(self.path).query)
        objects = self.server.objects
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            found = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key][0])}</Size><ETag>{escape(self.etag(key))}</ETag>"
                f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(objects[key][2]))}</LastModified>"
                f"</Contents>"
                for key in sorted(objects)
                if key.startswith(prefix)
            )
            self.answer(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())
        elif self.key in objects:
            data, writer, when = objects[self.key]
            told = {"ETag": self.etag(self.key), "Last-Modified": formatdate(when, usegmt=True)}
            self.answer(200, data, **told, **({"x-amz-meta-labelloop-writer": writer} if writer else {}))
        else:
            self.refuse(404, "NoSuchKey")

    def do_HEAD(self):
        self.do_GET()

    def do_DELETE(self):
        if self.asked():
            return
        self.server.objects.pop(self.key, None)
        self.answer(204)

    def log_message(self, *_):
        pass
