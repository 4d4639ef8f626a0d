"""What is kept of a task beside its verdict: who did what and when, whose regions are alike."""

import copy

import msgspec
import pytest
from sqlalchemy import select

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Tolerance, read_answers
from qc_webhooks.decision.dispute_drawing import CONSENSUS, Drawing, draw
from qc_webhooks.policy import Policy
from qc_webhooks.store.tables import FACTS
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.task_facts import BY_HAND, CHANGED, UNTOUCHED, facts_of
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
    found = facts(
        annotation_json(2, 8, [box(), box(60)], lead_time=12.5),
        annotation_json(1, 9, [box()], lead_time=None),
    )
    assert [(turn.annotator, turn.seconds, turn.regions) for turn in found.turns] == [(9, None, 1), (8, 12.5, 2)]
    assert found.turns[1].at - found.turns[0].at == 1.0
    assert found.at == found.turns[1].at
    assert found.photos == ("s3://bucket/a.jpg",)
    assert found.outcome == "disputed"


def test_a_reviewers_annotation_is_told_from_blind_ones(box):
    found = facts(annotation_json(1, 8, [box()]), annotation_json(2, 9, [box()], ground_truth=True))
    assert [turn.annotator for turn in found.blind] == [8]
    assert found.turns[1].truth


@pytest.mark.parametrize(
    ("region", "origin"),
    [
        ({}, UNTOUCHED),  # exactly what the model drew, whatever the annotation says of it
        ({"origin": "manual"}, UNTOUCHED),
        ({"by": 1.0, "origin": "prediction-changed"}, CHANGED),
        ({"by": 1.0}, BY_HAND),
        ({"by": 1.0, "origin": "prediction"}, UNTOUCHED),  # the prediction is gone, the annotation remembers
    ],
)
def test_what_became_of_a_pre_label(box, region, origin):
    drawn = box(id="p")
    mine = moved(drawn, region.pop("by", 0.0), **region)
    found = facts(annotation_json(1, 8, [mine]), predictions=[{"id": 1, "model_version": "m1", "result": [drawn]}])
    assert [mark.origin for mark in found.things[0].marks] == [origin]


def test_our_own_overlays_are_no_pre_labels(box):
    drawn = box()
    found = facts(annotation_json(1, 8, [drawn]), predictions=[{"id": 1, "model_version": "QC: A", "result": [drawn]}])
    assert found.things[0].marks[0].origin == BY_HAND


@pytest.mark.parametrize(("by", "same"), [(0.0, 1), (0.04, 1), (0.2, 0)])
def test_regions_that_are_the_same_to_the_pixel_are_counted(box, by, same):
    one = box()
    found = facts(annotation_json(1, 8, [one, box(60)]), annotation_json(2, 9, [moved(one, by), box(62)]))
    [pair] = found.pairs
    assert (pair.met, pair.same) == (2, same)


def test_the_same_pre_label_accepted_by_both_is_no_copy(box):
    drawn = box()
    found = facts(
        annotation_json(1, 8, [drawn]),
        annotation_json(2, 9, [copy.deepcopy(drawn)]),
        predictions=[{"id": 1, "model_version": "m1", "result": [drawn]}],
    )
    assert (found.pairs[0].met, found.pairs[0].same) == (0, 0)


def test_a_task_done_twice_by_one_person_is_a_repeat(box):
    found = facts(
        annotation_json(1, 8, [box()]), annotation_json(2, 8, [box()], version=1), annotation_json(3, 9, [box()])
    )
    assert [(repeat.annotator, repeat.agreement) for repeat in found.repeats] == [(8, 1.0)]
    assert len(found.turns) == 2


def test_facts_come_back_from_json_as_they_were(box, choice):
    found = facts(annotation_json(1, 8, [box(), choice("good")]), annotation_json(2, 9, [box(label="Person")]))
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    assert found.evidence().looked == (8, 9)


def test_addresses_of_several_photos_are_kept_and_images_inside_the_task_are_not():
    config = LabelConfig.parse('<View><Image name="i" valueList="$pages"/></View>')
    task = read_task({"id": 1, "data": {"pages": ["s3://b/1.png", "data:" + "x" * 3000, "s3://b/2.png"]}})
    assert facts_of(task, (), judge((), POLICY), Tolerance(), config=config).photos == ("s3://b/1.png", "s3://b/2.png")


