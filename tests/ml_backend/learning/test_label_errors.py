"""Label error notes: written to the task once, without changing other data, and removed."""

import time
from types import SimpleNamespace

import pytest

from ml_backend.heads.answers import WrongAnswer
from ml_backend.jobs import handlers
from ml_backend.learning.events import LABEL_ERRORS, LEARN, label_error_event
from ml_backend.learning.label_errors import KEYS, MAX_DELAY_S, QUIET_S, note_of, review_labels, withheld_sentence
from ml_backend.learning.store.label_errors import LabelErrorNote
from ml_backend.training.label_errors import PLAUSIBLE_ERRORS, Agreement, LabelCheck, LabelIssue
from tests.ml_backend.learning.conftest import PROJECT, box_json, draw_discs

BOX = (10.0, 20.0, 110.4, 80.0)
AT = "at 10, 20 (100 x 60 px)"
MISSING = LabelIssue("missing", 0.9, BOX, "Disc")
WRONG = LabelIssue("class", 0.7, BOX, "Square", 0)
NOTHING = LabelIssue("spurious", 0.4, BOX, "Disc", 1)
LOOSE = LabelIssue("loose", 0.3, BOX, "Disc", 1)
# The model is right about so many labels that its issues are believed.
AGREEMENTS = [Agreement(kind, label, 1.0) for kind in PLAUSIBLE_ERRORS for label in ("Disc", "Square")] * 100


def never():
    return False


@pytest.fixture(autouse=True)
def _no_waiting(policy):
    policy("debounce_s = 0\nheld_out = 0\n")


@pytest.fixture
def opinion(monkeypatch):
    """opinion({photo: [remark]}): what the model will say of the photos, the one annotated last being photo 0."""

    def say(remarks):
        def text(examples, **_):
            for index in range(len(examples)):
                yield index, LabelCheck(remarks.get(index, []), AGREEMENTS)

        monkeypatch.setattr("ml_backend.learning.label_errors.cross_validated_issues", text)

    monkeypatch.setattr("ml_backend.learning.label_errors.MIN_IMAGES", 2)
    return say


@pytest.mark.parametrize(
    ("remarks", "least", "note", "score"),
    [
        ([(0, MISSING)], 0.5, f"Perhaps a Disc is missing {AT} [90 %].", 0.9),
        (
            [(0, WRONG), (0, MISSING)],
            0.5,
            f"Perhaps a Disc is missing {AT} [90 %]; Disc {AT} looks like Square [70 %].",
            0.9,
        ),
        ([(0, NOTHING)], 0.4, f"The model sees no Cat {AT} [40 %].", 0.4),
        ([(0, LOOSE)], 0.1, f"Cat is loose: the model would draw it {AT} [30 %].", 0.3),
        ([(0, WrongAnswer("weather", 0, "sun", "rain", 0.8))], 0.5, "Weather is perhaps rain, not sun [80 %].", 0.8),
        ([(0, WrongAnswer("tags", 0, "", "odd", 0.8))], 0.5, "Perhaps odd is missing in tags [80 %].", 0.8),
        ([(0, WrongAnswer("tags", 0, "odd", "", 0.8))], 0.5, "Odd is perhaps wrong in tags [80 %].", 0.8),
        ([(0, NOTHING), (0, LOOSE)], 0.5, None, None),
        ([], 0.5, None, None),
    ],
)
def test_a_note_says_each_difference_in_words_the_surest_first(remarks, least, note, score):
    result = note_of(3, remarks, [("Disc", "Cat")], least=least)
    assert result == (None if note is None else LabelErrorNote(3, note, score))


def test_note_names_the_image_and_counts_further_remarks():
    result = note_of(3, [(1, MISSING)] * 7, [("Disc",), ()], least=0.5)
    assert result.note.count("missing") == 5
    assert "on photo 2" in result.note
    assert result.note.endswith(", and 2 more.")


def test_note_keys_are_written_once_and_removed(context, learn, studio, opinion):
    tasks = [studio.label(seed) for seed in (1, 2, 4)]
    studio.tasks_by_id[tasks[2]]["data"] |= {"qc_status": "agreed", "place": "Ulm"}
    before = dict(studio.tasks_by_id[tasks[2]]["data"])
    learn(tasks=tasks)
    opinion({0: [MISSING], 1: [LOOSE]})
    done = review_labels(context, PROJECT, stop=never)
    assert (done.noted, done.changed, done.removed) == (1, 1, 0)
    data = studio.tasks_by_id[tasks[2]]["data"]
    assert data == before | {"qc_model_score": 0.9, "qc_model_note": data["qc_model_note"]}
    assert not any(key in studio.tasks_by_id[task]["data"] for task in tasks[:2] for key in KEYS)
    assert [item.task for item in context.label_errors.all(PROJECT)] == [tasks[2]]
    # Again: nothing is written, and a remark of ours is nothing to learn from.
    assert review_labels(context, PROJECT, stop=never).changed == 0
    assert studio.updated == [tasks[2]]
    assert learn(tasks=tasks) is None
    opinion({})
    assert review_labels(context, PROJECT, stop=never).removed == 1
    assert studio.tasks_by_id[tasks[2]]["data"] == before
    assert context.label_errors.all(PROJECT) == []


