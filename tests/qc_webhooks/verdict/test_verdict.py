"""Agreed, disputed or waiting; and the note that says why, in words and without names."""

import itertools

import numpy as np
import pytest

from labelloop.labeling.geometry.brush_codec import encode_rle
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.policy import ConflictPolicy, ControlPolicy, Policy
from qc_webhooks.verdict.note import MOST_CONFLICTS, write_note
from qc_webhooks.verdict.verdict import judge
from tests.qc_webhooks.conftest import CONFIG

POLICY = Policy()


def verdict_of(task, policy=POLICY):
    return judge(read_answers(task), policy)


@pytest.mark.parametrize(
    ("places", "outcome", "majority"),
    [
        ([], "waiting", set()),
        ([0], "waiting", set()),
        ([0, 0], "agreed", {1, 2}),
        ([0, 60], "disputed", set()),
        ([0, 60, 0], "agreed", {1, 3}),  # two of three settle it
        ([0, 30, 60], "disputed", set()),
        ([0, 0, 60, 60], "disputed", set()),  # a draw is no majority
        ([0, 0, 0, 60], "agreed", {1, 2, 3}),
        ([0, 0, 0, 60, 60], "disputed", set()),  # three against two leaves the objects in doubt
        ([0, 0, 0, 0, 60], "agreed", {1, 2, 3, 4}),
        ([0, 0, 30, 30, 60], "disputed", set()),
    ],
)
def test_a_majority_that_agrees_with_each_other_settles_a_task(task, box, places, outcome, majority):
    result = verdict_of(task(*[[box(index)] for index in places]))
    assert (result.outcome, set(result.majority), result.annotators) == (outcome, majority, len(places))


def test_the_verdict_does_not_depend_on_who_is_who(task, box):
    places = [0, 0, 3, 60]
    outcomes = {
        (result.outcome, round(result.agreement, 9))
        for order in itertools.permutations(places)
        if (result := verdict_of(task(*[[box(index)] for index in order])))
    }
    assert len(outcomes) == 1


def test_a_chain_of_likeness_is_no_agreement(task, box):
    # 1 ~ 2 and 2 ~ 3, but 1 and 3 do not overlap enough: only two of three agree with each other
    places = (10, 13.5, 17, 20.5)
    result = verdict_of(task(*([box(x)] for x in places[:3])), Policy(agreement=0.75))
    assert result.outcome == "agreed"
    assert len(result.majority) == 2
    assert verdict_of(task(*([box(x)] for x in places)), Policy(agreement=0.75)).outcome == "disputed"


def test_two_empty_annotations_agree(task):
    assert verdict_of(task([], [])).outcome == "agreed"


def test_a_ground_truth_closes_a_dispute(task, box):
    source = {
        "id": 1,
        "data": {},
        "annotations": [
            {"id": 1, "completed_by": 1, "result": [box(0)], "updated_at": "a"},
            {"id": 2, "completed_by": 2, "result": [box(60)], "updated_at": "a", "ground_truth": True},
        ],
    }
    result = verdict_of(read_task(source))
    assert (result.outcome, result.ground_truth) == ("agreed", 2)
    assert "ground truth" in write_note(result, POLICY)


def test_the_policy_says_how_many_annotators_a_verdict_needs(task, box):
    result = verdict_of(task([box(0)], [box(60)]), Policy(annotators=3))
    assert result.outcome == "waiting"
    assert write_note(result, Policy(annotators=3)) == "2 of 3 annotators have submitted."


def test_one_disputed_control_decides_unless_the_mean_counts(task, box, choice):
    answers = task([box(), choice("good")], [box(), choice("bad")])
    assert verdict_of(answers).outcome == "disputed"
    assert verdict_of(answers, Policy(agreement=0.5, every_control=False)).outcome == "agreed"


@pytest.mark.parametrize(
    ("regions", "other", "note"),
    [
        ([(0, "Car"), (60, "Car")], [(0, "Car")], "One annotator has a Car at the upper right, another does not."),
        ([(0, "Car")], [(0, "Car"), (40, "Ant")], "One annotator has an Ant at the top, another does not."),
        ([(0, "Car")], [(0, "Person")], "One annotator says Car, another says Person: the box at the upper left."),
        ([(0, "Car")], [(10, "Car")], "Two boxes for Car at the upper left overlap only 33 %."),
        ([(0, "Car")], [(7, "Person")], ("One annotator says Car, another says Person: the box at the upper left. "
         "Two boxes for Car or Person at the upper left overlap only 48 %.")),
        ([(0, "Car")], [], "One annotator has a Car at the upper left, another does not."),
        ([(0, "Car"), (40, "Car"), (70, "Ant")], [], "One annotator has 3 boxes (2 Car, 1 Ant), another has none."),
        ([(0, "Car")], [(0, "Car"), (1, "Car")], "One annotator has a Car at the upper left twice."),
        ([(0, "Car"), (20, "Car")], [(0, "Car", 40)],
         "One annotator has a single box for Car at the upper left where another has 2 boxes."),
        ([(0, "Car", 40)], [(0, "Car"), (20, "Ant")],
         "One annotator has a single box for Car + Ant at the upper left where another has 2 boxes."),
    ],
    ids=["missing", "extra", "label", "low overlap", "label and low overlap", "one missing of one", "empty",
         "duplicate", "merged", "split"],
)  # fmt: skip
def test_every_conflict_is_one_sentence_with_its_position(task, box, regions, other, note):
    def drawn(parts):
        return [box(x, label, width=width) for x, label, width in ((*part, 20)[:3] for part in parts)]

    result = verdict_of(task(drawn(regions), drawn(other)))
    assert result.outcome == "disputed"
    assert write_note(result, POLICY) == note


