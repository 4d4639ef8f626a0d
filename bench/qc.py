"""Quality control: consensus against gold, reliability against truth, injected errors, and speed.

KaLOS, crowd-kit and weighted boxes fusion are measured beside it where ``BENCH_REFEREES`` names a Python that has
them (see `bench.referees`).
"""

import ast
import collections
import csv
import json
import logging
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from bench.referees import alpha_rows, crowd_kit_rows, wbf_rows
from bench.simulated import coverage
from labelloop.labeling.consensus.consensus import (
    AnnotatorView,
    Evidence,
    collect_evidence,
    consensus,
    fit_annotator_model,
)
from labelloop.labeling.geometry.overlap import box_iou, match
from labelloop.labeling.geometry.shapes import Polygon, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Answers, Tolerance, read_answers
from qc_webhooks.annotators.reliability import rate_annotators
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.verdict.dispute_card import annotator_view, conflicts_of
from qc_webhooks.verdict.verdict import judge

DATA = Path(__file__).parents[2] / "shared" / "data"
DRAWS = 20
BESIDE = (
    "KaLOS 0.8.0, crowd-kit 1.4.2 and weighted boxes fusion (ensemble-boxes 1.0.9) ran on the same data: "
    "`BENCH_REFEREES`\nnames a Python that has them. The model as one more voice: [voice](voice.md)."
)
# What cross-fitting may choose from: least overlap of one object.
LEAST = (0.1, 0.2, 0.3)


