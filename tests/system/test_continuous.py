"""The continuous loop on real parts: submits are accepted, the worker exports, a trainer's model comes back served.

The trainer here trains nothing: it pulls the version, looks at it as a trainer does, and gives the embedded model out
as its own. Everything else is as a user has it: stock Label Studio, quality control, the worker, S3, the command line.
"""

import hashlib
import hmac
import json
import shlex
import signal
import subprocess
import sys

import httpx
import pytest

from tests.system.loop_fixtures import eventually
from tests.web_server import WebServer

pytestmark = pytest.mark.system

TRAINER = """
import json, os, pathlib, subprocess, sys
import onnx
from ml_backend.inference.detector import embedded_model
work = pathlib.Path(sys.argv[1])
def labelloop(*words):
    return subprocess.run([sys.executable, "-m", "labelloop.cli.main", *words], check=True)
version = os.environ["DATASET_VERSION"]
data = work / version
url = os.environ["DATASET_URL"]
labelloop("dataset", "pull", url, "--version", version, "--format", "yolo-detect", "--to", str(data))
labels = {path.stem: path.read_text() for path in data.glob("labels/*/*.txt")}
photos = sorted(path.name for path in data.glob("images/*/*"))
assert (data / "data.yaml").read_text().startswith("train: images/train"), "no data.yaml"
assert labels and len(labels) == len(photos), (labels, photos)
model = onnx.load(embedded_model())
onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, "trained on": version})
onnx.save(model, work / "best.onnx")
labelloop("models", "add", str(work / "best.onnx"), "--project", os.environ["DATASET_PROJECT"], "--activate")
(work / "written").write_text(json.dumps({"labels": labels, "photos": photos}))
(work / "written").rename(work / f"{version}.json")
"""


def box(x):
    value = {"x": x, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["Cat"]}
    place = {"from_name": "objects", "to_name": "image", "type": "rectanglelabels"}
    return {"id": "r1", **place, "original_width": 512, "original_height": 512, "value": value}


def submit(people, task, *names):
    for name in names:
        people[name].submit(task, [box(20.0)])


@pytest.fixture(scope="module")
def tasks(project, people, photos):
    """The project's tasks: the photo that it has and two more."""
    admin = people["admin"]
    for name in ("astronaut.jpg", "chelsea.jpg"):
        files = {"file": (name, photos[name], "image/jpeg")}
        admin.ask("POST", f"/api/projects/{project}/import", files=files).raise_for_status()
    return sorted(task["id"] for task in admin.get("/api/tasks/", project=project, page_size=100)["tasks"])


@pytest.fixture
def receiver():
    got = []

    def answer(asked):
        got.append((asked.headers, asked.body))
        return 200, b""

    with WebServer(answer, "127.0.0.2") as server:
        yield f"{server.url}/hook", got


def test_worker_exports_what_is_accepted_and_the_trainers_model_is_served(
    loop, project, tasks, people, tmp_path, receiver
):
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    url, got = receiver
    own = (
        loop.home / "ml_backend" / str(project) / "learn.toml"
    )  # or the service's own learning would serve its version
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("learn = false\n")
    policy = loop.home / "exporters" / str(project) / "export.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text(
        f'[export]\nto = "s3://{loop.bucket}/loop"\nformat = "yolo-detect,coco"\nsplit = "train=1"\nevery_tasks = 2\n'
        f'webhook = "{url}"\nthen = ["{sys.executable}", "{script}", "{tmp_path}"]\n'
    )
    submit(people, tasks[0], "anna", "ben")
    submit(people, tasks[1], "anna")  # one alone: quality control waits for a second
    eventually(lambda: _status(people, project, tasks[0]) == "agreed", what="the verdict")
    assert not list(tmp_path.glob("v*.json"))
    submit(people, tasks[1], "ben")
    done = eventually(lambda: list(tmp_path.glob("v*.json")), what="the training")
    told = json.loads(done[0].read_text())
    assert len(told["labels"]) == len(told["photos"]) == 2
    assert all(len(text.splitlines()) == 1 for text in told["labels"].values())
    # what the trainer made is what the project is served with now
    ready = httpx.get(loop.env["LABELLOOP_ML_URL"] + "/health", auth=_auth(loop)).status_code
    assert ready == 200
    listed = loop.command("models", "list").stdout
    assert "best" in listed
    version = people["admin"].get(f"/api/projects/{project}/")["model_version"]
    assert version.startswith("best-")
    # the address was told of the version, too
    ((headers, body),) = eventually(lambda: got, what="the webhook")
    assert json.loads(body)["version"] == done[0].stem
    signed = f"{headers['X-Labelloop-Timestamp']}.".encode() + body
    secret = loop.env["LABELLOOP_EXPORT_WEBHOOK_SECRET"].encode()
    assert headers["X-Labelloop-Signature"] == "v1=" + hmac.new(secret, signed, hashlib.sha256).hexdigest()
    # nothing changed: no second version
    assert "v000002" not in loop.command("dataset", "list", f"s3://{loop.bucket}/loop").stdout
    policy.unlink()


def test_watch_in_the_foreground_ends_well_on_ctrl_c(loop, project, people, tmp_path):
    place = f"s3://{loop.bucket}/foreground"
    command = [sys.executable, "-c", "import os; print('training on', os.environ['DATASET_VERSION'])"]
    words = ["export", "--from", str(project), "--to", place, "--format", "coco", "--split", "train=1", "--watch"]
    words += ["--every-tasks", "1", "--annotation", "consensus", "--then", shlex.join(command)]
    with (tmp_path / "out").open("wb") as out:
        watch = subprocess.Popen(
            [sys.executable, "-m", "labelloop.cli.main", *words],
            env=dict(loop.env),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        text = eventually(lambda: _has(tmp_path / "out", "ended with status 0"), what="the command")
        assert "training on v000001" in text
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
    finally:
        watch.kill()
        watch.wait()
    assert "annotation chosen by: consensus 2" in (tmp_path / "out").read_text()


def _has(path, text):
    found = path.read_text()
    return found if text in found else ""


def _status(people, project, task):
    tasks = people["admin"].get("/api/tasks/", project=project)["tasks"]
    return next(each for each in tasks if each["id"] == task)["data"].get("qc_status")


def _auth(loop):
    return loop.env["LABELLOOP_BASIC_AUTH_USER"], loop.env["LABELLOOP_BASIC_AUTH_PASSWORD"]
