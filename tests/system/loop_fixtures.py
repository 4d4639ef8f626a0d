"""Fixture `loop`: our programs beside a live Label Studio and S3 server, started by the command line as a user does."""

import io
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

from labelloop.stack.label_studio_server import wait_until_healthy
from labelloop.stack.ports import free_port
from labelloop.stack.process import Child, ServiceSpec

LABEL_CONFIG = """
<View>
  <Header value="$qc_note"/>
  <Image name="image" value="$image"/>
  <RectangleLabels name="objects" toName="image">
    <Label value="Person"/><Label value="Cat"/><Label value="Motorbike"/>
  </RectangleLabels>
  <Choices name="place" toName="image"><Choice value="indoor"/><Choice value="outdoor"/></Choices>
</View>
"""


class Person:
    """Somebody who works in Label Studio over HTTP, with an access token that is made anew before it ends."""

    def __init__(self, url: str, personal_token: str, number: int) -> None:
        self.id = number
        self._token = personal_token
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._until = 0.0

    def ask(self, method: str, path: str, **body: object) -> httpx.Response:
        if time.monotonic() > self._until:
            fresh = self._http.post("/api/token/refresh/", json={"refresh": self._token}).raise_for_status().json()
            self._http.headers["Authorization"] = f"Bearer {fresh['access']}"
            self._until = time.monotonic() + 200
        return self._http.request(method, path, **body)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: object) -> object:
        return self.ask("GET", path, params=params).raise_for_status().json()

    def next_task(self, project: int) -> dict | None:
        """What the label stream serves, as the page asks for it; None when nothing is left."""
        answer = self.ask("POST", f"/api/dm/actions?id=next_task&project={project}", json={"project": str(project)})
        return None if answer.status_code == 404 else answer.raise_for_status().json()

    def submit(self, task: int, result: list, **more: object) -> dict:
        body = {"result": result, "lead_time": 4.2, **more}
        return self.ask("POST", f"/api/tasks/{task}/annotations/", json=body).raise_for_status().json()


@dataclass
class Loop:
    """Our programs, running. `command` runs one of the command line's commands."""

    home: Path
    env: Mapping[str, str]
    bucket: str
    children: list[Child] = field(default_factory=list)

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "labelloop.cli.main", *words],
            env=dict(self.env),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"labelloop {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, name: str, *words: str, url: str = "") -> Child:
        part = ServiceSpec(
            name=name,
            key=name,
            command=[sys.executable, "-m", "labelloop.cli.main", *words],
            env=self.env,
            log=self.home / "logs" / f"{name}.log",
            url=url,
            health=f"{url}/health" if url else "",
        )
        child = Child(part, self.home / "run")
        self.children.append(child)
        wait_until_healthy(child)
        return child


