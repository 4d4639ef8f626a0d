"""20 swaps of the served model under 8 clients and two gunicorn workers: lost requests, mixed answers, time to swap."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import httpx
import onnx

from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store
from labelloop.stack.ports import free_port
from ml_backend.inference.detector import embedded_model
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.registry import Registry

SWAPS, CLIENTS, WORKERS = 20, 8, 2
LIMIT_S = 120.0
SERVE = "import sys; from ml_backend.cli.serve import serve; serve(port=int(sys.argv[1]), workers=int(sys.argv[2]))"
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="ONE" predicted_values="one"/><Label value="TWO" predicted_values="two"/></RectangleLabels></View>"""


class Server:
    """`labelloop ml serve` in a process of its own."""

    def __init__(self, folder: Path, *, workers: int = WORKERS) -> None:
        self.port, self.settings, self.log = free_port(), Settings(home=folder / "home"), folder / "ml.log"
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**os.environ, "LABELLOOP_HOME": str(self.settings.home), "LABELLOOP_SCORE_THRESHOLD": "0.05"}
        env["LABELLOOP_LOG_FORMAT"] = "json"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self.port), str(workers)], env=env, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until every worker has answered that it is ready."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if all(httpx.get(f"{self.url}/ready").status_code == 200 for _ in range(8)):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text())

    def loaded(self) -> list[tuple[str, float]]:
        """(version, time of day) of each version that some worker took over, by its log."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if '"model_loaded"' in line]
        return [(one["model_version"], datetime.fromisoformat(one["timestamp"]).timestamp()) for one in lines]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def two_models(folder: Path, store: Store) -> dict[str, str]:
    """The embedded model twice, all its classes named ONE in one and TWO in the other: {version: label}."""
    found = {}
    for word in ("one", "two"):
        model = onnx.load(embedded_model())
        names = next(entry for entry in model.metadata_props if entry.key == "names")
        names.value = names.value.replace('"person"', f'"{word}"')
        file = folder / f"{word}.onnx"
        onnx.save(model, file)
        found[Registry(store).add(file).version] = word.upper()
    return found


class Clients:
    """Clients that predict without a pause, and keep the version of every answer with its time."""

    def __init__(self, url: str, photo: str, labels: dict[str, str], count: int = CLIENTS) -> None:
        self.failed: list[str] = []
        self.mixed: list[str] = []
        self.answers: list[tuple[float, float, str]] = []
        self._body = {
            "tasks": [{"id": n, "data": {"image": photo}} for n in range(2)], "project": "1.1", "label_config": CONFIG,
        }  # fmt: skip
        self._url, self._labels, self._over = url, labels, threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                started = time.monotonic()
                try:
                    answer = client.post(f"{self._url}/predict", json=self._body)
                    entries = answer.raise_for_status().json()["results"]
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.failed.append(repr(error))
                    continue
                if unpredicted := [entry for entry in entries if "result" not in entry]:  # such as out of time
                    self.failed.append(str(unpredicted[0]))
                    continue
                versions = {entry["model_version"] for entry in entries}
                said = {
                    label for entry in entries for one in entry["result"] for label in one["value"]["rectanglelabels"]
                }
                if len(versions) != 1 or said != {self._labels[version] for version in versions}:
                    self.mixed.append(f"{versions} {said}")
                self.answers.append((started, time.monotonic(), next(iter(versions))))


def photo_of(folder: Path) -> str:
    """A person, as a data address: no network is part of what is measured."""
    import base64
    import io

    from PIL import Image
    from skimage import data

    del folder
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def swap(server: Server, store: Store, version: str) -> tuple[float, float]:
    """Activates a version; seconds until every worker serves it (by its log), and until /setup says so 8 times."""
    known, at = len(server.loaded()), time.time()
    started = time.monotonic()
    set_active(store, version)
    told, row = 0.0, 0
    with httpx.Client(timeout=30) as client:
        while row < 8 or len(server.loaded()) < known + WORKERS:
            client.headers["Connection"] = "close"  # else one worker would answer them all
            answer = client.post(f"{server.url}/setup", json={"project": "1.1", "schema": CONFIG}).json()
            now = time.monotonic() - started
            row = row + 1 if answer["model_version"] == version else 0
            told = now if row == 1 else told
            if now > LIMIT_S:
                raise RuntimeError(f"{version} is not served after {LIMIT_S:.0f} s")
    took = [when - at for said, when in server.loaded()[known:] if said == version]
    return max(took), told


def run() -> str:
    """The figures, in Markdown."""
    rows = [f"Load average when it began: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.", ""]
    rows += [
        f"{WORKERS} gunicorn workers of 4 threads, {SWAPS} swaps between two versions of the embedded detector. Each",
        "client sends two photos a request without a pause. Failed: no answer, or not 200. Mixed: an answer with two",
        "versions, or boxes of another version than it says. Time from the pointer's move until the last worker serves",
        "the version (by its log), and until /setup, asked without a pause, says so 8 times in a row from then on;",
        "this includes opening the model, which this machine had opened before (`models activate` sees to it).",
        "",
        "| clients | requests | failed | mixed | every worker serves it, s, p50 / max | /setup says so, s, p50 / max |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder)
        try:
            store = open_store(server.settings.store_url, server.settings)
            labels = two_models(folder, store)
            versions = list(labels)
            server.wait()
            for version in versions:
                swap(server, store, version)
            for count in (0, CLIENTS):
                clients = Clients(server.url, photo_of(folder), labels, count)
                times = []
                for turn in range(SWAPS):
                    times.append(swap(server, store, versions[turn % 2]))
                    time.sleep(0.5)
                clients.end()
                cells = [f"{statistics.median(column):.2f} / {max(column):.2f}" for column in zip(*times, strict=True)]
                told = f"{len(clients.answers)} | {len(clients.failed)} | {len(clients.mixed)}"
                rows.append(f"| {count} | {told} | {' | '.join(cells)} |")
                spread = Counter(version for *_, version in clients.answers)
                if count and len(spread) != 2:
                    raise RuntimeError(f"the clients saw only {dict(spread)}")
        finally:
            server.stop()
    return "\n".join(rows)
