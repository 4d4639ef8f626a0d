"""A ground truth that everybody contradicts, and two that contradict each other, are flagged."""

import io
import json

import pytest

from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.cli.offline import summary_text
from qc_webhooks.decision.review_reasons import judge_task
from qc_webhooks.policy import Policy
from qc_webhooks.policy.conflict_rules import BY_MEAN
from qc_webhooks.report.report import Export, write_report
from tests.qc_webhooks.conftest import annotation_json


def judged(*people, policy=None, **more):
    """Each of ``people``: (annotator, results, whether it is a ground truth); annotation ids from 1."""
    annotations = [
        annotation_json(id_, annotator, results, ground_truth=is_truth)
        for id_, (annotator, results, is_truth) in enumerate(people, start=1)
    ]
    task = read_task({"id": 1, "project": 7, "data": {}, "annotations": annotations})
    return judge_task(task, read_answers(task), policy or Policy(), **more)


@pytest.mark.parametrize("policy", [Policy(), Policy(conflicts=BY_MEAN)])
@pytest.mark.parametrize("first", [True, False])
def test_a_ground_truth_against_a_unanimous_crowd_is_flagged(box, policy, first):
    truth, crowd = (9, [box(0), box(60, "Person")], True), [(who, [box(0)], False) for who in (1, 2, 3)]
    judgement = judged(*([truth, *crowd] if first else [*crowd, truth]), policy=policy)
    (doubt,) = judgement.truth_doubts
    assert (doubt.kind, doubt.authors, doubt.annotators) == ("crowd", (9,), (1, 2, 3))
    assert doubt.annotations == (1 if first else 4,)
    assert judgement.verdict.outcome == "agreed"
    assert judgement.reasons == (doubt.text,)
    assert "all 3 other annotators agree with each other and not with it" in doubt.text
    assert "The ground truth has a Person at the upper right, the annotators do not." in doubt.text


@pytest.mark.parametrize(
    "crowd",
    [
        [[0]],  # one annotator is no crowd
        [[0], [0, 60]],  # one agrees with the ground truth
        [[0], [30]],  # they do not agree with each other
        [],
    ],
)
def test_other_ground_truths_are_not_flagged(box, crowd):
    people = [(who, [box(x) for x in places], False) for who, places in enumerate(crowd, start=1)]
    judgement = judged((9, [box(0), box(60)], True), *people)
    assert (judgement.truth_doubts, judgement.reasons) == ((), ())


def test_a_confirmed_ground_truth_is_not_flagged_again(box):
    people = [(9, [box(0), box(60)], True), (1, [box(0)], False), (2, [box(0)], False)]
    assert judged(*people).truth_doubts
    assert not judged(*people, confirmed_truth=1).truth_doubts
    assert judged(*people, confirmed_truth=5).truth_doubts


@pytest.mark.parametrize("authors", [(8, 9), (9, 9)])
def test_two_ground_truths_that_contradict_are_flagged(box, authors):
    judgement = judged((authors[0], [box(0)], True), (authors[1], [box(0, "Person")], True))
    (doubt,) = judgement.truth_doubts
    assert (doubt.kind, doubt.authors) == ("truths", authors)
    assert "Two ground truths contradict each other: annotations" in doubt.text
    assert "The first says" in doubt.text
    assert judgement.reasons == (doubt.text,)


def test_two_equal_ground_truths_are_not_flagged(box):
    assert not judged((8, [box(0)], True), (9, [box(1)], True)).truth_doubts


def test_the_report_of_an_export_names_them(box, tmp_path):
    people = [(9, [box(0), box(60)], True), (1, [box(0)], False), (2, [box(0)], False)]
    annotations = [
        annotation_json(id_, annotator, results, ground_truth=is_truth, was_cancelled=False, created_at="")
        for id_, (annotator, results, is_truth) in enumerate(people, start=1)
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([{"id": 5, "project": 7, "data": {}, "annotations": annotations}]))
    out = io.BytesIO()
    summary = write_report(Export(path), Policy(), out)
    (doubt,) = json.loads(out.getvalue())["tasks"][0]["ground_truth_doubts"]
    assert (doubt["kind"], doubt["authors"], doubt["annotators"]) == ("crowd", [9], [1, 2])
    assert "ground truth in doubt 1 task:" in summary_text(summary)