@pytest.fixture(scope="session")
def loop(label_studio, s3_server, tmp_path_factory):
    """ML backend and QC under gunicorn with two workers each, and the worker; the data sets go to S3."""
    home = tmp_path_factory.mktemp("loop")
    ml, qc, bucket = free_port(), free_port(), s3_server.make_bucket()
    own = {name: value for name, value in os.environ.items() if not name.startswith("LABELLOOP_")}
    env = own | {
        "LABELLOOP_HOME": str(home),
        "LABELLOOP_LABEL_STUDIO_URL": label_studio.url,
        "LABELLOOP_LABEL_STUDIO_API_KEY": label_studio.admin_token,
        "LABELLOOP_WEBHOOK_SECRET": secrets.token_hex(8),
        "LABELLOOP_EXPORT_WEBHOOK_SECRET": secrets.token_hex(8),
        "LABELLOOP_MEDIA_HOSTS": "127.0.0.2",  # where tests receive webhooks: private, and allowed
        "LABELLOOP_BASIC_AUTH_USER": "label-studio",
        "LABELLOOP_BASIC_AUTH_PASSWORD": secrets.token_hex(8),
        "LABELLOOP_TRAINER_TOKEN": secrets.token_hex(16),
        "LABELLOOP_ML_URL": f"http://localhost:{ml}",
        "LABELLOOP_QC_URL": f"http://localhost:{qc}",
        "LABELLOOP_STORE_URL": f"s3://{bucket}/sets",
        "LABELLOOP_S3_ENDPOINT_URL": s3_server.endpoint,
        "LABELLOOP_S3_ACCESS_KEY_ID": s3_server.key,
        "LABELLOOP_S3_SECRET_ACCESS_KEY": s3_server.secret,
        "LABELLOOP_WEB_WORKERS": "2",
        "LABELLOOP_POLL_SECONDS": "2",
        "NO_PROXY": "localhost,127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }
    running = Loop(home, env, bucket)
    # Tests of other parts count predictions and name versions; what learns asks for it in its project's own file.
    (home / "ml_backend").mkdir()
    (home / "ml_backend" / "learn.toml").write_text("learn = false\n")
    try:
        running.start("ml", "ml", "serve", "--port", str(ml), url=env["LABELLOOP_ML_URL"])
        running.start("qc", "qc", "serve", "--port", str(qc), url=env["LABELLOOP_QC_URL"])
        running.start("worker", "worker")
        yield running
    finally:
        for child in reversed(running.children):
            child.stop()


@pytest.fixture(scope="session")
def people(label_studio):
    """Three annotators with accounts of their own, and the admin, by name."""
    named = {name: label_studio.user(f"{name}@example.com") for name in ("anna", "ben", "cleo")}
    persons = {name: Person(label_studio.url, token, number) for name, (token, number) in named.items()}
    persons["admin"] = Person(label_studio.url, label_studio.admin_token, 0)
    yield persons
    for person in persons.values():
        person.close()


@pytest.fixture(scope="session")
def photos():
    """Photographs that come inside installed packages, by file name, as JPEG bytes."""
    skimage = pytest.importorskip("skimage", reason="the photographs of the demo extra are not installed")
    folder = Path(skimage.__file__).parent / "data"
    return {f"{name}.jpg": _jpeg(folder / f"{name}.png") for name in ("astronaut", "chelsea", "motorcycle_left")}


def _jpeg(path: Path) -> bytes:
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(out, "JPEG", quality=92)
    return out.getvalue()


@pytest.fixture(scope="module")
def project(loop, people, photos):
    """A connected project with the photographs uploaded; two annotators a task."""
    admin = people["admin"]
    body = {"title": "Story", "label_config": LABEL_CONFIG, "maximum_annotations": 2}
    number = admin.ask("POST", "/api/projects/", json=body).raise_for_status().json()["id"]
    files = [("file", (name, data, "image/jpeg")) for name, data in photos.items()]
    admin.ask("POST", f"/api/projects/{number}/import", files=files).raise_for_status()
    loop.command("connect", str(number))
    yield number
    delete_project(admin, number)


def delete_project(admin: Person, number: int) -> None:
    """Delete a project that no test needs any more; the worker would poll it, and learn from it, to the end."""
    eventually(lambda: admin.ask("DELETE", f"/api/projects/{number}/").status_code in {204, 404}, what="the deletion")


@contextmanager
def learning_project(loop, admin, title, label_config, photos):
    """A connected project that learns from every task, as (number, {task: what is on its photo}).

    ``photos`` are JPEG files with what is on them, by name.
    """
    body = {"title": title, "label_config": label_config}
    number = admin.ask("POST", "/api/projects/", json=body).raise_for_status().json()["id"]
    policy = loop.home / "ml_backend" / str(number) / "learn.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("learn = true\nheld_out = 0\n")
    files = [(f"file{n}", (name, data, "image/jpeg")) for n, (name, (data, _)) in enumerate(photos.items())]
    admin.ask("POST", f"/api/projects/{number}/import", files=files).raise_for_status()
    tasks = admin.get("/api/tasks", project=number, fields="all", page_size=100)["tasks"]
    drawn = {task["id"]: photos[task["data"]["image"].rsplit("-", 1)[1]][1] for task in tasks}
    loop.command("connect", str(number))
    yield number, drawn
    delete_project(admin, number)


def eventually(check, *, within_s: float = 120.0, what: str = "it"):
    """The first value of `check()` that is true; fails with the last one after `within_s` seconds.

    Label Studio answers 500 where a task that it lists is deleted at that moment: it is asked again.
    """
    started = time.monotonic()
    until = started + within_s
    while True:
        try:
            if value := check():
                return value
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
            value = error
        assert time.monotonic() < until, f"{what} did not happen within {within_s:.0f} s, last seen: {value!r}"
        time.sleep(min(1.0, 0.2 + 0.1 * (time.monotonic() - started)))