def test_ground_truth_and_deleted_tasks_get_no_note(context, learn, studio, opinion):
    tasks = [studio.label(seed) for seed in (1, 2, 4, 5, 7)]
    learn(tasks=tasks)
    opinion({key: [MISSING] for key in range(5)})
    assert review_labels(context, PROJECT, stop=never).noted == 5
    truth, deleted, changed, gone = tasks[:4]
    studio.tasks_by_id[truth]["annotations"][0]["ground_truth"] = True
    studio.tasks_by_id[deleted]["annotations"] = []
    learn(sweep=True)
    studio.tasks_by_id[changed]["annotations"][0]["updated_at"] = (
        "2026-03-03T00:00:00.000000Z"  # while it is being judged
    )
    del studio.tasks_by_id[gone]
    opinion({key: [WRONG] for key in range(4)})
    review_labels(context, PROJECT, stop=never)
    assert all("qc_model_note" not in studio.tasks_by_id[task]["data"] for task in (truth, deleted))
    assert "missing" in studio.tasks_by_id[changed]["data"]["qc_model_note"]  # its event will come
    assert "looks like Square" in studio.tasks_by_id[tasks[4]]["data"]["qc_model_note"]


def test_a_project_that_wants_no_opinion_loses_what_was_told(context, learn, studio, opinion, policy):
    tasks = [studio.label(seed) for seed in (1, 2)]
    learn(tasks=tasks)
    opinion({0: [MISSING]})
    review_labels(context, PROJECT, stop=never)
    policy("opinion = 1\n")
    assert review_labels(context, PROJECT, stop=never).removed == 1
    assert not any(key in studio.tasks_by_id[task]["data"] for task in tasks for key in KEYS)
    policy("learn = false\n")
    assert review_labels(context, PROJECT, stop=never) is None


def test_nothing_is_told_when_something_newer_comes(context, learn, studio, opinion):
    learn(tasks=[studio.label(seed) for seed in (1, 2)])
    opinion({0: [MISSING]})
    assert review_labels(context, PROJECT, stop=lambda: True).stopped
    assert studio.updated == []


def test_an_annotator_goes_first_but_not_for_ever(context, learn, settings, studio, engine, opinion):
    learn(tasks=[studio.label(seed) for seed in (1, 2)])
    opinion({0: [MISSING]})
    [requests] = context.inbox.unfinished_events(LABEL_ERRORS, str(PROJECT))  # each run asks for an opinion
    handle = handlers(settings, studio, engine)[LABEL_ERRORS]
    event = SimpleNamespace(id=requests.id, payload=requests.payload)
    handle(str(PROJECT), [event])  # the run has just ended
    assert studio.updated == []
    assert len(context.inbox.unfinished_events(LABEL_ERRORS, str(PROJECT))) == 2
    context.inbox.put(LEARN, str(PROJECT), "later", {"tasks": [1], "source": "test"})
    event.payload = label_error_event(PROJECT, since=time.time() - MAX_DELAY_S - 1).payload
    handle(str(PROJECT), [event])
    assert len(studio.updated) == 1
    assert QUIET_S < MAX_DELAY_S


def test_cross_validated_heads_find_a_missing_box(context, learn, studio):
    seeds = [seed for seed in range(1, 17) if seed % 3]
    tasks = [studio.label(seed) for seed in seeds[:-1]]
    spoilt = studio.add_image(seeds[-1])
    [(_, disc), (_, square)] = draw_discs(seeds[-1])[1]
    studio.annotate(spoilt, 1, [box_json("Square", square)])  # the disc was forgotten
    learn(tasks=[*tasks, spoilt])
    review_labels(context, PROJECT, stop=never)
    note = studio.tasks_by_id[spoilt]["data"]["qc_model_note"]
    assert note.startswith("Perhaps a Disc is missing")
    assert abs(int(note.split(" at ")[1].split(",")[0]) - disc[0]) < 15
    assert sum("qc_model_note" in studio.tasks_by_id[task]["data"] for task in tasks) <= 1


def test_withheld_issues_are_named_with_their_number():
    assert withheld_sentence({}) == ""
    sentence = withheld_sentence({("missing", "Cat"): 3, ("class", "Dog"): 7})
    assert sentence.endswith("errs more often than annotators: class Dog (7), missing Cat (3).")
