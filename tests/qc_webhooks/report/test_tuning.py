"""The policy that is proposed reaches the wanted error with few labels, also on tasks that it was not chosen on."""

import json
import random

import msgspec
import pytest

from labelloop.cli.main import main
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy, parse_policy
from qc_webhooks.report.tuning import measure, policy_block, tune
from qc_webhooks.report.tuning_page import tuning_chart, tuning_html
from qc_webhooks.report.tuning_store import load_tuning, save_tuning
from qc_webhooks.verdict.task_facts import AnnotationFacts, AnnotatorPair, Question, TaskFacts
from tests.accessibility import faults

ANSWERS = ("a", "b", "c")
TRUTH = 99


def task(number, rng, *, people=5, accuracy=0.75, truth=False):
    """A question answered by annotators of the same accuracy, with or without its ground truth."""
    right = rng.choice(ANSWERS)
    votes = [(who, (right if rng.random() < accuracy else rng.choice(ANSWERS),)) for who in range(1, people + 1)]
    turns = [AnnotationFacts(who, float(who), 10.0, 0) for who, _ in votes]
    if truth:
        votes.append((TRUTH, (right,)))
        turns.append(AnnotationFacts(TRUTH, 0.0, 10.0, 0, True))
    pairs = tuple(
        AnnotatorPair(a, b, float(first == second), {"q": float(first == second)}, 0, 0)
        for index, (a, first) in enumerate(votes) for b, second in votes[index + 1 :]
    )  # fmt: skip
    return TaskFacts(number, tuple(turns), (), (Question("q", tuple(votes)),), pairs)


def tasks(count, seed=0, **options):
    rng = random.Random(seed)
    return [task(number, rng, **options) for number in range(1, count + 1)]


@pytest.fixture(scope="module")
def tuning():
    return tune(tasks(90, truth=True), 0.08)


def test_proposal_reaches_the_wanted_error_on_new_tasks(tuning):
    assert tuning.truths == tuning.tasks == 90
    assert tuning.proposed.error <= 0.08
    measured = measure(tasks(90, seed=1, truth=True), tuning.proposed)
    assert measured.low <= 0.08
    assert abs(measured.labels - tuning.proposed.labels) < 0.6
    assert tuning.held_out.low <= 0.08


def test_curve_falls_and_fewer_labels_err_more(tuning):
    labels, errors = ([getattr(point, name) for point in tuning.curve] for name in ("labels", "error"))
    assert labels == sorted(labels)
    assert errors == sorted(errors, reverse=True)
    assert len(labels) > 3
    assert labels[0] >= 2
    assert tuning.proposed.labels < 5


def test_proposal_is_the_cheapest_of_the_curve(tuning):
    reached = [point for point in tuning.curve if point.error <= tuning.target]
    assert tuning.proposed.labels <= min(point.labels for point in reached)


def test_without_truths_the_whole_crowd_is_the_reference():
    found = tune(tasks(40), 0.2)
    assert found.truths == 0
    assert "consensus of all recorded annotators" in found.reference


def test_reviewers_are_asked_where_annotators_do_not_reach_it():
    wavering = tasks(40, people=3, accuracy=0.4, truth=True)
    found = tune(wavering, 0.05)
    assert found.proposed.reviewers
    assert 0 < found.proposed.reviewed < 1
    assert found.proposed == found.with_reviewer
    assert tune(wavering, 0.05, review_cost=0).proposed is None


def drawn_tasks(count, agreement):
    """Tasks of three annotators of one opinion, whose drawings agree by this much."""
    replace = msgspec.structs.replace
    return [
        replace(item, pairs=tuple(replace(pair, overall=agreement, controls={"q": agreement}) for pair in item.pairs))
        for item in tasks(count, people=3, accuracy=1.0, truth=True)
    ]


