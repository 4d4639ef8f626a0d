"""The laws of agreement for every kind of answer in METRICS, and known numbers of those that draw nothing."""

import math

import numpy as np
import pytest
import rapidfuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import CONFLICTS, METRICS, Tolerance, compare, read_answers
from qc_webhooks.agreement.compare import find_conflicts
from qc_webhooks.verdict.note import describe

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><Text name="text" value="$text"/><Audio name="sound" value="$sound"/>'
    '<RectangleLabels name="boxes" toName="image"><Label value="Car"/><Label value="Bus"/></RectangleLabels>'
    '<KeyPointLabels name="points" toName="image"><Label value="Nose"/><Label value="Ear"/></KeyPointLabels>'
    '<Labels name="words" toName="text"><Label value="Name"/><Label value="Place"/></Labels>'
    '<Choices name="mood" toName="text" choice="multiple"><Choice value="good"/><Choice value="bad"/></Choices>'
    '<Taxonomy name="kind" toName="image"><Choice value="animal"><Choice value="cat"/><Choice value="dog"/></Choice>'
    '<Choice value="plant"/></Taxonomy>'
    '<Rating name="stars" toName="image" maxRating="5"/><Number name="count" toName="image" min="0" max="10"/>'
    '<Number name="weight" toName="image"/><TextArea name="said" toName="image"/>'
    '<DateTime name="day" toName="image"/><List name="list" value="$items"/><Ranker name="rank" toName="list"/>'
    '<Choices name="colour" toName="image" perRegion="true"><Choice value="red"/><Choice value="blue"/></Choices>'
    '<TextArea name="about" toName="sound" perRegion="true"/>'
    "</View>"
)
SIZE = {"original_width": 640, "original_height": 480}


def made(control, type_, value, to_name="image", **more):
    return {"from_name": control, "to_name": to_name, "type": type_, "value": value, **more}


def word(start, end, label="Name"):
    return made("words", "labels", {"start": start, "end": end, "labels": [label]}, "text")


FEW = settings(max_examples=15)  # for each kind
whole = st.integers(0, 60)
points = st.builds(
    lambda x, y, label: made("points", "keypointlabels", {"x": x, "y": y, "keypointlabels": [label]}, **SIZE),
    whole, whole, st.sampled_from(["Nose", "Ear"]),
)  # fmt: skip
boxes = st.builds(
    lambda x, y, w, label: made(
        "boxes", "rectanglelabels", {"x": x, "y": y, "width": w, "height": 20, "rectanglelabels": [label]}, **SIZE
    ),
    whole, whole, st.integers(5, 30), st.sampled_from(["Car", "Bus"]),
)  # fmt: skip
spans = st.builds(
    lambda start, length, label: word(start, start + length, label),
    whole, st.integers(1, 20), st.sampled_from(["Name", "Place"]),
)  # fmt: skip


def lone(strategy):
    return strategy.map(lambda result: [result])


# kind of METRICS -> results that are answers of that kind
KINDS = {
    "regions": st.lists(boxes, min_size=1, max_size=5),
    "keypoints": st.lists(points, min_size=1, max_size=5),
    "spans": st.lists(spans, min_size=1, max_size=5),
    "choices": lone(st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=2, unique=True).map(
        lambda message: made("mood", "choices", {"choices": message}, "text"))),
    "taxonomy": lone(st.lists(st.sampled_from([["animal", "cat"], ["animal", "dog"], ["plant"], ["animal"]]),
                              min_size=1, max_size=3).map(lambda paths: made("kind", "taxonomy", {"taxonomy": paths}))),
    "rating": lone(st.integers(1, 5).map(lambda stars: made("stars", "rating", {"rating": stars}))),
    "number": lone(st.tuples(st.sampled_from(["count", "weight"]), st.floats(0, 10)).map(
        lambda message: made(message[0], "number", {"number": message[1]}))),
    "ranking": lone(st.permutations("abcd").map(
        lambda items: made("rank", "ranker", {"ranker": {"best": items[:2], "rest": items[2:]}}))),
    "text": lone(st.text("abc d", max_size=12).map(lambda text: made("said", "textarea", {"text": [text]}))),
}  # fmt: skip


def read(*people):
    annotations = [
        {
            "id": who, "completed_by": who, "updated_at": "2026-01-01T00:00:00Z",
            "result": [{"id": f"{who}-{index}", **result} for index, result in enumerate(results)],
        }
        for who, results in enumerate(people, start=1)
    ]  # fmt: skip
    result = read_answers(read_task({"id": 1, "data": {}, "annotations": annotations}), config=CONFIG)
    assert not [line for item in result for line in item.unread]
    return result


def agreement(regions, other, tolerance=None):
    a, b = read(regions, other)
    return compare(a, b, tolerance=tolerance or Tolerance())


def test_every_kind_has_a_case_and_a_conflict_finder():
    assert set(KINDS) == set(METRICS) == set(CONFLICTS)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(st.data())
