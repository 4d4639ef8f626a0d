"""Intervals of recall and precision, and probabilities of regions, against gold and by leaving annotators out.

Crowds: boxes of objects by paid workers (half of a public set), and three sets of cells by ten pathologists each, from
the first round of the study of Marzahl and others (MICCAI 2020), in the copy of `bench/sources.toml`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.qc import DATA, drawn, f1, load_boxes
from labelloop.labeling.consensus.consensus import (
    AnnotatorModel,
    AnnotatorView,
    Evidence,
    collect_evidence,
    consensus,
    fit_annotator_model,
)
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.geometry.overlap import box_iou, match
from labelloop.labeling.geometry.shapes import Rectangle
from qc_webhooks.annotators.reliability import rate_annotators
from qc_webhooks.statistics.bootstrap import Estimate

SOURCES = Path(__file__).parent / "sources.toml"
REPOSITORY = "DeepMicroscopy/Results-Exact-Study"
IOUS = (0.2, 0.5)
# Seeds of the draws of a few annotators from each item.
SEEDS = 3
BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.98), (0.98, 1.01))


_PAGE = """\
## Intervals against gold

Share of annotators whose 95 % interval holds their rate against gold, with at least 20 objects or
regions, mean width, and the mean of the estimate minus gold. The relative numbers (of what others
found, of what others confirm) were the only ones before.

| crowd | annotators an item | IoU | recall | precision | relative recall | relative precision |
|---|---|---|---|---|---|---|
{coverage}

## Probability of regions

Mean probability that accepted regions state, and the share of them that gold has at IoU .5; the
expected calibration error of all clusters (ten bins). "Before" is the vote model alone, which still
decides.

| crowd | annotators an item | accepted | stated | right | error of all | stated before | error before | F1 |
|---|---|---|---|---|---|---|---|---|
{calibration}

Reliability diagram of the first crowd, all annotators: the mean that is stated, and the share that
gold has at IoU .5.

| stated | regions | mean | right | mean before | right before |
|---|---|---|---|---|---|
{reliability}

## Leaving annotators out

Without gold: the model is fitted without one annotator of each item, and states how likely each of
these marks a cluster of the others. Mean stated / share that did, by what was stated; the log
likelihood beside that of the vote model.

| crowd | annotators an item | marks | stated / did | log likelihood | before |
|---|---|---|---|---|---|
{left_out}

## Simulated crowds

Hard objects (the logit of recall varies by as much as said), lookalikes that several mark, sloppy
borders; the reference is drawn with three quarters of an annotator's deviation.

