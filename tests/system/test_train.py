"""Fine-tuning in service on stock Label Studio: by hand, by the worker itself, and by a trainer over HTTP."""

import importlib.util
import os
import re

import httpx
import pytest

from tests.system.loop_fixtures import eventually, learning_project
from tests.system.test_learning import CONFIG, draw, result_of

pytestmark = [pytest.mark.system, pytest.mark.slow]
if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx2pytorch") is None:
    pytest.skip("the extra [train] is not installed; `make test-train` installs it", allow_module_level=True)

PHOTOS, LABELLED = 9, 5


@pytest.fixture(scope="module")
def discs(loop, people):
    """A project with five labelled photos of shapes; it learns, and nobody fine-tunes it yet."""
    photos = {f"{seed}.jpg": draw(seed) for seed in range(PHOTOS)}
    with learning_project(loop, people["admin"], "Fine-tuned", CONFIG, photos) as (number, drawn):
        write_policy(loop, number, 'on = "off"')
        for task in sorted(drawn)[:LABELLED]:
            people["anna"].submit(task, result_of(drawn[task]))
        learned = f"{LABELLED} tasks learned from"
        eventually(lambda: learned in loop.command("learn", str(number)).stdout, what="the refit")
        yield number, drawn


def write_policy(loop, project, train):
    file = loop.home / "ml_backend" / str(project) / "learn.toml"
    file.write_text(f"learn = true\nheld_out = 0\n[train]\nlabels = {PHOTOS - LABELLED}\nminutes = 1\n{train}\n")


def page(loop, project):
    auth = loop.env["LABELLOOP_BASIC_AUTH_USER"], loop.env["LABELLOOP_BASIC_AUTH_PASSWORD"]
    url = f"{loop.env['LABELLOOP_ML_URL']}/projects/{project}/learning"
    return httpx.get(url, auth=auth, trust_env=False).raise_for_status().text


def test_by_hand_the_result_is_judged_and_shown(loop, discs):
    project, _ = discs
    done = loop.command("train", str(project), "--minutes", "0.1", check=False)
    said = done.stdout
    assert re.search(r"(not published|published) trained-\S+ \(train\): \S", said), f"{said}\n{done.stderr}"
    assert "in a trial on" in said
    assert done.returncode == (1 if "not published" in said else 0)
    shown = page(loop, project)
    assert "<h2>Fine-tuning</h2>" in shown
    assert '<span class="pill tuned">fine-tuned</span>' in shown


def test_a_trainer_is_handed_a_due_training_and_hands_the_model_back(loop, people, discs):
    project, drawn = discs
    write_policy(loop, project, 'where = "trainer"')
    for task in sorted(drawn)[LABELLED:]:
        people["anna"].submit(task, result_of(drawn[task]))
    user, password = loop.env["LABELLOOP_BASIC_AUTH_USER"], loop.env["LABELLOOP_BASIC_AUTH_PASSWORD"]
    url = loop.env["LABELLOOP_ML_URL"].replace("http://", f"http://{user}:{password}@")
    home = loop.home.parent / "trainer"
    away = {name: value for name, value in os.environ.items() if not name.startswith("LABELLOOP_")}
    trainer = type(loop)(home, away | {"LABELLOOP_HOME": str(home)}, "")
    said = trainer.command(
        "trainer", "--url", url, "--token", loop.env["LABELLOOP_TRAINER_TOKEN"], "--name", "gpu-box", "--once"
    ).stdout
    assert "handed back; the ML backend evaluates it." in said
    verdict = r'Last: <span class="pill (published|refused|failed)"'
    ended = eventually(lambda: re.search(verdict, page(loop, project)), within_s=300, what="the verdict")
    assert ended[1] != "failed", page(loop, project)
