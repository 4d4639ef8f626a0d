"""Real workers swap models under clients and through kill -9; stock Label Studio follows; a project is pre-labelled."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio
from ml_backend.serving.activation import activate, roll_back
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.registry import Registry
from ml_backend.studio.connect import connect

pytestmark = pytest.mark.system
swaps = pytest.importorskip("bench.swap", reason="the bench is not importable from here")


@pytest.fixture
def server(tmp_path):
    running = swaps.Server(tmp_path)
    yield running
    running.stop()


def workers_of(process):
    """The worker processes below gunicorn's master."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_swaps_under_clients_lose_and_mix_nothing_and_a_killed_worker_comes_back_with_what_is_active(server, tmp_path):
    store = open_store(server.settings.store_url, server.settings)
    labels = swaps.two_models(tmp_path, store)
    first, second = labels
    set_active(store, first)
    server.wait()
    clients = swaps.Clients(server.url, swaps.photo_of(tmp_path), labels, 4)
    try:
        for version in (second, first, second):
            swaps.swap(server, store, version)
    finally:
        clients.end()
    assert clients.answers
    assert clients.failed == clients.mixed == []
    set_active(store, first)  # and while the workers take it over:
    for worker in workers_of(server.process):
        os.kill(worker, signal.SIGKILL)
    time.sleep(1)
    server.wait()
    deadline = time.monotonic() + 90
    setup = {"project": "1.1", "schema": swaps.CONFIG}
    while {swaps.httpx.post(f"{server.url}/setup", json=setup).json()["model_version"] for _ in range(8)} != {first}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    broken = Registry(store).manifest(second)
    store.put(f"models/versions/{second}/{broken.model}", b"no model")
    for copy in (server.settings.home / "ml_backend" / "models").glob(f"{broken.checksum}*"):
        copy.rename(copy.with_name("gone"))
    set_active(store, second)
    deadline = time.monotonic() + 90
    while not Registry(store).refusal_reason(second):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    answer = swaps.httpx.post(f"{server.url}/setup", json={"project": "1.1", "schema": swaps.CONFIG})
    assert answer.json()["model_version"] in {first, second}
    [entry] = swaps.httpx.post(
        f"{server.url}/predict",
        json={"tasks": [{"id": 1, "data": {"image": "x"}}], "project": "1.1", "label_config": swaps.CONFIG},
        timeout=200,
    ).json()["results"]
    assert entry["model_version"] == first


def test_label_studio_follows_an_activation_and_a_project_is_pre_labelled_again(label_studio, server, tmp_path):
    from PIL import Image
    from skimage import data

    settings = Settings(
        home=server.settings.home, label_studio_url=label_studio.url, label_studio_api_key=label_studio.admin_token,
        ml_url=f"http://localhost:{server.port}",
    )  # fmt: skip
    env = {
        **os.environ, "LABELLOOP_HOME": str(settings.home), "LABELLOOP_LABEL_STUDIO_URL": label_studio.url,
        "LABELLOOP_LABEL_STUDIO_API_KEY": label_studio.admin_token, "LABELLOOP_ML_URL": settings.ml_url,
    }  # fmt: skip

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", "labelloop.cli.main", *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    store = open_store(settings.store_url, settings)
    version, other = swaps.two_models(tmp_path, store)
    server.wait()
    photo = tmp_path / "astronaut.jpg"
    Image.fromarray(data.astronaut()).save(photo)
    with contextlib.closing(Studio(label_studio.url, label_studio.admin_token)) as studio:
        project = int(studio.create_project(title="versions", label_config=swaps.CONFIG)["id"])
        studio.upload_images(project, [photo] * 3)
        studio.import_tasks(project, [{"data": {"image": "/data/upload/0/missing.jpg"}}])
        connect(studio, project, settings)
        given = studio.project(project)["model_version"]
        for wanted, act in (
            (version, lambda: activate(version, settings=settings, project=project, studio=studio)),
            (other, lambda: activate(other, settings=settings, project=project, studio=studio)),
            (version, lambda: roll_back(settings=settings, project=project, studio=studio)),
        ):
            done = act()
            assert done.notes == ()
            [row] = studio.ml_backends(project)
            assert row["title"] == row["model_version"] == studio.project(project)["model_version"] == wanted
        said = command("prelabel", str(project))
        assert "3 of 4 tasks pre-labelled" in said
        assert "missing.jpg" in said
        assert studio.model_versions(project) == {version: 3}
        assert "3 already had predictions of this version" in command("prelabel", str(project))
        assert other in command("models", "activate", other, "--project", str(project))
        assert f"removed 3 predictions of {version}" in command("prelabel", str(project), "--prune")
        assert studio.model_versions(project) == {other: 3}
        fields = studio.project(project)
        assert fields["model_version"] == other
        assert fields["sampling"] == "Uncertainty sampling"
        assert studio.next_task(project)["predictions"][0]["model_version"] == other
        listed = command("models", "list")
        assert f"served to project {project}" in listed
        assert given in listed
