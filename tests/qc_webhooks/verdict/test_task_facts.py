"""Facts stored of a task: annotations, times and similar regions."""

import copy

import msgspec
import pytest
from sqlalchemy import select

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Tolerance, read_answers
from qc_webhooks.decision.dispute_drawing import CONSENSUS, DisputeDrawing, draw_dispute
from qc_webhooks.policy import Policy
from qc_webhooks.store.tables import FACTS
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.fact_collection import facts_of, image_urls_of
from qc_webhooks.verdict.task_facts import CORRECTED, MANUAL, UNCHANGED, Question
from qc_webhooks.verdict.verdict import judge
from tests.qc_webhooks.conftest import CONFIG, PROJECT, annotation_json

POLICY = Policy()


def facts(*annotations, predictions=(), data=None):
    data = data or {"image": "s3://bucket/a.jpg"}
    task = read_task({"id": 5, "data": data, "annotations": list(annotations), "predictions": list(predictions)})
    config = LabelConfig.parse(CONFIG)
    answers = read_answers(task, config=config)
    return facts_of(task, answers, judge(answers, POLICY), Tolerance(), config=config)


def moved(region, by, **fields):
    other = copy.deepcopy(region) | fields
    other["value"]["x"] += by
    return other


def test_who_did_it_when_and_for_how_long(box):
    result = facts(
        annotation_json(2, 8, [box(), box(60)], lead_time=12.5),
        annotation_json(1, 9, [box()], lead_time=None),
    )
    assert [(turn.annotator, turn.seconds, turn.regions) for turn in result.annotations] == [(9, None, 1), (8, 12.5, 2)]
    assert result.annotations[1].submitted_at - result.annotations[0].submitted_at == 1.0
    assert result.last_annotated_at == result.annotations[1].submitted_at
    assert result.image_urls == ("s3://bucket/a.jpg",)
    assert result.outcome == "disputed"


def test_a_reviewers_annotation_is_told_from_blind_ones(box):
    result = facts(annotation_json(1, 8, [box()]), annotation_json(2, 9, [box()], ground_truth=True))
    assert [turn.annotator for turn in result.blind] == [8]
    assert result.annotations[1].ground_truth


@pytest.mark.parametrize(
    ("region", "origin"),
    [
        ({}, UNCHANGED),  # exactly what the model drew, whatever the annotation says of it
        ({"origin": "manual"}, UNCHANGED),
        ({"by": 1.0, "origin": "prediction-changed"}, CORRECTED),
        ({"by": 1.0}, MANUAL),
        ({"by": 1.0, "origin": "prediction"}, UNCHANGED),  # the prediction is gone, the annotation remembers
    ],
)
def test_what_became_of_a_pre_label(box, region, origin):
    drawn = box(id="p")
    own = moved(drawn, region.pop("by", 0.0), **region)
    result = facts(annotation_json(1, 8, [own]), predictions=[{"id": 1, "model_version": "m1", "result": [drawn]}])
    assert [mark.origin for mark in result.objects[0].marks] == [origin]


@pytest.mark.parametrize(
    ("answer", "origin", "parent", "became"),
    [
        ("good", "prediction", None, UNCHANGED),
        ("bad", "prediction-changed", None, CORRECTED),
        ("good", "manual", None, MANUAL),  # the same answer by chance
        ("good", None, None, MANUAL),
        ("good", "manual", 1, UNCHANGED),  # the annotation was started from the prediction
        ("bad", "prediction", 1, CORRECTED),
    ],
)
def test_what_became_of_a_pre_labelled_answer(choice, answer, origin, parent, became):
    given = choice(answer) | ({"origin": origin} if origin else {})
    one = annotation_json(1, 8, [given], parent_prediction=parent)
    other = annotation_json(2, 9, [choice("good")])
    result = facts(one, other, predictions=[{"id": 1, "model_version": "m1", "result": [choice("good")]}])
    assert result.questions[0].origin_by_annotator == {8: became, 9: MANUAL}


def test_answers_of_an_earlier_version_are_by_hand():
    question = msgspec.json.decode(b'["q", [[1, ["a"]], [2, ["b"]]]]', type=Question)
    assert question.origin_by_annotator == {1: MANUAL, 2: MANUAL}


