"""What the guideline, the model and the review routes do to a task: told by what a user sees in the note."""

import pytest

from qc_webhooks.policy import ControlPolicy, Policy, ReviewRoute
from qc_webhooks.policy.guideline_rules import RULES, Rule
from tests.qc_webhooks.conftest import PROJECT

ANNE, BEN, CLEO = 1, 2, 3


@pytest.fixture
def policy(settings):
    """policy("text") -> the project's policy.toml."""

    def write(text):
        (settings.home / "qc").mkdir(parents=True, exist_ok=True)
        (settings.home / "qc" / "policy.toml").write_text(text)

    return write


@pytest.fixture
def agreed(studio, check):
    """agreed(results, ...) -> the data of a task on which two annotators agree, as Label Studio shows it."""

    def make(*results, task=None, **fields):
        task = task or studio.add_task()
        for who in (ANNE, BEN):
            studio.annotate(task, who, list(results), **fields)
        check(task)
        return studio.tasks_by_id[task]["data"]

    return make


def attribute(region, control, *chosen):
    return region | {"from_name": control, "type": "choices", "value": region["value"] | {"choices": list(chosen)}}


def rule_text(rule, effect="warn", **keys):
    return "[[rules]]\n" + "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in
                                   {"rule": rule, "effect": effect, **keys}.items())  # fmt: skip


def cases(box):
    """rule -> (keys, results that break it, what the note says, results that keep it)."""
    car, person = box(10, "Car"), box(60, "Person")
    return {
        # 2 % of 200 px
        "min_box_px": (
            {"value": 8}, [box(10, width=2)], "A Car at the upper left is 4 px wide, less than 8 px.", [car],
        ),
        "max_overlap_same_label": (
            {"value": 0.5}, [box(10), box(13)], "A Car at the upper left overlaps another one by 74 %, more than 50 %.",
            [box(10), box(10, "Person")],
        ),
        "required_attribute": (
            {"control": "quality"}, [car], "A Car at the upper left has no answer to quality.",
            [car, attribute(car, "quality", "good")],
        ),
        "required_answer": (
            {"control": "quality"}, [car], "Quality is not answered.",
            [car, {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": ["good"]}}],
        ),
        "must_meet": (
            {"labels": ["Car"], "others": ["Person"]}, [car, person], "A Car at the upper left meets no Person.",
            [car, box(20, "Person")],
        ),
        "must_not_meet": (
            {"labels": ["Car"], "others": ["Person"]}, [car, box(20, "Person")],
            "A Car at the upper left meets a Person.", [car, person],
        ),
        "too_fast": ({"value": 5}, [car], "An annotation took 2.0 s, less than 5 s.", None),
        "max_regions": ({"value": 1}, [car, person], "There are 2 regions, more than 1.", [car]),
        "min_regions": (
            {"value": 2, "labels": ["Car"]}, [car, person], "There are 1 Car, fewer than 2.", [car, box(40)],
        ),
    }  # fmt: skip


def test_every_rule_has_a_case_here(box):
    assert set(cases(box)) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_the_note_lists_violated_rules_only(rule, box, agreed, policy):
    keys, broken, message, stored = cases(box)[rule]
    policy(rule_text(rule, **keys))
    data = agreed(*broken, lead_time=2.0)
    assert data["qc_note"] == f"2 of 2 annotators agree. {message}"
    assert (data["qc_status"], data["qc_review"]) == ("agreed", "no"), "a warning blocks nothing"
    fine = agreed(*(broken if stored is None else stored), lead_time=20.0)
    assert fine["qc_note"] == "2 of 2 annotators agree."


def test_a_blocking_violation_needs_review_until_corrected(studio, box, check, policy):
    policy(rule_text("min_box_px", "block", value=8))
    task = studio.add_task()
    first = studio.annotate(task, ANNE, [box(10, width=3)])
    second = studio.annotate(task, BEN, [box(10, width=3)])
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_status"], data["qc_review"]) == ("agreed", "yes")
    assert studio.tabs(task)[0] == "QC consensus"
    for annotation in (first, second):
        studio.edit_annotation(annotation, result=[box(10, width=5)])
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_note"], data["qc_review"]) == ("2 of 2 annotators agree.", "no")
    assert studio.tabs(task) == []


def test_a_blocking_violation_needs_review_at_once(studio, box, check, policy):
    policy(rule_text("too_fast", "block", value=5))
    alone, waited_for = studio.add_task(overlap=1), studio.add_task(overlap=2)
    for task in (alone, waited_for):
        studio.annotate(task, ANNE, [box(10)], lead_time=1.0)
        check(task)
    note = "1 of 2 annotators have submitted. An annotation took 1.0 s, less than 5 s."
    assert studio.tasks_by_id[alone]["data"]["qc_note"] == studio.tasks_by_id[waited_for]["data"]["qc_note"] == note
    assert studio.tasks_by_id[alone]["data"]["qc_review"] == "yes"
    assert studio.tasks_by_id[waited_for]["data"]["qc_review"] == "no", "another blind annotation is pending"
    assert studio.tabs(waited_for) == []


def test_with_a_ground_truth_other_violations_are_ignored(studio, box, check, policy):
    policy(rule_text("min_box_px", "block", value=8))
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(10, width=3)])
    studio.annotate(task, BEN, [box(10)], ground_truth=True)
    check(task)
    assert studio.tasks_by_id[task]["data"]["qc_note"] == "Resolved: one annotation is marked as ground truth."
    assert studio.tasks_by_id[task]["data"]["qc_review"] == "no"


