"""A Label Studio over HTTP that holds a hundred thousand tasks in memory, as far as a worker that learns asks it."""

from __future__ import annotations

import bisect
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PROJECT = 1


class ManyTasks:
    """One project; `requests` counts what was asked, `named` and `imported` say when the version was named and made."""

    def __init__(self, data: list[dict[str, Any]], config: str, served: Callable[[], str]) -> None:
        self.served = served
        self.fields = {"id": PROJECT, "title": "many", "label_config": config, "model_version": "", "created_at": ""}
        self.title, self.requests = "", 0
        self.named: dict[str, float] = {}
        self.imported: dict[str, float] = {}
        self._ids, self._now = itertools.count(1), "2026-01-01T00:00:00.000000Z"
        self.tasks = {number: self._task(number, each) for number, each in enumerate(data, 1)}
        self._numbers = list(self.tasks)
        self._changed: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self.made = {"annotations": 0}

    def _task(self, number: int, data: dict[str, Any]) -> dict[str, Any]:
        counts = {"total_annotations": 0, "cancelled_annotations": 0}
        return {"id": number, "data": data, "annotations": [], "predictions": [], "updated_at": self._now, **counts}

    def annotate(self, number: int, result: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds an annotation; returns the webhook's body."""
        with self._lock:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            task = self.tasks[number]
            made = {"id": next(self._ids), "task": number, "result": result, "updated_at": now, "completed_by": 1}
            task["annotations"].append(made)
            task.update(updated_at=now, total_annotations=1)
            self._changed.append((now, number))
            self.made["annotations"] += 1
        return {"action": "ANNOTATION_CREATED", "annotation": made, "project": {"id": PROJECT}}

    def next_task(self) -> int:
        """As uncertainty sampling serves them: the lowest score of the project's version."""
        version = self.fields["model_version"]
        with self._lock:
            scores = [
                (one["score"], task["id"])
                for task in self.tasks.values()
                if task["predictions"] and not task["annotations"]
                for one in task["predictions"]
                if one["model_version"] == version
            ]
        return min(scores)[1]

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The JSON that Label Studio would answer."""
        self.requests += 1
        if path.startswith("/versions"):
            self.requests -= 1  # asked of the ML backend
            return {"versions": [self.served()]}
        with self._lock:
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path == "/api/tasks":
            return self._page(query)
        if path == f"/api/projects/{PROJECT}/":
            if method == "PATCH":
                self.fields |= body
                self.named.setdefault(body.get("model_version") or "", time.monotonic())
            numbers = {"task_number": len(self.tasks), "total_annotations_number": self.made["annotations"]}
            return {**self.fields, **numbers, "skipped_annotations_number": 0}
        if path.startswith("/api/ml"):
            if method == "PATCH":
                self.title = body["title"]
            row = {"id": 1, "url": query.get("url", ""), "title": self.title, "model_version": self.served()}
            row |= {"project": PROJECT, "auth_method": "NONE", "state": "CO", "url": self.url}
            return row if re.fullmatch(r"/api/ml/\d+", path) else [row]
        if path.endswith("/import/predictions"):
            for one in body:
                self.tasks[one["task"]]["predictions"].append({**one, "id": next(self._ids)})
                self.imported.setdefault(one["model_version"], time.monotonic())
            return {"created": len(body)}
        if path == "/api/predictions/":
            self.tasks[body["task"]]["predictions"].append({**body, "id": next(self._ids)})
            self.imported.setdefault(body["model_version"], time.monotonic())
            return body
        if path.endswith("/model-versions/"):
            made = [one["model_version"] for task in self.tasks.values() for one in task["predictions"]]
            return {"static": [{"model_version": one, "count": made.count(one)} for one in set(made)]}
        return {}

    url = ""

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        asked = json.loads(unquote(query.get("query", "{}")))
        size, number = int(query["page_size"]), int(query["page"])
        numbers: list[int] = self._numbers
        if "selectedItems" in asked:
            numbers = [one for one in asked["selectedItems"]["included"] if one in self.tasks]
        for item in (asked.get("filters") or {}).get("items", ()):
            name = item["filter"].rpartition(":")[2]
            if name == "updated_at":
                since = bisect.bisect_right(self._changed, (item["value"], 1 << 62))
                later = {one for _, one in self._changed[since:]}
                numbers = sorted(later) if item["value"] >= self._now else numbers
            elif name == "id":
                numbers = numbers[bisect.bisect_right(numbers, item["value"]) :]
            elif item["operator"] == "greater":
                numbers = [one for one in numbers if self.tasks[one][name] > item["value"]]
            else:
                numbers = [one for one in numbers if self.tasks[one][name] == item["value"]]
        if asked.get("ordering") == ["-tasks:updated_at"]:
            numbers = [max(numbers, key=lambda one: self.tasks[one]["updated_at"])] if numbers else []
        found = [self.tasks[one] for one in numbers[(number - 1) * size : number * size]]
        if "include" in query:
            names = query["include"].split(",")
            found = [{name: one[name] for name in names} for one in found]
        return {"tasks": found, "total": len(numbers)}


def serve(studio: ManyTasks, port: int) -> ThreadingHTTPServer:
    """Serves it on a port of this machine, in threads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are two writes: with Nagle's algorithm the second waits 40 ms for the client's delayed ACK.
        disable_nagle_algorithm = True

        def _do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            data = json.dumps(studio.answer(self.command, parts.path, query, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815 - named by http.server

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    studio.url = f"http://127.0.0.1:{port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
