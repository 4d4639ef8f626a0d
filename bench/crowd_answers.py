"""Consensus of spans, tags, ratings, texts and rankings: against the votes that others use.

The spans are real: sentences of CoNLL 2003 annotated by 47 workers of Mechanical Turk (Rodrigues, Pereira and Ribeiro
2014), in the copy of `bench/sources.toml`; nervaluate is the referee. Tags, ratings, texts and
rankings are simulated.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from nervaluate import Evaluator
from scipy.stats import kendalltau
from sklearn.metrics import f1_score

from labelloop.labeling.consensus.consensus import AnnotatorView, collect_evidence, consensus, fit_annotator_model
from labelloop.labeling.consensus.rankings import (
    TYPICAL,
    Rankings,
    fit_ranking_accuracy,
    merge_rankings,
    ranking_similarities,
)
from labelloop.labeling.consensus.scales import fit_scale_model
from labelloop.labeling.consensus.tags import fit_tag_model
from labelloop.labeling.consensus.texts import fit_text_accuracy, merge_texts, similarities
from labelloop.labeling.geometry.shapes import Interval
from labelloop.labeling.region import Region

SOURCES = Path(__file__).parent / "sources.toml"
LABELS = ["PER", "LOC", "ORG", "MISC"]
TEXT = (
    "the quick brown fox jumps over a lazy dog while seven silver birds sing about old rivers and distant mountains "
    "under pale morning light"
)
WORDS = TEXT.split()
DRAWS = 5

# (first token, token after the last, label)
Spans = list[tuple[int, int, str]]


def run() -> str:
    """Measure all kinds and give the tables."""
    return "\n\n".join(measure() for measure in (_spans, _tags, _scales, _texts, _rankings))


def _spans() -> str:
    sentences, gold = (_sentences(name) for name in ("data/small/answers.txt", "data/small/gold-123-1.0.txt"))
    if not sentences or not gold:
        return "Spans: the crowd's answers are not there (set LABELLOOP_MIRRORS to a folder of git mirrors)."
    truth = [_spans_of([row[1] for row in sentence]) for sentence in gold]
    views, token_votes = [], []
    for sentence in sentences:
        columns = [column for column in range(1, len(sentence[0])) if sentence[0][column] != "?"]
        views.append([_view(column, _spans_of([row[column] for row in sentence])) for column in columns])
        votes = [Counter(row[column] for column in columns).most_common(1)[0][0] for row in sentence]
        token_votes.append(_spans_of(votes))
    model = fit_annotator_model(collect_evidence(task) for task in views)
    rows = [
        "| 2,192 sentences, 2 to 8 of 47 annotators each, exact spans and labels | precision | recall | F1 |",
        "|---|---|---|---|",
        _score("majority of each token", truth, token_votes),
        _score("consensus, annotators equally reliable", truth, [_merged(task, None) for task in views]),
        _score("consensus, as shipped", truth, [_merged(task, model) for task in views]),
    ]
    return "\n".join(rows) + (
        "\n\nPublished, on all 5,985 sentences of this crowd (Nguyen et al. 2017): majority .673,\n"
        "Dawid and Skene .648, MACE .679, HMM-Crowd .748."
    )


def _merged(task: Sequence[AnnotatorView], model: Any) -> Spans:
    merged = [agreed.region for agreed in consensus(task, model).regions]
    return [(round(region.geometry.bounds[0]), round(region.geometry.bounds[2]), region.labels[0]) for region in merged]


def _view(annotator: int, spans: Spans) -> AnnotatorView:
    regions = (
        Region(Interval(first, last), (label,), f"{first}", "label", "text", "labels", None, 0, 0, 0)
        for first, last, label in spans
    )
    return AnnotatorView(annotator, tuple(regions))


def _score(name: str, truth: Sequence[Spans], predicted: Sequence[Spans]) -> str:
    dicts = [
        [[{"label": label, "start": first, "end": last - 1} for first, last, label in spans] for spans in task_spans]
        for task_spans in (truth, predicted)
    ]
    strict = Evaluator(*dicts, tags=LABELS, loader="dict").evaluate()["overall"]["strict"]
    return f"| {name} | {strict.precision:.3f} | {strict.recall:.3f} | {strict.f1:.3f} |"


def _spans_of(tags: Sequence[str]) -> Spans:
    spans: Spans = []
    open_label, first = "", 0
    for index, tag in enumerate([*tags, "O"]):
        kind, _, label = tag.partition("-")
        if open_label and (kind != "I" or label != open_label):
            spans.append((first, index, open_label))
            open_label = ""
        if label and not open_label:
            open_label, first = label, index
    return spans


def _sentences(path: str) -> list[list[list[str]]]:
    """The sentences of a file in columns: [[token, tag, ...], ...] each; empty where the mirror is not there."""
    source = next(one for one in tomllib.loads(SOURCES.read_text())["source"] if one["path"] == path)
    git = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / source["repo"].replace("/", "+") / "repo"
    if not git.is_dir():
        return []
    command = ["git", f"--git-dir={git}", "show", f"{source['commit']}:{path}"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    if hashlib.sha256(data).hexdigest() != source["sha256"]:
        raise SystemExit(f"{path} is not the file of bench/sources.toml")
    blocks = data.decode().replace("\r", "").split("\n\n")
    return [[line.split() for line in block.split("\n")] for block in blocks if block.strip()]


def _tags() -> str:
    rows = [
        "| simulated tags, 500 items, 20 annotators | F1 of the majority | F1 | exact of the majority | exact |",
        "|---|---|---|---|---|",
    ]
    for name, per_item, rates in (
        ("3 an item, 5 % noise, all alike", 3, lambda _: np.full(20, 0.05)),
        ("2 an item, 5 % noise, all alike", 2, lambda _: np.full(20, 0.05)),
        ("3 an item, noise of 0 to 30 %", 3, lambda draw: draw.beta(1, 9, 20)),
        ("5 an item, noise of 0 to 30 %", 5, lambda draw: draw.beta(1, 9, 20)),
    ):
        figures = np.mean([_tag_scores(np.random.default_rng(seed), per_item, rates) for seed in range(DRAWS)], axis=0)
        rows.append(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    seconds = _tag_seconds(np.random.default_rng(0))
    return "\n".join(rows) + f"\n\n1,000 items of 3 of 30 tags, 3 an item, fitted and merged: {seconds:.2f} s."


def _tag_seconds(draw: np.random.Generator) -> float:
    """Seconds of one core for a model of 1,000 items and their consensus."""
    items = [
        tuple((int(who), tuple(f"{tag:02d}" for tag in sorted(draw.choice(30, 3, replace=False)))) for who in people)
        for people in (draw.choice(20, 3, replace=False) for _ in range(1000))
    ]
    started = time.process_time()
    model = fit_tag_model(items)
    for votes in items:
        model.best(votes)
    return time.process_time() - started


def _tag_scores(draw: np.random.Generator, per_item: int, rates: Any, tags: int = 20) -> tuple[float, ...]:
    noise, items, truths = rates(draw), [], np.zeros((500, tags), bool)
    for truth in truths:
        truth[draw.choice(tags, draw.integers(1, 6), replace=False)] = True
        chosen = draw.choice(20, per_item, replace=False).tolist()
        given = {who: truth ^ (draw.random(tags) < noise[who]) for who in chosen}
        items.append(tuple((who, tuple(f"{tag:02d}" for tag in np.flatnonzero(mask))) for who, mask in given.items()))
    items = [tuple(vote for vote in votes if vote[1]) for votes in items]
    model = fit_tag_model(items)
    merged = np.array([[f"{tag:02d}" in model.best(votes)[0] for tag in range(tags)] for votes in items])
    majority = np.array(
        [
            [2 * sum(f"{tag:02d}" in answer for _, answer in votes) > len(votes) for tag in range(tags)]
            for votes in items
        ]
    )
    scores = [
        (f1_score(truths, found, average="micro"), float((found == truths).all(axis=1).mean()))
        for found in (majority, merged)
    ]
    return scores[0][0], scores[1][0], scores[0][1], scores[1][1]


def _scales() -> str:
    rows = [
        "| simulated numbers, bias of .8, noise of .3 to 2 | error of the mean | median | consensus | interval holds |",
        "|---|---|---|---|---|",
    ]
    for per_item in (2, 3, 5):
        figures = np.mean([_scale_errors(np.random.default_rng(seed), per_item) for seed in range(DRAWS)], axis=0)
        rows.append(f"| {per_item} an item | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return "\n".join(rows)


def _scale_errors(draw: np.random.Generator, per_item: int) -> tuple[float, ...]:
    bias = draw.normal(0, 0.8, 12)
    bias -= np.median(bias)
    noise = np.exp(draw.uniform(np.log(0.3), np.log(2), 12))
    truths = draw.uniform(0, 10, 300)
    items = []
    for truth in truths:
        chosen = draw.choice(12, per_item, replace=False)
        items.append(tuple(zip(chosen.tolist(), (truth + bias[chosen] + draw.normal(0, noise[chosen])).tolist(),
                               strict=True)))  # fmt: skip
    model = fit_scale_model(items)
    merged = [model.merge(answers) for answers in items]

    def error(values: Sequence[float]) -> float:
        return float(np.sqrt(np.mean((np.array(values) - truths) ** 2)))

    given = [[value for _, value in answers] for answers in items]
    held = np.mean([item.low <= truth <= item.high for item, truth in zip(merged, truths, strict=True)])
    return (
        error([float(np.mean(values)) for values in given]),
        error([float(np.median(values)) for values in given]),
        error([item.value for item in merged]),
        float(held),
    )


def _texts() -> str:
    rows = [
        "| simulated transcripts; jiwer's word error rate | best annotator | consensus |",
        "|---|---|---|",
    ]
    for rates in ((0.02, 0.15, 0.3), (0.1, 0.1, 0.1), (0.05, 0.2, 0.2, 0.3, 0.4)):
        figures = np.mean([_word_error_rates(random.Random(seed), rates) for seed in range(DRAWS)], axis=0)
        named = ", ".join(f"{rate:.0%}" for rate in rates)
        rows.append(f"| errors of {named} of the words | {figures[0]:.4f} | {figures[1]:.4f} |")
    return "\n".join(rows)


def _word_error_rates(draw: random.Random, rates: Sequence[float]) -> tuple[float, float]:
    truths, items = [], []
    for _ in range(200):
        words = draw.choices(WORDS, k=draw.randint(6, 18))
        truths.append(" ".join(words))
        items.append(tuple((who, " ".join(_misheard(draw, words, rate))) for who, rate in enumerate(rates)))
    accuracy = fit_text_accuracy([similarities(texts) for texts in items])
    chosen = [merge_texts(texts, accuracy).chosen for texts in items]
    single = [jiwer.wer(truths, [texts[who][1] for texts in items]) for who in range(len(rates))]
    return min(single), jiwer.wer(truths, chosen)


def _misheard(draw: random.Random, words: Sequence[str], rate: float) -> list[str]:
    heard = []
    for word in words:
        luck = draw.random() / rate
        if luck >= 0.3:
            heard.append(draw.choice(WORDS) if luck < 0.7 else word[:-1] or word if luck < 1 else word)
    return heard


def _rankings() -> str:
    rows = [
        "| rankings of 8 simulated items; Kendall's tau with the truth | best annotator | plain Borda | consensus |",
        "|---|---|---|---|",
    ]
    for noises in ((1.5,) * 3, (1.5,) * 5, (1.0,) * 4 + (50.0,), (1.5,) * 4 + (50.0,), (0.7, 1.5, 3.0)):
        figures = np.mean([_taus(np.random.default_rng(seed), noises) for seed in range(DRAWS)], axis=0)
        named = ", ".join("at random" if noise > 10 else f"{noise:g}" for noise in noises)
        rows.append(f"| noise of {named} places | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return "\n".join(rows)


def _taus(draw: np.random.Generator, noises: Sequence[float]) -> tuple[float, ...]:
    truths, answers = [], []
    for _ in range(60):
        truth = draw.permutation(8)
        orders = [truth[np.argsort(np.arange(8) + draw.normal(0, noise, 8))] for noise in noises]
        truths.append(truth.tolist())
        answers.append(tuple((who, tuple(("rank", str(item)) for item in order)) for who, order in enumerate(orders)))
    fitted = fit_ranking_accuracy([ranking_similarities(rankings) for rankings in answers])
    plain = dict.fromkeys(range(len(noises)), TYPICAL)
    single = [_tau(truths, [rankings[who][1] for rankings in answers]) for who in range(len(noises))]
    return max(single), *(_tau(truths, _merged_rankings(answers, weights)) for weights in (plain, fitted))


def _merged_rankings(answers: Sequence[Rankings], accuracy: dict[int, float]) -> list[Any]:
    return [merge_rankings(rankings, accuracy).ranking for rankings in answers]


def _tau(truths: Sequence[Sequence[int]], rankings: Sequence[Any]) -> float:
    places = [[int(item) for _, item in ranking] for ranking in rankings]
    return float(
        np.mean(
            [
                kendalltau([truth.index(item) for item in place], range(len(place))).statistic
                for truth, place in zip(truths, places, strict=True)
            ]
        )
    )
