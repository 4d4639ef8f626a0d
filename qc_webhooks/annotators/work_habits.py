"""Work habits of each annotator: speed, untouched pre-labels, and work that was clicked through."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics.bootstrap import MIN_UNITS, Estimate, proportion_ci
from qc_webhooks.verdict.task_facts import CORRECTED, MANUAL, UNCHANGED, TaskFacts

Floats = NDArray[np.float64]

# Time ratios are clipped to this factor: a task left open over lunch must not decide.
_MAX_RATIO = 10.0
# A task done in less than this share of the others' time is hasty.
HASTY_RATIO = 0.25
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Speed:
    """How fast an annotator works.

    Attributes:
        tasks: Tasks with a known time.
        seconds: Median time per task in seconds.
        seconds_a_region: Median time per region in seconds; None without regions.
        hours: Total time in hours.
        pace: Geometric mean of the time ratio to the others on the same tasks: 2 is half as fast.
        hasty: Share of tasks that took less than a quarter of the others' time. To accept a right pre-label is quick:
            tasks of which the annotator only accepted pre-labels that most others confirm do not count.
    """

    tasks: int
    seconds: float
    seconds_a_region: float | None
    hours: float
    pace: Estimate
    hasty: Estimate


def measure_speed(tasks: Iterable[TaskFacts]) -> dict[int, Speed]:
    """Speed by annotator id, for annotators with at least one known time; reviewers' ground truths do not count."""
    seconds_by_annotator: dict[int, list[float]] = defaultdict(list)
    by_region: dict[int, list[float]] = defaultdict(list)
    ratios: dict[int, list[float]] = defaultdict(list)
    own_work: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        accepted = _rightly_accepted(task)
        timed = [annotation for annotation in task.blind if annotation.seconds]
        for annotation in timed:
            seconds = annotation.seconds or 0.0
            seconds_by_annotator[annotation.annotator].append(seconds)
            if annotation.regions:
                by_region[annotation.annotator].append(seconds / annotation.regions)
            others = [math.log(other.seconds or 1.0) for other in timed if other is not annotation]
            if others:
                ratio = math.log(seconds) - sum(others) / len(others)
                ratios[annotation.annotator].append(ratio)
                if annotation.annotator not in accepted:
                    own_work[annotation.annotator].append(ratio)
    return {
        who: Speed(
            len(times),
            round(float(np.median(times)), 2),
            round(float(np.median(by_region[who])), 2) if by_region[who] else None,
            round(sum(times) / 3600, 3),
            _pace(np.array(ratios[who])),
            proportion_ci(sum(ratio < math.log(HASTY_RATIO) for ratio in own_work[who]), len(own_work[who])),
        )
        for who, times in sorted(seconds_by_annotator.items())
    }


def _rightly_accepted(task: TaskFacts) -> set[int]:
    """Annotators who only accepted pre-labels of a task, of which most others have each too."""
    blind = {annotation.annotator for annotation in task.blind}
    answers: list[dict[int, tuple[int, tuple[str, ...]]]] = [
        {mark.annotator: (mark.origin, mark.labels) for mark in item.marks if mark.annotator in blind}
        for item in task.objects
    ]
    for question in task.questions:
        origins = question.origin_by_annotator
        answers.append({who: (origins[who], answer) for who, answer in question.votes if who in blind})
    if not any(origin == UNCHANGED for given in answers for origin, _ in given.values()):
        return set()
    accepting = set(blind)
    for given in answers:
        for who in tuple(accepting):
            same = sum(given.get(other, (0, None))[1] == given.get(who, (0, None))[1] for other in blind - {who})
            is_confirmed = 2 * same > len(blind) - 1
            is_accepted = who not in given or given[who][0] == UNCHANGED
            if not (is_confirmed and is_accepted):
                accepting.discard(who)
    return accepting & {who for given in answers for who, (origin, _) in given.items() if origin == UNCHANGED}


def _pace(logs: Floats) -> Estimate:
    n = len(logs)
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    clipped = np.clip(logs, -math.log(_MAX_RATIO), math.log(_MAX_RATIO))
    middle, half = float(clipped.mean()), _NORMAL_95 * float(clipped.std(ddof=1)) / math.sqrt(n)
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), n)