def test_the_laws_hold_for_every_kind(kind, data):
    first, other = data.draw(KINDS[kind]), data.draw(KINDS[kind])
    assert {key[1] for answers in read(first) for key in answers.controls} == {kind}
    forth, back = agreement(first, other), agreement(other, first)
    assert agreement(first, first).overall == pytest.approx(1), "identical"
    assert 0 <= forth.overall <= 1 + 1e-9
    assert forth.overall == pytest.approx(back.overall), "symmetric"
    shuffled = data.draw(st.permutations(other))
    assert agreement(first, shuffled).overall == pytest.approx(forth.overall), "blind to the order and to ids"
    assert agreement([], []).overall == 1
    if kind != "text" or any(first[0]["value"]["text"][0].split()):
        assert agreement(first, []).overall == 0, "nothing against something"


@pytest.mark.parametrize("kind", ["regions", "keypoints", "spans"])
@FEW
@given(st.data())
def test_a_duplicate_of_any_kind_is_punished(kind, data):
    first = data.draw(KINDS[kind])
    twice = [*first, data.draw(st.sampled_from(first))]
    assert agreement(first, twice).overall == pytest.approx(2 * len(first) / (2 * len(first) + 1))


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(st.data())
def test_whoever_does_not_agree_is_told_why_in_a_sentence(kind, data):
    first, other = data.draw(KINDS[kind]), data.draw(KINDS[kind])
    a, b = read(first, other)
    result = find_conflicts(a, b, tolerance=Tolerance(), agreement=0.7)
    if compare(a, b, tolerance=Tolerance()).overall < 0.7 - 1e-9:
        assert result
    for conflict in result:
        text = describe(conflict)
        assert text.endswith(".")
        assert "None" not in text


def rectangle(**attributes):
    shape = {"x": 10, "y": 10, "width": 20, "height": 20}
    results = [made("boxes", "rectanglelabels", shape | {"rectanglelabels": ["Car"]}, id="r", **SIZE)]
    return results + [
        made("colour", "choices", shape | {"choices": [message]}, id="r", **SIZE) for message in attributes.values()
    ]


@pytest.mark.parametrize(
    ("regions", "other", "expected"),
    [
        # five stars: 1 and 4 lie 3 of 4 apart
        ([made("stars", "rating", {"rating": 1})], [made("stars", "rating", {"rating": 4})], 0.25),
        # a number with bounds: 2 of 10 apart; without: 2 of 8
        ([made("count", "number", {"number": 6})], [made("count", "number", {"number": 8})], 0.8),
        ([made("weight", "number", {"number": 6})], [made("weight", "number", {"number": 8})], 0.75),
        # hous / house: one edit of five letters
        ([made("said", "textarea", {"text": ["house"]})], [made("said", "textarea", {"text": ["hous"]})], 0.8),
        # cat and dog share the node animal: 1 of 3
        ([made("kind", "taxonomy", {"taxonomy": [["animal", "cat"]]})],
         [made("kind", "taxonomy", {"taxonomy": [["animal", "dog"]]})], 1 / 3),
        # spans 0-14 and 5-14, both Name: 9 of 14
        ([word(0, 14)], [word(5, 14)], 9 / 14),
        # the same span with another label
        ([word(0, 14)], [word(0, 14, "Place")], 0),
        # one day off is another day
        ([made("day", "datetime", {"datetime": "2026-01-01"})],
         [made("day", "datetime", {"datetime": "2026-01-02"})], 0),
        # the same box with the same colour, with another, and with the question left open
        (rectangle(colour="red"), rectangle(colour="red"), 1),
        (rectangle(colour="red"), rectangle(colour="blue"), 0),
        (rectangle(colour="red"), rectangle(), 0),
    ],
)  # fmt: skip
def test_known_numbers(regions, other, expected):
    assert agreement(regions, other).overall == pytest.approx(expected)


def test_key_points_follow_the_formula_of_coco():
    """Three points each, so that the object's size is that of the box around all of them."""

    def shifted(by):
        places = [(10, 10), (40, 10), (25, 50)]
        return [
            made("points", "keypointlabels", {"x": x + by, "y": y, "keypointlabels": ["Nose"]}, **SIZE)
            for x, y in places
        ]

    d, (left, right, top, bottom) = 0.02 * 640, (0.1 * 640, 0.42 * 640, 0.1 * 480, 0.5 * 480)
    area, kappa = (right - left) * (bottom - top), 2 * 0.1
    assert agreement(shifted(0), shifted(2)).overall == pytest.approx(math.exp(-(d**2) / (2 * area * kappa**2)))


@FEW
@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_are_compared_as_rapidfuzz_does(a, b):
    first, other = (" ".join(text.split()) for text in (a, b))
    result = agreement([made("said", "textarea", {"text": [a]})], [made("said", "textarea", {"text": [b]})])
    longest = max(len(first), len(other))
    expected = 1 - rapidfuzz.distance.Levenshtein.distance(first, other) / longest if longest else 1
    assert result.overall == pytest.approx(expected)