def test_our_own_overlays_are_no_pre_labels(box):
    drawn = box()
    result = facts(annotation_json(1, 8, [drawn]), predictions=[{"id": 1, "model_version": "QC: A", "result": [drawn]}])
    assert result.objects[0].marks[0].origin == MANUAL


@pytest.mark.parametrize(("by", "same"), [(0.0, 1), (0.04, 1), (0.2, 0)])
def test_regions_that_are_the_same_to_the_pixel_are_counted(box, by, same):
    first = box()
    result = facts(annotation_json(1, 8, [first, box(60)]), annotation_json(2, 9, [moved(first, by), box(62)]))
    [pair] = result.pairs
    assert (pair.common_regions, pair.identical_regions) == (2, same)


def test_the_same_pre_label_accepted_by_both_is_no_copy(box):
    drawn = box()
    result = facts(
        annotation_json(1, 8, [drawn]),
        annotation_json(2, 9, [copy.deepcopy(drawn)]),
        predictions=[{"id": 1, "model_version": "m1", "result": [drawn]}],
    )
    assert (result.pairs[0].common_regions, result.pairs[0].identical_regions) == (0, 0)


def test_a_task_done_twice_by_one_person_is_a_repeat(box):
    result = facts(
        annotation_json(1, 8, [box()]), annotation_json(2, 8, [box()], version=1), annotation_json(3, 9, [box()])
    )
    assert [(repeat.annotator, repeat.agreement) for repeat in result.repeats] == [(8, 1.0)]
    assert len(result.annotations) == 2


def test_facts_come_back_from_json_as_they_were(box, choice):
    result = facts(annotation_json(1, 8, [box(), choice("good")]), annotation_json(2, 9, [box(label="Person")]))
    assert msgspec.json.decode(msgspec.json.encode(result), type=type(result)) == result
    assert result.evidence().annotators == (8, 9)


def test_image_urls_are_stored_but_data_urls_are_not():
    config = LabelConfig.parse('<View><Image name="i" valueList="$pages"/></View>')
    task = read_task({"id": 1, "data": {"pages": ["s3://b/1.png", "data:" + "x" * 3000, "s3://b/2.png"]}})
    assert facts_of(task, (), judge((), POLICY), Tolerance(), config=config).image_urls == (
        "s3://b/1.png",
        "s3://b/2.png",
    )


def test_a_dispute_is_drawn_stance_by_stance(box, choice):
    answers = [
        annotation_json(1, 8, [box(10, id="a"), box(60, id="b"), choice("good")]),
        annotation_json(2, 9, [box(10, label="Person", id="a"), choice("bad")]),
        annotation_json(3, 7, [box(10.2, id="c"), box(60.1, id="d"), choice("good")]),
    ]
    task = read_task({"id": 5, "data": {}, "annotations": answers})
    read = read_answers(task, config=LabelConfig.parse(CONFIG))
    drawing = draw_dispute(read, judge(read, POLICY), POLICY)
    assert [(view.name, view.annotators) for view in drawing.views] == [("A", (8, 7)), ("B", (9,)), (CONSENSUS, ())]
    first = drawing.views[0].outlines[0]
    assert first.rings == (((0.1, 0.1), (0.3, 0.1), (0.3, 0.4), (0.1, 0.4)),)
    assert drawing.sizes == ((200, 100),)
    assert drawing.views[1].answers == (("quality", "bad"),)
    message = {index: message.type for index, message in enumerate(drawing.conflicts)}
    assert sorted(message.values()) == ["choice", "label", "missing"]
    assert [message[index] for index in drawing.views[1].outlines[0].disputed] == ["label"]
    assert drawing.views[-1].answers == (("quality", "good"),)
    assert msgspec.json.decode(msgspec.json.encode(drawing), type=DisputeDrawing) == drawing


def test_results_without_ids_are_not_all_drawn_as_disputed(box):
    answers = [annotation_json(who, who, [box(10, id=""), box(60, label, id="")])
               for who, label in ((1, "Car"), (2, "Person"))]  # fmt: skip
    read = read_answers(read_task({"id": 5, "data": {}, "annotations": answers}), config=LabelConfig.parse(CONFIG))
    drawing = draw_dispute(read, judge(read, POLICY), POLICY)
    assert [conflict.type for conflict in drawing.conflicts] == ["label"]
    assert [outline.disputed for view in drawing.views for outline in view.outlines] == [()] * 6