def test_a_dispute_is_drawn_stance_by_stance(box, choice):
    answers = [
        annotation_json(1, 8, [box(10, id="a"), box(60, id="b"), choice("good")]),
        annotation_json(2, 9, [box(10, label="Person", id="a"), choice("bad")]),
        annotation_json(3, 7, [box(10.2, id="c"), box(60.1, id="d"), choice("good")]),
    ]
    task = read_task({"id": 5, "data": {}, "annotations": answers})
    read = read_answers(task, config=LabelConfig.parse(CONFIG))
    drawing = draw(read, judge(read, POLICY), POLICY)
    assert [(view.name, view.annotators) for view in drawing.views] == [("A", (8, 7)), ("B", (9,)), (CONSENSUS, ())]
    first = drawing.views[0].outlines[0]
    assert first.rings == (((0.1, 0.1), (0.3, 0.1), (0.3, 0.4), (0.1, 0.4)),)
    assert drawing.sizes == ((200, 100),)
    assert drawing.views[1].said == (("quality", "bad"),)
    said = {place: said.type for place, said in enumerate(drawing.conflicts)}
    assert sorted(said.values()) == ["choice", "label", "missing"]
    assert [said[place] for place in drawing.views[1].outlines[0].disputed] == ["label"]
    assert drawing.views[-1].said == (("quality", "good"),)
    assert msgspec.json.decode(msgspec.json.encode(drawing), type=Drawing) == drawing


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
    drawing = draw(answers, judge(answers, POLICY), POLICY)
    [outline] = next(view for view in drawing.views if 8 in view.annotators).outlines
    assert len(outline.rings) == rings
    assert all(0 <= x <= 1 and 0 <= y <= 1 for ring in outline.rings for x, y in ring)
    assert len(outline.rings[0]) <= 70


def test_a_check_keeps_the_facts_and_a_deleted_task_has_none(studio, check, engine, box):
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    studio.annotate(task, 2, [box(label="Person")])
    check(task)
    store = FactStore(engine)
    assert [turn.annotator for turn in store.facts(PROJECT, task).turns] == [1, 2]
    with engine.connect() as connection:
        row = connection.execute(select(FACTS)).one()
    assert (row.kinds, row.people) == (" label ", " 1 2 ")
    assert len(msgspec.json.decode(row.drawing, type=Drawing).views) == 3
    del studio.stored[task]
    check(task)
    assert store.facts(PROJECT, task) is None


def test_a_settled_dispute_is_drawn_no_more(studio, check, engine, box):
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    mine = studio.annotate(task, 2, [box(label="Person")])
    check(task)
    studio.change(mine, result=[box()])
    check(task)
    with engine.connect() as connection:
        row = connection.execute(select(FACTS)).one()
    assert (row.drawing, row.kinds.strip()) == (None, "")
    assert FactStore(engine).facts(PROJECT, task).outcome == "agreed"


def test_what_cannot_be_drawn_does_not_cost_the_verdict(studio, check, engine, box, monkeypatch):
    def fall_over(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("qc_webhooks.pipeline.checker.draw", fall_over)
    task = studio.add_task()
    studio.annotate(task, 1, [box()])
    studio.annotate(task, 2, [box(label="Person")])
    assert check(task).verdict.outcome == "disputed"
    assert studio.stored[task]["data"]["qc_status"] == "disputed"


def test_what_cannot_be_read_whole_is_no_evidence(box):
    broken = box() | {"value": {"x": "here"}}
    found = facts(
        annotation_json(1, 8, [box()]), annotation_json(2, 9, [box()]), annotation_json(3, 10, [box(60), broken])
    )
    assert [(turn.annotator, turn.regions, turn.whole) for turn in found.turns] == [
        (8, 1, True), (9, 1, True), (10, 1, False)
    ]  # fmt: skip
    assert found.evidence().looked == (8, 9)
    assert [{mark.annotator for mark in thing.marks} for thing in found.things] == [{8, 9}]
    assert [(pair.a, pair.b) for pair in found.pairs] == [(8, 9)]
    assert [turn.annotator for turn in found.blind] == [8, 9]


def test_facts_kept_by_an_earlier_version_are_whole(box):
    kept = msgspec.json.decode(msgspec.json.encode(facts(annotation_json(1, 8, [box()]))))
    kept[1][0] = kept[1][0][:7]
    read = msgspec.convert(kept, type(facts(annotation_json(1, 8, [box()]))))
    assert read.turns[0].whole
