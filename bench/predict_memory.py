"""What a worker of the ML backend takes while large images are sent: 8 requests of 4 images, by kind of file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

from bench.learning_sizes import peak_mb
from labelloop.stack.ports import free_port

REQUESTS, IMAGES = 8, 4
CASES = (  # name, side in pixels, mode, options of Pillow's save
    ("png", 1_000, "RGB", {}),
    ("png", 5_000, "RGB", {}),
    ("png", 10_000, "RGB", {}),
    ("png", 10_000, "RGBA", {}),
    ("jpg", 10_000, "RGB", {"progressive": True, "subsampling": 0}),
    ("webp", 5_000, "RGB", {"method": 0}),
    ("tif", 10_000, "RGB", {"compression": "tiff_lzw"}),
)
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="Car"/></RectangleLabels></View>'
)


def pixels() -> str:
    """The table, in Markdown."""
    lines = [
        f"{REQUESTS} requests to `/predict` at once, each of {IMAGES} tasks with images of one kind; one worker with",
        "the embedded model. Commit 11e2178 took 11.8 GB for the PNGs of 10,000 x 10,000 px and served none of them.",
        "",
        "| file | side, px | bytes of a file | peak MB | answers | s |",
        "|---|---|---|---|---|---|",
    ]
    Image.MAX_IMAGE_PIXELS = None
    for kind, side, mode, options in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = folder / f"0.{kind}"
            Image.new(mode, (side, side), (200, 10, 40, 77)[: len(mode)]).save(file, **options)
            for number in range(1, REQUESTS * IMAGES):
                os.link(file, folder / f"{number}.{kind}")
            with _server(folder) as (url, worker), ThreadPoolExecutor(REQUESTS) as clients:
                started = time.monotonic()
                answers = Counter(clients.map(lambda n, url=url, kind=kind: _ask(url, n, kind), range(REQUESTS)))
                spent = time.monotonic() - started
                said = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
                row = (f"{kind} {mode}", f"{side:,}", f"{file.stat().st_size:,}", f"{peak_mb(worker):,.0f}", said)
                lines.append(f"| {' | '.join(row)} | {spent:.1f} |")
    return "\n".join(lines)


def _ask(url: str, number: int, kind: str) -> int:
    tasks = [
        {"id": at, "data": {"image": f"/data/local-files/?d={at}.{kind}"}}
        for at in range(number * IMAGES, (number + 1) * IMAGES)
    ]
    body = {"tasks": tasks, "label_config": CONFIG, "project": "1.1"}
    return httpx.post(f"{url}/predict", json=body, timeout=120).status_code


@contextmanager
def _server(photos: Path) -> Iterator[tuple[str, int]]:
    """The address of a started ML backend, and the process of its one worker."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "LABELLOOP_HOME": home, "LABELLOOP_LOCAL_FILES_ROOT": str(photos), "LABELLOOP_WEB_WORKERS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "labelloop.cli.main", "ml", "serve", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                time.sleep(0.2)
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            yield url, int(children[-1])
        finally:
            server.terminate()
            server.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).json()["checks"].get("model") == "ok"
    except (httpx.HTTPError, ValueError, KeyError):
        return False
