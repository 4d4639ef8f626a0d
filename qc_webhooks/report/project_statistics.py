"""Collects evidence and ratings over all tasks of a project, and computes its agreement statistics."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, collect_evidence, fit_annotator_model
from labelloop.labeling.consensus.model_voice import HeardTask, VoiceRegions
from labelloop.labeling.consensus.tags import Votes, has_several_tags
from labelloop.labeling.consensus.texts import Similarities, similarities
from labelloop.labeling.consensus.voiced import heard_task, with_voice
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Task
from qc_webhooks.agreement.answers import Answers, complete_answers
from qc_webhooks.annotators.reliability import answer_name
from qc_webhooks.statistics import ABSENT, MIN_UNITS, Estimate, Ratings, describe
from qc_webhooks.statistics.agreement_coefficients import DATE, DETECTION, NOMINAL, NUMBER, ORDINAL, positive_agreements
from qc_webhooks.statistics.answer_agreement import ranking_statistic, similarity_statistic, tag_statistics
from qc_webhooks.statistics.bootstrap import LEVEL, RESAMPLES
from qc_webhooks.statistics.detection_alpha import DetectionAgreement, DetectionAlpha
from qc_webhooks.statistics.unitizing import UnitizingAgreement
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.task_facts import TaskFacts

# Result type of an answer about the whole task -> kind of ratings.
NUMBERS: Mapping[str, str] = {"rating": ORDINAL, "number": NUMBER}
# Kinds of answers without ratings: spans, sets of tags, texts, rankings.
SPANS, TAGS, TEXT, RANKING = "spans", "tags", "text", "ranking"
# Objects whose answers about regions are kept, by control: the first that are added.
MAX_REGION_ANSWERS = 50_000
# Stored amounts do not say their control's type: whole numbers up to this are stars.
_MOST_STARS = 10

Units = Sequence[Mapping[Any, Hashable]]

# Newest tasks used for everything but detection alpha and mean agreement: annotators change, this number gives narrow
# intervals, and memory does not grow with the tasks.
RECENT_TASKS = 10_000


@dataclass
class ProjectStatistics:
    """Evidence of the newest ``RECENT_TASKS`` tasks added so far; holds answers, not shapes.

    Attributes:
        evidence: One entry per task.
        heard: What a model's independent prediction says, one entry per task where it is heard.
        numbers: (control, kind) -> annotator -> number, one mapping per task.
        detections: Agreement of the detections of the tasks of ``add_facts``.
        spans: Agreement of their spans.
        concordances: Control -> Kendall's W of each of their rankings.
        region_answers: (control, result type) -> answers about the regions of each object.
    """

    evidence: deque[Evidence] = field(default_factory=lambda: deque(maxlen=RECENT_TASKS))
    heard: deque[HeardTask] = field(default_factory=lambda: deque(maxlen=RECENT_TASKS))
    numbers: dict[tuple[str, str], deque[Mapping[Any, Hashable]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT_TASKS))
    )
    detections: DetectionAgreement = field(default_factory=DetectionAgreement)
    spans: UnitizingAgreement = field(default_factory=UnitizingAgreement)
    concordances: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    region_answers: dict[tuple[str, str], list[Votes]] = field(default_factory=lambda: defaultdict(list))

    def add(self, task: Task, answers: Sequence[Answers], *, voice: VoiceRegions | None = None) -> None:
        """Add a task, with the model's independent prediction if it is heard."""
        if readable := complete_answers(answers):
            truth = next((item.annotator for item in readable if item.ground_truth), None)
            views = [annotator_view(item) for item in readable]
            self.evidence.append(collect_evidence(views, truth=truth))
            if voice is not None:
                clusters = cluster_regions([view.regions for view in views])
                self.heard.append(heard_task(views, clusters, voice, truth=truth))
        units: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for annotation in latest_annotations(task.annotations):
            annotator = annotation.completed_by
            drawn = Counter(result.id for result in annotation.results if result.id)
            for result in annotation.results:
                value: Any = result.value.get(result.type)
                is_whole_image = drawn[result.id] < 2  # an answer about a region shares its id
                if (
                    result.type in NUMBERS
                    and annotator is not None
                    and is_whole_image
                    and isinstance(value, int | float)
                ):
                    units[result.from_name, NUMBERS[result.type]][annotator] = float(value)
        for key, unit in units.items():
            self.numbers[key].append(unit)

    def add_facts(self, facts: TaskFacts) -> None:
        """Add the detections, spans and rankings of a judged task; only sums and lengths of them are kept."""
        if facts.detections is not None:
            self.detections.add(facts.detections, annotators=facts.rated)
        self.spans.add(facts.spans or (), sorted({turn.annotator for turn in facts.blind}))
        blind = {turn.annotator for turn in facts.blind}
        for item in facts.region_answers:
            votes = tuple(vote for vote in item.answers if vote[0] in blind)
            if len(votes) > 1 and len(self.region_answers[item.control, item.type]) < MAX_REGION_ANSWERS:
                self.region_answers[item.control, item.type].append(votes)
        for control, concordance in facts.concordance:
            self.concordances[control].append(concordance)

    @cached_property
    def annotator_model(self) -> AnnotatorModel:
        """Annotator model estimated from all tasks; read it after the last ``add``."""
        return with_voice(fit_annotator_model(self.evidence), list(self.heard))

    def ratings(self) -> dict[tuple[str, str], Ratings]:
        """(control, kind of ratings) -> ratings of all units."""
        units_by_key: dict[tuple[str, str], list[Mapping[Any, Hashable]]] = defaultdict(list)
        for task in self.evidence:
            # A ground truth is no vote, so an object marked by it alone has no ratings.
            for marked_object in task.objects():
                answers = {who: answer_name(answer) for who, answer in marked_object.votes}
                if answers:
                    units_by_key[marked_object.control, NOMINAL].append(answers)
                    units_by_key[marked_object.control, DETECTION].append(
                        {who: answers.get(who, ABSENT) for who in task.rated_annotators}
                    )
            for question in task.answers():
                units_by_key[question.control, NOMINAL].append(
                    {who: answer_name(answer) for who, answer in question.votes}
                )
        numbers = {**self._amounts(), **self.numbers}
        dates = {
            (control, DATE): found
            for (control, kind), units in units_by_key.items()
            if kind == NOMINAL and (found := _as_days(units))
        }
        return {key: Ratings.of(units) for key, units in {**units_by_key, **numbers, **dates}.items()}

    def _amounts(self) -> dict[tuple[str, str], Units]:
        """Ratings and numbers of the evidence, by control, of controls that ``add`` did not see."""
        seen = {control for control, _ in self.numbers}
        units: dict[str, list[Mapping[Any, Hashable]]] = defaultdict(list)
        for task in self.evidence:
            for control, amounts in task.amounts:
                if control not in seen:
                    units[control].append({who: value for who, value in amounts if who != task.truth})
        return {(control, ORDINAL if _are_stars(answers) else NUMBER): answers for control, answers in units.items()}

    def _tags(self) -> dict[str, list[Votes]]:
        """Control -> sets of tags of each object and question, of controls where an answer has several tags."""
        items: dict[str, list[Votes]] = defaultdict(list)
        for task in self.evidence:
            for item in (*task.objects(), *task.answers()):
                items[item.control].append(item.votes)
        return {
            control: votes
            for control, votes in items.items()
            if has_several_tags(answer for item in votes for _, answer in item)
        }

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Control -> kind of ratings -> statistic -> estimate."""
        by_control: dict[str, dict[str, Any]] = defaultdict(dict)
        alphas = self.detections.estimates()
        for (control, kind), ratings in sorted(self.ratings().items()):
            values: dict[str, Any] = dict(describe(ratings, kind))
            if kind == DETECTION and control in alphas:
                values = detection_statistics(alphas[control]) | values
            if kind == DETECTION and ratings.units >= MIN_UNITS:
                values["positive_agreement_by_label"] = positive_agreements(ratings)
            by_control[control][kind] = values
        for (control, kind), votes in sorted(self.region_answers.items()):
            by_control[control] |= _region_statistics(kind, votes)
        for control, found in sorted(self.spans.estimates().items()):
            by_control[control][SPANS] = found
        for control, votes in sorted(self._tags().items()):
            by_control[control][TAGS] = tag_statistics(votes)
        for control, tasks in sorted(self._similarities("texts").items()):
            by_control[control][TEXT] = {"mean_similarity": similarity_statistic(tasks)}
        for control, tasks in sorted(self._similarities("rankings").items()):
            by_control[control][RANKING] = {
                "kendall_w": ranking_statistic(self.concordances.get(control, ())),
                "mean_kendall_tau": similarity_statistic(tasks),
            }
        return dict(by_control)

    def _similarities(self, kind: str) -> dict[str, list[Similarities]]:
        """Control -> similarities of the annotators' texts or rankings in each task, without a ground truth's."""
        by_control: dict[str, list[Similarities]] = defaultdict(list)
        for task in self.evidence:
            for control, alike in getattr(task, kind):
                by_control[control].append(tuple(pair for pair in alike if task.truth not in pair[:2]))
        return by_control


def _region_statistics(kind: str, items: Sequence[Votes]) -> dict[str, dict[str, Estimate]]:
    """Kind of ratings -> statistic -> estimate of the answers about regions to one control; n counts objects."""
    if kind in NUMBERS:
        numbers = [
            {who: float(values[0]) for who, values in votes if values and _is_number(values[0])} for votes in items
        ]
        return {NUMBERS[kind]: describe(Ratings.of(numbers), NUMBERS[kind])}
    if kind == "textarea":
        texts = [tuple((who, "\n".join(values)) for who, values in votes) for votes in items]
        return {TEXT: {"mean_similarity": similarity_statistic(map(similarities, texts))}}
    units = [{who: answer_name(tuple(sorted(values))) for who, values in votes} for votes in items]
    estimates = {NOMINAL: describe(Ratings.of(units), NOMINAL)}
    if has_several_tags(answer for votes in items for _, answer in votes):
        estimates[TAGS] = tag_statistics(items)
    return estimates


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _are_stars(units: Units) -> bool:
    values: set[Any] = {value for unit in units for value in unit.values()}
    return all(float(value).is_integer() and 0 <= value <= _MOST_STARS for value in values)


def _as_days(units: Units) -> Units:
    """Dates in days since 1970; empty if any answer is not a date."""
    try:
        return [
            {
                who: datetime.fromisoformat(str(text)).replace(tzinfo=UTC).timestamp() / 86_400
                for who, text in unit.items()
            }
            for unit in units
        ]
    except ValueError:
        return []


def detection_statistics(alpha: DetectionAlpha) -> dict[str, Any]:
    """Detection alpha as entries of the statistics: estimates by name, and the curve."""
    return {
        "alpha_detection": alpha.alpha,
        "alpha_detection_mean": alpha.mean_alpha,
        "f1_at_50": alpha.f1,
        "match_iou": alpha.match_iou,
        "curve": [
            {"iou": threshold, "alpha_detection": together, "alpha_detection_mean": mean}
            for threshold, together, mean in alpha.curve
        ],
    }


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean score over tasks with a bootstrap interval."""
    n = len(values)
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    scores, rng = np.array(values), np.random.default_rng(0)
    means = [float(scores[rng.integers(n, size=n)].mean()) for _ in range(RESAMPLES if n < 20_000 else 200)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(float(scores.mean()), low, high, n)
