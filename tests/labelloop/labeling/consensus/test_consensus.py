"""Several annotations become one: what is right, how likely, from whom; and the crowd data says how well."""

import ast
import collections
import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.consensus.box_bias import BoxBias, BoxBiasModel
from labelloop.labeling.consensus.consensus import AnnotatorView, agreed_results, consensus, estimate_crowd, evidence
from labelloop.labeling.consensus.detection_model import UNKNOWN, DetectionModel, ObjectEvidence
from labelloop.labeling.consensus.merge import merge_shapes
from labelloop.labeling.geometry.overlap import box_iou, iou, match
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig

DATA = Path(__file__).parents[5] / "shared" / "data"
CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="Car"/>
    <Label value="Person"/></RectangleLabels><Choices name="quality" toName="image"><Choice value="good"/>
    <Choice value="bad"/></Choices></View>"""
)


def box(x, label="Car", *, y=10.0, width=100.0, height=100.0, id_="r"):
    shape = Rectangle(float(x), float(y), float(width), float(height))
    return Region(shape, (label,), id_, "label", "image", "rectanglelabels", None, 0, 1000, 1000)


def stances(*answers):
    return [AnnotatorView(n, tuple(regions), annotation=100 + n) for n, regions in enumerate(answers, start=1)]


def labels_of(found):
    return sorted(each.region.labels[0] for each in found.regions)


def test_one_region_of_each_annotator_becomes_one_with_everybody_behind_it():
    found = consensus(stances([box(0)], [box(4)], [box(10)]))
    (agreed,) = found.regions
    assert agreed.region.geometry == Rectangle(4, 10, 100, 100)
    assert [(source.annotator, source.annotation) for source in agreed.sources] == [(1, 101), (2, 102), (3, 103)]
    assert agreed.sources[1].iou == 1
    assert agreed.missed_by == ()
    assert agreed.probability > 0.95


def test_what_one_of_three_marked_is_not_in_it_and_not_lost():
    found = consensus(stances([box(0), box(500)], [box(4)], [box(10)]))
    assert [each.region.geometry.x for each in found.regions] == [4]
    (lone,) = found.rejected
    assert (lone.missed_by, lone.sources[0].annotator) == ((2, 3), 1)
    assert lone.probability < 0.5


def test_two_regions_of_one_annotator_are_never_one_object():
    found = consensus(stances([box(0), box(10)], [box(0), box(10)]))
    assert len(found.regions) == 2
    assert all({source.annotator for source in each.sources} == {1, 2} for each in found.regions)


def test_of_two_equal_shapes_the_label_decides_who_belongs_to_whom():
    found = consensus(stances([box(0, "Car"), box(0, "Person")], [box(0, "Person"), box(0, "Car")]))
    assert labels_of(found) == ["Car", "Person"]
    assert all(len({source.labels for source in each.sources}) == 1 for each in found.regions)


def test_regions_of_other_controls_or_images_are_other_objects():
    import msgspec

    other = msgspec.structs.replace(box(0), item_index=1)
    assert len(consensus(stances([box(0)], [other])).regions + consensus(stances([box(0)], [other])).rejected) == 2


def point(x, y, label):
    return Region(KeyPoint(x, y, 4.0), (label,), "p", "parts", "image", "keypointlabels", None, 0, 1000, 1000)


def test_key_points_set_a_little_apart_are_one_point():
    truth = {"nose": (500, 300), "left eye": (460, 260), "right eye": (540, 260), "mouth": (500, 350)}
    apart = [(0, 0), (7, -5), (-6, 4)]
    people = [[point(x + dx, y + dy, name) for name, (x, y) in truth.items()] for dx, dy in apart]
    people[2] = people[2][1:]
    found = consensus(stances(*people))
    assert labels_of(found) == sorted(truth)
    assert not found.rejected
    nose = next(each for each in found.regions if each.region.labels == ("nose",))
    assert nose.missed_by == (3,)
    assert (nose.region.geometry.x, nose.region.geometry.y) == (503.5, 297.5)


def test_what_one_annotator_drew_twice_does_not_split_the_object():
    people = stances([box(0)], [box(12)], [box(1), box(11, id_="twin")])
    found = consensus(people)
    assert [len(each.sources) for each in found.regions] == [3]
    assert [source.annotator for each in found.rejected for source in each.sources] == [3]
    twice = stances([box(0), box(9)], [box(1), box(10)], [box(2)])
    assert [len(each.sources) for each in consensus(twice).regions] == [3, 2]


def test_the_majority_names_the_label_where_nothing_is_known_of_anybody():
    (agreed,) = consensus(stances([box(0, "Car")], [box(0, "Person")], [box(0, "Person")])).regions
    assert agreed.region.labels == ("Person",)
    assert 0.5 < agreed.label_probability < 1


def test_neither_annotators_nor_regions_order_matters():
    answers = [[box(0, id_="a"), box(300, id_="b")], [box(5, id_="c")], [box(9, "Person", id_="d"), box(310, id_="e")]]
    expected = consensus(stances(*answers))
    for order in itertools.permutations(range(3)):
        shuffled = [stances(*answers)[place] for place in order]
        turned = [AnnotatorView(s.annotator, s.regions[::-1], annotation=s.annotation) for s in shuffled]
        found = consensus(turned)
        key = lambda each: (each.region.geometry.x, each.probability)  # noqa: E731
        assert sorted(map(key, found.regions)) == sorted(map(key, expected.regions))


def test_empty_annotations_are_an_empty_consensus():
    assert consensus(stances([], [])).regions == ()
    assert consensus([]).regions == ()
    assert estimate_crowd([]).presence == UNKNOWN


@pytest.mark.parametrize("people", [2, 3, 5])
def test_annotators_who_always_agree_are_believed_and_a_lone_slip_is_not(people):
    def task(boxes):
        return stances(*[[box(150 * n) for n in range(boxes)]] * people)

    tasks = [task(n % 5) for n in range(1500)]
    crowd = estimate_crowd(evidence(task) for task in tasks)
    assert [len(consensus(task, crowd).regions) for task in tasks[:5]] == [0, 1, 2, 3, 4]
    assert all(crowd.presence.recall(who) > 0.9 for who in range(1, people + 1))
    if people > 2:
        slip = stances([box(0), box(700)], *[[box(0)]] * (people - 1))
        assert [each.region.geometry.x for each in consensus(slip, crowd).regions] == [0]
        assert len(consensus(stances([], *[[box(0)]] * (people - 1)), crowd).regions) == 1


def test_a_careful_annotator_outweighs_two_careless_ones():
    rng = np.random.default_rng(1)
    tasks = []
    for _ in range(60):
        truth = [box(150 * n) for n in range(5)]
        careless = [
            [each for each in truth if rng.random() < 0.4] + [box(rng.uniform(0, 900), y=600, width=30, height=30)]
            for _ in range(2)
        ]
        tasks.append(stances(truth, *careless, [each for each in truth if rng.random() < 0.95]))
    crowd = estimate_crowd(evidence(task) for task in tasks)
    recalls = [crowd.presence.recall(who) for who in (1, 2, 3, 4)]
    assert min(recalls[0], recalls[3]) > max(recalls[1], recalls[2]) + 0.2
    found = consensus(stances([box(0)], [], []), crowd)
    assert [each.sources[0].annotator for each in found.regions] == [1]
    assert consensus(stances([], [box(0)], [], []), crowd).regions == ()


def test_probabilities_of_presence_are_what_the_formula_says():
    known = DetectionModel({1: 0.0, 2: 0.0}, {1: 0.1, 2: 0.2}, density=2.0, coincidence=0.05, typical=(0.0, 0.1))
    easy, hard = 1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(1.5))
    both = 2.0 * (easy**2 + hard**2) / 2
    assert known.probability(ObjectEvidence((1, 2), (1, 2))) == pytest.approx(both / (both + (0.1 + 0.2) * 0.05))
    one = 2.0 * (easy * (1 - easy) + hard * (1 - hard)) / 2
    assert known.probability(ObjectEvidence((1, 2), (2,))) == pytest.approx(one / (one + 0.2 * 0.95))


@pytest.mark.parametrize(
    ("shapes", "middle"),
    [
        ([Rectangle(0, 0, 10, 10), Rectangle(2, 2, 10, 10), Rectangle(50, 0, 10, 90)], Rectangle(2, 0, 10, 12)),
        ([Ellipse(10, 10, 5, 3), Ellipse(12, 10, 5, 3), Ellipse(11, 10, 5, 3)], Ellipse(11, 10, 5, 3)),
        ([KeyPoint(1, 1, 2), KeyPoint(2, 5, 2), KeyPoint(9, 2, 2)], KeyPoint(2, 2, 2)),
        ([Polygon(((0, 0), (9, 0), (9, 9))), Polygon(((0, 0), (10, 0), (10, 10))), Polygon(((0, 0), (30, 0), (0, 30)))],
         Polygon(((0, 0), (10, 0), (10, 10)))),
    ],
    ids=["rectangle", "ellipse", "key point", "polygon"],
)  # fmt: skip
def test_the_middle_of_several_shapes(shapes, middle):
    assert iou(merge_shapes(shapes), middle) == pytest.approx(1)


def test_who_always_draws_too_wide_or_carelessly_moves_the_consensus_little():
    rng = np.random.default_rng(5)
    tasks, truths = [], []
    for _ in range(80):
        truth = np.array([*rng.uniform(100, 500, 2), *rng.uniform(60, 300, 2)])
        x, y, width, height = truth
        wide = box(x - 0.2 * width, y=y - 0.2 * height, width=1.4 * width, height=1.4 * height)
        careless, exact, other = (
            box(x, y=y, width=width * (1 + rng.normal(0, noise)), height=height * (1 + rng.normal(0, noise)))
            for noise in (0.25, 0.02, 0.02)
        )
        tasks.append(stances([wide], [careless], [exact], [other]))
        truths.append(Rectangle(*truth.tolist()))
    crowd = estimate_crowd(evidence(task) for task in tasks)
    hand = crowd.hands.known[1]
    assert np.sign(hand.margin).tolist() == [-1, -1, 1, 1]
    assert min(abs(each) for each in hand.margin) > 0.08
    assert crowd.hands.known[2].variance > 4 * crowd.hands.known[3].variance
    known, unknown = (
        np.mean([
            iou(consensus(task, each).regions[0].region.geometry, truth)
            for task, truth in zip(tasks, truths, strict=True)
        ])
        for each in (crowd, None)
    )  # fmt: skip
    assert known > max(unknown + 0.01, 0.94)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.tuples(*[st.floats(0, 400)] * 2, *[st.floats(1, 400)] * 2)),
        min_size=2, max_size=4, unique_by=lambda each: each[0],
    ),
    st.dictionaries(st.integers(1, 4), st.tuples(st.tuples(*[st.floats(-0.5, 0.5)] * 4), st.floats(1e-4, 1))),
)  # fmt: skip
def test_a_merged_box_lies_where_boxes_were_drawn_whatever_is_known_of_their_hands(boxes, known):
    hands = BoxBiasModel({who: BoxBias(margin, variance) for who, (margin, variance) in known.items()})
    drawn = tuple((who, (x, y, x + width, y + height)) for who, (x, y, width, height) in boxes)
    middle = hands.fuse_boxes(drawn).bounds
    edges = np.array([each for _, each in drawn])
    assert (edges.min(axis=0) - 1e-6 <= middle).all()
    assert (middle <= edges.max(axis=0) + 1e-6).all()
    assert hands.fuse_boxes(drawn[::-1]).bounds == pytest.approx(middle)
    alike = tuple((who, drawn[0][1]) for who, _ in drawn)
    assert hands.fuse_boxes(alike).bounds == pytest.approx(drawn[0][1])


def test_rotated_boxes_are_merged_whichever_way_they_were_drawn():
    one = Rectangle(100, 100, 200, 80, 30)
    x, y = one.corners[1]
    same = Rectangle(x, y, 80, 200, 120)  # begun at another corner: sides exchanged, a quarter turn on
    assert iou(one, same) == pytest.approx(1)
    assert iou(merge_shapes([one, same, Rectangle(102, 101, 200, 80, 32)]), one) > 0.97
    assert iou(merge_shapes([same, one]), one) == pytest.approx(1)


def test_masks_are_merged_pixel_by_pixel():
    pixels = np.zeros((3, 10, 10), dtype=bool)
    pixels[0, 2:6, 2:6] = pixels[1, 2:6, 3:7] = pixels[2, 2:6, 4:8] = True
    middle = merge_shapes([Mask.of(each) for each in pixels])
    assert (middle.array() == (pixels.sum(axis=0) >= 2)).all()


def test_results_say_where_they_came_from_and_read_back():
    from labelloop.labeling.studio.regions import read_annotation
    from labelloop.labeling.studio.task import read_task

    (agreed,) = consensus([AnnotatorView(n, (box(n, id_=f"r{n}"),), {}, 100 + n) for n in (1, 2, 3)]).regions
    results = agreed_results(agreed, agreed.region, config=CONFIG)
    task = read_task({"id": 1, "data": {}, "annotations": [{"id": 1, "completed_by": 1, "result": results}]})
    reading = read_annotation(task.annotations[0], task=task, config=CONFIG)
    assert not reading.errors
    assert reading.regions[0].geometry == Rectangle(2, 10, 100, 100)
    told = results[0]["meta"]["labelloop"]
    assert told["annotators"] == [1, 2, 3]
    assert [source["region"] for source in told["sources"]] == ["r1", "r2", "r3"]
    assert told["probability"] > 0.9


def test_choices_follow_whom_the_crowd_has_shown_to_be_right():
    rng = np.random.default_rng(3)
    tasks = []
    for _ in range(200):
        truth = rng.choice(["good", "bad"])
        wrong = "bad" if truth == "good" else "good"
        said = [truth if rng.random() < right else wrong for right in (0.97, 0.95, 0.55, 0.55, 0.55)]
        tasks.append([AnnotatorView(n, (), {"quality": (word,)}) for n, word in enumerate(said)])
    crowd = estimate_crowd(evidence(task) for task in tasks)
    words = ("good", "good", "bad", "bad", "bad")
    found = consensus([AnnotatorView(n, (), {"quality": (word,)}) for n, word in enumerate(words)], crowd)
    assert found.choices["quality"].chosen == ("good",)


@pytest.fixture(scope="module")
def boxes():
    """Half of the crowd boxes: item -> worker -> regions, and the gold boxes of each item."""
    if not DATA.is_dir():
        pytest.skip("the crowd data is not on this machine")
    items = collections.defaultdict(dict)
    with (DATA / "crowd_boxes_half_a.csv").open() as file:
        for row in csv.DictReader(file):
            corners = ast.literal_eval(row["boxes_ltrb_points"])
            items[row["item"]][int(row["worker"])] = tuple(
                box(x, y=y, width=right - x, height=bottom - y) for (x, y), (right, bottom) in corners
            )
    gold = json.loads((DATA / "crowd_boxes_half_a_gold.json").read_text())
    return items, {item: np.array([np.ravel(ast.literal_eval(each)) for each in found]) for item, found in gold.items()}


def micro_f1(boxes, most, seed=0):
    items, gold = boxes
    rng = np.random.default_rng(seed)
    tasks = {}
    for item, workers in items.items():
        chosen = sorted(workers) if len(workers) <= most else rng.choice(sorted(workers), most, replace=False)
        tasks[item] = [AnnotatorView(int(worker), workers[worker]) for worker in chosen]
    crowd = estimate_crowd(evidence(task) for task in tasks.values())
    hits = found = 0
    for item, task in tasks.items():
        shapes = np.array([each.region.geometry.bounds for each in consensus(task, crowd).regions]).reshape(-1, 4)
        hits += len(match(box_iou(shapes, gold[item]), threshold=0.5))
        found += len(shapes)
    return 2 * hits / (found + sum(map(len, gold.values())))


def test_crowd_boxes_are_close_to_the_gold(boxes):
    assert micro_f1(boxes, 99) >= 0.75
    assert np.mean([micro_f1(boxes, 5, seed) for seed in range(5)]) >= 0.735
    assert np.mean([micro_f1(boxes, 3, seed) for seed in range(10)]) >= 0.7  # 0.715, give or take 0.005


def test_rte_consensus_is_as_good_as_dawid_and_skene():
    path = DATA / "rte.standardized.tsv"
    if not path.is_file():
        pytest.skip("the crowd data is not on this machine")
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    workers = {name: n for n, name in enumerate(sorted({row["!amt_worker_ids"] for row in rows}))}
    tasks, gold = collections.defaultdict(list), {}
    for row in rows:
        said = {"entails": (row["response"],)}
        tasks[row["orig_id"]].append(AnnotatorView(workers[row["!amt_worker_ids"]], (), said))
        gold[row["orig_id"]] = row["gold"]
    crowd = estimate_crowd(evidence(task) for task in tasks.values())
    right = [consensus(task, crowd).choices["entails"].chosen == (gold[item],) for item, task in tasks.items()]
    assert np.mean(right) >= 0.9275
