"""What is said of projects whose reason for disagreement is known: right, not enough evidence, or wrong.

`python -m bench diagnoses` takes the table of all truths and sizes; LABELLOOP_DRAWS sets the draws of a row.
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
from qc_webhooks.verdict.task_facts import facts_of
from qc_webhooks.verdict.verdict import judge, without_verdict

DRAWS = int(os.environ.get("LABELLOOP_DRAWS", "50"))


@dataclass(frozen=True)
class Row:
    """A truth in a project of a size; ``few`` where not enough evidence is an answer too."""

    truth: str
    shape: Shape
    few: bool = False


MAIN = Shape(tasks=100)
ROWS = (
    *(Row(truth, MAIN) for truth in TRUTHS if truth != "a bot accepts pre-labels"),
    Row("a bot accepts pre-labels", Shape(tasks=100, prelabels=True)),
    Row("all careful", Shape(tasks=100, prelabels=True)),
    *(
        Row(truth, Shape(tasks=200, kind="choices"))
        for truth in TRUTHS
        if truth not in {"a bot accepts pre-labels", "camps on small objects", "camps on borders"}
    ),
    *(
        Row(truth, Shape(tasks=100, kind="spans"))
        for truth in TRUTHS
        if truth not in {"a bot accepts pre-labels", "a copier"}
    ),
    *(Row(truth, Shape(tasks=300, each=3)) for truth in TRUTHS if truth != "a bot accepts pre-labels"),
    *(
        Row(truth, Shape(tasks=300, each=2), few=True)
        for truth in ("camps on a label", "camps on small objects", "camps on borders", "two miss half at random",
                      "one careless", "all waver", "all careful")
    ),
    *(
        Row(truth, Shape(tasks=30), few=True)
        for truth in TRUTHS if truth != "a bot accepts pre-labels"
    ),
    *(
        Row(truth, Shape(tasks=30, each=2), few=True)
        for truth in ("camps on a label", "camps on small objects", "two miss half at random", "all waver",
                      "all careful")
    ),
    *(
        Row(truth, Shape(tasks=300, people=people, each=people), few=True)
        for people in (2, 3, 4)
        for truth in ("camps on a label", "camps on small objects", "camps on borders", "one careless", "all careful")
    ),
)  # fmt: skip


def run() -> str:
    """The table."""
    return "\n".join(table(ROWS, DRAWS))


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
        project = (
            f"{shape.kind}, {shape.tasks} tasks, {shape.each} of {shape.people}" + ", pre-labels" * shape.prelabels
        )
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
    profiles = profile_annotators(facts, fit_annotator_model(task.evidence() for task in facts), diagnoses)
    named = {who for item in diagnoses for who in item.who} | {one.annotator for one in profiles if one.concerns}
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
    kinds = {item.kind for item in diagnoses}
    if innocent:
        return "wrong"
    real = [item for item in diagnoses if item.kind != "undecided"]
    if not truth.kind:
        return "wrong" if real else "right" if not diagnoses or row.few else "wrong"
    if not real:
        return "few" if "undecided" in kinds and row.few else "nothing said" if row.few else "wrong"
    if truth.kind != "guideline" and "guideline" in kinds:
        return "wrong"
    if truth.kind in {"hard", "click-through", "copier"}:
        others = kinds - {truth.kind, "undecided", "careless"}
        who = {who for item in diagnoses if item.kind == truth.kind for who in item.who}
        return "right" if truth.kind in kinds and who == truth.who and not others else "wrong"
    if truth.kind == "careless":
        who = {who for item in diagnoses if item.kind in {"careless", "click-through"} for who in item.who}
        return "right" if who == truth.who and not kinds & {"guideline", "two views", "hard"} else "wrong"
    groups = [item for item in diagnoses if item.kind == truth.kind and _measures(truth.content, item)]
    fits = any({frozenset(item.first), frozenset(item.second)} == set(truth.sides) for item in groups)
    others = [item for item in real if item not in groups]
    return "right" if fits and not others else "wrong"


def _measures(content, item):
    return {"label": item.measure in {"labels", "answers"}, "size": item.measure == "misses",
            "border": item.measure == "borders"}[content]  # fmt: skip