def test_a_conflict_of_choices_names_the_question(task, choice):
    note = write_note(verdict_of(task([choice("good")], [choice("bad")])), POLICY)
    assert note == "quality: one says good, another says bad."
    note = write_note(verdict_of(task([choice("good")], [])), POLICY)
    assert note == "quality: one says good, another gives no answer."


def test_a_dispute_of_three_describes_the_closest_pair(task, box):
    note = write_note(verdict_of(task([box(0)], [box(40)], [box(50)])), POLICY)
    assert note == "No majority among 3 annotators. The closest two: Two boxes for Car at the top overlap only 33 %."


def test_a_long_list_of_conflicts_is_cut_and_counted(task, box):
    crowded = [box(8 * n, width=6) for n in range(MOST_CONFLICTS + 4)]
    note = write_note(verdict_of(task(crowded, crowded[:1])), POLICY)
    assert note.endswith(" And 3 more.")
    assert note.count("another does not.") == MOST_CONFLICTS


def test_a_dispute_always_has_a_reason(task, box):
    for shift in range(21):
        for label in ("Car", "Person"):
            result = verdict_of(task([box(10)], [box(10 + shift, label)]))
            assert (result.outcome == "disputed") == bool(result.conflicts)


def test_an_unreadable_annotation_is_no_empty_answer(task, box):
    broken = box() | {"value": {"x": "here"}}
    for annotators in ([[box(), broken], []], [[broken], [broken]], [[broken], [], []], [[box()], [broken], [broken]]):
        # Two empty annotations are a majority over an unreadable one.
        agreed = annotators == [[broken], [], []]
        result = verdict_of(task(*annotators))
        assert (result.outcome, result.agreement) == (("agreed", 1.0) if agreed else ("not_judged", None))
        assert bool(result.not_judged) != agreed
    assert len(verdict_of(task([box(), broken], [])).unread) == 1


def test_the_note_names_what_cannot_be_read(task, box):
    result = verdict_of(task([box()], [box() | {"id": "bad", "value": {"x": "here"}}]))
    reason = "(task 1, annotation 2, result bad: x: expected a number, found 'here')"
    assert write_note(result, POLICY) == f"Not judged: 1 of 2 annotations cannot be read whole {reason}."


@pytest.mark.parametrize("results", ["text", None, {"a": 1}, [["r"]], [None], [{"type": None}], [{"value": 1}]])
def test_results_of_any_other_form_are_unread_not_empty(task, box, results):
    assert verdict_of(task([], results)).outcome == "not_judged"
    assert verdict_of(task([box()], results, [box()])).outcome == "agreed"
    assert verdict_of(task([box()], results, [box(60)])).outcome == "not_judged"  # it may agree with either
    assert verdict_of(task(results)).outcome == "waiting"


def test_an_unread_control_without_weight_allows_agreement(task, box):
    stars = {"from_name": "stars", "to_name": "image", "type": "rating", "value": {"rating": "many"}}
    answers = task([box()], [box(), stars])
    assert verdict_of(answers).outcome == "not_judged"
    assert verdict_of(answers, Policy(controls={"stars": ControlPolicy(weight=0)})).outcome == "agreed"


def test_answers_to_a_renamed_control_are_not_taken_for_none(task, box):
    config = LabelConfig.parse(CONFIG)
    old = box() | {"from_name": "old"}

    def judged(*annotators):
        return judge(read_answers(task(*annotators), config=config), POLICY)

    assert judged([old], [old]).outcome == "not_judged"
    assert judged([old], [box()]).outcome == "not_judged"
    assert judged([old, box()], [box()]).outcome == "agreed"  # who answered all that the others did is compared
    assert judged([old, box()], [box()]).unread


def test_what_no_metric_compares_is_not_judged(task, box):
    def custom(first):
        return {"from_name": "best", "to_name": "image", "type": "custom", "value": {"custom": [first]}}

    alone = verdict_of(task([custom(1)], [custom(5)]))
    assert (alone.outcome, alone.agreement) == ("not_judged", None)
    assert write_note(alone, POLICY) == "Not judged: Answers to best cannot be compared."
    extra = task([box(), custom(1)], [box(), custom(5)])
    assert verdict_of(extra).outcome == "not_judged"
    unweighed = verdict_of(extra, Policy(controls={"best": ControlPolicy(weight=0)}))
    assert write_note(unweighed, POLICY) == "2 of 2 annotators agree. Not compared: best."
    # What differs in what can be compared is a dispute, whatever cannot.
    assert verdict_of(task([box(), custom(1)], [box(60), custom(5)])).outcome == "disputed"


