"""Consensus of several annotations: regions, labels, probabilities, provenance; its quality on crowd data."""

import ast
import collections
import csv
import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.consensus.box_bias import BoxBias, BoxBiasModel
from labelloop.labeling.consensus.consensus import (
    AnnotatorView,
    collect_evidence,
    consensus,
    consensus_results,
    fit_annotator_model,
)
from labelloop.labeling.consensus.detection_model import PRIOR, DetectionModel, ObjectEvidence
from labelloop.labeling.consensus.merge import merge_shapes
from labelloop.labeling.geometry.overlap import box_iou, iou, match
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Rectangle
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


def views(*answers):
    return [AnnotatorView(n, tuple(regions), annotation=100 + n) for n, regions in enumerate(answers, start=1)]


def labels_of(result):
    return sorted(agreed.region.labels[0] for agreed in result.regions)


def test_matching_regions_become_one_with_all_sources():
    result = consensus(views([box(0)], [box(4)], [box(10)]))
    (agreed,) = result.regions
    assert agreed.region.geometry == Rectangle(4, 10, 100, 100)
    assert [(source.annotator, source.annotation) for source in agreed.sources] == [(1, 101), (2, 102), (3, 103)]
    assert agreed.sources[1].iou == 1
    assert agreed.missed_by == ()
    assert agreed.probability > 0.95


def test_region_of_one_of_three_annotators_is_rejected():
    result = consensus(views([box(0), box(500)], [box(4)], [box(10)]))
    assert [agreed.region.geometry.x for agreed in result.regions] == [4]
    (lone,) = result.rejected
    assert (lone.missed_by, lone.sources[0].annotator, lone.sources[0].iou) == ((2, 3), 1, 1)
    assert lone.probability < 0.5


def test_regions_of_one_annotator_are_never_merged():
    result = consensus(views([box(0), box(10)], [box(0), box(10)]))
    assert len(result.regions) == 2
    assert all({source.annotator for source in agreed.sources} == {1, 2} for agreed in result.regions)


def test_labels_decide_between_equal_shapes():
    result = consensus(views([box(0, "Car"), box(0, "Person")], [box(0, "Person"), box(0, "Car")]))
    assert labels_of(result) == ["Car", "Person"]
    assert all(len({source.labels for source in agreed.sources}) == 1 for agreed in result.regions)


def test_regions_of_other_images_are_other_objects():
    other = msgspec.structs.replace(box(0), item_index=1)
    assert len(consensus(views([box(0)], [other])).regions + consensus(views([box(0)], [other])).rejected) == 2


def point(x, y, label):
    return Region(KeyPoint(x, y, 4.0), (label,), "p", "parts", "image", "keypointlabels", None, 0, 1000, 1000)


def test_nearby_key_points_are_one_point():
    truth = {"nose": (500, 300), "left eye": (460, 260), "right eye": (540, 260), "mouth": (500, 350)}
    apart = [(0, 0), (7, -5), (-6, 4)]
    people = [[point(x + dx, y + dy, name) for name, (x, y) in truth.items()] for dx, dy in apart]
    people[2] = people[2][1:]
    result = consensus(views(*people))
    assert labels_of(result) == sorted(truth)
    assert not result.rejected
    nose = next(agreed for agreed in result.regions if agreed.region.labels == ("nose",))
    assert nose.missed_by == (3,)
    assert (nose.region.geometry.x, nose.region.geometry.y) == (503.5, 297.5)


def test_duplicates_do_not_split_an_object():
    people = views([box(0)], [box(12)], [box(1), box(11, id_="twin")])
    result = consensus(people)
    assert [len(agreed.sources) for agreed in result.regions] == [3]
    assert [source.annotator for agreed in result.rejected for source in agreed.sources] == [3]
    twice = views([box(0), box(9)], [box(1), box(10)], [box(2)])
    assert [len(agreed.sources) for agreed in consensus(twice).regions] == [3, 2]


def test_majority_decides_the_label_of_unknown_annotators():
    (agreed,) = consensus(views([box(0, "Car")], [box(0, "Person")], [box(0, "Person")])).regions
    assert agreed.region.labels == ("Person",)
    assert 0.5 < agreed.label_probability < 1


def test_order_of_annotators_and_regions_does_not_matter():
    answers = [[box(0, id_="a"), box(300, id_="b")], [box(5, id_="c")], [box(9, "Person", id_="d"), box(310, id_="e")]]
    expected = consensus(views(*answers))
    for order in itertools.permutations(range(3)):
        shuffled = [views(*answers)[index] for index in order]
        turned = [AnnotatorView(s.annotator, s.regions[::-1], annotation=s.annotation) for s in shuffled]
        result = consensus(turned)
        key = lambda agreed: (agreed.region.geometry.x, agreed.probability)  # noqa: E731
        assert sorted(map(key, result.regions)) == sorted(map(key, expected.regions))


def test_empty_annotations_are_an_empty_consensus():
    assert consensus(views([], [])).regions == ()
    assert consensus([]).regions == ()
    assert fit_annotator_model([]).detection == PRIOR


