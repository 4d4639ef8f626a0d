"""`qc tune` on real crowds with gold: does the policy it proposes reach the wanted error on tasks it never saw?

Half of the items propose, with their gold as ground truth or without it; the other half measures against gold.
"""

import os

import msgspec
import numpy as np

from bench.qc import DATA, load_boxes, read_rte
from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import complete_answers, read_answers
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy
from qc_webhooks.report.tuning import measure, tune
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.verdict import judge

SPLITS = int(os.environ.get("BENCH_DRAWS", "4"))
GOLD = 9999


def run() -> str:
    """The table."""
    if not DATA.is_dir():
        return "Nothing was measured: the crowd data are not on this machine."
    lines = [
        f"{SPLITS} random halves of the items each. Held out: labels per task and error against gold of the proposed",
        "policy on the other half, and in how many halves its 95 % interval holds the wanted error or lies below it.",
        "",
        (
            "| data, reference of the proposing half | wanted error | labels | error said | labels, held out |"
            " error, held out | reached |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for name, tasks, targets in (
        ("RTE", rte_tasks(), (0.12, 0.1, 0.08)),
        ("crowd boxes, half A", box_tasks(), (0.3, 0.25, 0.2)),
    ):
        for with_gold in (True, False):
            lines += [row(name, tasks, target, with_gold) for target in targets]
    return "\n".join(lines)


def row(name, tasks, target, with_gold):
    """One line of the table."""
    figures, reached = [], 0
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(tasks))
        mine, held = ([tasks[index] for index in half] for half in (order[::2], order[1::2]))
        try:
            found = tune(facts(mine, with_gold=with_gold), target)
        except QualityControlError as error:
            return f"| {name}, {error} | {target} | | | | | |"
        if found.proposed is None:
            continue
        measured = measure(facts(held, with_gold=True), found.proposed)
        figures.append((found.proposed.labels, found.proposed.error, measured.labels, measured.error))
        reached += measured.low <= target
    reference = "gold" if with_gold else "all annotators"
    if not figures:
        return f"| {name}, {reference} | {target} | no policy reaches it | | | | |"
    labels, error, held_labels, held_error = np.mean(figures, axis=0)
    return (
        f"| {name}, {reference} | {target} | {labels:.2f} | {error:.4f} | {held_labels:.2f} | {held_error:.4f} |"
        f" {reached} of {len(figures)} |"
    )


def facts(tasks, *, with_gold):
    """Facts of tasks; the last annotation of each is the gold."""
    policy, found = Policy(), []
    for raw in tasks:
        kept = raw if with_gold else {**raw, "annotations": raw["annotations"][:-1]}
        task = read_task(msgspec.json.encode(kept))
        answers = read_answers(task)
        views = sorted((annotator_view(item) for item in complete_answers(answers)), key=lambda item: item.annotator)
        clusters = cluster_regions([item.regions for item in views])
        found.append(facts_of(task, answers, judge(answers, policy), policy.tolerance, clusters=clusters))
    return found


def rte_tasks():
    """RTE as Label Studio's tasks with ground truth."""
    votes, gold = read_rte()
    return [
        _task(number, [(who + 1, [_choice(said[0])]) for who, said in votes[item]], [_choice(gold[item][0])])
        for number, item in enumerate(sorted(votes), 1)
    ]


def box_tasks():
    """The crowd boxes as Label Studio's tasks with ground truth."""
    items, gold = load_boxes()
    return [
        _task(
            number,
            [
                (who + 1, [_box(region.geometry.bounds) for region in drawn])
                for who, drawn in sorted(items[item].items())
            ],
            [_box(edges) for edges in gold[item].tolist()],
        )
        for number, item in enumerate(sorted(items), 1)
    ]


def _task(number, answers, gold):
    annotations = [
        {
            "id": number * 100 + place,
            "completed_by": who,
            "result": [{**one, "id": f"{place}-{n}"} for n, one in enumerate(result)],
        }
        for place, (who, result) in enumerate(answers)
    ]
    truth = [{**one, "id": f"gold-{n}"} for n, one in enumerate(gold)]
    annotations.append({"id": number * 100 + 99, "completed_by": GOLD, "result": truth, "ground_truth": True})
    return {"id": number, "data": {"image": f"{number}.jpg"}, "annotations": annotations, "predictions": []}


def _choice(answer):
    return {"from_name": "q", "to_name": "image", "type": "choices", "value": {"choices": [answer]}}


def _box(edges):
    left, top, right, bottom = (edge / 10 for edge in edges)
    value = {
        "x": left,
        "y": top,
        "width": right - left,
        "height": bottom - top,
        "rotation": 0,
        "rectanglelabels": ["object"],
    }
    return {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 1000,
            "original_height": 1000, "value": value}  # fmt: skip
