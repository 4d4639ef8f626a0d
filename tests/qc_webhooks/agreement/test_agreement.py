"""The laws of agreement, for any annotations: METRICS, and two annotators' answers as a whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import CONFLICTS, METRICS, Tolerance, compare, read_answers

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="Car"/><Label value="Person"/></RectangleLabels>'
    '<PolygonLabels name="outline" toName="image"><Label value="Car"/></PolygonLabels>'
    '<EllipseLabels name="oval" toName="image"><Label value="Car"/></EllipseLabels>'
    '<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices></View>'
)
percent = st.integers(0, 60).map(float)
side = st.integers(5, 40).map(float)
labels = st.sampled_from(["Car", "Person"])


@st.composite
def rectangles(draw):
    value = {
        "x": draw(percent), "y": draw(percent), "width": draw(side), "height": draw(side),
        "rotation": float(draw(st.sampled_from([0, 0, 30, 90, 200]))), "rectanglelabels": [draw(labels)],
    }  # fmt: skip
    return result("label", "rectanglelabels", value)


@st.composite
def ellipses(draw):
    value = {
        "x": draw(percent) + 20, "y": draw(percent) + 20, "radiusX": draw(side), "radiusY": draw(side),
        "rotation": 0, "ellipselabels": ["Car"],
    }  # fmt: skip
    return result("oval", "ellipselabels", value)


@st.composite
def polygons(draw):
    x, y, size = draw(percent), draw(percent), draw(side)
    points = [[x, y], [x + size, y], [x + size, y + size / 2], [x + size / 3, y + size]]
    return result("outline", "polygonlabels", {"points": points, "closed": True, "polygonlabels": ["Car"]})


answers = st.lists(
    st.one_of(
        rectangles(),
        rectangles(),
        polygons(),
        ellipses(),
        st.sampled_from(["good", "bad"]).map(lambda word: result("quality", "choices", {"choices": [word]})),
    ),
    max_size=8,
)


def result(control, type_, value):
    return {
        "from_name": control, "to_name": "image", "type": type_, "value": value, "original_width": 640,
        "original_height": 480,
    }  # fmt: skip


def with_ids(results, prefix="r"):
    return [item | {"id": f"{prefix}{n}"} for n, item in enumerate(results)]


def read(*people):
    annotations = [
        {"id": n, "completed_by": n, "result": results, "updated_at": "2026-01-01T00:00:00Z"}
        for n, results in enumerate(people, start=1)
    ]
    return read_answers(read_task({"id": 1, "data": {}, "annotations": annotations}), config=CONFIG)


def agreement(regions, other):
    a, b = read(with_ids(regions, "a"), with_ids(other, "b"))
    assert not a.unread
    assert not b.unread
    return compare(a, b, tolerance=Tolerance())


@given(answers)
def test_identical_annotations_agree_fully_however_many_regions_they_have(regions):
    assert agreement(regions, regions).overall == pytest.approx(1)


@given(answers, answers)
def test_agreement_is_symmetric_and_between_0_and_1(regions, other):
    forth, back = agreement(regions, other), agreement(other, regions)
    assert forth.overall == pytest.approx(back.overall)
    assert all(0 <= score <= 1 + 1e-9 for score in forth.controls.values())


@given(answers, answers, st.randoms(use_true_random=False))
def test_the_order_of_regions_and_their_ids_say_nothing(regions, other, random):
    expected = agreement(regions, other).overall
    shuffled = random.sample(regions, len(regions))
    a, b = read(with_ids(shuffled, "z"), with_ids(other, "b"))
    assert compare(a, b, tolerance=Tolerance()).overall == pytest.approx(expected)


@given(st.lists(rectangles(), min_size=1, max_size=5), st.data())
def test_a_duplicate_is_punished(regions, data):
    twice = [*regions, data.draw(st.sampled_from(regions))]
    assert agreement(regions, twice).overall == pytest.approx(2 * len(regions) / (2 * len(regions) + 1))


@given(answers.filter(bool))
def test_empty_annotations_agree_only_with_empty_ones(regions):
    assert agreement([], []).overall == 1
    assert agreement([], regions).overall == 0
    assert agreement(regions, []).overall == 0


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_is_1_for_nothing_against_nothing(kind):
    assert METRICS[kind]((), (), Tolerance()) == 1


def test_every_metric_can_say_what_it_means():
    assert set(CONFLICTS) == set(METRICS)


@pytest.mark.parametrize(
    ("regions", "other", "expected"),
    [
        # IoU of two 20 x 20 boxes that share half: 10 * 20 / (2 * 400 - 200) = 1/3, below match_iou
        ([(10, 10, 20, 20, "Car")], [(20, 10, 20, 20, "Car")], 0.0),
        # shifted by 4 of 20: 16 / 24
        ([(10, 10, 20, 20, "Car")], [(14, 10, 20, 20, "Car")], 2 / 3),
        # the right box with the wrong label
        ([(10, 10, 20, 20, "Car")], [(10, 10, 20, 20, "Person")], 0.0),
        # two of three found: 2 * 2 / (3 + 2)
        ([(0, 0, 10, 10, "Car"), (20, 0, 10, 10, "Car"), (40, 0, 10, 10, "Car")],
         [(40, 0, 10, 10, "Car"), (0, 0, 10, 10, "Car")], 0.8),
        # the same place twice with different labels is no conflict when both say so
        ([(0, 0, 10, 10, "Car"), (0, 0, 10, 10, "Person")], [(0, 0, 10, 10, "Person"), (0, 0, 10, 10, "Car")], 1.0),
        # greedy matching would take the middle box (IoU .82) and lose the other pair; the optimum keeps both
        ([(0, 0, 20, 10, "Car"), (5, 0, 20, 10, "Car")], [(2, 0, 20, 10, "Car"), (8, 0, 20, 10, "Car")],
         (18 / 22 + 17 / 23) / 2),
    ],
)  # fmt: skip
def test_known_numbers(regions, other, expected):
    def boxes(corners):
        keys = ("x", "y", "width", "height")
        return [
            result("label", "rectanglelabels", dict(zip(keys, numbers, strict=True)) | {"rectanglelabels": [label]})
            for *numbers, label in corners
        ]

    assert agreement(boxes(regions), boxes(other)).overall == pytest.approx(expected)


def test_rotation_counts():
    flat = {"x": 40, "y": 40, "width": 30, "height": 5, "rotation": 0, "rectanglelabels": ["Car"]}
    a, b = (result("label", "rectanglelabels", flat | {"rotation": angle}) for angle in (0, 45))
    assert agreement([a], [b]).overall == 0


def test_regions_on_different_images_of_a_task_never_match():
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Car"]}
    first, second = (result("label", "rectanglelabels", value) | {"item_index": index} for index in (0, 1))
    assert agreement([first], [second]).overall == 0
    assert agreement([first, second], [second, first]).overall == pytest.approx(1)


def test_overlap_needs_no_image_size():
    bare = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Car"]}
    first, other = bare | {"value": value}, bare | {"value": value | {"x": 14}}
    assert agreement([first], [other]).overall == pytest.approx(2 / 3)


def test_the_overall_is_the_mean_over_controls_that_were_used():
    box = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Car"]}
    same = result("label", "rectanglelabels", box)
    good, bad = (result("quality", "choices", {"choices": [word]}) for word in ("good", "bad"))
    comparison = agreement([same, good], [same, bad])
    assert dict(comparison.controls) == {"label": pytest.approx(1), "quality": 0}
    assert comparison.overall == pytest.approx(0.5)
    assert comparison.agrees(0.5, every_control=False)
    assert not comparison.agrees(0.5, every_control=True)


@given(st.permutations([1, 2, 3]))
def test_the_order_of_annotators_does_not_matter(order):
    people = {n: {"id": n, "completed_by": n, "result": [], "updated_at": "2026-01-01T00:00:00Z"} for n in order}
    source = {"id": 1, "data": {}, "annotations": [people[n] for n in order]}
    assert [answer.annotator for answer in read_answers(read_task(source))] == [1, 2, 3]


def test_only_latest_unskipped_annotations_count():
    moments = itertools.count()

    def made(id_, who, **more):
        moment = f"2026-01-01T00:00:{next(moments):02}Z"
        return {"id": id_, "completed_by": who, "result": [], "updated_at": moment} | more

    source = {
        "id": 1,
        "data": {},
        "annotations": [made(3, 2, was_cancelled=True), made(1, 1), made(2, 1), made(5, 4), made(4, 4)],
    }
    assert [answer.annotation for answer in read_answers(read_task(source))] == [2, 4]