@pytest.mark.parametrize("people", [2, 3, 5])
def test_agreeing_annotators_are_trusted_and_a_lone_slip_is_not(people):
    def task(boxes):
        return views(*[[box(150 * n) for n in range(boxes)]] * people)

    tasks = [task(n % 5) for n in range(1500)]
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks)
    assert [len(consensus(task, crowd).regions) for task in tasks[:5]] == [0, 1, 2, 3, 4]
    assert all(crowd.detection.recall(who) > 0.9 for who in range(1, people + 1))
    if people > 2:
        slip = views([box(0), box(700)], *[[box(0)]] * (people - 1))
        assert [agreed.region.geometry.x for agreed in consensus(slip, crowd).regions] == [0]
        assert len(consensus(views([], *[[box(0)]] * (people - 1)), crowd).regions) == 1


def test_careful_annotator_outweighs_two_careless_ones():
    rng = np.random.default_rng(1)
    tasks = []
    for _ in range(60):
        truth = [box(150 * n) for n in range(5)]
        careless = [
            [region for region in truth if rng.random() < 0.4] + [box(rng.uniform(0, 900), y=600, width=30, height=30)]
            for _ in range(2)
        ]
        tasks.append(views(truth, *careless, [region for region in truth if rng.random() < 0.95]))
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks)
    recalls = [crowd.detection.recall(who) for who in (1, 2, 3, 4)]
    assert min(recalls[0], recalls[3]) > max(recalls[1], recalls[2]) + 0.2
    result = consensus(views([box(0)], [], []), crowd)
    assert [agreed.sources[0].annotator for agreed in result.regions] == [1]
    assert consensus(views([], [box(0)], [], []), crowd).regions == ()


def test_stored_models_keep_their_json_keys():
    model = json.loads(msgspec.json.encode(fit_annotator_model([])))
    assert {"presence", "labels", "choices", "hands", "tags", "scales", "texts", "rankings"} <= set(model)
    assert set(model["presence"]) == {"logits", "false_regions", "density", "coincidence", "typical"}
    assert set(model["hands"]) == {"known", "typical"}
    evidence = json.loads(msgspec.json.encode(collect_evidence([])))
    assert set(evidence) == {"looked", "clusters", "choices", "boxes", "truth", "amounts", "texts", "rankings"}


def test_detection_probability_follows_the_formula():
    model = DetectionModel({1: 0.0, 2: 0.0}, {1: 0.1, 2: 0.2}, density=2.0, false_match_rate=0.05, typical=(0.0, 0.1))
    easy, hard = 1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(1.5))
    both = 2.0 * (easy**2 + hard**2) / 2
    assert model.probability(ObjectEvidence((1, 2), (1, 2))) == pytest.approx(both / (both + (0.1 + 0.2) * 0.05))
    single = 2.0 * (easy * (1 - easy) + hard * (1 - hard)) / 2
    assert model.probability(ObjectEvidence((1, 2), (2,))) == pytest.approx(single / (single + 0.2 * 0.95))


@pytest.mark.parametrize(
    ("shapes", "middle"),
    [
        ([Rectangle(0, 0, 10, 10), Rectangle(2, 2, 10, 10), Rectangle(50, 0, 10, 90)], Rectangle(2, 0, 10, 12)),
        ([Ellipse(10, 10, 5, 3), Ellipse(12, 10, 5, 3), Ellipse(11, 10, 5, 3)], Ellipse(11, 10, 5, 3)),
        ([KeyPoint(1, 1, 2), KeyPoint(2, 5, 2), KeyPoint(9, 2, 2)], KeyPoint(2, 2, 2)),
    ],
    ids=["rectangle", "ellipse", "key point"],
)  # fmt: skip
def test_merged_shape_is_the_middle(shapes, middle):
    assert iou(merge_shapes(shapes), middle) == pytest.approx(1)


def test_biased_and_careless_annotators_barely_move_the_consensus():
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
        tasks.append(views([wide], [careless], [exact], [other]))
        truths.append(Rectangle(*truth.tolist()))
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks)
    bias = crowd.box_bias.by_annotator[1]
    assert np.sign(bias.margin).tolist() == [-1, -1, 1, 1]
    assert min(abs(edge) for edge in bias.margin) > 0.08
    assert crowd.box_bias.by_annotator[2].variance > 4 * crowd.box_bias.by_annotator[3].variance
    fitted, unfitted = (
        np.mean([
            iou(consensus(task, model).regions[0].region.geometry, truth)
            for task, truth in zip(tasks, truths, strict=True)
        ])
        for model in (crowd, None)
    )  # fmt: skip
    assert fitted > max(unfitted + 0.01, 0.94)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.tuples(*[st.floats(0, 400)] * 2, *[st.floats(1, 400)] * 2)),
        min_size=2, max_size=4, unique_by=lambda pair: pair[0],
    ),
    st.dictionaries(st.integers(1, 4), st.tuples(st.tuples(*[st.floats(-0.5, 0.5)] * 4), st.floats(1e-4, 1))),
)  # fmt: skip
def test_fused_box_stays_within_the_drawn_boxes(boxes, biases):
    model = BoxBiasModel({who: BoxBias(margin, variance) for who, (margin, variance) in biases.items()})
    drawn = tuple((who, (x, y, x + width, y + height)) for who, (x, y, width, height) in boxes)
    middle = model.fuse_boxes(drawn).bounds
    edges = np.array([edges for _, edges in drawn])
    assert (edges.min(axis=0) - 1e-6 <= middle).all()
    assert (middle <= edges.max(axis=0) + 1e-6).all()
    assert model.fuse_boxes(drawn[::-1]).bounds == pytest.approx(middle)
    alike = tuple((who, drawn[0][1]) for who, _ in drawn)
    assert model.fuse_boxes(alike).bounds == pytest.approx(drawn[0][1])


