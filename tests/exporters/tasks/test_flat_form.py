"""The flat form holds every result of every kind of project, and gives it back."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.tasks.flat import PlainAnswers, flatten, rebuild
from exporters.tasks.line import flat_json, flat_of, without_signatures
from labelloop.labeling.studio.config import LabelConfig
from tests.exporters.tasks.configs import CONFIGS
from tests.simulated_answers import simulate

TEMPLATES = Path(__file__).parents[3]


def canonical(results):
    return sorted(json.dumps(result, sort_keys=True) for result in results)


def through_json(flat):
    return flat_of(json.loads(json.dumps(flat_json(flat))))


def held_exactly(xml):
    """The results of three annotators of a config that the flat form loses, or keeps as they are."""
    plain = PlainAnswers(LabelConfig.parse(xml))
    lost = []
    for results in simulate(xml).results.values():
        flat = flatten(results, plain)
        if canonical(rebuild(through_json(flat))) != canonical(results) or flat.other:
            lost.append(flat.other or results)
    return lost


@pytest.mark.parametrize("name", CONFIGS)
def test_every_result_returns_from_its_flat_form(name):
    assert held_exactly(CONFIGS[name]) == []


def test_every_template_of_label_studio_returns():
    folders = [
        *TEMPLATES.glob(".labelloop/label-studio/venv/lib/python*/site-packages/label_studio/annotation_templates")
    ]
    files = sorted(file for folder in folders for file in folder.rglob("config.yml"))
    if not files:
        pytest.skip("Label Studio is not installed (tests/system/setup.sh brings it)")
    assert len(files) >= 69
    configs = {str(file.parent): yaml.safe_load(file.read_text())["config"] for file in files}
    assert [name for name, xml in configs.items() if held_exactly(xml)] == []


def flat(xml, results):
    return flatten(results, PlainAnswers(LabelConfig.parse(xml)))


def answer(control, kind, **value):
    return {"id": f"{control}-1", "from_name": control, "to_name": "text", "type": kind, "value": value}


def span(number, start, end, *labels):
    value = {"start": start, "end": end, "text": "x" * (end - start), "labels": list(labels)}
    return {"id": number, "from_name": "label", "to_name": "text", "type": "labels", "value": value}


def test_form_of_an_answer_depends_on_its_control_alone():
    one = flat(
        CONFIGS["choices"], [answer("mood", "choices", choices=["good"]), answer("topics", "choices", choices=["a"])]
    )
    assert one.answers == {"mood": "good", "topics": ["a"]}
    assert flatten([answer("mood", "choices", choices=["good"])], PlainAnswers(None)).answers == {"mood": ["good"]}
    rated = [answer("stars", "rating", rating=4), answer("count", "number", number=2.5)]
    assert flat(CONFIGS["ratings"], rated).answers == {"stars": 4, "count": 2.5}


def test_answers_about_a_region_are_in_it():
    marked = span("r1", 0, 4, "PER")
    about = answer("sure", "choices", choices=["yes"], start=0, end=4, text="xxxx") | {"id": "r1"}
    relation = {"from_id": "r1", "to_id": "r2", "type": "relation", "direction": "right", "labels": ["of"]}
    read = flat(CONFIGS["spans"], [about, marked, span("r2", 5, 9, "LOC"), relation])
    assert read.answers == {}
    assert [(region["id"], region["labels"], region["answers"]) for region in read.regions] == [
        ("r1", ["PER"], {"sure": "yes"}),
        ("r2", ["LOC"], {}),
    ]
    assert read.relations == [{"from": "r1", "to": "r2", "direction": "right", "labels": ["of"]}]
    assert read.other == ()


@pytest.mark.parametrize(
    "odd",
    [
        answer("mood", "choices", choices="good"),  # a text instead of a list
        answer("mood", "choices"),
        {"id": "x", "from_name": "mood", "to_name": "text", "type": "choices"},  # no value
        {"type": "choices", "value": {"choices": ["good"]}},
        {"id": "x", "from_name": "new", "to_name": "text", "type": "sometype", "value": {"a": {"b": [1, None]}}},
        {
            "id": "x",
            "from_name": "label",
            "to_name": "text",
            "type": "labels",
            "value": {"start": 1, "end": 2, "labels": []},
        },
        {
            "id": "x",
            "from_name": "label",
            "to_name": "text",
            "type": "Labels",
            "value": {"start": 1, "labels": ["PER"]},
        },
        {"id": 7, "from_name": "n", "to_name": "text", "type": "textarea", "value": {"text": ["a"], "start": 3}},
        {"id": "x", "value": None},
        {},
        span("x", 1, 2, "PER") | {"item_index": [1]},
        {"type": "relation", "from_id": ["x"], "to_id": {"y": 1}},
    ],
    ids=range(12),
)
def test_result_of_an_odd_form_is_not_lost(odd):
    results = [odd, answer("topics", "choices", choices=["a", "b"]), span("r", 1, 2, "PER")]
    read = flat(CONFIGS["choices"], results)
    assert canonical(rebuild(through_json(read))) == canonical(results)


@pytest.mark.parametrize("number", [{"id": "same"}, {}], ids=["one id", "no id"])
def test_many_results_of_one_id_take_no_longer(number):
    marks = [{**span("x", n, n + 1, "PER"), **number} for n in range(4000)]
    marks = [mark if number else {key: mark[key] for key in mark if key != "id"} for mark in marks]
    read = flat(CONFIGS["spans"], marks)
    assert canonical(rebuild(read)) == canonical(marks)
    assert len(read.regions) == len(marks)
    assert read.other == ()


def test_two_answers_to_one_question_are_both_there():
    results = [answer("mood", "choices", choices=[name]) | {"id": name} for name in ("good", "bad")]
    read = flat(CONFIGS["choices"], results)
    assert read.answers == {"mood": "good"}
    assert read.other == [results[1]]
    assert canonical(rebuild(read)) == canonical(results)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=5,
)
KEYS = st.sampled_from(["x", "y", "start", "end", "text", "labels", "choices", "rectanglelabels", "rating", "points"])
RESULTS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", 1, None]),
        "from_name": st.sampled_from(["mood", "label", "box", None]),
        "to_name": st.sampled_from(["text", "image"]),
        "type": st.sampled_from(
            ["choices", "labels", "rectanglelabels", "rectangle", "textarea", "rating", "relation"]
        ),
        "value": st.dictionaries(KEYS, VALUES, max_size=4) | VALUES,
        "item_index": st.sampled_from([0, 1]),
        "parentID": st.just("a"),
        "meta": VALUES,
        "from_id": st.just("a"),
        "to_id": st.sampled_from(["b", None]),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RESULTS, max_size=5))
def test_any_results_return(results):
    read = flat(CONFIGS["choices"], results)
    assert canonical(rebuild(read)) == canonical(results)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://a.com/x.wav?X-Amz-Signature=1&X-Amz-Date=2", "https://a.com/x.wav"),
        ("https://me:secret@a.com/x.wav", "https://a.com/x.wav"),
        ("HTTPS://me:secret@a.com/x.wav", "https://a.com/x.wav"),
        ("https://a.com/page?id=3#part", "https://a.com/page?id=3#part"),
        ("see https://a.com/?token=1 there", "see https://a.com/?token=1 there"),
        ("data:text/plain;base64,eA==", "data:text/plain;base64,eA=="),
        ("s3://bucket/a?b#c", "s3://bucket/a?b#c"),
    ],
)
def test_addresses_lose_signatures_alone(text, public):
    value, number = without_signatures({"a": [text, 1], "b": text})
    assert value == {"a": [public, 1], "b": public}
    assert number == 2 * (text != public)