| crowd | annotators an item | IoU | recall | precision | stated / right, accepted |
|---|---|---|---|---|---|
{simulated}
"""


class Crowd(NamedTuple):
    """Views of each item, gold boxes of each item, (n, 4)."""

    name: str
    views: Mapping[str, Sequence[AnnotatorView]]
    gold: Mapping[str, Any]


def run() -> str:
    """Measure all crowds that are on this machine, and the simulated ones."""
    crowds = list(_crowds())
    if not crowds:
        return "No crowd with gold is on this machine."
    rows = {
        "coverage": [row for crowd in crowds for row in _coverage_rows(crowd)],
        "calibration": [row for crowd in crowds for row in _calibration_rows(crowd)],
        "reliability": list(_reliability_rows(crowds[0])),
        "left_out": [row for crowd in crowds for row in _left_out_rows(crowd)],
        "simulated": list(_simulated_rows()),
    }
    return _PAGE.format(**{name: "\n".join(each) for name, each in rows.items()})


def _crowds() -> Iterator[Crowd]:
    if DATA.is_dir():
        items, gold = load_boxes()
        yield Crowd(
            "boxes of paid workers (half A)",
            {item: [AnnotatorView(int(who), regions) for who, regions in by.items()] for item, by in items.items()},
            gold,
        )
    for name, folder in (("asthma cells", "Asthma"), ("EIPH cells", "EIPH"), ("mitotic figures", "Mitosen")):
        if found := _cells(folder):
            yield Crowd(name, *found)


def _cells(folder: str) -> tuple[dict[str, list[AnnotatorView]], dict[str, Any]] | None:
    """Ten pathologists' boxes without computer aid, and the gold of the study."""
    git = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / REPOSITORY.replace("/", "+") / "repo"
    if not git.is_dir():
        return None
    commit = next(one["commit"] for one in tomllib.loads(SOURCES.read_text())["source"] if one["repo"] == REPOSITORY)

    def read(*arguments: str) -> str:
        command = ["git", f"--git-dir={git}", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout.decode(errors="replace")

    base = f"Results/{folder}/FirstRound"
    names = read(
        "-c", "core.quotepath=off", "ls-tree", "-r", "--name-only", commit, f"{base}/Participants"
    ).splitlines()
    people = {int(re.findall(r"_(\d+)\.txt", name)[0]): _boxes(read("show", f"{commit}:{name}")) for name in names}
    gold = _boxes(read("show", f"{commit}:{base}/GT/ground truth.txt"))
    views, truths = {}, {}
    for image, boxes in sorted(gold.items()):
        seen = [who for who in sorted(people) if image in people[who]]
        if seen:
            truths[image] = np.array(boxes).reshape(-1, 4)
            views[image] = [AnnotatorView(who, tuple(map(_region, people[who][image]))) for who in seen]
    return views, truths


def _boxes(text: str) -> dict[str, list[tuple[float, ...]]]:
    """image -> boxes of an export of EXACT; deleted ones are left out."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if line.startswith("["):
            found.setdefault(fields[0][1:], [])
        elif len(fields) > 8 and fields[2].startswith("{") and "True" not in fields[8]:
            corners = json.loads(fields[2].replace(",}", "}"))
            box = tuple(float(corners[key]) for key in ("x1", "y1", "x2", "y2"))
            if box[2] > box[0] and box[3] > box[1]:
                found.setdefault(fields[0], []).append(box)
    return found


def _region(box: tuple[float, ...]) -> Any:
    left, top, right, bottom = box
    return drawn(Rectangle(left, top, right - left, bottom - top))


def _draws(crowd: Crowd, most: int | None) -> Iterator[Crowd]:
    """The crowd with all annotators, or `SEEDS` times with so many of each item."""
    if most is None:
        yield crowd
        return
    for seed in range(SEEDS):
        rng, views = np.random.default_rng(seed), {}
        for item, all_views in crowd.views.items():
            by_id = {view.annotator: view for view in all_views}
            people = sorted(by_id)
            chosen = people if len(people) <= most else rng.choice(people, most, replace=False).tolist()
            views[item] = [by_id[who] for who in sorted(chosen)]
        yield crowd._replace(views=views)


def _fitted(crowd: Crowd) -> tuple[list[Evidence], AnnotatorModel]:
    evidence = [collect_evidence(sorted(views, key=lambda view: view.annotator)) for views in crowd.views.values()]
    return evidence, fit_annotator_model(evidence)


def _edges(regions: Sequence[Any]) -> Any:
    return np.array([region.geometry.bounds for region in regions]).reshape(-1, 4)


def _hits(boxes: Any, gold: Any, iou: float) -> int:
    return len(match(box_iou(boxes, gold), threshold=iou)) if len(boxes) and len(gold) else 0


def gold_rates(crowd: Crowd, iou: float) -> dict[int, tuple[int, int, int]]:
    """annotator -> (hits, gold boxes, drawn boxes)."""
    counts: dict[int, Any] = defaultdict(lambda: np.zeros(3, dtype=int))
    for item, views in crowd.views.items():
        for view in views:
            boxes = _edges(view.regions)
            counts[view.annotator] += (_hits(boxes, crowd.gold[item], iou), len(crowd.gold[item]), len(boxes))
    return {who: tuple(each.tolist()) for who, each in counts.items()}


def coverage(crowd: Crowd, iou: float) -> dict[str, list[tuple[bool, float, float]]]:
    """Rate -> (held, width, estimate minus gold) of each annotator with an estimate."""
    evidence, model = _fitted(crowd)
    gold = gold_rates(crowd, iou)
    found: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
    for rated in rate_annotators(evidence, model, match_iou=iou):
        hits, objects, regions = gold[rated.annotator]
        if rated.regions is None:
            continue
        for name, total, estimate in (
            ("recall", objects, rated.regions.recall),
            ("precision", regions, rated.regions.precision),
            ("relative recall", objects, rated.regions.recall_of_found),
            ("relative precision", regions, rated.regions.precision_by_others),
        ):
            if estimate.low is not None and total:
                found[name].append(_held(estimate, hits / total))
    return found


def _held(estimate: Estimate, truth: float) -> tuple[bool, float, float]:
    value, low, high = estimate.value or 0.0, estimate.low or 0.0, estimate.high or 0.0
    return low - 1e-9 <= truth <= high + 1e-9, high - low, value - truth


def _coverage_rows(crowd: Crowd) -> Iterator[str]:
    for most in (None, 3):
        for iou in IOUS:
            pooled: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
            for drawn_crowd in _draws(crowd, most):
                for name, held in coverage(drawn_crowd, iou).items():
                    pooled[name] += held
            cells = [_cell(pooled[name]) for name in ("recall", "precision", "relative recall", "relative precision")]
            yield f"| {crowd.name} | {most or 'all'} | {iou} | {' | '.join(cells)} |"


def _cell(held: Sequence[tuple[bool, float, float]]) -> str:
    if not held:
        return "-"
    share, width, bias = np.mean(np.array(held, dtype=float), axis=0)
    return f"**{share:.2f}** of {len(held)}, width {width:.2f}, {bias:+.3f}"


class _Regions(NamedTuple):
    """All clusters: stated now and by the vote model, accepted, right at IoU .5; micro-F1 counts by item."""

    stated: Any
    before: Any
    accepted: Any
    right: Any
    counts: list[Any]


def _regions(crowd: Crowd) -> _Regions:
    _, model = _fitted(crowd)
    rows, counts = [], []
    for item, views in crowd.views.items():
        agreed = consensus(views, model)
        gold, found = crowd.gold[item], [*agreed.regions, *agreed.rejected]
        boxes = _edges([each.region for each in found])
        hit = {pair[0] for pair in match(box_iou(boxes, gold), threshold=0.5)} if len(boxes) and len(gold) else set()
        for index, each in enumerate(found):
            evidence = ObjectEvidence(agreed.annotators, tuple(source.annotator for source in each.sources))
            before = model.detection.probability(evidence)
            rows.append((each.probability, before, index < len(agreed.regions), index in hit))
        own = boxes[: len(agreed.regions)]
        counts.append(np.array([_hits(own, gold, 0.5), len(own), len(gold)]))
    stated, before, accepted, right = np.array(rows, dtype=float).T
    return _Regions(stated, before, accepted.astype(bool), right, counts)


def calibration_error(stated: Any, right: Any) -> float:
    """Expected calibration error over ten bins of equal width."""
    bins = np.clip((stated * 10).astype(int), 0, 9)
    return float(sum(abs((stated - right)[bins == each].sum()) for each in range(10)) / len(stated))


def _calibration_rows(crowd: Crowd) -> Iterator[str]:
    for most in (None, 3):
        figures = []
        for drawn_crowd in _draws(crowd, most):
            found = _regions(drawn_crowd)
            accepted = found.accepted
            figures.append((
                accepted.sum(), found.stated[accepted].mean(), found.right[accepted].mean(),
                calibration_error(found.stated, found.right), found.before[accepted].mean(),
                calibration_error(found.before, found.right), f1(found.counts),
            ))  # fmt: skip
        count, *others = np.mean(figures, axis=0)
        cells = " | ".join(f"{figure:.3f}" for figure in others)
        yield f"| {crowd.name} | {most or 'all'} | {count:.0f} | {cells} |"


def _reliability_rows(crowd: Crowd) -> Iterator[str]:
    found = _regions(crowd)
    for low, high in BINS:
        now, before = ((each >= low) & (each < high) for each in (found.stated, found.before))
        cells = [
            f"{each[chosen].mean():.3f} | {found.right[chosen].mean():.3f}" if chosen.any() else "- | -"
            for each, chosen in ((found.stated, now), (found.before, before))
        ]
        yield f"| {low:.2f} to {min(high, 1.0):.2f} | {now.sum()} | {' | '.join(cells)} |"


def _left_out_rows(crowd: Crowd) -> Iterator[str]:
    """How well the marks of one annotator of each item are foretold from the others'."""
    for most in (None, 3):
        stated, before, did = [], [], []
        for drawn_crowd in _draws(crowd, most):
            for held_out in range(2):
                rows = list(_foretold(drawn_crowd, held_out))
                stated += [row[0] for row in rows]
                before += [row[1] for row in rows]
                did += [row[2] for row in rows]
        now, old, marks = np.array(stated), np.array(before), np.array(did, dtype=float)
        cells = [
            f"{now[chosen].mean():.2f} / {marks[chosen].mean():.2f}"
            for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.01))
            if (chosen := (now >= low) & (now < high)).sum() > 20
        ]
        logs = [float(np.where(marks > 0, np.log(each), np.log1p(-each)).sum()) for each in (now, old)]
        yield f"| {crowd.name} | {most or 'all'} | {len(marks)} | {', '.join(cells)} | {logs[0]:.0f} | {logs[1]:.0f} |"