def test_threshold_of_a_dispute_is_varied_too():
    wavering = tasks(40, people=3, accuracy=0.4, truth=True)
    alike = drawn_tasks(40, 0.65)
    found = tune([*wavering, *(msgspec.structs.replace(item, task=1000 + item.task) for item in alike)], 0.05)
    # Those that agree by .65 are right: a threshold above it would send all of them to a reviewer.
    assert found.proposed.agreement < 0.65
    assert f"agreement = {found.proposed.agreement:g}" in policy_block(found.proposed)
    strict = measure(alike, msgspec.structs.replace(found.proposed, agreement=0.9))
    assert (strict.disputed, measure(alike, found.proposed).disputed) == (1.0, 0.0)


def test_agreement_in_force_stays_where_no_other_is_better(tuning):
    assert {point.agreement for point in tuning.curve} == {Policy().agreement}


def test_earlier_tuning_keeps_its_agreement(tuning):
    earlier = msgspec.structs.replace(tuning.proposed, agreement=0.0)
    assert "agreement" not in policy_block(earlier)
    assert measure(tasks(40, truth=True), earlier).agreement == Policy().agreement


@pytest.mark.parametrize(("count", "people"), [(10, 5), (60, 2)])
def test_too_few_annotators_are_refused_with_the_fix(count, people):
    with pytest.raises(QualityControlError, match="30 are needed") as refused:
        tune(tasks(count, people=people), 0.05)
    assert "annotators" in refused.value.fix


def test_block_is_a_valid_policy(tuning, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(policy_block(tuning.with_reviewer or tuning.proposed))
    assert parse_policy(path).max_annotators >= 2


def test_page_draws_the_curve(tuning):
    page = tuning_html(tuning, source="<export>")
    assert faults(page) == []
    assert page.count("<circle") == len(tuning.curve)
    assert "&lt;export&gt;" in page
    assert tuning_chart(tuning).mark is not None


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [((2.0, 2.07), "2 2.01 2.02 2.03 2.04 2.05 2.06 2.07"), ((1.0, 1.4), "1 1.05 1.1 1.15 1.2 1.25 1.3 1.35 1.4")],
)
def test_narrow_curve_has_numbers_on_its_axis(tuning, ends, ticks):
    first, second = (
        msgspec.structs.replace(point, labels=labels) for point, labels in zip(tuning.curve, ends, strict=False)
    )
    chart = tuning_chart(msgspec.structs.replace(tuning, curve=(first, second), proposed=first))
    assert [tick.text for tick in chart.x] == ticks.split()


def test_tuning_is_kept_for_the_dashboard(tuning, tmp_path):
    save_tuning(tmp_path, 7, tuning)
    assert load_tuning(tmp_path, 7) == tuning
    (tmp_path / "qc" / "7" / "tuning.json").write_text("{}")
    assert load_tuning(tmp_path, 7) is None


def test_command_prints_the_block_and_writes_the_files(tmp_path, capsys):
    rng = random.Random(3)
    exported = tmp_path / "export.json"
    exported.write_text(json.dumps([
        {"id": number, "data": {"image": "x.jpg"}, "annotations": [
            {"id": 10 * number + who, "completed_by": who, "result": [
                {"id": "r", "from_name": "q", "to_name": "image", "type": "choices",
                 "value": {"choices": [rng.choice("aaab")]}}]}
            for who in range(1, 5)]}
        for number in range(1, 41)
    ]))  # fmt: skip
    words = ["qc", "tune", "--from", exported, "--target-error", ".3", "--json", tmp_path / "out.json",
             "--html", tmp_path / "out.html"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert not ended.value.code
    assert "# policy.toml\nannotators = " in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["proposed"]["error"] <= 0.3
    assert written["policy"].startswith("annotators = ")
    assert (tmp_path / "out.html").stat().st_size > 1000


@pytest.mark.parametrize("target", ["0", "1", "5"])
def test_target_that_is_no_share_is_refused(target, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["qc", "tune", "--from", str(tmp_path / "x.json"), "--target-error", target])
    assert ended.value.code == 1
    assert ".05 for 5 %" in capsys.readouterr().err