def run() -> str:
    """Measure everything."""
    lines = ["| what | figure |", "|---|---|"]
    if DATA.is_dir():
        items, gold = load_boxes()
        lines += [*crowd_boxes(), *wbf_rows(items, gold, DRAWS // 4), *alpha_rows(items)]
        lines += [*rte(), *crowd_kit_rows(*read_rte()), *adaptive()]
    else:
        lines.append("| crowd data | not on this machine |")
    return "\n".join([*lines, *coverage(), *injected(), *small_objects(), *speed(), "", BESIDE])


def load_boxes():
    """item -> worker -> regions, item -> gold boxes."""
    items = collections.defaultdict(dict)
    with (DATA / "crowd_boxes_half_a.csv").open() as file:
        for row in csv.DictReader(file):
            corners = ast.literal_eval(row["boxes_ltrb_points"])
            items[row["item"]][int(row["worker"])] = tuple(
                drawn(Rectangle(x, y, right - x, bottom - y)) for (x, y), (right, bottom) in corners
            )
    gold = json.loads((DATA / "crowd_boxes_half_a_gold.json").read_text())
    return items, {item: np.array([np.ravel(ast.literal_eval(each)) for each in found]) for item, found in gold.items()}


def drawn(shape, label="object", id_="r"):
    """A region on an image of 1000 x 1000."""
    kind = "polygonlabels" if isinstance(shape, Polygon) else "rectanglelabels"
    return Region(shape, (label,), id_, "label", "image", kind, None, 0, 1000, 1000)


def hits_of(items, gold, most, seed, least):
    """(hits, regions of the consensus, gold boxes) by item, with at most so many annotators drawn by chance."""
    rng = np.random.default_rng(seed)
    tasks = {}
    for item, workers in items.items():
        chosen = sorted(workers) if len(workers) <= most else rng.choice(sorted(workers), most, replace=False)
        tasks[item] = [AnnotatorView(int(worker), workers[worker]) for worker in chosen]
    crowd = fit_annotator_model(collect_evidence(task, min_iou=least) for task in tasks.values())
    found = {}
    for item, task in tasks.items():
        agreed = consensus(task, crowd, min_iou=least).regions
        shapes = np.array([each.region.geometry.bounds for each in agreed]).reshape(-1, 4)
        found[item] = np.array([len(match(box_iou(shapes, gold[item]), threshold=0.5)), len(shapes), len(gold[item])])
    return found


def f1(counts):
    """Micro-F1 of (hits, found, gold) by item."""
    hits, found, gold = np.sum(list(counts), axis=0)
    return 2 * hits / (found + gold)


def crowd_boxes():
    """Micro-F1 at IoU .5 with all, 5 and 3 annotators, as shipped and cross-fitted over two halves of the photos."""
    items, gold = load_boxes()
    names = sorted(items)
    halves = names[::2], names[1::2]
    for most, title, target in ((99, "all", 0.75), (5, "5", 0.735), (3, "3", 0.71)):
        shipped, crossed = [], []
        for seed in range(1 if most == 99 else DRAWS):
            counts = {least: hits_of(items, gold, most, seed, least) for least in LEAST}
            shipped.append(f1(counts[0.2].values()))
            fitted = []
            for mine, other in (halves, halves[::-1]):
                best = max(LEAST, key=lambda least: f1(counts[least][name] for name in mine))
                fitted += [counts[best][name] for name in other]
            crossed.append(f1(fitted))
        spread = f" (sd {statistics.stdev(crossed):.3f} over {DRAWS} draws)" if len(crossed) > 1 else ""
        yield (
            f"| crowd boxes, {title} annotators: micro-F1, as shipped | {np.mean(shipped):.3f} |\n"
            f"| ... least overlap cross-fitted (target {target}) | {np.mean(crossed):.3f}{spread} |"
        )


def rte():
    """Accuracy of the consensus of all labels; how many annotators' accuracy against gold the intervals hold."""
    votes, gold = read_rte()
    right = collections.defaultdict(list)
    for item, each in votes.items():
        for who, answer in each:
            right[who].append(answer == gold[item])
    tasks = [Evidence(tuple(who for who, _ in each), (), (("entails", tuple(each)),)) for each in votes.values()]
    crowd = fit_annotator_model(tasks)
    chosen = {
        item: consensus([AnnotatorView(who, (), {"q": answer}) for who, answer in each], _renamed(crowd))
        .choices["q"]
        .chosen
        for item, each in votes.items()
    }
    accuracy = np.mean([chosen[item] == gold[item] for item in gold])
    yield f"| RTE, consensus of all labels: accuracy (target .9275) | {accuracy:.4f} |"
    rated = [(each.annotator, each.choices["entails"].accuracy) for each in rate_annotators(tasks, crowd)]
    held = [one.low <= np.mean(right[who]) <= one.high for who, one in rated if one.value is not None]
    title = "RTE, annotators of 20+ labels whose accuracy against gold is in the 95 % interval"
    yield f"| {title} | {np.mean(held):.3f} of {len(held)} |"


def adaptive(draws=4, most=10):
    """RTE asked for label by label through the live service's own code: checks, routes, estimates, hints.

    Label Studio is the tests' own in memory; the simulated annotators are the recorded ones, in random order.
    """
    runs = [_asked(np.random.default_rng(seed), most) for seed in range(draws)]
    accuracy, labels = np.mean(runs, axis=0)
    spread = np.std([run[0] for run in runs])
    title = f"RTE, asked by expected gain, up to {most}: accuracy (target .925)"
    yield f"| {title} | {accuracy:.4f} (sd {spread:.4f} over {draws} draws) |"
    yield f"| ... labels an item (target at most 5.3) | {labels:.2f} |"


def _asked(rng, most):
    from labelloop.service.db.engine import open_database
    from labelloop.service.jobs.inbox import Inbox
    from labelloop.service.jobs.worker_id import current_worker
    from labelloop.service.settings import Settings
    from qc_webhooks.pipeline.checker import Checker
    from qc_webhooks.schedulers.annotator_model import AnnotatorModelScheduler, AnnotatorModelStore
    from qc_webhooks.store.decisions import DecisionStore
    from qc_webhooks.store.task_facts import FactStore
    from tests.qc_webhooks.conftest import PROJECT, QcStudio

    votes, gold = read_rte()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(dir=shm if (shm := Path("/dev/shm")).is_dir() else None) as folder:
        settings = Settings(home=Path(folder))
        settings.home.joinpath("qc").mkdir()
        settings.home.joinpath("qc", "policy.toml").write_text(f"max_annotators = {most}\nadjudicate = false\n")
        engine = open_database(settings)
        studio, inbox = QcStudio(), Inbox(engine)
        checker = Checker(studio, DecisionStore(engine), settings.home)
        keeper = AnnotatorModelScheduler(engine, inbox, partial(read_policy, settings.home))
        items = {studio.add_task(): item for item in sorted(votes)}
        queue = {
            task: [votes[item][place] for place in rng.permutation(len(votes[item]))] for task, item in items.items()
        }
        submits = 0
        while open_ := [task for task in queue if queue[task] and studio.serves(task, -1)]:
            for task in rng.permutation(open_).tolist():
                who, (said,) = queue[task].pop(0)
                answer = {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": [said]}}
                studio.annotate(task, who + 1, [answer])
                checker.check(PROJECT, task)
                submits += 1
                if submits % 200 == 0:
                    keeper.update(PROJECT)
            keeper.update(PROJECT)
            while due := inbox.due_subjects(5000):
                for topic, subject in due:
                    claim = inbox.claim(topic, subject, current_worker())
                    checker.check(PROJECT, int(subject.partition(":")[2]))
                    inbox.mark_done(claim)
        crowd = AnnotatorModelStore(engine).load(PROJECT)
        facts = {each.task: each for each in FactStore(engine).iter_project(PROJECT)}
        right = [crowd.choices["quality"].posterior(facts[task].questions[0].votes) for task in items]
        accuracy = np.mean(
            [max(found, key=found.get) == gold[item] for found, item in zip(right, items.values(), strict=True)]
        )
        engine.dispose()
    structlog.reset_defaults()
    return accuracy, submits / len(items)


def read_rte():
    """item -> (worker, answer) of everybody, item -> gold."""
    with (DATA / "rte.standardized.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    workers = {name: n for n, name in enumerate(sorted({row["!amt_worker_ids"] for row in rows}))}
    votes, gold = collections.defaultdict(list), {}
    for row in rows:
        votes[row["orig_id"]].append((workers[row["!amt_worker_ids"]], (row["response"],)))
        gold[row["orig_id"]] = (row["gold"],)
    return votes, gold


def _renamed(crowd):
    import msgspec

    return msgspec.structs.replace(crowd, choices={"q": crowd.choices["entails"]})


def injected(count=400):
    """Errors put into copies: whether the conflict's type is named and its region pointed at."""
    from tests.qc_webhooks.report.test_report import ERRORS, copied, layout, task_of

    tolerance = Tolerance()
    for people in (2, 3):
        named = pointed = total = 0
        for error, inject in ERRORS.items():
            rng = random.Random(f"{error} {people}")
            expected = "low_overlap" if error == "resized" else error
            for id_ in range(count):
                truth = layout(rng)
                answers = [copied(truth, who, rng) for who in range(1, people + 1)]
                touched = {stem(id_) for id_ in inject(answers[-1], rng)}
                read = read_answers(read_task(task_of(id_ + 1, *answers)))
                found = conflicts_of(read, consensus([annotator_view(one) for one in read]), tolerance)
                total += 1
                named += [each.conflict.type for each in found] == [expected]
                pointed += bool(touched & {stem(id_) for each in found for id_ in each.conflict.regions})
        title = f"injected errors, {people} annotators: type named, and nothing else (target .95)"
        yield f"| {title} | {named / total:.3f} of {total} |"
        yield f"| ... region pointed at (target .98) | {pointed / total:.3f} |"
    rng, false = random.Random(0), 0
    for id_ in range(count):
        truth = layout(rng)
        read = read_answers(read_task(task_of(id_ + 1, *(copied(truth, who, rng) for who in (1, 2, 3)))))
        false += judge(read, Policy()).outcome != "agreed"
    yield f"| reordered identical copies: false disputes (target 0) | {false} of {count} |"


def small_objects(draws=50):
    """Disputes under the default [conflicts]: two careful annotators, and one mistake, on ten objects of one size."""
    from tests.qc_webhooks.verdict.test_object_doubts import SMALL_MISTAKES, judged, scattered, small_scene

    for size in (12, 16, 24, 96):
        disputed = dict.fromkeys(("", *SMALL_MISTAKES), 0)
        for seed in range(draws):
            rng = random.Random(seed)
            objects = small_scene(rng, size)
            disputed[""] += judged(*(scattered(rng, objects, 3) for _ in range(2))).outcome == "disputed"
            for mistake, change in SMALL_MISTAKES.items():
                people = scattered(rng, objects, 2), scattered(rng, change(objects, rng), 2)
                disputed[mistake] += judged(*people).outcome == "disputed"
        title = f"10 boxes of {size} px, edges of careful annotators scatter by 3 px (sd): false disputes (target 0)"
        yield f"| {title} | {disputed['']} of {draws} |"
        found = ", ".join(f"{mistake} {disputed[mistake]}" for mistake in SMALL_MISTAKES)
        yield f"| ... one mistake, edges scatter by 2 px: disputed (target {draws}) | {found} |"


def stem(id_):
    """A region's id without the annotator's suffix."""
    return id_.rsplit("-", 1)[0]


def speed():
    """Verdicts a second on one core: 3 annotators, 10 boxes or 10 polygons of 30 points."""
    rng = np.random.default_rng(0)
    for title, target, make, count in (("boxes", 5000, _box, 2000), ("polygons of 30 points", 1000, _polygon, 300)):
        tasks = []
        for _ in range(count):
            places = rng.uniform(0, 850, (10, 2))
            tasks.append([
                Answers(who, who, "", controls={("label", "regions"): [make(rng, *place) for place in places]})
                for who in (1, 2, 3)
            ])  # fmt: skip
        policy = Policy()
        best = min(_timed(lambda: [judge(task, policy) for task in tasks]) for _ in range(3))  # noqa: B023
        yield f"| verdicts, 3 annotators x 10 {title}: tasks a second (target {target:,}) | {count / best:,.0f} |"


def _timed(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def _box(rng, x, y):
    dx, dy = rng.normal(0, 3, 2)
    return drawn(Rectangle(float(x + dx), float(y + dy), 100.0, 100.0))


def _polygon(rng, x, y):
    turn = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    radius = 50 + rng.normal(0, 2, 30)
    return drawn(
        Polygon(
            tuple(
                zip((x + 60 + radius * np.cos(turn)).tolist(), (y + 60 + radius * np.sin(turn)).tolist(), strict=True)
            )
        )
    )