def test_another_answer_about_the_same_region_is_a_dispute(task, box):
    first, other = box(), box()
    colours = [
        box_ | {"from_name": "colour", "type": "choices", "value": box_["value"] | {"choices": [word]}}
        for box_, word in ((first, "red"), (other, "blue"))
    ]
    result = verdict_of(task([first, colours[0]], [other, colours[1]]))
    assert (result.outcome, result.agreement, result.uncompared) == ("disputed", 0.0, ())
    assert write_note(result, POLICY) == 'colour of the box at the upper left: one says "red", another says "blue".'


def test_controls_have_their_own_threshold_and_weight(task, box, choice):
    answers = task([box(10), choice("good")], [box(13), choice("bad")])  # the boxes agree by .74
    strict = Policy(
        controls={"quality": ControlPolicy(weight=0), "label": ControlPolicy(agreement=0.8)},
        conflicts=ConflictPolicy(pixels=0),
    )
    assert verdict_of(answers).outcome == "disputed"
    assert verdict_of(answers, Policy(controls={"quality": ControlPolicy(weight=0)})).outcome == "agreed"
    assert (
        verdict_of(answers, Policy(controls={"quality": ControlPolicy(agreement=0)}, agreement=0.3)).outcome == "agreed"
    )
    result = verdict_of(answers, strict)
    assert result.outcome == "disputed"
    assert "overlap only 74 %" in write_note(result, strict)
    heavy = verdict_of(answers, Policy(controls={"label": ControlPolicy(weight=3)}))
    assert heavy.agreement == pytest.approx(3 * 0.7391 / 4, abs=1e-3)


def test_a_misstated_image_size_moves_no_box(task, box):
    """Values are in percent: tools that state another size, such as 100 x 100, drew at the same place."""
    other = {"original_width": 100, "original_height": 100}
    result = verdict_of(task([box(40), box(70)], [box(40), box(70)], [box(40, **other), box(70, **other)]))
    assert (result.outcome, result.agreement, result.settled) == ("agreed", 1.0, 0)
    # of two images in one task, each has a size of its own
    second = {"item_index": 1, "original_width": 640, "original_height": 480}
    assert verdict_of(task([box(), box(60, **second)], [box(), box(60, **second)])).agreement == 1


def test_a_mask_of_another_image_size_is_not_compared(task):
    def mask(side):
        pixels = np.zeros((side, side), dtype=bool)
        pixels[side // 4 : side // 2, side // 4 : side // 2] = True
        return {
            "id": f"m{side}", "from_name": "label", "to_name": "image", "type": "brushlabels",
            "original_width": side, "original_height": side,
            "value": {"format": "rle", "rle": encode_rle(pixels), "brushlabels": ["Car"]},
        }  # fmt: skip

    result = verdict_of(task([mask(64)], [mask(32)]))
    assert result.outcome == "not_judged"
    assert "a mask of 32 x 32 pixels on an image of 64 x 64" in write_note(result, POLICY)


def test_an_unreadable_answer_about_a_region_is_not_a_missing_one(task, box):
    """The box of the first annotator has a rating that cannot be read: what it says is unknown."""
    first, second = box(), box()
    ratings = [
        shape | {"from_name": "stars", "type": "rating", "value": shape["value"] | {"rating": stars}}
        for shape, stars in ((first, "four"), (second, 5))
    ]
    result = verdict_of(task([first, ratings[0]], [second, ratings[1]]))
    assert result.outcome == "not_judged"
    assert "rating: expected a number, found 'four'" in write_note(result, POLICY)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([{"start": None, "end": 5}], "start: is missing"),
        ([{"start": float("nan"), "end": 5}], "start: expected a number, found nan"),
        ([{"start": 10**400, "end": 5}], "start: expected a number, found 1000"),
        ([{"start": 0, "end": 1e300}], "end: 1e+300 is out of range"),
        ([{"start": 0, "end": "soon"}], "end: expected a number or a time, found 'soon'"),
        # an answer about a span that cannot be read is no span of its own
        ([{"start": 0, "end": []}, {"start": 0, "end": 5, "text": ["a note"]}], "end: expected a number, found []"),
    ],
)
def test_a_malformed_span_is_unread_and_says_why(task, values, reason):
    def span(value, kind="labels"):
        labels = {"labels": ["PER"]} if kind == "labels" else {}
        name = {"labels": "ner", "textarea": "note"}[kind]
        return {"id": "s", "from_name": name, "to_name": "text", "type": kind, "value": value | labels}

    kinds = ("labels", "textarea")
    broken = [span(value, kind) for value, kind in zip(values, kinds, strict=False)]
    result = verdict_of(task(broken, [span({"start": 0, "end": 5})]))
    assert result.outcome == "not_judged"
    assert reason in write_note(result, POLICY)