def test_a_long_list_of_violations_is_cut_and_counted(box, agreed, policy):
    policy(rule_text("min_box_px", value=8))
    note = agreed(*(box(30 * index, y=30.0 * index, width=2 + index / 2) for index in range(3)))["qc_note"]
    assert note.count("less than 8 px") == 2
    assert note.endswith("And 1 more against the guideline.")


def test_reviewed_agreements_are_accepted_as_disputes_are(studio, box, check, policy):
    policy("review_share = 1.0\n")
    task = studio.add_task()
    for who in (ANNE, BEN):
        studio.annotate(task, who, [box(10)])
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_status"], data["qc_review"]) == ("agreed", "yes")
    assert data["qc_note"] == "2 of 2 annotators agree. Drawn for review (100 %)."
    proposed = studio.overlay(task, "QC consensus")
    created = studio.annotate(task, CLEO, proposed["result"], parent_prediction=proposed["id"])
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_status"], data["qc_review"], studio.tabs(task)) == ("agreed", "no", [])
    assert [held["id"] for held in studio.tasks_by_id[task]["annotations"] if held.get("ground_truth")] == [created]


def test_the_first_review_route_that_holds_decides(box, choice, agreed, policy, studio, check):
    policy(
        "agreement = 0.5\n"
        '[[review]]\ndimension = "label"\noperator = "lt"\nthreshold = 0.9\n'
        '[[review]]\noperator = "gte"\nthreshold = 0.0\nshare = 0.0\n'
    )
    assert agreed(box(10))["qc_review"] == "no"
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(10), choice("good")])
    studio.annotate(task, BEN, [box(13), choice("good")])
    check(task)
    assert studio.tasks_by_id[task]["data"]["qc_note"] == "2 of 2 annotators agree. Agreement on label is 0.74."
    assert studio.tasks_by_id[task]["data"]["qc_review"] == "yes"


def test_a_share_is_drawn_once_and_for_all(box, agreed, policy, studio, check):
    policy("review_share = 0.3\nadjudicate = false\n")
    drawn = [agreed(box(10))["qc_review"] == "yes" for _ in range(40)]
    assert 5 <= sum(drawn) <= 20
    writes = len(studio.writes)
    for task in studio.tasks_by_id:
        assert check(task).actions == ()
    assert len(studio.writes) == writes


@pytest.mark.parametrize(
    ("text", "score", "x", "note"),
    [
        ("least_model_score = 0.5", 0.31, 10, "The model was unsure: score 0.31, below 0.5."),
        ("least_model_score = 0.5", 0.71, 10, ""),
        ("least_model_agreement = 0.5", 0.9, 60, "The model and the annotators agree by only 0 %."),
        ("least_model_agreement = 0.5", 0.9, 11, ""),
        ("", 0.01, 60, ""),
    ],
)
def test_low_model_score_or_agreement_needs_review(studio, box, agreed, policy, text, score, x, note):
    policy(text)
    task = studio.add_task()
    studio.put_prediction(task, [box(x)], "base-1", score)
    data = agreed(box(10), task=task)
    assert data["qc_note"] == f"2 of 2 annotators agree. {note}".strip()
    assert data["qc_review"] == ("yes" if note else "no")


DOUBT = {"qc_model_score": 0.8, "qc_model_note": "Perhaps a Car is missing."}