def _foretold(crowd: Crowd, held_out: int) -> Iterator[tuple[float, float, bool]]:
    """(stated, by the vote model, did mark) of each cluster of the others of an item, for one annotator of it."""
    rng = np.random.default_rng(held_out)
    absent = {
        item: int(rng.choice([view.annotator for view in views]))
        for item, views in crowd.views.items()
        if len(views) > 2
    }
    others = crowd._replace(
        views={
            item: [view for view in views if view.annotator != absent.get(item)] for item, views in crowd.views.items()
        }
    )
    _, model = _fitted(others)
    for item, who in absent.items():
        views = sorted(crowd.views[item], key=lambda view: view.annotator)
        annotators = [view.annotator for view in views if view.annotator != who]
        for _, votes in collect_evidence(views).clusters:
            marked_by = tuple(each for each, _ in votes if each != who)
            if not marked_by:
                continue
            did = len(marked_by) < len(votes)
            yield _chance(model, annotators, marked_by, who), _vote_chance(model, annotators, marked_by, who), did


def _chance(model: AnnotatorModel, annotators: Sequence[int], marked_by: Sequence[int], who: int) -> float:
    """Probability of a further mark: that of the marks with it, relative to that without, in each draw."""
    return float(np.clip(model.posterior.mark_probability(annotators, marked_by, who), 1e-6, 1 - 1e-6))


