"""An annotator on stock Label Studio: from Submit until every worker serves what was learned; what that is worth."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from bench.annotator import GOOD_IOU, SAME_IOU
from bench.stack import ROOT, running_stack
from labelloop.connect import connect
from labelloop.service.db.engine import open_database
from labelloop.service.media import image_size, load_image
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.detection.preprocess import prepare
from ml_backend.learning.annotations import LabelledImage, is_held_out
from ml_backend.learning.report.prelabel_edits import PrelabelEdits, edits_of
from ml_backend.learning.store.runs import PHASES, RunStore
from ml_backend.serving.activation import open_served_model
from ml_backend.studio.connect import basic_auth
from ml_backend.training.datasets import LocalImage, read_labelled
from ml_backend.training.metrics import GroundTruth, mean_ap50

CELLS = ROOT.parent / "shared" / "data" / "bccd"
LABELS = ("RBC", "WBC", "Platelets")
TAGS = "".join(f'<Label value="{label}"/>' for label in LABELS)
CONFIG = f"""<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{TAGS}
</RectangleLabels></View>"""

PHOTOS, LABELLED = 130, 110
SPANS = {"at 20 images": range(15, 27), "at 100 images": range(97, 109)}
"""Submits that are timed; the others follow as fast as Label Studio takes them, in bursts of ten."""
ALLOWED_S = {"at 20 images": 3.0, "at 100 images": 5.0}
JUDGED = (2, 5, 10, 20, 30, 50, 80, 110)
EVENTS, ALLOWED_MS = 400, 50
ANSWERS = 8
"""Answers in a row that must name the version: two workers share them by chance."""

LIMIT_S = 120.0


@dataclass
class Story:
    """What happened."""

    latency: dict[str, list[float]] = field(default_factory=dict)
    edits: list[PrelabelEdits] = field(default_factory=list)
    ap50: dict[int, float] = field(default_factory=dict)
    refused: int = 0


def run() -> str:
    """The figures, in Markdown."""
    if not (CELLS / "val.txt").is_file():
        return "Not measured: the data sets are not on this machine."
    with running_stack() as settings:
        answers = _webhook(settings)
        bench = Annotator(settings)
        bench.label()
        return bench.told(answers)


class Annotator:
    """Draws what the data set says, on the photos that Label Studio serves, in its order."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.studio = settings, Studio.from_settings(settings)
        held = set((CELLS / "val.txt").read_text().split())
        photos = [one for one in read_labelled(CELLS / "images", CELLS / "annotations_voc").images if one.labels]
        self.test = [one for one in photos if {one.path.stem, one.path.name} & held]
        train = [one for one in photos if not {one.path.stem, one.path.name} & held]
        chosen = random.Random(0).sample(train, PHOTOS)
        self.project = int(self.studio.create_project(title="Blood cells", label_config=CONFIG)["id"])
        numbers = self.studio.upload_images(self.project, [one.path for one in chosen])
        connect(self.project, settings, studio=self.studio, on_change=lambda _change: None)
        self.photos = dict(zip(numbers, chosen, strict=True))
        self.runs, self.story = RunStore(open_database(settings)), Story()
        self.load = os.getloadavg()[0]
        self.asks = {"project": f"{self.project}.1", "schema": CONFIG}
        # A connection for each question: else one worker would answer them all.
        self.http = httpx.Client(
            timeout=30, trust_env=False, headers={"Connection": "close"}, auth=basic_auth(settings)
        )
        _until(lambda: sum(self.studio.model_versions(self.project).values()) >= PHOTOS)

    def label(self) -> None:
        """All images, one after the other."""
        taught = 0
        for number in range(1, LABELLED + 1):
            task = self.studio.next_task(self.project)
            assert task is not None
            photo = self.photos[task["id"]]
            self.story.edits.append(_edits(task, photo))
            started = time.monotonic()
            self.studio.add_annotation(task["id"], _drawn(photo), lead_time=5.0)
            held = is_held_out(self.project, task["id"], 0.1)
            taught += not held
            span = next((name for name, span in SPANS.items() if number in span), "")
            if taught < 2 or not (span or number <= 10 or number % 10 == 0 or number in JUDGED):
                continue
            at = self._served(taught)
            if at is None:
                self.story.refused += 1
            elif span and not held:
                self.story.latency.setdefault(span, []).append(at - started)
            if number in JUDGED:
                self.story.ap50[number] = self._judge()
            if span:
                time.sleep(4)  # the annotator looks at the next photo; pre-labels are renewed meanwhile

    def _served(self, tasks: int) -> float | None:
        """When every worker served what was learned from so many tasks; None where the gate refused it."""
        end, first, row = time.monotonic() + LIMIT_S, 0.0, 0
        while time.monotonic() < end:
            at = time.monotonic()
            answer = self.http.post(f"{self.settings.ml_url}/setup", json=self.asks).json()
            row = row + 1 if _tasks_of(str(answer["model_version"])) >= tasks else 0
            first = at if row == 1 else first
            if row == ANSWERS:
                return first
            last = next(iter(self.runs.last(self.project, 1)), None) if not row else None
            if last is not None and last.verdict == "refused" and last.tasks >= tasks:
                return None
            time.sleep(0.01 if row else 0.1)
        raise RuntimeError(f"nothing is served that was learned from {tasks} tasks after {LIMIT_S:.0f} s")

    def _judge(self) -> float:
        """AP50 of what is served on the test photos."""
        detector, _ = open_served_model(self.settings, self.project)
        truths, found = [], []
        for one in self.test:
            photo = load_image(one.path.read_bytes(), max_side=max(detector.spec.width, detector.spec.height))
            prepared = prepare(photo.pixels, detector.spec, size=(photo.width, photo.height))
            found += detector.detect([prepared], floor=0.005)
            truths.append(GroundTruth(np.asarray(one.boxes, np.float32).reshape(-1, 4), one.labels))
        return mean_ap50(truths, found, names=detector.names.names)

    def told(self, answers: list[float]) -> str:
        """The figures, in Markdown."""
        story, runs = self.story, [one for one in self.runs.last(self.project, 1000) if one.verdict == "published"]
        rows = [
            f"{PHOTOS} photos of blood cells (BCCD, three classes that the embedded model never saw), uploaded to",
            "stock Label Studio 1.23.2 on SQLite. An annotator labels them over HTTP in the order in which Label",
            "Studio serves them. ML backend with 2 gunicorn workers, QC, the worker and Label Studio on one machine.",
            f"{os.cpu_count()} cores; load average {self.load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.",
            "",
            "## From Submit until every worker serves the learned model",
            "",
            "| | submits | median, s | p95, s | at most |",
            "|---|---|---|---|---|",
        ]
        for name, values in story.latency.items():
            cells = f"{np.median(values):.1f} | **{np.percentile(values, 95):.1f}**"
            rows.append(f"| {name} | {len(values)} | {cells} | {ALLOWED_S[name]:.0f} |")
        rows += [
            "",
            "Median seconds by phase (`learn_runs`):",
            "",
            "| labelled |" + "".join(f" {name} |" for name in PHASES),
        ]
        rows.append("|---|" + "---|" * len(PHASES))
        for name, span in SPANS.items():
            some = [one for one in runs if one.tasks + one.held_out in span]
            cells = [f"{np.median([one.seconds.get(phase, 0) for one in some] or [0]):.2f}" for phase in PHASES]
            rows.append(f"| {name} | {' | '.join(cells)} |")
        rows += ["", "## The webhook", "", "| events | p50, ms | p99, ms | at most |", "|---|---|---|---|"]
        rows.append(
            f"| {len(answers)} | {np.median(answers):.1f} | **{np.percentile(answers, 99):.1f}** | {ALLOWED_MS} |"
        )
        rows += [
            "",
            "## What it is worth",
            "",
            "AP50 of what is served, on the 73 photos of `val.txt` (pycocotools):",
            "",
        ]
        rows.append("| images labelled |" + "".join(f" {number} |" for number in story.ap50))
        rows += [
            "|---|" + "---|" * len(story.ap50),
            "| AP50 |" + "".join(f" {one:.3f} |" for one in story.ap50.values()),
        ]
        rows += [
            "",
            "What the annotator had to do to the pre-labels that Label Studio showed, boxes an image. The queue serves",
            "rich photos first, and many red cells were never drawn: pre-labels on them count as deleted. The same",
            "with photos in random order is in [edits](edits.md).",
            "",
            "| images | drawn in all | accepted | moved | relabelled | added | deleted | edits | edits a box |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for start in range(0, len(story.edits), 10):
            some = story.edits[start : start + 10]
            all_ = sum(some, PrelabelEdits())
            counts = (all_.submitted, all_.accepted, all_.moved, all_.relabelled, all_.added, all_.deleted)
            cells = [f"{count / len(some):.1f}" for count in counts]
            rows.append(
                f"| {start + 1}-{start + len(some)} | {' | '.join(cells)} | **{all_.total / len(some):.1f}** "
                f"| {all_.total / max(all_.submitted, 1):.2f} |"
            )
        verdicts = [one.verdict for one in self.runs.last(self.project, 1000)]
        rows += [
            "",
            f"{len(verdicts)} fits: {verdicts.count('published')} published, {verdicts.count('refused')} refused.",
        ]
        return "\n".join(rows)


def _webhook(settings: Settings) -> list[float]:
    """Milliseconds of each answer to events of a project that does not learn, so that nothing else is measured."""
    policy = settings.home / "ml_backend" / "999" / "learn.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("learn = false\n")
    headers = {SECRET_HEADER: settings.webhook_secret.get_secret_value()}
    times = []
    http = httpx.Client(timeout=30, trust_env=False, headers=headers, auth=basic_auth(settings))
    for number in range(EVENTS + 20):
        annotation = {"id": number, "task": number, "project": 999, "updated_at": "2026-01-01T00:00:00Z", "result": []}
        body = {"action": "ANNOTATION_CREATED", "annotation": annotation, "project": {"id": 999}}
        started = time.perf_counter()
        answer = http.post(f"{settings.ml_url}/webhook", json=body)
        times.append(1000 * (time.perf_counter() - started))
        answer.raise_for_status()
        time.sleep(0.02)
    return times[20:]


def _tasks_of(version: str) -> int:
    """Labelled tasks that a version was learned from; 0 for the base."""
    found = re.match(r"learned-(\d+)-", version)
    return int(found.group(1)) if found else 0


def _drawn(photo: LocalImage) -> list[dict[str, Any]]:
    """What the data set says, as Label Studio's JSON."""
    width, height = image_size(photo.path.read_bytes())
    size = {"original_width": width, "original_height": height, "image_rotation": 0, "origin": "manual"}
    results = []
    for place, (box, label) in enumerate(zip(photo.boxes, photo.labels, strict=True)):
        value = {
            "x": 100 * box[0] / width, "y": 100 * box[1] / height, "width": 100 * (box[2] - box[0]) / width,
            "height": 100 * (box[3] - box[1]) / height, "rotation": 0, "rectanglelabels": [label],
        }  # fmt: skip
        told = {"id": f"r{place}", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
        results.append({**told, **size})
    return results


def _edits(task: dict[str, Any], photo: LocalImage) -> PrelabelEdits:
    """What has to be done to the pre-label that the label stream shows."""
    width, height = image_size(photo.path.read_bytes())
    values = [one["value"] for one in (task["predictions"] or [{"result": []}])[0]["result"]]
    boxes = tuple(
        (
            one["x"] * width / 100, one["y"] * height / 100, (one["x"] + one["width"]) * width / 100,
            (one["y"] + one["height"]) * height / 100,
        )
        for one in values
    )  # fmt: skip
    shown = LabelledImage("photo", boxes=boxes, labels=tuple(one["rectanglelabels"][0] for one in values))
    return edits_of(
        [shown], [LabelledImage("photo", boxes=photo.boxes, labels=photo.labels)], same=GOOD_IOU, moved=SAME_IOU
    )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the open tasks got no pre-labels within 300 s")
        time.sleep(0.5)
