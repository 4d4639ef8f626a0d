"""What is said of projects whose reason for disagreement is known: right, not enough evidence, or wrong.

`python -m bench diagnoses` takes the table of all truths and sizes; BENCH_DRAWS sets the draws of a row.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass

import msgspec

from bench.simulated_projects import TRUTHS, Shape, make_tasks
from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.consensus.consensus import fit_annotator_model
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import complete_answers, read_answers
from qc_webhooks.annotators import find_diagnoses, profile_annotators
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.verdict import judge, without_verdict

DRAWS = int(os.environ.get("BENCH_DRAWS", "50"))


@dataclass(frozen=True)
class Row:
    """A truth in a project of a size; ``few`` where not enough evidence is an answer too."""

    truth: str
    shape: Shape
    few: bool = False


MAIN = Shape(tasks=60)
NOT_CHOICES = {"camps on small objects", "camps on borders", "camps on some of a label",
               "camps on marking some objects"}  # fmt: skip
PRELABELS = ("a bot accepts pre-labels", "one accepts right pre-labels quickly")
FEW = ("camps on a label", "camps on small objects", "camps on borders", "two miss half at random", "one careless",
       "all waver", "all careful")  # fmt: skip
# The table of the truths: boxes, choices, spans.
MAIN_ROWS = (
    *(Row(truth, MAIN) for truth in TRUTHS if truth not in PRELABELS),
    *(Row(truth, Shape(tasks=60, prelabels=True)) for truth in (*PRELABELS, "all careful")),
    *(Row(truth, Shape(tasks=300, kind="choices")) for truth in TRUTHS if truth not in {*NOT_CHOICES, *PRELABELS}),
    *(
        Row(truth, Shape(tasks=300, kind="choices", prelabels=True))
        for truth in (*PRELABELS, "all careful", "one careless", "camps on a label")
    ),
    *(Row(truth, Shape(tasks=60, kind="spans")) for truth in TRUTHS if truth not in {*PRELABELS, "a copier"}),
)
# Other sizes: three and two of six annotators a task, small objects harder for all, few tasks, small teams.
SIZE_ROWS = (
    *(Row(truth, Shape(tasks=200, each=3)) for truth in TRUTHS if truth not in PRELABELS),
    *(Row(truth, Shape(tasks=300, each=3, kind="choices")) for truth in ("camps on a label", "two miss half at random",
      "one careless", "three careless", "all waver", "a bot gives one answer", "all careful")),
    *(Row(truth, Shape(tasks=100, hard=True)) for truth in FEW),
    *(Row(truth, Shape(tasks=300, each=2), few=True) for truth in FEW),
    *(Row(truth, Shape(tasks=30), few=True) for truth in TRUTHS if truth not in PRELABELS),
    *(Row(truth, Shape(tasks=100, kind="choices"), few=True) for truth in ("camps on a label", "one careless",
      "all waver", "all careful")),
    *(Row(truth, Shape(tasks=30, each=2), few=True) for truth in FEW),
    *(Row(truth, Shape(tasks=100, people=people, each=people), few=True) for people in (2, 3, 4, 5) for truth in FEW
      if truth != "two miss half at random"),
)  # fmt: skip
ROWS = (*MAIN_ROWS, *SIZE_ROWS)
SIZE_DRAWS = max(DRAWS // 5, 1)


def run() -> str:
    """The table."""
    return "\n".join((*table(MAIN_ROWS, DRAWS), "\n## Other sizes\n", *table(SIZE_ROWS, SIZE_DRAWS)))


def table(rows, draws):
    """Lines of the table."""
    yield f"{draws} draws a row. Right: the cause, the content and the annotators are the true ones, and nobody else is"
    yield "named. Few: not enough evidence, where the data are few. An innocent: a careful annotator is named.\n"
    yield "| truth | project | right | few | wrong | an innocent named | said instead |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        verdicts, innocents, said = Counter(), 0, Counter()
        for seed in range(draws):
            verdict, innocent, words = judge_draw(row, seed)
            verdicts[verdict] += 1
            innocents += innocent
            if verdict == "wrong":
                said[words] += 1
        shape = row.shape
        project = f"{shape.kind}, {shape.tasks} tasks, {shape.each} of {shape.people}"
        project += ", pre-labels" * shape.prelabels + ", small ones hard" * shape.hard
        instead = "; ".join(f"{words} ({count})" for words, count in said.most_common(3))
        yield (
            f"| {row.truth} | {project} | {verdicts['right']} | {verdicts['few']} | {verdicts['wrong']} |"
            f" {innocents} | {instead} |"
        )


def judge_draw(row, seed):
    """(right, few or wrong; whether an innocent is named; what was said in short) of one draw."""
    rng = random.Random(f"{row.truth} {row.shape} {seed}")
    truth = TRUTHS[row.truth](row.shape, rng)
    facts = facts_of_tasks(make_tasks(row.shape, truth.habits, seed))
    diagnoses = find_diagnoses(facts)
    named = {who for item in diagnoses for who in item.who}
    if seed % 5 == 0:
        profiles = profile_annotators(facts, fit_annotator_model(task.evidence() for task in facts), diagnoses)
        named |= {one.annotator for one in profiles if one.concerns}
    innocent = bool(named - truth.who)
    words = " + ".join(sorted({f"{item.kind} {item.measure} {list(item.who)}" for item in diagnoses})) or "nothing"
    return _verdict(row, truth, diagnoses, innocent), innocent, f"{words} (true: {sorted(truth.who)})"


def facts_of_tasks(tasks, *, compare=False):
    """Facts of Label Studio's tasks, as quality control stores them."""
    policy, facts = Policy(), []
    for raw in tasks:
        task = read_task(msgspec.json.encode(raw))
        answers = read_answers(task)
        views = sorted((annotator_view(item) for item in complete_answers(answers)), key=lambda item: item.annotator)
        clusters = cluster_regions([item.regions for item in views])
        # Without the agreement of each pair, which takes nine tenths of the time and is evidence of drift only.
        verdict = judge(answers, policy) if compare else without_verdict(answers)
        facts.append(facts_of(task, answers, verdict, policy.tolerance, clusters=clusters))
    return facts


