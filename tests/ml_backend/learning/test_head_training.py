"""Projects without rectangles learn too: answers, polygons and points; each part is judged and served on its own."""

import time
from types import SimpleNamespace

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import MediaMissing
from ml_backend.heads import HEADS
from ml_backend.heads.base import HeadKind, HeadResult
from ml_backend.learning import head_training, label_errors
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import AcceptanceVerdict
from ml_backend.learning.evaluation.candidate import CandidateEvaluator
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.learning.training_run import Learner
from ml_backend.predict.control_notes import hints_of
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.serving.activation import roll_back, served_version
from tests.drawn import SIDE
from tests.ml_backend.learning.conftest import PROJECT, box_json, draw_discs
from tests.ml_backend.training.test_image_features import classifier

CHOICES = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="both"/><Choice value="alone"/></Choices></View>"""
POLYGONS = """<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></PolygonLabels></View>"""
MIXED = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></RectangleLabels><Choices name="kind" toName="image">
<Choice value="both"/><Choice value="alone"/></Choices></View>"""

POINTS = """<View><Image name="image" value="$image"/><KeyPointLabels name="point" toName="image">
<Label value="Middle"/></KeyPointLabels></View>"""
REGIONS = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Thing"/></RectangleLabels><Choices name="colour" toName="image" perRegion="true">
<Choice value="red"/><Choice value="blue"/></Choices><Rating name="size" toName="image"/></View>"""


@pytest.fixture(autouse=True)
def _no_waiting(policy):
    policy("debounce_s = 0\nheld_out = 0\n")


@pytest.fixture
def configured(studio):
    """configured(xml): the project has this label config."""
    return lambda xml: studio.put_project(PROJECT, label_config=xml)


def answer(seed):
    value = "both" if len(draw_discs(seed)[1]) > 1 else "alone"
    return {"id": f"a{seed}", "from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": [value]}}


def polygon(label, box):
    x0, y0, x1, y1 = (100 * side / SIDE for side in box)
    points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    result = box_json(label, box)
    return {**result, "type": "polygonlabels", "value": {"points": points, "closed": True, "polygonlabels": [label]}}


def middle(label, box):
    x0, y0, x1, y1 = (100 * side / SIDE for side in box)
    result = box_json(label, box)
    value = {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "width": 0.5, "keypointlabels": ["Middle"]}
    return {**result, "type": "keypointlabels", "from_name": "point", "value": value}


def coloured(label, box):
    """A thing with its colour, as stock Label Studio writes an answer about a region."""
    thing = box_json("Thing", box)
    shape = {key: value for key, value in thing["value"].items() if key != "rectanglelabels"}
    value = {**shape, "choices": ["red" if label == "Disc" else "blue"]}
    return [thing, {**thing, "type": "choices", "from_name": "colour", "value": value}]


def annotate(studio, seed, kind):
    task = studio.add_image(seed)
    drawn = draw_discs(seed)[1]
    results = {
        "answers": [answer(seed)],
        "polygons": [polygon(*item) for item in drawn],
        "mixed": [*(box_json(*item) for item in drawn), answer(seed)],
        "points": [middle(*drawn[0])],
        "regions": [
            *(part for item in drawn for part in coloured(*item)),
            {"id": "s", "from_name": "size", "to_name": "image", "type": "rating", "value": {"rating": len(drawn)}},
        ],
    }[kind]
    studio.annotate(task, 1, results)
    return task


def predict(context, studio, xml, seeds):
    served = context.base_models.served(PROJECT)
    detector = context.base_models.detector(served.version)
    targets = find_targets(
        LabelConfig.parse(xml), detector.names.names, provides=detector.provides, answers=detector.answers
    )
    tasks = [{"id": task, "data": studio.tasks_by_id[task]["data"]} for task in map(studio.add_image, seeds)]
    entries = Predictor(context.media, score_threshold=0.3).predict(tasks, detector=detector, targets=targets)
    return [entry.result for entry in entries]


def test_a_project_of_answers_learns_and_is_served(context, studio, learn, configured, settings):
    configured(CHOICES)
    run = learn(tasks=[annotate(studio, seed, "answers") for seed in range(12)])
    assert (run.verdict, run.boxes, run.ap50) == ("published", 0, None), run.reason
    metrics = run.metrics.heads["image_labels"]
    assert metrics.passed
    assert metrics.value is not None
    assert run.version == served_version(settings, project=PROJECT) != run.parent
    results = predict(context, studio, CHOICES, range(20, 30))
    values = [result[0]["value"]["choices"] for result in results if result]
    assert values
    assert all(result[0]["from_name"] == "kind" for result in results if result)
    # The next run starts from it, and an unchanged project starts none.
    assert learn(sweep=True) is None
    second = learn(tasks=[annotate(studio, seed, "answers") for seed in (40, 41)])
    assert (second.parent, second.base) == (run.version, run.base)


def test_a_project_of_polygons_learns_boxes_and_is_served_polygons(context, studio, learn, configured):
    configured(POLYGONS)
    run = learn(tasks=[annotate(studio, seed, "polygons") for seed in range(6)])
    assert run.verdict == "published"
    assert run.boxes
    assert run.ap50
    [result] = predict(context, studio, POLYGONS, [21])
    assert result
    assert {region["type"] for region in result} == {"polygonlabels"}


def test_a_project_of_key_points_alone_learns(context, studio, learn, configured):
    configured(POINTS)
    run = learn(tasks=[annotate(studio, seed, "points") for seed in range(14)])
    assert run.verdict == "published", run.reason
    assert run.metrics.heads["keypoints"].passed
    results = predict(context, studio, POINTS, range(20, 24))
    assert any(results)
    assert {region["type"] for result in results for region in result} == {"keypointlabels"}


def test_answers_about_regions_and_ratings_are_served_with_their_boxes(context, studio, learn, configured):
    configured(REGIONS)
    run = learn(tasks=[annotate(studio, seed, "regions") for seed in range(16)])
    assert run.verdict == "published", run.reason
    results = [result for seed_result in predict(context, studio, REGIONS, range(20, 26)) for result in seed_result]
    boxes = {result["id"]: result for result in results if result["type"] == "rectanglelabels"}
    answers = [result for result in results if result["type"] == "choices"]
    assert boxes
    assert answers
    assert {result["id"] for result in answers} <= set(boxes)
    assert {choice for result in answers for choice in result["value"]["choices"]} == {"red", "blue"}
    assert all(result["value"]["x"] == boxes[result["id"]]["value"]["x"] for result in answers)
    assert {result["value"]["rating"] for result in results if result["type"] == "rating"} <= {1, 2}


def test_wrong_answers_about_objects_are_noted_with_their_place(context, studio, configured, monkeypatch):
    configured(REGIONS)
    monkeypatch.setattr(label_errors, "_box_remarks", lambda *_args, **_options: {})
    tasks = [annotate(studio, seed, "regions") for seed in range(10)]
    wrong = studio.add_image(14)
    (label, box), *others = draw_discs(14)[1]
    swapped = coloured("Square" if label == "Disc" else "Disc", box)
    studio.annotate(wrong, 1, [*swapped, *(part for item in others for part in coloured(*item))])
    context.training_data.connect(PROJECT)
    context.sync.sweep(PROJECT, config=LabelConfig.parse(REGIONS), held_out=0.0)
    label_errors.review_labels(context, PROJECT, stop=lambda: False)
    note = studio.tasks_by_id[wrong]["data"]["qc_model_note"]
    assert "olour is perhaps red, not blue for the object at" in note
    assert f"at {box[0]}, {box[1]} (" in note
    scores = {task: studio.tasks_by_id[task]["data"].get("qc_model_score", 0.0) for task in (*tasks, wrong)}
    assert max(scores, key=scores.get) == wrong


@pytest.fixture
def served_by(settings, studio, engine):
    """served_by(model): the context and the runs of a project whose model is this file."""

    def make(model):
        context = LearningContext.of(settings.replace(model=model), studio, engine)
        learner = Learner(context)

        def learn(**payload):
            event = SimpleNamespace(payload={"source": "test", **payload}, created_at=time.time(), id=1)
            return learner.learn(PROJECT, [event])

        return context, learn

    return make


def test_a_classifier_of_your_own_learns_answers_on_its_features(studio, configured, served_by, tmp_path):
    configured(CHOICES)
    context, learn = served_by(classifier(tmp_path / "flowers.onnx"))
    run = learn(tasks=[annotate(studio, seed, "answers") for seed in range(15)])
    assert run.verdict == "published", run.reason
    before, after = (context.base_models.detector(version) for version in (run.base, run.version))
    assert (after.layout, after.names.names) == ("classify", before.names.names)
    results = predict(context, studio, CHOICES, range(20, 26))
    assert any(results)
    assert {result["from_name"] for found in results for result in found} == {"kind"}


def test_a_model_without_feature_maps_learns_answers_on_those_of_the_embedded_one(
    studio, configured, served_by, labelloop_model
):
    configured(CHOICES)
    context, learn = served_by(labelloop_model())
    run = learn(tasks=[annotate(studio, seed, "answers") for seed in range(15)])
    assert run.verdict == "published", run.reason
    served = context.base_models.detector(run.version)
    outputs = ModelOutputs.of(served)
    assert served.layout == "labelloop"
    config = LabelConfig.parse(CHOICES)
    assert "embedded model" in " ".join(hints_of(config, controls_of(config, outputs), outputs))
    results = predict(context, studio, CHOICES, range(20, 26))
    assert {result["from_name"] for found in results for result in found} == {"kind"}


def test_boxes_of_a_model_that_cannot_be_trained_are_said(studio, configured, served_by, tmp_path):
    configured(MIXED.split("<Choices", maxsplit=1)[0] + "</View>")
    _, learn = served_by(classifier(tmp_path / "flowers.onnx"))
    for seed in range(3):
        annotate(studio, seed, "mixed")
    run = learn(sweep=True, now=True)
    assert run.verdict == "failed"
    assert "boxes cannot be trained: training does not support the layout 'classify'" in run.reason


def test_a_rollback_brings_the_heads_back(context, studio, learn, configured, settings):
    configured(CHOICES)
    first = learn(tasks=[annotate(studio, seed, "answers") for seed in range(10)])
    second = learn(tasks=[annotate(studio, seed, "answers") for seed in range(10, 16)])
    assert (first.verdict, second.verdict) == ("published", "published")
    roll_back(settings=settings, project=PROJECT, studio=studio)
    assert served_version(settings, project=PROJECT) == first.version
    tasks = context.base_models.heads(first.version)["image_labels"].tasks
    assert len(tasks) < len(context.base_models.heads(second.version)["image_labels"].tasks)


def test_refused_boxes_do_not_hold_back_what_passed(context, studio, learn, configured, monkeypatch):
    configured(MIXED)
    first = learn(tasks=[annotate(studio, seed, "mixed") for seed in range(6)])
    assert first.verdict == "published"
    refused = AcceptanceVerdict(False, "cross-validation", "worse", 0.1, 0.9)
    monkeypatch.setattr(CandidateEvaluator, "gate", lambda *_: refused)

    def fit(inputs):
        result = HEADS["image_labels"].fit(inputs)
        return HeadResult(result.head or inputs.parent, "accuracy", 0.9, 0.8, passed=True, reason="better")

    kind = HeadKind("image_labels", HEADS["image_labels"].from_bytes, fit, HEADS["image_labels"].apply)
    monkeypatch.setattr(head_training, "HEADS", {"image_labels": kind})
    second = learn(tasks=[annotate(studio, seed, "mixed") for seed in range(6, 12)])
    assert second.verdict == "published"
    assert second.metrics.heads["image_labels"].passed
    assert second.metrics.boxes_kept
    assert second.ap50 is None
    assert "the boxes stay those of the served version: worse" in second.reason
    before, after = (context.base_models.file(run.version)[1] for run in (first, second))
    assert before.files[before.model].sha256 == after.files[after.model].sha256
    assert before.thresholds == after.thresholds


def test_heads_wait_for_boxes_where_the_base_model_changed(context, studio, learn, configured, monkeypatch):
    configured(MIXED)
    first = learn(tasks=[annotate(studio, seed, "mixed") for seed in range(5)])
    refused = AcceptanceVerdict(False, "cross-validation", "worse", 0.1, 0.9)
    monkeypatch.setattr(CandidateEvaluator, "gate", lambda *_: refused)
    monkeypatch.setattr(type(context.base_models), "has_base", lambda *_: False)
    passing = HeadResult(None, "accuracy", 0.9, 0.8, passed=True, reason="better")
    kind = HeadKind("image_labels", HEADS["image_labels"].from_bytes, lambda _: passing, HEADS["image_labels"].apply)
    monkeypatch.setattr(head_training, "HEADS", {"image_labels": kind})
    second = learn(tasks=[annotate(studio, 5, "mixed")])
    assert (first.verdict, second.verdict) == ("published", "refused")
    assert "another base model" in second.metrics.heads["image_labels"].reason


def test_an_error_in_one_kind_leaves_the_others(context, studio, learn, configured, monkeypatch):
    def broken(_inputs):
        raise ZeroDivisionError("no such thing")

    configured(MIXED)
    kind = HeadKind("masks", HEADS["masks"].from_bytes, broken, HEADS["masks"].apply)
    monkeypatch.setattr(head_training, "HEADS", {**HEADS, "masks": kind})
    run = learn(tasks=[annotate(studio, seed, "mixed") for seed in range(4)])
    assert run.verdict == "published"
    assert run.metrics.heads["masks"].reason == "ZeroDivisionError: no such thing"
    assert not run.metrics.heads["masks"].passed


def test_an_image_that_is_gone_is_left_out_of_a_head(context, studio, learn, configured, monkeypatch):
    lost = []

    def fit(inputs):
        for example in inputs.examples:
            example.pixels()
        lost.append(len(inputs.examples))
        return HeadResult(None, "mask IoU", None, None, passed=False, reason="few", judged_by="nothing")

    configured(MIXED)
    kind = HeadKind("masks", HEADS["masks"].from_bytes, fit, HEADS["masks"].apply)
    monkeypatch.setattr(head_training, "HEADS", {"masks": kind})
    tasks = [annotate(studio, seed, "mixed") for seed in range(4)]
    photo = context.media.photo

    def gone(url, *, max_side=None, **more):
        if url.endswith("=2.png") and max_side == head_training.MAX_SIDE:
            raise MediaMissing(url, "it was deleted")
        return photo(url, max_side=max_side, **more)

    monkeypatch.setattr(context.media, "photo", gone)
    assert learn(tasks=tasks).metrics.heads["masks"].reason == "few"
    assert lost == [3]


def test_a_version_without_its_head_after_its_annotations_are_gone(context, studio, learn, configured):
    configured(MIXED)
    tasks = [annotate(studio, seed, "mixed") for seed in range(10)]
    run = learn(tasks=tasks)
    if "image_labels" not in context.base_models.heads(run.version):
        pytest.skip("too few images for answers")
    for task in tasks:
        annotation = studio.tasks_by_id[task]["annotations"][0]
        annotation["result"] = [item for item in annotation["result"] if item["type"] != "choices"]
        annotation["updated_at"] = "2026-02-02T00:00:00.000000Z"
    second = learn(sweep=True)
    assert second.verdict == "published"
    assert "image_labels" not in context.base_models.heads(second.version)


def test_the_first_tasks_of_a_project_of_answers_have_an_order(context, studio, learn, configured):
    configured(CHOICES)
    waiting = [studio.add_image(seed) for seed in range(5)]
    assert learn(tasks=[]) is None
    done = rank_open_tasks(context, PROJECT, stop=lambda: False)
    assert done.prelabelled == len(waiting)
    assert sorted(studio.queue(done.version)) == waiting


def test_open_tasks_of_a_project_of_answers_are_ranked(context, studio, learn, configured):
    configured(CHOICES)
    run = learn(tasks=[annotate(studio, seed, "answers") for seed in range(12)])
    waiting = [studio.add_image(seed) for seed in range(50, 60)]
    done = rank_open_tasks(context, PROJECT, stop=lambda: False)
    assert (done.version, done.prelabelled) == (run.version, len(waiting))
    assert sorted(studio.queue(run.version)) == waiting