def test_rotated_boxes_merge_in_any_drawing_direction():
    rotated = Rectangle(100, 100, 200, 80, 30)
    x, y = rotated.corners[1]
    same = Rectangle(x, y, 80, 200, 120)  # started at another corner: sides exchanged, rotated by 90 degrees
    assert iou(rotated, same) == pytest.approx(1)
    assert iou(merge_shapes([rotated, same, Rectangle(102, 101, 200, 80, 32)]), rotated) > 0.97
    assert iou(merge_shapes([same, rotated]), rotated) == pytest.approx(1)


def test_masks_are_merged_pixel_by_pixel():
    pixels = np.zeros((3, 10, 10), dtype=bool)
    pixels[0, 2:6, 2:6] = pixels[1, 2:6, 3:7] = pixels[2, 2:6, 4:8] = True
    middle = merge_shapes([Mask.from_array(layer) for layer in pixels])
    assert (middle.array() == (pixels.sum(axis=0) >= 2)).all()


def test_results_contain_provenance_and_can_be_read():
    from labelloop.labeling.studio.reading import read_annotation
    from labelloop.labeling.studio.task import read_task

    (agreed,) = consensus([AnnotatorView(n, (box(n, id_=f"r{n}"),), {}, 100 + n) for n in (1, 2, 3)]).regions
    results = consensus_results(agreed, agreed.region, config=CONFIG)
    task = read_task({"id": 1, "data": {}, "annotations": [{"id": 1, "completed_by": 1, "result": results}]})
    reading = read_annotation(task.annotations[0], task=task, config=CONFIG)
    assert not reading.errors
    assert reading.regions[0].geometry == Rectangle(2, 10, 100, 100)
    provenance = results[0]["meta"]["labelloop"]
    assert provenance["annotators"] == [1, 2, 3]
    assert [source["region"] for source in provenance["sources"]] == ["r1", "r2", "r3"]
    assert provenance["probability"] > 0.9


def test_choices_follow_the_reliable_annotators():
    rng = np.random.default_rng(3)
    tasks = []
    for _ in range(200):
        truth = rng.choice(["good", "bad"])
        wrong = "bad" if truth == "good" else "good"
        answers = [truth if rng.random() < right else wrong for right in (0.97, 0.95, 0.55, 0.55, 0.55)]
        tasks.append([AnnotatorView(n, (), {"quality": (word,)}) for n, word in enumerate(answers)])
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks)
    words = ("good", "good", "bad", "bad", "bad")
    result = consensus([AnnotatorView(n, (), {"quality": (word,)}) for n, word in enumerate(words)], crowd)
    assert result.choices["quality"].chosen == ("good",)


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
    return items, {item: np.array([np.ravel(ast.literal_eval(text)) for text in texts]) for item, texts in gold.items()}


def micro_f1(boxes, most, seed=0):
    items, gold = boxes
    rng = np.random.default_rng(seed)
    tasks = {}
    for item, workers in items.items():
        chosen = sorted(workers) if len(workers) <= most else rng.choice(sorted(workers), most, replace=False)
        tasks[item] = [AnnotatorView(int(worker), workers[worker]) for worker in chosen]
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks.values())
    hits = predicted = 0
    for item, task in tasks.items():
        shapes = np.array([agreed.region.geometry.bounds for agreed in consensus(task, crowd).regions]).reshape(-1, 4)
        hits += len(match(box_iou(shapes, gold[item]), threshold=0.5))
        predicted += len(shapes)
    return 2 * hits / (predicted + sum(map(len, gold.values())))


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
        answer = {"entails": (row["response"],)}
        tasks[row["orig_id"]].append(AnnotatorView(workers[row["!amt_worker_ids"]], (), answer))
        gold[row["orig_id"]] = row["gold"]
    crowd = fit_annotator_model(collect_evidence(task) for task in tasks.values())
    right = [consensus(task, crowd).choices["entails"].chosen == (gold[item],) for item, task in tasks.items()]
    assert np.mean(right) >= 0.9275
