"""Content that a difference between annotators follows: the size of an object, its label, or where its border is."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.copied_work import EdgeOffsets, edge_offsets
from qc_webhooks.annotators.explanations import MIN_ANSWERS, extras_limit, fit_persons, read_groups, split
from qc_webhooks.annotators.questions import MAX_ITEMS, QuestionAnswers
from qc_webhooks.verdict.task_facts import RegionFacts, TaskFacts

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

# Sizes tried as a limit: these quantiles of the objects' areas.
_QUANTILES = np.arange(0.1, 0.85, 0.05)
# Chance that an annotator who leaves out part of the content does so at random: for each of a group, and for a single
# one, who is compared on many contents.
_GROUP_CHANCE, _SINGLE_CHANCE = 0.01, 1e-4
# Outside the content the same annotators mark at least this share of the objects.
_USUAL_SHARE = 0.8
_TINY = 1e-9


@dataclass(frozen=True)
class ContentSplit:
    """Annotators who mark objects of one content and annotators who do not.

    Attributes:
        content: The content in words: "smaller than 30 x 30 pixels", "Van".
        label: The label; empty where the content is a size.
        areas: Lowest and highest area of such objects in square pixels; (0, infinity) where the content is a label.
        first: Annotators who mark such objects.
        second: Annotators who leave them out, though they mark other objects as the first do.
        inside: Whether an item is of the content, ``(items,)``.
        items: Number of objects of the content that were marked by some only.
        shares: Share of these objects that ``first`` and ``second`` mark, and the same of all other objects.
    """

    content: str
    label: str
    areas: tuple[float, float]
    first: tuple[int, ...]
    second: tuple[int, ...]
    inside: Booleans
    items: int
    shares: tuple[float, float, float, float]


def find_content_split(asked: QuestionAnswers, *, unit: str = "pixels") -> ContentSplit | None:
    """The content of objects that separates annotators best; None where none does.

    Args:
        asked: A question of the kind ``presence``.
        unit: ``pixels``: the side of a square is named, else the area.
    """
    yes, no = split(asked)
    # What two annotators marked is taken for real, and what no other one could confirm: the rest by its probability.
    confirmed = (yes.sum(axis=1) >= 2) | ((yes + no).sum(axis=1) <= 3)
    real = np.where(confirmed, 1.0, fit_persons(yes, no, extras_limit(asked)).posterior(yes, no)[:, 0])
    best: tuple[float, ContentSplit] | None = None
    for content, label, areas, inside in _contents(asked, unit):
        inner, outer = real * inside, real * ~inside
        gain = _gain(yes, no, inner, outer)
        if best is not None and gain <= best[0]:
            continue
        found = _read(asked, yes, no, inner, outer)
        if found is not None:
            first, second, shares = found
            items = int((inside & asked.disputed).sum())
            best = gain, ContentSplit(content, label, areas, first, second, inside, items, shares)
    return None if best is None else best[1]


def describe_open(asked: QuestionAnswers, weights: Floats, *, unit: str = "pixels") -> str:
    """The content that most of the open items have and few others; empty where none is known.

    Args:
        asked: A question.
        weights: Probability that each item is open.
        unit: ``pixels``: the side of a square is named, else the area.
    """
    best, name = 0.7, ""
    for content, _, _, inside in _contents(asked, unit):
        share_inside = float(weights[inside].mean()) if inside.any() else 0.0
        covered = float(weights[inside].sum() / max(weights.sum(), _TINY))
        if min(share_inside, covered) > best:
            best, name = min(share_inside, covered), content
    return name


def _contents(asked: QuestionAnswers, unit: str) -> Iterator[tuple[str, str, tuple[float, float], Booleans]]:
    """(content in words, label, range of the area, items of it) of every content that is tried."""
    labels = np.array(asked.labels)
    names, counts = np.unique(labels, return_counts=True)
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        if MIN_ANSWERS <= count < len(labels):
            yield name, name, (0.0, np.inf), labels == name
    finite = np.isfinite(asked.sizes)
    if finite.sum() < 2 * MIN_ANSWERS:
        return
    for limit in np.unique(np.quantile(asked.sizes[finite], _QUANTILES)).tolist():
        area = float(np.exp(limit))
        side = area**0.5
        small, large = (
            (f"smaller than {side:.0f} x {side:.0f} pixels", f"larger than {side:.0f} x {side:.0f} pixels")
            if unit == "pixels"
            else (f"of a length or area below {area:.3g}", f"of a length or area above {area:.3g}")
        )
        yield small, "", (0.0, area), finite & (asked.sizes < limit)
        yield large, "", (area, np.inf), finite & (asked.sizes >= limit)


def _gain(yes: Floats, no: Floats, inner: Floats, outer: Floats) -> float:
    """Log-likelihood gained by one rate of each annotator inside and one outside the content over one rate."""
    total = 0.0
    inside, outside = (inner @ yes, inner @ no), (outer @ yes, outer @ no)
    pooled = (inside[0] + outside[0], inside[1] + outside[1])
    for (found, missed), sign in ((inside, 1), (outside, 1), (pooled, -1)):
        rate = (found + 0.5) / (found + missed + 1)
        total += sign * float((found * np.log(rate) + missed * np.log(1 - rate)).sum())
    return total


def _read(
    asked: QuestionAnswers, yes: Floats, no: Floats, inner: Floats, outer: Floats
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, float, float, float]] | None:
    groups = read_groups(asked, inner)
    if groups is None:
        return None
    first, second, _ = groups
    if not first or not second:
        return None
    chance = _SINGLE_CHANCE if len(second) == 1 else _GROUP_CHANCE
    columns = [asked.people.index(who) for who in second]
    found_in, missed_in = inner @ yes, inner @ no
    found_out, missed_out = outer @ yes, outer @ no
    from scipy.special import bdtrc

    for column in columns:
        n_out = found_out[column] + missed_out[column]
        if n_out < MIN_ANSWERS or found_out[column] < _USUAL_SHARE * n_out:
            return None  # leaves out everything, not this content
        rate = (missed_out[column] + 1) / (n_out + 2)
        misses, n = round(missed_in[column]), round(found_in[column] + missed_in[column])
        if float(bdtrc(misses - 1, n, rate)) > chance:
            return None
    others = [asked.people.index(who) for who in first]
    shares = tuple(
        float(found[group].sum() / max((found[group] + missed[group]).sum(), _TINY))
        for found, missed in ((found_in, missed_in), (found_out, missed_out))
        for group in (others, columns)
    )
    return first, second, (shares[0], shares[1], shares[2], shares[3])


# --- borders --------------------------------------------------------------------------------------------------------

# Fewest objects of an annotator for a margin and for the scatter of borders.
MIN_BORDERS = 20
# Smallest difference of the logarithm of an area between two groups, and standard errors that it must exceed.
_MIN_GAP, _GAP_ERRORS = 0.06, 5.0
# The gap between the groups over the largest distance between neighbours within one.
_GAP_RATIO = 2.5
# Differences of areas are clipped, in logarithms: beyond lie mistakes.
_MAX_LOG = 1.0


@dataclass(frozen=True)
class Borders:
    """Where annotators draw the borders of the same objects.

    Attributes:
        people: The annotators, ascending.
        margins: Mean logarithm of the area relative to the others', ``(annotators,)``.
        errors: Standard errors of the margins.
        scatter: Standard deviation of an annotator's edges, in shares of the object's side; NaN where unknown.
        objects: Number of objects of each annotator that others drew too.
    """

    people: tuple[int, ...]
    margins: Floats
    errors: Floats
    scatter: Floats
    objects: NDArray[np.intp]


def measure_borders(tasks: Sequence[TaskFacts], control: str, *, without: Collection[int] = ()) -> Borders | None:
    """Margins and scatter of all annotators of a control; None without objects that two of them drew."""
    groups: list[list[RegionFacts]] = []
    for task in tasks:
        viewers = {item.annotator for item in task.blind if item.annotator not in without}
        for marked_object in task.objects:
            if marked_object.control != control:
                continue
            drawn = [mark for mark in marked_object.marks if mark.annotator in viewers and mark.area > 0]
            if len(drawn) > 1:
                groups.append(drawn)
        if len(groups) >= MAX_ITEMS:
            break
    if not groups:
        return None
    people = tuple(sorted({mark.annotator for drawn in groups for mark in drawn}))
    column_of = {who: column for column, who in enumerate(people)}
    rows = np.repeat(np.arange(len(groups)), [len(drawn) for drawn in groups])
    columns = np.array([column_of[mark.annotator] for drawn in groups for mark in drawn], dtype=np.intp)
    logs = np.array([np.log(mark.area) for drawn in groups for mark in drawn])
    margins, errors = _margins(rows, columns, logs, len(people))
    counts = np.bincount(columns, minlength=len(people))
    return Borders(people, margins, errors, _scatter(edge_offsets(tasks, control=control), column_of), counts)


def _margins(rows: NDArray[np.intp], columns: NDArray[np.intp], logs: Floats, people: int) -> tuple[Floats, Floats]:
    margins: Floats = np.zeros(people)
    sizes = np.bincount(rows)
    residual = logs
    counts = np.maximum(np.bincount(columns, minlength=people), 1)
    for _ in range(30):
        corrected = logs - margins[columns]
        sums = np.bincount(rows, corrected)
        others = (sums[rows] - corrected) / (sizes[rows] - 1)
        residual = np.clip(logs - others, -_MAX_LOG, _MAX_LOG)
        # Half a step: with two annotators a whole one would only swap their margins.
        margins = (margins + np.bincount(columns, residual, people) / counts) / 2
        margins -= np.median(margins)
    spread = residual - margins[columns]
    variance = np.bincount(columns, spread**2, people) / np.maximum(counts - 1, 1)
    return margins, np.sqrt(variance / counts)


def _scatter(offsets: EdgeOffsets, column_of: dict[int, int]) -> Floats:
    """Standard deviation of each annotator's edges: the variance of a pair's difference is the sum of both.

    The middle of the four distances, because a habit to draw larger or tighter moves one or two edges most.
    """
    people = len(column_of)
    if people < 3:
        return np.full(people, np.nan)
    pairs = [
        ((column_of[a], column_of[b]), float(np.median(offsets.middle[rows])) ** 2, len(rows))
        for (a, b), rows in offsets.by_pair()
        if len(rows) >= 5 and a in column_of and b in column_of
    ]
    if len(pairs) < people:
        return np.full(people, np.nan)
    from scipy.optimize import nnls

    design = np.zeros((len(pairs), people))
    for row, (key, _, _) in enumerate(pairs):
        design[row, list(key)] = 1.0
    weights = np.sqrt([count for _, _, count in pairs])
    target = np.array([square for _, square, _ in pairs])
    if np.linalg.matrix_rank(design) < people or not target.any():  # all draw exactly alike: nothing to share out
        return np.full(people, np.nan)
    # Relative errors: a large variance is known less exactly.
    weights = weights / np.maximum(target, target.mean() * 0.05)
    solved, _ = nnls(design * weights[:, None], target * weights)
    scatter: Floats = np.sqrt(np.maximum(solved, 0.0))
    return scatter


def find_border_split(borders: Borders) -> tuple[tuple[int, ...], tuple[int, ...], float] | None:
    """(annotators who draw larger, annotators who draw tighter, ratio of the areas); None without a clear gap."""
    enough = np.flatnonzero(borders.objects >= MIN_BORDERS)
    if len(enough) < 2:
        return None
    order = enough[np.argsort(borders.margins[enough], kind="stable")]
    margins, errors = borders.margins[order], borders.errors[order]
    gaps = np.diff(margins)
    cut = int(np.argmax(gaps))
    gap = float(margins[cut + 1 :].mean() - margins[: cut + 1].mean())
    error = float(np.sqrt((errors**2).sum()) / np.sqrt(len(errors)))
    # The spread within a group is at least that of chance.
    within = max([float(gaps[index]) for index in range(len(gaps)) if index != cut], default=0.0)
    if gap < _MIN_GAP or gap < _GAP_ERRORS * error or float(gaps[cut]) < _GAP_RATIO * max(within, 0.5 * error):
        return None
    if float(gaps[cut]) < 0.5 * gap:
        return None
    smaller, larger = order[: cut + 1], order[cut + 1 :]
    return (
        tuple(sorted(borders.people[column] for column in larger)),
        tuple(sorted(borders.people[column] for column in smaller)),
        float(np.exp(gap)),
    )