# Careful annotators miss some corrections that others make. An annotator whose whole interval lies above this share
# accepts pre-labels without checking them.
MAX_UNCORRECTED_SHARE = 0.6
# A pre-label of an answer is wrong if more than this share of the others gave another answer. Half of a team with
# another view does not make it wrong.
_CORRECTING = 2 / 3


@dataclass(frozen=True)
class PrelabelBias:
    """How an annotator treats pre-labels (automation bias).

    Attributes:
        untouched: Share of the submitted pre-labels that are unchanged. High where the pre-labels are good.
        left: Share left unchanged of the pre-labels that most others corrected or removed.
    """

    untouched: Estimate
    left: Estimate

    @property
    def is_anchored(self) -> bool:
        """Whether pre-labels are accepted without a check."""
        return self.left.low is not None and self.left.low > MAX_UNCORRECTED_SHARE


def measure_prelabel_bias(tasks: Iterable[TaskFacts]) -> dict[int, PrelabelBias]:
    """Pre-label bias by annotator id, for annotators who submitted at least one pre-label."""
    prelabels: Counter[int] = Counter()
    untouched: Counter[int] = Counter()
    corrected_by_others: Counter[int] = Counter()
    left: Counter[int] = Counter()
    for task in tasks:
        blind = {annotation.annotator for annotation in task.blind}
        prelabelled = {
            mark.annotator for marked_object in task.objects for mark in marked_object.marks if mark.origin != MANUAL
        } & blind
        for marked_object in task.objects:
            origins = {mark.annotator: mark.origin for mark in marked_object.marks if mark.annotator in blind}
            for who, origin in origins.items():
                prelabels[who] += origin != MANUAL
                untouched[who] += origin == UNCHANGED
            if UNCHANGED not in origins.values() and CORRECTED not in origins.values():
                continue
            for who in prelabelled:
                is_corrected = _corrected_by_others(origins, who, prelabelled)
                if is_corrected and origins.get(who, CORRECTED) != MANUAL:
                    corrected_by_others[who] += 1
                    left[who] += origins.get(who) == UNCHANGED
        for question in task.questions:
            origins = question.origin_by_annotator
            given = {who: answer for who, answer in question.votes if who in blind}
            # what was accepted unchanged is the pre-label's answer
            predicted = next((answer for who, answer in given.items() if origins[who] == UNCHANGED), None)
            for who in given:
                prelabels[who] += origins[who] != MANUAL
                untouched[who] += origins[who] == UNCHANGED
                differing = sum(answer != predicted for other, answer in given.items() if other != who)
                if predicted is not None and origins[who] != MANUAL and differing > _CORRECTING * (len(given) - 1):
                    corrected_by_others[who] += 1
                    left[who] += origins[who] == UNCHANGED
    return {
        who: PrelabelBias(
            proportion_ci(untouched[who], prelabels[who]), proportion_ci(left[who], corrected_by_others[who])
        )
        for who in sorted(who for who, count in prelabels.items() if count)
    }


def _corrected_by_others(origins: dict[int, int], who: int, prelabelled: set[int]) -> bool:
    """Whether most others who worked from pre-labels corrected this one: changed its shape or label, or removed it."""
    others = [origins.get(other, CORRECTED) for other in prelabelled if other != who]
    informative = [origin for origin in others if origin != MANUAL]
    return 2 * sum(origin == CORRECTED for origin in informative) > len(informative) > 0


# A bot: share of tasks in less than a quarter of the others' time, of one answer, and of this answer among the others.
_MAX_BOT_HASTE, _ONE_ANSWER, _USUAL_ANSWER = 0.5, 0.97, 0.7
_MIN_ANSWERS = 15


@dataclass(frozen=True)
class ClickThrough:
    """An annotator who does not look at the tasks.

    Attributes:
        annotator: The annotator's id.
        control: The control; empty where it is about the whole work.
        n: Number of tasks, answers or pre-labels that it is based on.
        what: What the annotator does.
        evidence: The figures in words.
    """

    annotator: int
    control: str
    n: int
    what: str
    evidence: str


