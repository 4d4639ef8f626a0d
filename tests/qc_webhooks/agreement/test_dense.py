"""Tasks of very many regions: judged where they can be, and where they cannot, named as such everywhere."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.consensus import clustering as clusters
from labelloop.labeling.consensus.consensus import consensus
from labelloop.labeling.geometry import overlap
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Answers, Tolerance, read_answers, task_matching
from qc_webhooks.agreement import region_groups as groups
from qc_webhooks.agreement.answers import Span
from qc_webhooks.agreement.compare import find_conflicts
from qc_webhooks.agreement.conflicts import Conflict, region_conflicts
from qc_webhooks.agreement.region_groups import MIN_INSIDE, find_groups
from qc_webhooks.agreement.region_groups import _inside as inside
from qc_webhooks.agreement.region_groups import _may_contain_two as may_hold_two
from qc_webhooks.agreement.region_groups import _near as near
from qc_webhooks.decision.dispute_drawing import MOST_OUTLINES, draw_dispute
from qc_webhooks.decision.review_reasons import BLOCKED, judge_task, review_reasons
from qc_webhooks.policy import ConflictPolicy, Policy
from qc_webhooks.policy import guideline_rules as rules
from qc_webhooks.policy.guideline_rules import RULES as CHECKS
from qc_webhooks.policy.guideline_rules import Rule, rule_input, violations
from qc_webhooks.report.report import Export, write_consensus, write_report
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.dispute_card import annotator_view, conflicts_of
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import judge
from tests.qc_webhooks.conftest import PROJECT, annotation_json


@pytest.fixture
def large(monkeypatch, box):
    """The results of two annotators, one region more than is judged."""
    monkeypatch.setattr(clusters, "MAX_REGIONS", 5)
    return [[box(10.0 * at) for at in range(3)] for _ in range(2)]


def test_a_task_too_large_is_not_judged_and_says_why(large, task):
    verdict = judge(read_answers(task(*large)), Policy())
    assert (verdict.outcome, verdict.agreement) == ("not_judged", None)
    assert verdict.not_judged == ("Too large to judge: 6 regions, at most 5 are compared.",)


def test_the_note_reports_a_task_too_large(large, studio, check, engine):
    id_ = studio.add_task()
    for who, results in enumerate(large, start=1):
        studio.annotate(id_, who, results)
    assert check(id_).verdict.outcome == "not_judged"
    data = studio.tasks_by_id[id_]["data"]
    assert data["qc_status"] == "not_judged"
    assert "Too large to judge: 6 regions" in data["qc_note"]
    assert FactStore(engine).load(PROJECT, id_).outcome == "not_judged"


def test_a_ground_truth_settles_a_task_too_large_to_judge(large):
    annotations = [annotation_json(who, who, held, ground_truth=who == 2) for who, held in enumerate(large, start=1)]
    read = read_answers(read_task({"id": 1, "data": {}, "annotations": annotations}))
    assert (judge(read, Policy()).outcome, judge(read, Policy()).ground_truth) == ("agreed", 2)


def test_report_and_consensus_name_a_task_too_large(large, tmp_path, box):
    annotations = [annotation_json(who, who, held) for who, held in enumerate(large, start=1)]
    small = [annotation_json(who + 10, who, [box(0)]) for who in (1, 2)]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([
        {"id": 1, "data": {"image": "a"}, "annotations": annotations},
        {"id": 2, "data": {"image": "b"}, "annotations": small},
    ]))  # fmt: skip
    with (tmp_path / "report.json").open("wb") as out:
        summary = write_report(Export(path), Policy(), out)
    assert summary.outcomes == {"not_judged": 1, "agreed": 1}
    first, _ = json.loads((tmp_path / "report.json").read_bytes())["tasks"]
    assert first["not_judged"] == ["Too large to judge: 6 regions, at most 5 are compared."]
    with (tmp_path / "consensus.json").open("wb") as out:
        write_consensus(Export(path), out)
    first, second = json.loads((tmp_path / "consensus.json").read_bytes())
    assert len(first["annotations"][0]["result"]) == 3  # one annotator's, unchanged
    assert "Too large to judge" in first["meta"]["consensus"]["carried"][0]["reason"]
    assert len(second["annotations"][0]["result"]) == 1


def test_overlapping_pairs_beyond_the_limit_are_too_large(monkeypatch, task, box):
    monkeypatch.setattr(overlap, "MAX_PAIRS", 3)
    monkeypatch.setattr(task_matching, "MAX_DENSE_SHAPES", 3)  # so few are below any limit
    same = [box(0) for _ in range(3)]
    verdict = judge(read_answers(task(same, same)), Policy())
    assert verdict.outcome == "not_judged"
    assert "more than 3 pairs of its regions overlap" in verdict.not_judged[0]


def region(x, id_):
    shape = Rectangle(float(x % 1000), float(x // 1000 * 12), 9.0, 9.0)
    return Region(shape, ("Car",), id_, "label", "image", "rectanglelabels", None, 0, 1000, 1000)


def drawn(who, count, *, moved=0):
    regions = [region(10 * at + moved, f"{who}-{at}") for at in range(count)]
    return Answers(who, who, "", controls={("label", "regions"): regions})


def test_thousands_of_boxes_are_judged_in_seconds():
    start = time.process_time()
    verdict = judge([drawn(1, 5000), drawn(2, 5000), drawn(3, 4999, moved=1)], Policy(agreement=0.95))
    assert verdict.majority == {1, 2}
    assert time.process_time() - start < 20


def test_ten_thousand_spans_are_judged_in_seconds():
    def spans(who, moved):
        held = [Span(10.0 * at, 10.0 * at + 8 + moved, ("Name",), f"{at}", "text") for at in range(10_000)]
        return Answers(who, who, "", controls={("names", "spans"): held})

    start = time.process_time()
    verdict = judge([spans(1, 0.0), spans(2, 1.0)], Policy(agreement=0.95))
    assert verdict.agreement == pytest.approx(8 / 9)
    assert len(verdict.conflicts) == 10_000
    assert time.process_time() - start < 20


def test_one_box_around_thousands_is_a_group():
    whole = Region(Rectangle(0, 0, 999, 57), ("Car",), "w", "label", "image", "rectanglelabels", None, 0, 1000, 1000)
    parts = [region(10 * at, f"{at}") for at in range(500)]
    (result,) = find_groups(parts, [whole], match_iou=0.5)
    assert len(result.parts) == 500


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("max_overlap_same_label", value=0.3), 0),
        (Rule("must_not_meet", labels=("Car",), others=("Car",)), 0),
        (Rule("must_meet", labels=("Car",), others=("Car",)), 3000),
    ],
)
def test_rules_look_at_thousands_of_boxes_in_seconds(rule, expected):
    start = time.process_time()
    assert len(list(CHECKS[rule.rule].violations(rule_input(drawn(1, 3000)), rule))) == expected
    assert time.process_time() - start < 20


@pytest.mark.parametrize("rule", ["max_overlap_same_label", "must_not_meet", "must_meet"])
def test_an_unchecked_rule_is_reported_and_blocks(monkeypatch, task, box, rule):
    for module in (overlap, rules):
        monkeypatch.setattr(module, "MAX_PAIRS", 3)
    labels = () if rule == "max_overlap_same_label" else ("Car",)
    held = Rule(rule, "block", None if rule == "must_meet" else 0.5, labels, ("Person",) if labels else ())
    crowded = task([box(0), box(1), box(2), box(0, "Person"), box(1, "Person")])
    judged = judge_task(crowded, read_answers(crowded), Policy(rules=(held,)))
    (result,) = judged.violations
    assert not result.checked
    assert f"the rule {rule} is not checked: too large to judge: more than 3 pairs" in result.text
    assert judged.reasons == (BLOCKED,)


@pytest.mark.parametrize("rule", [Rule("required_answer", control="quality"), Rule("min_regions", value=1)])
def test_nothing_is_missed_in_a_task_too_large(large, task, rule):
    for result in violations(read_answers(task(*large)), (rule,)):
        assert not result.checked
        assert "6 regions, at most 5" in result.text


def test_nothing_is_missed_in_what_cannot_be_read(task, box):
    broken = box(0) | {"value": {"x": "left"}}
    (result,) = violations(read_answers(task([broken])), (Rule("min_regions", value=1),))
    assert result.text == "the rule min_regions is not checked: an annotation cannot be read whole"


def test_groups_that_cannot_be_told_are_said(monkeypatch):
    monkeypatch.setattr(groups, "_MOST_CORNERS", 10)
    parts = [turned(0, "1"), turned(1, "2")]
    result = region_conflicts("label", parts, parts[:1], tolerance=Tolerance(), agreement=0.5)
    assert "label: merged and split regions are not named: its outlines" in describe(result[-1])


def test_unlisted_conflicts_are_reported(monkeypatch):
    a, b = drawn(1, 4), drawn(2, 4, moved=8)  # they meet a neighbour by a little
    monkeypatch.setattr(overlap, "MAX_PAIRS", 3)
    (result,) = find_conflicts(a, b, tolerance=Tolerance(near_iou=0.001), agreement=0.5)
    assert describe(result).startswith("label: its conflicts are not named: more than 3 pairs")


def test_a_crowd_of_spans_is_not_named(monkeypatch):
    def said(who):
        held = [Span(float(at), 50.0, ("Name",), f"{at}", "text") for at in range(4)]
        return Answers(who, who, "", controls={("names", "spans"): held})

    people = [said(who) for who in (1, 2, 3)]
    monkeypatch.setattr(overlap, "MAX_PAIRS", 3)
    assert judge(people, Policy()).outcome == "not_judged"
    (result,) = conflicts_of(people, consensus([annotator_view(item) for item in people]), Tolerance())
    assert "its conflicts are not named: more than 3 pairs" in describe(result.conflict)


def test_a_crowded_pre_label_cannot_be_compared(monkeypatch, box):
    annotations = [annotation_json(who, who, [box(0), box(40)]) for who in (1, 2)]
    model = {"id": 1, "result": [box(0) for _ in range(4)]}
    crowded = read_task({"id": 1, "data": {}, "annotations": annotations, "predictions": [model]})
    answers = read_answers(crowded)
    verdict = judge(answers, Policy())
    monkeypatch.setattr(overlap, "MAX_PAIRS", 3)
    policy = Policy(least_model_agreement=0.5)
    assert review_reasons(crowded, answers, verdict, policy) == (
        "The model's pre-label cannot be compared with the annotators.",
    )


def turned(x, id_):
    shape = Rectangle(float(x), 0.0, 9.0, 9.0, 5.0)
    return Region(shape, ("Car",), id_, "label", "image", "rectanglelabels", None, 0, 1000, 1000)


def test_a_sentence_about_many_labels_stays_short():
    labels = tuple(f"label {at}" for at in range(3000))
    for type_ in ("empty", "merged", "label"):
        assert len(describe(Conflict(type_, "label", labels, ("x",), (0, 0, 1, 1), count=3000))) < 400


def test_a_drawing_is_limited_and_counts_the_rest():
    answers = [drawn(1, 3000), drawn(2, 3000, moved=8)]
    policy = Policy(conflicts=ConflictPolicy(decide_by="mean"))  # else each is its neighbour, 2 px away
    drawing = draw_dispute(answers, judge(answers, policy), policy)
    assert all(len(view.outlines) <= MOST_OUTLINES for view in drawing.views)
    assert [view.hidden_regions for view in drawing.views[:2]] == [3000 - MOST_OUTLINES] * 2
    assert sum(bool(outline.disputed) for outline in drawing.views[0].outlines) > 450
    logged = len(drawing.conflicts) + drawing.hidden_conflicts
    assert len(drawing.conflicts) < 510 < logged


def test_shares_of_masks_are_those_of_their_outlines():
    rng = np.random.default_rng(2)
    parts, wholes = (
        [region_of(Mask.from_array(rng.random((12, 16)) < share)) for _ in range(4)] for share in (0.2, 0.9)
    )
    result = inside(parts, wholes, near(parts, wholes))
    for row, column, value in zip(*result, strict=True):
        part, whole = (item.geometry.polygon() for item in (parts[row], wholes[column]))
        assert value == pytest.approx(part.intersection(whole).area / part.area)
    assert len(result.rows) == 16


shapes = st.one_of(
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 12)] * 2, st.sampled_from([0.0, 30.0])).map(
        lambda s: Rectangle(*map(float, s))
    ),
    st.lists(st.tuples(*[st.integers(0, 20).map(float)] * 2), min_size=3, max_size=5).map(
        lambda points: Polygon(tuple(points))
    ),
    st.tuples(*[st.integers(2, 20).map(float)] * 2, *[st.integers(1, 8).map(float)] * 2).map(lambda s: Ellipse(*s)),
)


@given(st.lists(shapes, min_size=2, max_size=6), st.lists(shapes, min_size=1, max_size=3))
def test_no_group_is_passed_over_for_its_bounds(several, few):
    parts, wholes = [region_of(item) for item in several], [region_of(item) for item in few]
    pairs = near(parts, wholes)
    result = inside(parts, wholes, pairs)
    held = np.bincount(result.columns[result.values >= MIN_INSIDE], minlength=len(wholes))
    assert may_hold_two(parts, wholes, near(parts, wholes)) or not (held >= 2).any()


def test_outlines_that_hold_no_two_others_are_not_cut(monkeypatch):
    monkeypatch.setattr(groups, "_shares", None)  # it would be called
    parts, wholes = ([region_of(triangle(10.0 * at + shift)) for at in range(9)] for shift in (0, 1))
    assert find_groups(parts, wholes, match_iou=0.5) == ()


def triangle(x):
    return Polygon(((x, 0.0), (x + 12.0, 0.0), (x, 12.0)))


def region_of(shape):
    return Region(shape, ("Car",), "r", "label", "image", "brushlabels", None, 0, 16, 12)