@pytest.mark.parametrize(
    ("kind", "value", "rings"),
    [
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20}, 1),
        ("polygonlabels", {"points": [[0, 0], [50, 0], [50, 50]]}, 1),
        ("keypointlabels", {"x": 20, "y": 30, "width": 1}, 1),
    ],
)
def test_every_shape_can_be_drawn(kind, value, rings):
    config = LabelConfig.parse(
        '<View><Image name="image" value="$image"/><EllipseLabels name="e" toName="image"><Label value="a"/>'
        '</EllipseLabels><PolygonLabels name="p" toName="image"><Label value="a"/></PolygonLabels>'
        '<KeyPointLabels name="k" toName="image"><Label value="a"/></KeyPointLabels></View>'
    )
    result = {"id": "x", "from_name": kind[0], "to_name": "image", "type": kind, "original_width": 200,
              "original_height": 100, "value": value | {kind: ["a"]}}  # fmt: skip
    task = read_task({"id": 5, "data": {}, "annotations": [annotation_json(1, 8, [result]), annotation_json(2, 9, [])]})
    answers = read_answers(task, config=config)
    drawing = draw_dispute(answers, judge(answers, POLICY), POLICY)
    [outline] = next(view for view in drawing.views if 8 in view.annotators).outlines
    assert len(outline.rings) == rings
    assert all(0 <= x <= 1 and 0 <= y <= 1 for ring in outline.rings for x, y in ring)
    assert len(outline.rings[0]) <= 70


def test_a_check_stores_facts_until_the_task_is_deleted(studio, check, engine, box):
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    studio.annotate(task, 2, [box(label="Person")])
    check(task)
    store = FactStore(engine)
    assert [turn.annotator for turn in store.load(PROJECT, task).annotations] == [1, 2]
    with engine.connect() as connection:
        row = connection.execute(select(FACTS)).one()
    assert (row.kinds, row.people) == (" label ", " 1 2 ")
    assert len(msgspec.json.decode(row.drawing, type=DisputeDrawing).views) == 3
    del studio.tasks_by_id[task]
    check(task)
    assert store.load(PROJECT, task) is None


def test_a_settled_dispute_is_drawn_no_more(studio, check, engine, box):
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    own = studio.annotate(task, 2, [box(label="Person")])
    check(task)
    studio.edit_annotation(own, result=[box()])
    check(task)
    with engine.connect() as connection:
        row = connection.execute(select(FACTS)).one()
    assert (row.drawing, row.kinds.strip()) == (None, "")
    assert FactStore(engine).load(PROJECT, task).outcome == "agreed"


def test_a_drawing_error_does_not_affect_the_verdict(studio, check, engine, box, monkeypatch):
    def fall_over(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("qc_webhooks.pipeline.checker.draw_dispute", fall_over)
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    studio.annotate(task, 2, [box(label="Person")])
    assert check(task).verdict.outcome == "disputed"
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "disputed"


def test_unreadable_answers_are_no_evidence(box):
    broken = box() | {"value": {"x": "here"}}
    result = facts(
        annotation_json(1, 8, [box()]), annotation_json(2, 9, [box()]), annotation_json(3, 10, [box(60), broken])
    )
    assert [(turn.annotator, turn.regions, turn.is_complete) for turn in result.annotations] == [
        (8, 1, True), (9, 1, True), (10, 1, False)
    ]  # fmt: skip
    assert result.evidence().annotators == (8, 9)
    assert [{mark.annotator for mark in thing.marks} for thing in result.objects] == [{8, 9}]
    assert [(pair.a, pair.b) for pair in result.pairs] == [(8, 9)]
    assert [turn.annotator for turn in result.blind] == [8, 9]


def test_facts_kept_by_an_earlier_version_are_whole(box):
    stored = msgspec.json.decode(msgspec.json.encode(facts(annotation_json(1, 8, [box()]))))
    stored[1][0] = stored[1][0][:7]
    read = msgspec.convert(stored, type(facts(annotation_json(1, 8, [box()]))))
    assert read.annotations[0].is_complete


def test_images_under_a_path_of_the_data_are_facts():
    config = LabelConfig.parse('<View><Image name="i" value="$photo.url"/><Image name="j" value="$pages[1]"/></View>')
    task = read_task({"id": 5, "data": {"photo": {"url": "a.jpg"}, "pages": ["b.jpg", "c.jpg"]}})
    assert image_urls_of(task, config) == ("a.jpg", "c.jpg")