def _vote_chance(model: AnnotatorModel, annotators: Sequence[int], marked_by: Sequence[int], who: int) -> float:
    from labelloop.labeling.consensus.detection_model import DIFFICULTY

    detection = model.detection
    states = detection.state_probabilities(ObjectEvidence(tuple(annotators), tuple(marked_by)))
    logit = detection.logits.get(who, detection.typical[0])
    rates = np.array([*(1 / (1 + np.exp(-(logit + shift))) for shift in DIFFICULTY), detection.false_match_rate])
    return float(np.clip(states @ rates, 1e-6, 1 - 1e-6))


def _simulated_rows() -> Iterator[str]:
    for title, spread, lookalike, border in (
        ("equally hard, exact borders", 0.0, 0.02, 0.05),
        ("hard objects (2), exact borders", 2.0, 0.02, 0.05),
        ("hard objects (2), sloppy borders", 2.0, 0.02, 0.15),
        ("hard objects (1), lookalikes", 1.0, 0.3, 0.08),
    ):
        for most in (3, 5):
            for iou in IOUS:
                pooled: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
                stated, right = [], []
                for seed in range(3):
                    crowd = simulated(np.random.default_rng(seed), most, spread, lookalike, border)
                    for name, held in coverage(crowd, iou).items():
                        pooled[name] += held
                    found = _regions(crowd)
                    stated.append(found.stated[found.accepted].mean())
                    right.append(found.right[found.accepted].mean())
                cells = " | ".join(_cell(pooled[name]) for name in ("recall", "precision"))
                yield f"| {title} | {most} | {iou} | {cells} | {np.mean(stated):.3f} / {np.mean(right):.3f} |"


def simulated(rng: Any, each: int, spread: float, lookalike: float, border: float) -> Crowd:
    """A crowd of 12 on 60 images with a gold that is drawn as exactly as a person draws.

    Args:
        rng: Generator.
        each: Annotators an item.
        spread: Deviation of the logit of recall over objects.
        lookalike: Probability that a further annotator marks the same false region.
        border: Deviation of an edge, in sides.
    """
    skill, false = rng.normal(1.5, 0.7, 12), rng.gamma(2, 0.15, 12)
    views, gold = {}, {}
    for image in range(60):
        people = sorted(rng.choice(12, each, replace=False).tolist())
        count = int(rng.poisson(6))
        places = rng.permutation(100)[: count + 30]
        boxes = [
            np.array([x, y, x + 60, y + 60]) for x, y in zip(places % 10 * 100.0, places // 10 * 100.0, strict=True)
        ]
        drawn_by: dict[int, list[Any]] = {who: [] for who in people}
        for box in boxes[:count]:
            hard = rng.normal(0, spread)
            for who in people:
                if rng.random() < 1 / (1 + np.exp(-(skill[who] + hard))):
                    drawn_by[who].append(box + rng.normal(0, 60 * border, 4))
        rest = iter(boxes[count:])
        for who in people:
            for _ in range(min(rng.poisson(false[who]), 5)):
                box = next(rest)
                for other in people:
                    if other == who or rng.random() < lookalike:
                        drawn_by[other].append(box + rng.normal(0, 60 * border, 4))
        gold[str(image)] = np.array([box + rng.normal(0, 45 * border, 4) for box in boxes[:count]]).reshape(-1, 4)
        views[str(image)] = [
            AnnotatorView(
                who, tuple(_region(tuple(box.tolist())) for box in drawn_by[who] if (box[2:] > box[:2]).all())
            )
            for who in people
        ]
    return Crowd("simulated", views, gold)