def _verdict(row, truth, diagnoses, innocent):
    real = [item for item in diagnoses if item.kind != "undecided"]
    kinds = {item.kind for item in real}
    if innocent:
        return "wrong"
    if not truth.kind:
        return "wrong" if real else "right" if not diagnoses or row.few else "wrong"
    if not real:
        return "few" if row.few else "wrong"
    if truth.kind in {"hard", "click-through", "copier"}:
        who = {who for item in real if item.kind == truth.kind for who in item.who}
        return "right" if truth.kind in kinds and who == truth.who and kinds <= {truth.kind, "careless"} else "wrong"
    if truth.kind == "careless":
        who = {who for item in real for who in item.who}
        if not kinds <= {"careless", "click-through"}:
            return "wrong"
        return "right" if who == truth.who else "few" if row.few else "wrong"
    groups = [item for item in real if item.kind == truth.kind and _measures(truth.content, item)]
    fits = any(_fits(item, truth.sides, row.few) for item in groups)
    return "right" if fits and len(groups) == len(real) else "wrong"


def _fits(item, sides, few):
    """Whether the groups are the true ones; with few data, whether those who are placed are."""
    x, y = sides
    found = frozenset(item.first), frozenset(item.second)
    return any((a == x and b == y) or (few and a and b and a <= x and b <= y) for a, b in (found, found[::-1]))


def _measures(content, item):
    return {"label": item.measure in {"labels", "answers"}, "size": item.measure == "misses",
            "border": item.measure == "borders"}[content]  # fmt: skip