def find_click_through(tasks: Sequence[TaskFacts]) -> tuple[ClickThrough, ...]:
    """Annotators who submit pre-labels unchanged, give one answer only, or are too fast to have looked."""
    habits = []
    for who, bias in measure_prelabel_bias(tasks).items():
        if bias.is_anchored:
            habits.append(
                ClickThrough(
                    who,
                    "",
                    bias.left.n,
                    "submits pre-labels unchanged that the others correct",
                    f"{100 * (bias.left.value or 0):.0f} % of {bias.left.n}",
                )
            )
    anchored = {habit.annotator for habit in habits}
    habits += [habit for habit in _only_prelabels(tasks) if habit.annotator not in anchored]
    for who, speed in measure_speed(tasks).items():
        if speed.hasty.low is not None and speed.hasty.low > _MAX_BOT_HASTE:
            habits.append(
                ClickThrough(
                    who,
                    "",
                    speed.hasty.n,
                    "is too fast to have looked",
                    f"{100 * (speed.hasty.value or 0):.0f} % of the tasks in less than a quarter of the others' time",
                )
            )
    return (*habits, *_constant_answers(tasks))


# Share of an annotator's regions that are unchanged pre-labels, and the largest share among the others.
_ALL_PRELABELS, _USUAL_PRELABELS = 0.97, 0.85


def _only_prelabels(tasks: Sequence[TaskFacts]) -> Iterator[ClickThrough]:
    """Annotators whose regions are all unchanged pre-labels, where the others' on the same tasks are not."""
    unchanged: Counter[int] = Counter()
    regions: Counter[int] = Counter()
    others: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for task in tasks:
        blind = {item.annotator for item in task.blind}
        marks = [mark for item in task.objects for mark in item.marks if mark.annotator in blind]
        own: Counter[int] = Counter(mark.annotator for mark in marks)
        kept: Counter[int] = Counter(mark.annotator for mark in marks if mark.origin == UNCHANGED)
        for who in own:
            regions[who] += own[who]
            unchanged[who] += kept[who]
            others[who][0] += kept.total() - kept[who]
            others[who][1] += own.total() - own[who]
    bots = [
        who
        for who, n in regions.items()
        if n >= MIN_UNITS and unchanged[who] >= _ALL_PRELABELS * n
        and others[who][1] >= MIN_UNITS and others[who][0] <= _USUAL_PRELABELS * others[who][1]
    ]  # fmt: skip
    for who in bots if 2 * len(bots) < len(regions) else ():
        kept_by_others, n_others = others[who]
        yield ClickThrough(who, "", regions[who], "submits pre-labels unchanged",
                           f"{100 * unchanged[who] / regions[who]:.0f} % of the regions, of the others'"
                           f" {100 * kept_by_others / n_others:.0f} %")  # fmt: skip


def _constant_answers(tasks: Sequence[TaskFacts]) -> Iterator[ClickThrough]:
    own: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    others: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for task in tasks:
        blind = {item.annotator for item in task.blind}
        items = [(question.control, question.votes) for question in task.questions]
        items += [(item.control, tuple((mark.annotator, mark.labels) for mark in item.marks)) for item in task.objects]
        for control, votes in items:
            named = {who: " + ".join(answer) for who, answer in votes if who in blind}
            counts = Counter(named.values())
            for who, answer in named.items():
                own[control, who][answer] += 1
                others[control, who].update(counts - Counter([answer]))
    constant: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (control, who), counts in own.items():
        answer, count = counts.most_common(1)[0]
        n, of_others = counts.total(), others[control, who]
        if n < _MIN_ANSWERS or count < _ONE_ANSWER * n or of_others.total() < _MIN_ANSWERS:
            continue
        if of_others[answer] <= _USUAL_ANSWER * of_others.total():
            constant[control].append((who, answer))
    for control, people in constant.items():
        team = sum(name == control for name, _ in own)
        if 2 * len(people) >= team:
            continue  # half of the team: two views, each about everything
        for who, answer in people:
            counts, of_others = own[control, who], others[control, who]
            share = 100 * of_others[answer] / of_others.total()
            evidence = f"{counts[answer]} of {counts.total()} answers, {share:.0f} % of the others'"
            yield ClickThrough(who, control, counts.total(), f"answers {answer} to everything", evidence)
