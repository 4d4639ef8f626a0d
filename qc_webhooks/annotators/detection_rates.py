"""Recall and precision of each annotator's regions against an unknown truth, with 95 % intervals.

Draws of the truth replace it: which clusters are objects, how many objects of each image no annotator marked, and which
boxes overlap their object enough (`DetectionPosterior`, `Localisation`). In each draw an annotator has a number of
objects, of found ones and of right regions. Ground truth replaces the draws where it exists.

The interval is for two readings: the rate on these tasks, which is what a ground truth of them would show, and the
annotator's rate on tasks like these (the Beta posterior of each draw under Jeffreys' prior). Half of the draws are of
either; it is the shortest interval that holds 95 % of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import Edges
from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence
from labelloop.labeling.consensus.crowd import LabelledItem
from labelloop.labeling.consensus.detection_posterior import CLUMPING
from labelloop.labeling.consensus.localisation import REFERENCE_ERRORS
from labelloop.labeling.geometry.overlap import box_iou
from qc_webhooks.statistics.bootstrap import LEVEL, MIN_UNITS, Estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Counts = NDArray[np.int64]

# Draws of the truth: fewer in large projects, whose intervals are narrow.
_MAX_DRAWS, _MIN_DRAWS, _WORK = 384, 96, 60_000_000
# Tasks per step, to bound the memory.
_CHUNK = 256


@dataclass(frozen=True)
class DetectionRates:
    """Recall and precision of one annotator's regions.

    Attributes:
        recall: Share of all objects of their tasks that the annotator found and, for boxes, overlapped enough.
        precision: Share of the regions that are objects and, for boxes, overlap them enough.
    """

    recall: Estimate
    precision: Estimate


@dataclass(frozen=True)
class _Task:
    """One task: its annotators, its clusters, and the probability of each mark of these to be at the right place.

    ``located`` has a (references, marks) array for each cluster.
    """

    annotators: tuple[int, ...]
    items: tuple[LabelledItem, ...]
    is_known: bool
    located: tuple[Floats, ...]


@dataclass(frozen=True)
class _Draw:
    """The posterior draw and the error of the reference of each draw of the truth, (draws,); the source of chance."""

    sources: Integers
    references: Integers
    rng: np.random.Generator


@dataclass(frozen=True)
class _Totals:
    """Per draw and annotator: objects, found objects; regions by annotator."""

    objects: Counts
    found: Counts
    regions: Counts


def measure_detection(
    tasks: Sequence[Evidence], model: AnnotatorModel, *, match_iou: float
) -> dict[int, DetectionRates]:
    """Recall and precision by annotator id; without a fitted model, of tasks with a ground truth only.

    Args:
        tasks: Evidence of each task. One annotator alone, without a ground truth, says nothing.
        model: The model fitted to them.
        match_iou: IoU from which a box is at the right place.
    """
    is_fitted = bool(model.posterior.draws)
    usable = [
        task
        for task in tasks
        if task.rated_annotators and (task.truth is not None or (is_fitted and len(task.rated_annotators) > 1))
    ]
    if not any(task.clusters for task in usable):
        return {}
    annotators = sorted({annotator for task in usable for annotator in task.rated_annotators})
    column_of = {annotator: column for column, annotator in enumerate(annotators)}
    marks = sum(len(votes) for task in usable for _, votes in task.clusters)
    draws = int(np.clip(_WORK // max(marks, 1), _MIN_DRAWS, _MAX_DRAWS))
    rng = np.random.default_rng(0)
    sources = rng.permutation(np.arange(draws) % max(len(model.posterior.draws), 1))
    references = rng.permutation(np.arange(draws) % len(REFERENCE_ERRORS))
    shape = draws, len(annotators)
    totals = _Totals(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(len(annotators), np.int64))
    for start in range(0, len(usable), _CHUNK):
        chunk = list(_located(usable[start : start + _CHUNK], model, match_iou))
        _add(totals, chunk, model, _Draw(sources, references, rng), column_of)
    rates = {}
    for annotator, column in column_of.items():
        objects, found = totals.objects[:, column], totals.found[:, column]
        regions = np.full(draws, totals.regions[column])
        rates[annotator] = DetectionRates(_estimate(found, objects, rng), _estimate(found, regions, rng))
    return rates


def _located(tasks: Sequence[Evidence], model: AnnotatorModel, match_iou: float) -> Iterator[_Task]:
    """The tasks with the probability of each mark to overlap the object enough."""
    objects, fused, shares = list[Floats](), list[Edges](), list[float]()
    for task in tasks:
        for boxes in task.boxes_by_cluster:
            if boxes and task.truth is None:
                objects.append(np.array([edges for _, edges in boxes]))
                fused.append(model.box_bias.fuse_boxes(boxes).bounds)
                shares.append(len(boxes) / len(task.annotators))
    rates = model.localisation.box_rates(objects, np.array(fused).reshape(-1, 4), np.array(shares), match_iou)
    ends = np.cumsum([len(boxes) for boxes in objects])[:-1]
    by_object = iter(np.split(rates, ends, axis=1) if objects else ())
    has_boxes = any(task.boxes for task in tasks)
    for task in tasks:
        located = []
        for item, boxes in zip(task.objects(), task.boxes_by_cluster, strict=True):
            edges = dict(boxes)
            if task.truth is not None:
                located.append(_at_truth(item, edges, task.truth, match_iou))
            elif boxes:
                located.append(next(by_object))
            elif len(item.votes) == 1 and has_boxes:  # a box alone: its size does not matter
                share = np.array([1 / len(task.annotators)])
                located.append(model.localisation.region_rates_by_reference(share, np.ones(1), match_iou))
            else:
                located.append(np.ones((len(REFERENCE_ERRORS), len(item.votes))))
        yield _Task(task.rated_annotators, tuple(task.objects()), task.truth is not None, tuple(located))


def _at_truth(item: LabelledItem, edges: dict[int, Edges], truth: int, match_iou: float) -> Floats:
    """Whether each mark overlaps the box of the ground truth enough; shapes without boxes do."""
    if truth not in edges:
        return np.ones((len(REFERENCE_ERRORS), len(item.votes)))
    drawn = np.array([edges[annotator] for annotator, _ in item.votes]).reshape(-1, 4)
    is_right = np.asarray(box_iou(drawn, np.array([edges[truth]]))[:, 0] >= match_iou, dtype=np.float64)
    return np.tile(is_right, (len(REFERENCE_ERRORS), 1))


def _add(
    totals: _Totals, tasks: Sequence[_Task], model: AnnotatorModel, draw: _Draw, column_of: dict[int, int]
) -> None:
    """Draw the truth of some tasks and add what each annotator found."""
    sources, rng = draw.sources, draw.rng
    real = np.concatenate([_real_probabilities(task, model) for task in tasks], axis=1)[sources]
    is_real = rng.random(real.shape, dtype=np.float32) < real
    first = np.cumsum([0, *(len(task.items) for task in tasks)])
    objects = np.stack([is_real[:, start:end].sum(axis=1) for start, end in pairwise(first)], axis=1)
    objects = objects + _missed(objects, tasks, model, draw)
    owners = [column_of[annotator] for task in tasks for annotator in task.annotators]
    images = np.repeat(np.arange(len(tasks)), [len(task.annotators) for task in tasks])
    _add_by_owner(totals.objects, objects[:, images], np.array(owners, dtype=np.intp))
    marks = [
        (column_of[annotator], first[index] + place)
        for index, task in enumerate(tasks)
        for place, item in enumerate(task.items)
        for annotator, _ in item.votes
    ]
    if not marks:
        return
    owner, cluster = np.array(marks).T
    rates = np.concatenate([rates for task in tasks for rates in task.located], axis=1)
    # How exact the reference is holds for all objects of a draw.
    located = rng.random((len(sources), len(marks)), dtype=np.float32) < rates[draw.references]
    _add_by_owner(totals.found, is_real[:, cluster] & located, owner)
    np.add.at(totals.regions, owner, 1)


def _real_probabilities(task: _Task, model: AnnotatorModel) -> Floats:
    """Probability of each cluster to be an object, (posterior draws, clusters)."""
    if task.is_known:
        return np.tile([float(bool(item.is_real)) for item in task.items], (_rows(model), 1)).reshape(_rows(model), -1)
    if not task.items:
        return np.empty((_rows(model), 0))
    markers = [{annotator for annotator, _ in item.votes} for item in task.items]
    marked = np.array([[annotator in marked_by for annotator in task.annotators] for marked_by in markers])
    return model.posterior.real_probabilities(task.annotators, marked)


def _missed(objects: Counts, tasks: Sequence[_Task], model: AnnotatorModel, draw: _Draw) -> Counts:
    """Draw the objects of each image that no annotator marked, (draws, tasks); none where the ground truth is known."""
    if not model.posterior.draws:
        return np.zeros_like(objects)
    open_images = np.array([not task.is_known for task in tasks])
    means = np.stack([model.posterior.missed_objects(task.annotators) for task in tasks], axis=1)[draw.sources]
    means = (means + objects * model.posterior.overlooked[draw.sources, None]) * open_images
    missed: Counts = draw.rng.poisson(means * draw.rng.gamma(CLUMPING, 1 / CLUMPING, size=means.shape))
    return missed


def _rows(model: AnnotatorModel) -> int:
    return max(len(model.posterior.draws), 1)


def _add_by_owner(totals: Counts, values: NDArray[np.generic], owners: Integers) -> None:
    """Add columns of ``values`` (draws, n) to the column of their owner."""
    order = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(owners[order]) > 0])
    totals[:, owners[order][starts]] += np.add.reduceat(values[:, order].astype(np.int64), starts, axis=1)


def _estimate(hits: Counts, trials: Counts, rng: np.random.Generator) -> Estimate:
    """Median rate over the draws with its interval; n is the median number of trials."""
    trials = np.maximum(trials, hits)
    n = int(np.median(trials))
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    on_these = hits / np.maximum(trials, 1)
    on_such = rng.beta(hits + 0.5, trials - hits + 0.5)
    value = float(np.median(on_these))
    low, high = _highest_density(np.concatenate((on_these, on_such)))
    return Estimate(value, min(low, value), max(high, value), n)


def _highest_density(values: Floats) -> tuple[float, float]:
    """The shortest interval that holds 95 % of the values."""
    ordered = np.sort(values)
    inside = int(np.ceil(LEVEL * len(ordered)))
    widths = ordered[inside - 1 :] - ordered[: len(ordered) - inside + 1]
    start = int(np.argmin(widths))
    return float(ordered[start]), float(ordered[start + inside - 1])
