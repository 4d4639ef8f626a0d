"""Single objects decide: a missing, extra or mislabelled one is a dispute, careful drawing is not."""

import math
import random

import numpy as np
import pytest

from labelloop.labeling.geometry.brush_codec import encode_rle
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.policy import ConflictPolicy, LabelConflicts, Policy
from qc_webhooks.verdict.note import write_note
from qc_webhooks.verdict.verdict import judge

WIDTH, HEIGHT = 2000, 1500
DRAWS = 50


def result(type_, value, labels, id_):
    return {
        "id": id_, "from_name": "label", "to_name": "image", "type": type_, "original_width": WIDTH,
        "original_height": HEIGHT, "value": value | {type_: list(labels)},
    }  # fmt: skip


def rectangle(edges, label, id_):
    left, top, right, bottom = edges
    value = {
        "x": 100 * left / WIDTH, "y": 100 * top / HEIGHT, "width": 100 * (right - left) / WIDTH,
        "height": 100 * (bottom - top) / HEIGHT, "rotation": 0,
    }  # fmt: skip
    return result("rectanglelabels", value, [label], id_)


def outline(edges, corners):
    left, top, right, bottom = edges
    x, y, across, high = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    angles = [2 * math.pi * step / corners for step in range(corners)]
    return [(x + across * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


def polygon(edges, label, id_, jitter):
    points = [[100 * (x + jitter()) / WIDTH, 100 * (y + jitter()) / HEIGHT] for x, y in outline(edges, 12)]
    return result("polygonlabels", {"points": points, "closed": True}, [label], id_)


def brush(edges, label, id_):
    left, top, right, bottom = (round(edge) for edge in edges)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    x, y, across, high = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    mask = ((columns - x) / across) ** 2 + ((rows - y) / high) ** 2 <= 1
    return result("brushlabels", {"format": "rle", "rle": encode_rle(mask)}, [label], id_)


def scene(rng, objects, smallest=12, largest=400):
    """Objects on a grid: (edges, label), each at least 40 px from the next."""
    cells = rng.sample([(column, row) for column in range(8) for row in range(6)], objects)
    found = []
    for column, row in cells:
        width, height = (math.exp(rng.uniform(math.log(smallest), math.log(min(largest, 200)))) for _ in range(2))
        left, top = column * 245 + 5, row * 245 + 5
        found.append(((left, top, left + width, top + height), rng.choice(["Car", "Person"])))
    if largest > 200:  # one large object across several cells is a scene of its own
        found[0] = ((1500, 1000, 1500 + largest, 1000 + largest), found[0][1])
        found = [found[0], *(item for item in found[1:] if item[0][0] < 1400 or item[0][1] < 700)]
    return found


def drawn(rng, objects, shape="box", jitter=3.0):
    """The objects as one annotator draws them, each edge up to ``jitter`` px off."""

    def off():
        return rng.uniform(-jitter, jitter)

    results = []
    for index, (edges, label) in enumerate(objects):
        moved = tuple(edge + off() for edge in edges)
        id_ = f"{rng.random()}-{index}"
        if shape == "box":
            results.append(rectangle(moved, label, id_))
        elif shape == "polygon":
            results.append(polygon(edges, label, id_, off))
        else:
            results.append(brush(moved, label, id_))
    return results


def judged(*people, policy=None):
    annotations = [
        {"id": who, "completed_by": who, "result": results, "updated_at": "2026-01-01T00:00:00Z"}
        for who, results in enumerate(people, start=1)
    ]
    return judge(read_answers(read_task({"id": 1, "data": {}, "annotations": annotations})), policy or Policy())


@pytest.mark.parametrize(("shape", "draws"), [("box", DRAWS), ("polygon", DRAWS), ("brush", 3)])
def test_careful_drawing_is_no_dispute(shape, draws):
    outcomes = []
    for seed in range(draws):
        rng = random.Random(seed)
        objects = scene(rng, 10 if shape != "brush" else 5)
        jitter = rng.choice([1.0, 2.0, 3.0])
        outcomes.append(judged(*(drawn(rng, objects, shape, jitter) for _ in range(2))).outcome)
    assert outcomes == ["agreed"] * draws


def mislabelled(objects, rng):
    at = rng.randrange(len(objects))
    edges, label = objects[at]
    return [*objects[:at], (edges, "Person" if label == "Car" else "Car"), *objects[at + 1 :]]


def small_scene(rng, size, objects=10):
    """Objects of one size, 8 px or more from the next."""
    cells = rng.sample([(column, row) for column in range(6) for row in range(4)], objects)
    return [
        ((left := 200 + column * (size + 8), top := 200 + row * (size + 8), left + size, top + size),
         rng.choice(["Car", "Person"]))
        for column, row in cells
    ]  # fmt: skip


def scattered(rng, objects, deviation):
    """The objects as an annotator draws them whose edges scatter by this standard deviation."""
    results = []
    for index, (edges, label) in enumerate(objects):
        left, top, right, bottom = (edge + rng.gauss(0, deviation) for edge in edges)
        box = (left, top, max(right, left + 2), max(bottom, top + 2))
        results.append(rectangle(box, label, f"{rng.random()}-{index}"))
    return results


@pytest.mark.parametrize("size", [12, 24, 96])
def test_edges_that_scatter_by_three_pixels_are_no_dispute(size):
    outcomes = []
    for seed in range(25 if size == 12 else 10):
        rng = random.Random(seed)
        objects = small_scene(rng, size)
        outcomes.append(judged(scattered(rng, objects, 3), scattered(rng, objects, 3)).outcome)
    assert outcomes.count("disputed") <= 0.05 * len(outcomes)


SMALL_MISTAKES = {
    "missing": lambda objects, rng: rng.sample(objects, len(objects) - 1),
    "extra": lambda objects, rng: [*objects, ((100, 100, 112, 112), "Car")],
    "mislabelled": mislabelled,
}


@pytest.mark.parametrize("mistake", SMALL_MISTAKES)
def test_a_mistake_about_a_small_object_is_a_dispute(mistake):
    for seed in range(15):
        rng = random.Random(seed)
        objects = small_scene(rng, 12)
        changed = SMALL_MISTAKES[mistake](objects, rng)
        assert judged(scattered(rng, objects, 2), scattered(rng, changed, 2)).outcome == "disputed"


def test_two_objects_that_could_be_meant_leave_a_doubt():
    rng = random.Random(0)
    near = [((100, 100, 112, 112), "Car"), ((109, 100, 121, 112), "Car")]
    assert judged(drawn(rng, near, jitter=0), drawn(rng, near[1:], jitter=0)).outcome == "disputed"
    between = [((104, 107, 116, 119), "Car")]  # as near to one as to the other
    assert judged(drawn(rng, near, jitter=0), drawn(rng, between, jitter=0)).outcome == "disputed"


MISTAKES = {
    "3 missing of 10": (10, lambda objects, rng: rng.sample(objects, len(objects) - 3), "missing"),
    "1 missing of 30": (30, lambda objects, rng: rng.sample(objects, len(objects) - 1), "missing"),
    "1 extra": (10, lambda objects, rng: [*objects, ((1700, 20, 1720, 45), "Car")], "extra"),
    "1 mislabelled": (10, mislabelled, "label"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("shape", "draws"), [("box", DRAWS), ("polygon", 10)])
def test_one_mistake_is_a_dispute(mistake, shape, draws):
    count, change, kind = MISTAKES[mistake]
    for seed in range(draws):
        rng = random.Random(seed)
        objects = scene(rng, count, largest=150)
        objects = [item for item in objects if item[0][0] < 1650 or item[0][1] > 200]
        first, second = drawn(rng, objects, shape), drawn(rng, change(objects, rng), shape)
        verdict = judged(first, second)
        assert verdict.outcome == "disputed"
        assert verdict.conflicts[0].type == kind


# Annotators who have the object, of all -> by default, and if everyone must have it.
VOTES = [
    ((1, 2), "disputed", "disputed"),
    ((2, 3), "agreed", "disputed"),
    ((1, 3), "agreed", "disputed"),
    ((2, 4), "disputed", "disputed"),
    ((3, 4), "agreed", "disputed"),
    ((4, 5), "agreed", "disputed"),
    ((3, 5), "disputed", "disputed"),
    ((2, 5), "disputed", "disputed"),
    ((1, 5), "agreed", "disputed"),
    ((4, 6), "agreed", "disputed"),
    ((6, 6), "agreed", "agreed"),
]


@pytest.mark.parametrize(("votes", "outcome", "strict"), VOTES)
def test_votes_settle_an_object_or_leave_it_in_doubt(votes, outcome, strict):
    have, annotators = votes
    rng = random.Random(1)
    objects = scene(rng, 12, largest=150)
    people = [drawn(rng, objects if who < have else objects[1:]) for who in range(annotators)]
    verdict = judged(*people)
    assert verdict.outcome == outcome
    assert verdict.settled == (outcome == "agreed" and have != annotators)
    everyone = Policy(conflicts=ConflictPolicy(majority=1.0))
    assert judged(*people, policy=everyone).outcome == strict


@pytest.mark.parametrize(
    ("labels", "outcome"),
    [
        (["Car", "Car", "Person"], "agreed"),
        (["Car", "Person", "Van"], "disputed"),
        (["Car", "Car", "Person", "Person"], "disputed"),
        (["Car", "Car", "Car", "Person"], "agreed"),
        (["Car", "Person", None], "disputed"),  # two have it, with two labels
    ],
)
def test_votes_settle_the_label_of_an_object(labels, outcome):
    rng = random.Random(2)
    rest = scene(rng, 12, largest=150)[1:]
    edges = (1700.0, 1300.0, 1760.0, 1360.0)
    people = [drawn(rng, rest if label is None else [*rest, (edges, label)]) for label in labels]
    assert judged(*people).outcome == outcome


def test_a_badly_located_object_is_a_dispute():
    rng = random.Random(3)
    objects = scene(rng, 10, largest=150)
    left, top, right, bottom = objects[0][0]
    shifted = (left + 0.6 * (right - left) + 6, top, right + 0.6 * (right - left) + 6, bottom)
    verdict = judged(drawn(rng, objects), drawn(rng, [(shifted, objects[0][1]), *objects[1:]]))
    assert verdict.outcome == "disputed"


def without_first(rng, size):
    """Two annotators; the second misses an object of this size."""
    objects = [((100.0, 100.0, 100.0 + size, 100.0 + size), "Car"), *scene(rng, 10, largest=150)[1:]]
    objects = [objects[0], *(item for item in objects[1:] if item[0][0] > 300)]
    return drawn(rng, objects, jitter=0), drawn(rng, objects[1:], jitter=0)


@pytest.mark.parametrize(
    ("size", "conflicts", "outcome"),
    [
        (20, ConflictPolicy(min_size=16), "disputed"),
        (12, ConflictPolicy(min_size=16), "agreed"),
        (12, ConflictPolicy(min_image_share=0.0001), "agreed"),  # 144 of 3,000,000 pixels
        (20, ConflictPolicy(min_image_share=0.0001), "disputed"),
        (12, ConflictPolicy(min_size=16, labels={"Car": LabelConflicts(min_size=0)}), "disputed"),
        (12, ConflictPolicy(labels={"Car": LabelConflicts(min_size=16)}), "agreed"),
        (12, ConflictPolicy(labels={"Person": LabelConflicts(min_size=16)}), "disputed"),
        (40, ConflictPolicy(dispute=("label",)), "agreed"),  # the mean is high
        (40, ConflictPolicy(labels={"Car": LabelConflicts(dispute=())}), "agreed"),
        (40, ConflictPolicy(dispute=(), labels={"Car": LabelConflicts(dispute=("missing",))}), "disputed"),
        (40, ConflictPolicy(decide_by="mean"), "agreed"),
    ],
)
def test_kinds_sizes_and_labels_narrow_what_is_disputed(size, conflicts, outcome):
    people = without_first(random.Random(4), size)
    assert judged(*people, policy=Policy(conflicts=conflicts)).outcome == outcome


def test_objects_in_doubt_come_first_in_the_note():
    people = without_first(random.Random(5), 40)
    verdict = judged(*people)
    assert write_note(verdict, Policy()) == "One annotator has a Car at the upper left, another does not."


def test_a_typing_slip_in_a_text_about_a_region_is_no_dispute():
    def with_text(results, words):
        box = results[0]
        value = {name: item for name, item in box["value"].items() if name != "rectanglelabels"} | {"text": [words]}
        return [*results, box | {"from_name": "plate", "type": "textarea", "value": value}]

    rng = random.Random(6)
    objects = scene(rng, 5, largest=150)
    first, second = drawn(rng, objects), drawn(rng, objects)
    assert judged(with_text(first, "B-LK 4711"), with_text(second, "B-LK 4712")).outcome == "agreed"
    assert judged(with_text(first, "B-LK 4711"), with_text(second, "HH X 9")).outcome == "disputed"


@pytest.mark.parametrize("ids", ["own", "none"])
def test_each_object_is_judged_by_itself_without_ids_too(ids):
    """Two of three settle the first box; the small one, which one annotator lacks, is ignored."""
    large, other, small = (100, 100, 300, 300), (600, 600, 800, 800), (1000, 1000, 1008, 1008)
    drawn = [
        [(large, "Car"), (other, "Car"), (small, "Car")],
        [(large, "Car"), (other, "Car")],
        [(large, "Bus"), (other, "Car")],
    ]
    annotations = [
        {"id": who, "completed_by": who, "result": [
            rectangle(edges, label, f"{who}-{number}" if ids == "own" else "")
            for number, (edges, label) in enumerate(boxes)]}
        for who, boxes in enumerate(drawn, 1)
    ]  # fmt: skip
    answers = read_answers(read_task({"id": 1, "data": {}, "annotations": annotations}))
    policy = Policy(agreement=0.1, conflicts=ConflictPolicy(min_size=10))
    assert judge(answers, policy).outcome == "agreed"
    assert judge(answers[:2], policy).outcome == "agreed"
    disputed = judge(answers[1:], policy)
    regions = ("2-0", "3-0") if ids == "own" else ("", "")
    assert [(conflict.type, conflict.regions) for conflict in disputed.conflicts] == [("label", regions)]
