"""Every template of stock Label Studio: three annotators, their consensus, and back into Label Studio unchanged."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.merged_answers import merged, problems
from tests.simulated_answers import SIDE, Simulated, simulate
from tests.system.browser_fixtures import log_in, screenshot
from tests.system.loop_fixtures import Person

pytestmark = pytest.mark.system

CONSENSUS = "QC consensus"
ANNOTATORS = ("anna", "ben", "cleo")
# Files that Label Studio serves, by the kind of media.
SAMPLES = {".wav": "game.wav", ".mp4": "opossum_snow.mp4", ".csv": "sample-task-sin.csv", ".pdf": "sample.pdf"}
# Templates of which each draws or asks something else; the others run with `make test-slow`.
SOME = (
    "computer-vision/optical-character-recognition",
    "generative-ai/llm-ranker",
    "time-series-analysis/signal-quality",
    "videos/video-object-tracking",
    "chat/chat_rlhf",
)
# Templates whose consensus is opened in the browser.
SHOWN = (
    "computer-vision/object-detection-with-bounding-boxes",
    "computer-vision/semantic-segmentation-with-polygons",
    "computer-vision/semantic-segmentation-with-masks",
    "computer-vision/keypoints",
    "natural-language-processing/named-entity-recognition",
    "natural-language-processing/taxonomy",
    "generative-ai/response-grading",
    "generative-ai/llm-ranker",
    "generative-ai/human-feedback-collection",
    "generative-ai/chatbot-assessment",
    "audio-speech-processing/automatic-speech-recognition-using-segments",
    "videos/video-frame-classification",
    "ranking-and-scoring/pairwise-regression",
    "computer-vision/optical-character-recognition",
    "computer-vision/multipage-documents",
)
# Fields that the editor adds to a result, or drops from it, when it only shows it.
_EDITORS_OWN = frozenset(
    {"origin", "original_length", "meta", "score", "readonly", "original_width", "original_height", "image_rotation"}
)


@dataclass(frozen=True)
class Imported:
    """A project of a template with one task, its annotations and their consensus.

    Attributes:
        project: The project's id.
        task: The task's id.
        found: What is wrong; empty if nothing is.
        results: The consensus.
    """

    project: int
    task: int
    found: tuple[str, ...]
    results: tuple[dict[str, Any], ...]


@cache
def templates(folder: Path) -> Mapping[str, str]:
    """The label config of every template of an installed Label Studio, by folder."""
    root = next(folder.glob("venv/lib/python*/site-packages/label_studio/annotation_templates"))
    files = sorted(root.rglob("config.yml"))
    return {str(file.parent.relative_to(root)): yaml.safe_load(file.read_text())["config"] for file in files}


@pytest.fixture(scope="module")
def configs(label_studio_installation):
    found = templates(label_studio_installation.folder)
    assert len(found) >= 69
    return found


def simulated(xml: str) -> Simulated:
    """A task of a template whose media a browser can load: a picture made here, and the samples of Label Studio."""
    made_up = simulate(xml)
    return Simulated({key: _media(value) for key, value in made_up.data.items()}, made_up.results, made_up.truth)


def _media(value: Any) -> Any:
    if isinstance(value, list):
        return [_media(item) for item in value]
    kind = Path(value).suffix if isinstance(value, str) and value.startswith("https://example.com/") else ""
    return picture() if kind == ".png" else f"/static/samples/{SAMPLES[kind]}" if kind else value


@cache
def picture() -> str:
    """A picture of the size that the simulated results state."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def import_consensus(admin: Person, people: Mapping[str, Person], name: str, xml: str) -> Imported:
    """Create a project, import three annotations, and put their consensus back as a prediction and as an annotation."""
    task = simulated(xml)
    made = admin.ask("POST", "/api/projects/", json={"title": name[-50:], "label_config": xml})
    assert made.status_code == 201, f"{name}: {made.text}"
    project = made.json()["id"]
    annotations = [
        {"result": results, "completed_by": people[who].id, "ground_truth": False}
        for who, results in zip(ANNOTATORS, task.results.values(), strict=True)
    ]
    body = [{"data": task.data, "annotations": annotations}]
    admin.ask("POST", f"/api/projects/{project}/import?return_task_ids=true", json=body).raise_for_status()
    (stored,) = admin.get("/api/tasks", project=project, fields="all", resolve_uri="false")["tasks"]
    found = [
        f"{who}'s annotation changed"
        for who in ANNOTATORS
        if [one["result"] for one in stored["annotations"] if one["completed_by"] == people[who].id]
        != [task.results[ANNOTATORS.index(who) + 1]]
    ]
    outcome = merged(stored, xml)
    found += problems(task, outcome, xml)
    results = list(outcome.results)
    prediction = {"task": stored["id"], "result": results, "model_version": CONSENSUS}
    answer = admin.ask("POST", "/api/predictions/", json=prediction)
    found += [] if answer.status_code == 201 else [f"the prediction is refused: {answer.text[:300]}"]
    written = admin.submit(stored["id"], results)
    (again,) = admin.get("/api/tasks", project=project, fields="all", resolve_uri="false")["tasks"]
    shown = [one["result"] for one in again["predictions"] if one["model_version"] == CONSENSUS]
    kept = [one["result"] for one in again["annotations"] if one["id"] == written["id"]]
    found += [] if shown == [results] else ["the prediction is not as it was imported"]
    found += [] if kept == [results] else ["the annotation is not as it was imported"]
    return Imported(project, stored["id"], tuple(f"{name}: {line}" for line in found), outcome.results)


def test_consensus_of_a_few_templates_returns_unchanged(people, configs):
    admin = people["admin"]
    assert not [line for name in SOME for line in import_consensus(admin, people, name, configs[name]).found]


@pytest.mark.slow
def test_consensus_of_every_template_returns_unchanged(people, configs):
    admin = people["admin"]
    assert not [line for name, xml in configs.items() for line in import_consensus(admin, people, name, xml).found]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_stock_editor_shows_the_consensus(people, configs, label_studio, page, tmp_path, name):
    imported = import_consensus(people["admin"], people, name, configs[name])
    assert not imported.found
    log_in(page, label_studio, label_studio.admin.email)
    page.goto(f"{label_studio.url}/projects/{imported.project}/data?task={imported.task}")
    page.get_by_text(CONSENSUS).first.click()
    page.wait_for_function("window.Htx?.annotationStore?.selected?.type === 'prediction'")
    page.mouse.move(700, 700)
    page.wait_for_timeout(2500)  # images load, spans are drawn
    screenshot(page, f"template-{name.rpartition('/')[2]}.png", tmp_path)
    shown = page.evaluate("window.Htx.annotationStore.selected.serializeAnnotation()")
    assert _plain(shown) == _plain(imported.results)


def _plain(results) -> list[dict[str, Any]]:
    """Results as the editor and we both write them, sorted."""
    plain = [
        {name: _rounded(value) for name, value in result.items() if name not in _EDITORS_OWN} for result in results
    ]
    return sorted(plain, key=lambda result: (str(result.get("id")), result.get("from_name", "")))


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