@pytest.mark.parametrize(
    ("text", "annotators", "data", "reviewed"),
    [
        ("least_model_doubt = 0.6", 1, DOUBT, True),  # a single annotator cannot disagree
        ("least_model_doubt = 0.6", 2, DOUBT, True),
        ("least_model_doubt = 0.9", 2, DOUBT, False),
        ("least_model_doubt = 0.6", 2, {"qc_model_score": "a lot"}, False),
        ("least_model_doubt = 0.6", 1, {}, False),
        ("", 2, DOUBT, False),
    ],
)
def test_model_disagreement_needs_review(studio, box, policy, check, text, annotators, data, reviewed):
    policy(text)
    task = studio.add_task(overlap=annotators, **data)
    for who in (ANNE, BEN)[:annotators]:
        studio.annotate(task, who, [box(10)])
    check(task)
    now = studio.tasks_by_id[task]["data"]
    assert now.get("qc_review", "no") == ("yes" if reviewed else "no")
    assert ("The model disagrees: Perhaps a Car is missing." in now.get("qc_note", "")) is reviewed
    assert {key: now[key] for key in data} == data
    assert bool(studio.tabs(task)) is reviewed
    writes = len(studio.writes)
    assert check(task).actions == ()
    assert len(studio.writes) == writes
    # The model agrees now: no review needed.
    studio.tasks_by_id[task]["data"] = {key: value for key, value in now.items() if key not in DOUBT}
    check(task)
    assert studio.tasks_by_id[task]["data"].get("qc_review", "no") == "no"


def test_a_reviewer_settles_what_the_model_doubts(studio, box, policy, check):
    policy("least_model_doubt = 0.6\n")
    task = studio.add_task(overlap=1, **DOUBT)
    studio.annotate(task, ANNE, [box(10)])
    check(task)
    proposed = studio.overlay(task, "QC consensus")
    created = studio.annotate(task, CLEO, proposed["result"], parent_prediction=proposed["id"])
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_review"], studio.tabs(task)) == ("no", [])
    assert [held["id"] for held in studio.tasks_by_id[task]["annotations"] if held.get("ground_truth")] == [created]


def test_an_overlay_is_nobodys_pre_label(studio, box, agreed, policy, check):
    """The overlays of the review itself must not count as a model that agrees."""
    policy("least_model_agreement = 0.5\n")
    task = studio.add_task()
    studio.put_prediction(task, [box(60)], "base-1", 0.9)
    assert agreed(box(10), task=task)["qc_review"] == "yes"
    assert "QC consensus" in studio.tabs(task)
    assert check(task).actions == ()


def test_policies_nest_and_are_read_whole(policy, settings):
    from qc_webhooks.policy import read_policy

    policy(
        "[controls.label]\nagreement = 0.8\nweight = 2\n[controls.quality]\nweight = 0\n"
        '[[review]]\ndimension = "label"\noperator = "lte"\nthreshold = 0.9\nshare = 0.25\n'
        '[[rules]]\nrule = "must_meet"\neffect = "block"\nlabels = ["Helmet"]\nothers = ["Person"]\n'
    )
    result = read_policy(settings.home, PROJECT)
    assert result == Policy(
        controls={"label": ControlPolicy(0.8, 2.0), "quality": ControlPolicy(None, 0.0)},
        review=(ReviewRoute("label", "lte", 0.9, 0.25),),
        rules=(Rule("must_meet", "block", None, ("Helmet",), ("Person",)),),
    )


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[controls.label]\nagreement = 1.2", "controls.label.agreement", "from 0 to 1"),
        ("[controls.label]\nwieght = 1", "controls.label.wieght", "no such key; there are agreement, weight"),
        ("controls = 3", "controls", "must be tables"),
        ("[[review]]\noperator = 'below'", "review[1].operator", "must be one of lt, lte, gt, gte, eq"),
        ("[[review]]\nshare = 2", "review[1].share", "from 0 to 1"),
        ("review = 0.5", "review", "must be tables"),
        ("[[rules]]\nvalue = 3", "rules[1].rule", "is missing"),
        ("[[rules]]\nrule = 'min_box'", "rules[1].rule", "must be one of min_box_px"),
        ("[[rules]]\nrule = 'min_box_px'", "rules[1].value", "is missing: min_box_px needs value"),
        ("[[rules]]\nrule = 'must_meet'\nlabels = ['A']", "rules[1].others", "needs labels and others"),
        ("[[rules]]\nrule = 'too_fast'\nvalue = 5\nlabels = ['A']", "rules[1].labels", "knows no such key"),
        ("[[rules]]\nrule = 'too_fast'\nvalue = 5\neffect = 'stop'", "rules[1].effect", "warn or block"),
        ("[[rules]]\nrule = 'too_fast'\nvalue = 'five'", "rules[1].value", "must be a number"),
        ("[[rules]]\nrule = 'must_meet'\nlabels = 'A'\nothers = ['B']", "rules[1].labels", "a list of texts"),
        ("review_share = 1.5", "review_share", "from 0 to 1"),
        ("least_gain = 0", "least_gain", "above 0"),
    ],
)
def test_invalid_rules_are_reported_with_their_key(policy, settings, text, field, message):
    from qc_webhooks.errors import PolicyError
    from qc_webhooks.policy import read_policy

    policy(text)
    with pytest.raises(PolicyError, match=message) as caught:
        read_policy(settings.home, PROJECT)
    assert caught.value.field == field