@FEW
@given(st.lists(st.tuples(whole, st.integers(1, 20)), min_size=1, max_size=4, unique=True),
       st.lists(st.tuples(whole, st.integers(1, 20)), min_size=1, max_size=4, unique=True))  # fmt: skip
def test_spans_overlap_as_boxes_of_one_pixel_height_do(regions, other):
    """A span is a box without height: the metric of regions must find the same."""

    def words(spans):
        return [word(start, start + length) for start, length in spans]

    def flat(spans):
        return [
            made(
                "boxes",
                "rectanglelabels",
                {"x": s, "y": 0, "width": n, "height": 50, "rectanglelabels": ["Car"]},
                **SIZE,
            )
            for s, n in spans
        ]

    least = Tolerance(match_iou=0.4999)  # 1 / 2 by percent of pixels may be a bit less
    result, expected = (agreement(kind(regions), kind(other), least).overall for kind in (words, flat))
    assert result == pytest.approx(expected)


def test_spans_on_other_channels_and_pages_do_not_meet():
    first, second = ({"start": 1.0, "end": 2.0, "channel": n, "labels": ["Name"]} for n in (0, 1))
    assert agreement([made("words", "labels", first, "sound")], [made("words", "labels", second, "sound")]).overall == 0
    page = {"start": "/p[1]/text()[1]", "end": "/p[2]/text()[1]", "startOffset": 3, "endOffset": 2}
    first, other = (
        made("words", "hypertextlabels", page | {"globalOffsets": offsets, "hypertextlabels": ["Name"]}, "text")
        for offsets in ({"start": 3, "end": 13}, {"start": 3, "end": 11})
    )
    assert agreement([first], [other]).overall == pytest.approx(0.8)


def test_what_cannot_be_read_is_said_and_costs_itself_alone():
    broken = made("words", "labels", {"start": "here", "end": 3, "labels": ["Name"]}, "text")
    fine = made("stars", "rating", {"rating": 3})
    annotation = {"id": 1, "completed_by": 1, "result": [broken, fine], "updated_at": ""}
    (result,) = read_answers(read_task({"id": 1, "data": {}, "annotations": [annotation]}), config=CONFIG)
    assert len(result.unread) == 1
    assert "words" in result.unread[0]
    assert set(result.controls) == {("stars", "rating")}


SOUND = {"start": 1.0, "end": 4.0, "channel": 0}
ABOUT_A_SPAN = [
    ("textarea", "text", ["hello there"], ["goodbye then"]),
    ("choices", "choices", ["good"], ["bad"]),
    ("rating", "rating", 1, 5),
    ("number", "number", 1, 9),
    ("taxonomy", "taxonomy", [["a", "b"]], [["c"]]),
]


def segment(kind, field, message, id_):
    """A labelled stretch of sound and one answer about it, as Label Studio writes both."""
    return [
        made("words", "labels", SOUND | {"labels": ["Name"]}, "sound", id=id_),
        made("about", kind, SOUND | {field: message}, "sound", id=id_),
    ]


@pytest.mark.parametrize(("kind", "field", "regions", "other"), ABOUT_A_SPAN)
def test_answers_about_spans_are_compared_by_their_spans(kind, field, regions, other):
    first = segment(kind, field, regions, "a")
    assert agreement(first, segment(kind, field, regions, "b")).overall == 1
    assert agreement(first, segment(kind, field, other, "c")).overall < 0.3
    unasked = segment(kind, field, other, "d")[:1]
    assert agreement(first, unasked).overall == 0


def test_a_stretch_without_a_label_is_compared_by_its_answer():
    def spoken(id_, text, **index):
        return made("said", "textarea", SOUND | index | {"text": [text]}, "sound", id=id_)

    assert agreement([spoken("a", "hello")], [spoken("b", "hello")]).overall == 1
    assert agreement([spoken("a", "hello")], [spoken("b", "maybe")]).overall < 0.5
    assert agreement([spoken("a", "hello")], [spoken("b", "hello", start=7.0, end=8.0)]).overall == 0


def test_answers_about_single_images_are_told_apart():
    def said(*answers):
        return [
            made("mood", "choices", {"choices": [answer]}, "image", item_index=index)
            for index, answer in enumerate(answers)
        ]

    assert agreement(said("cat", "dog"), said("cat", "dog")).overall == 1
    assert agreement(said("cat", "dog"), said("dog", "cat")).overall == 0


def test_times_of_a_series_are_read_as_times():
    def stretch(start, end):
        value = {"start": start, "end": end, "instant": False, "timeserieslabels": ["Name"]}
        return [made("words", "timeserieslabels", value, "text")]

    first, other = (
        stretch("2026-01-01T00:00:00", "2026-01-01T00:01:40"),
        stretch("2026-01-01T00:00:00", "2026-01-01T00:01:20"),
    )
    assert agreement(first, other).overall == pytest.approx(0.8)
    assert agreement(stretch(0, 100), stretch(0, 80)).overall == pytest.approx(0.8)
    assert not np.isnan(agreement(stretch(5, 5), stretch(5, 5)).overall)
