"""The report on an export: verdict and conflicts of each task, statistics of the project, reliability of everybody.

An export is read twice, a task at a time: who is reliable is known only when all tasks were seen, and the consensus of
each depends on it. Nothing but who answered what is kept in between.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec

from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.consensus.consensus import consensus
from labelloop.labeling.errors import LabelingError, MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations, with_unread
from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_file_type
from labelloop.labeling.studio.stream import check_end, iter_raw_tasks
from labelloop.labeling.studio.task import Task, read_task
from qc_webhooks.agreement import Answers, read_answers, whole_answers
from qc_webhooks.annotators import portraits, splits
from qc_webhooks.decision.review_reasons import BLOCKED, is_for_review, judge_task, lacks_predictions
from qc_webhooks.errors import ExportUnreadable
from qc_webhooks.policy import Policy
from qc_webhooks.policy.guideline_rules import Violation, describe_violations
from qc_webhooks.report.project_statistics import ProjectStatistics, mean_estimate
from qc_webhooks.statistics import consensus_score, overall_score, pairwise_score
from qc_webhooks.verdict.dispute_card import AttributedConflict, conflicts_of, stance_of
from qc_webhooks.verdict.merged_annotation import Merged, merge, whole_annotation
from qc_webhooks.verdict.note import write_note
from qc_webhooks.verdict.task_facts import Facts, facts_of
from qc_webhooks.verdict.verdict import Verdict, judge

# Called with the bytes read so far and the bytes of the file.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """An exported file and what is needed to read it.

    Attributes:
        path: A JSON array of tasks as Label Studio exports it, or JSON lines.
        config: The label config; None: read without.
        progress: Told how far reading is.
    """

    path: Path
    config: LabelConfig | None = None
    progress: Progress | None = None

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task, or why it cannot be read; a task that cannot be read stops no other.

        Raises:
            ExportUnreadable: There is no such file, or it holds no tasks.
        """
        try:
            with self.path.open("rb") as file:
                size = self.path.stat().st_size
                yield from self._read(file, size)
        except OSError as error:
            raise ExportUnreadable(self.path, error.strerror or str(error)) from error

    def _read(self, file: BinaryIO, size: int) -> Iterator[Task | MalformedTask]:
        if other := sniff_file_type(file.read(HEAD_BYTES)):
            raise ExportUnreadable(self.path, f"it is {other.what}, not Label Studio's tasks", other.fix)
        file.seek(0)
        count = 0
        try:
            check_end(file)
            for raw in iter_raw_tasks(file):
                count += 1
                if self.progress and count % 50 == 0:
                    self.progress(file.tell(), size)
                yield _task(raw)
        except MalformedTask as error:
            raise ExportUnreadable(self.path, f"{error.reason} (after {count} tasks)") from error


def _task(raw: bytes) -> Task | MalformedTask:
    try:
        return with_unread(read_task(raw))
    except MalformedTask as error:
        return error


@dataclass
class Summary:
    """What a report comes to, for people.

    Attributes:
        tasks: How many tasks there are.
        outcomes: Verdict -> tasks.
        conflicts: Type of conflict -> how many.
        unreadable: Tasks that could not be read, and why.
        unread: How many results of other tasks could not be read.
        reviewed: Tasks that a reviewer is to look at when no further annotator is asked.
        without_prelabel: Tasks whose pre-label the policy looks at and the export holds by its number only.
        carried: Of a consensus: control -> tasks in which it is one annotator's answer; "" for a whole annotation.
        left: Of a consensus: regions and results that are not in it.
        statistics: As in the report.
        annotators: As in the report.
        splits: As in the report.
    """

    tasks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unread: int = 0
    reviewed: int = 0
    without_prelabel: int = 0
    carried: Counter[str] = field(default_factory=Counter)
    left: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)
    annotators: list[dict[str, Any]] = field(default_factory=list)
    splits: list[dict[str, Any]] = field(default_factory=list)


def survey_export(export: Export) -> ProjectStatistics:
    """First reading: what all tasks tell of the annotators.

    Raises:
        ExportUnreadable: See ``Export.tasks``.
    """
    survey = ProjectStatistics()
    for task in export.tasks():
        if isinstance(task, Task):
            survey.add(task, read_answers(task, config=export.config))
    return survey


def write_report(export: Export, policy: Policy, out: IO[bytes]) -> Summary:
    """Writes the report as one JSON object: ``tasks``, ``statistics``, ``annotators``, ``summary``.

    Raises:
        ExportUnreadable: See ``Export.tasks``.
    """
    survey, summary, scores = survey_export(export), Summary(), _Scores()
    tolerance, facts = policy.tolerance, list[Facts]()
    out.write(b'{"tasks": [')
    for task in export.tasks():
        if not isinstance(task, Task):
            summary.unreadable.append(str(task))
            continue
        answers = read_answers(task, config=export.config)
        judged = judge_task(task, answers, policy, config=export.config)
        verdict, broken, reasons = judged.verdict, judged.broken, judged.reasons
        summary.reviewed += is_for_review(verdict, policy, reasons)
        summary.without_prelabel += lacks_predictions(task, policy)
        stances = sorted((stance_of(each) for each in whole_answers(answers)), key=lambda each: each.annotator)
        clusters = cluster_regions([each.regions for each in stances])
        together = consensus(stances, survey.crowd, clusters=clusters)
        facts.append(facts_of(task, answers, verdict, tolerance, clusters=clusters))
        named = conflicts_of(answers, together, tolerance)
        summary.outcomes[verdict.outcome] += 1
        summary.conflicts.update(each.conflict.type for each in named)
        summary.unread += len(verdict.unread)
        out.write(b"\n" if summary.tasks == 0 else b",\n")
        told = _task_json(task, verdict, named, scores.add(verdict, answers, policy))
        more = [*describe_violations(broken), *(each for each in reasons if each != BLOCKED)]
        told |= {
            "note": write_note(verdict, policy, more=more if verdict.ground_truth is None else ()),
            "violations": [_violation_json(each) for each in broken],
            "review": list(reasons),
        }
        out.write(_json(told))
        summary.tasks += 1
    summary.statistics = {"scores": scores.told(), "controls": survey.statistics()}
    unclear = splits(facts)
    summary.annotators = [each.as_json() for each in portraits(facts, survey.crowd, unclear)]
    summary.splits = [asdict(each) for each in unclear]
    counts = {"tasks": summary.tasks, "verdicts": dict(summary.outcomes), "conflicts": dict(summary.conflicts),
            "unreadable": summary.unreadable, "unread_results": summary.unread, "to_review": summary.reviewed,
            "without_prelabel": summary.without_prelabel, "policy": asdict(policy)}  # fmt: skip
    parts = {"statistics": summary.statistics, "annotators": summary.annotators, "splits": summary.splits}
    for key, value in {**parts, "summary": counts}.items():
        out.write(b"\n],\n" if key == "statistics" else b",\n")
        out.write(f'"{key}": '.encode() + _json(value))
    out.write(b"}\n")
    return summary


def write_consensus(export: Export, out: IO[bytes]) -> Summary:
    """Writes each annotated task with the one annotation that its annotators make together, as Label Studio's JSON.

    Where one annotation is marked as the ground truth it is taken as it is. What cannot be merged is one annotator's
    answer (see ``merging``).

    Raises:
        ExportUnreadable: See ``Export.tasks``.
        LabelingError: A region needs a control that the label config does not have.
    """
    survey, summary = survey_export(export), Summary()
    out.write(b"[")
    for task in export.tasks():
        if not isinstance(task, Task):
            summary.unreadable.append(str(task))
            continue
        answers = read_answers(task, config=export.config)
        if not answers:
            continue
        out.write(b"\n" if summary.tasks == 0 else b",\n")
        merged = _merged(task, answers, survey, export.config)
        out.write(_json(_consensus_json(task, merged, answers)))
        summary.carried.update(line.get("control", "") for line in merged.carried)
        summary.left += sum(line.get("results", 1) for line in merged.rejected)
        summary.unread += sum(len(each.unread) for each in answers)
        summary.tasks += 1
    out.write(b"\n]\n")
    return summary


def _consensus_json(task: Task, merged: Merged, answers: Sequence[Answers]) -> dict[str, Any]:
    live = [each for each in task.annotations if not each.was_cancelled]
    annotation: dict[str, Any] = {
        # An annotation without a number is none to some readers; a task has one consensus.
        "id": task.id,
        "result": list(merged.results),
        "ground_truth": any(each.ground_truth for each in live),
        "was_cancelled": False,
        "updated_at": max(each.updated_at for each in live),
        "created_at": max(each.created_at for each in live),
    }
    told: dict[str, Any] = {"annotators": sorted(each.annotator for each in answers)}
    told |= {"rejected": list(merged.rejected), "carried": list(merged.carried), "choices": dict(merged.choices)}
    return {
        "id": task.id,
        "data": task.data,
        "meta": {**(task.meta or {}), "consensus": told},
        "annotations": [annotation],
        "predictions": [],
    }


def _merged(task: Task, answers: Sequence[Answers], survey: ProjectStatistics, config: LabelConfig | None) -> Merged:
    truth = next((each for each in answers if each.ground_truth), None)
    if truth is not None:
        (annotation,) = (each for each in latest_annotations(task.annotations) if each.id == truth.annotation)
        return whole_annotation(annotation, truth.annotator, "the ground truth")
    return merge(task, answers, lambda: judge(answers, Policy()).measured, crowd=survey.crowd, config=config)


def _task_json(
    task: Task, verdict: Verdict, named: tuple[AttributedConflict, ...], scores: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": task.id,
        "annotators": verdict.annotators,
        "agreement": None if verdict.agreement is None else round(verdict.agreement, 6),
        **scores,
        "conflicts": [each.as_json() for each in named],
        "verdict": verdict.outcome,
        "majority": sorted(verdict.majority),
        "ground_truth": verdict.ground_truth,
        "unread": list(verdict.unread),
        "uncompared": list(verdict.uncompared),
        "not_judged": list(verdict.not_judged),
    }


def _violation_json(found: Violation) -> dict[str, Any]:
    return {
        "rule": found.rule.rule,
        "effect": found.rule.effect,
        "annotator": found.annotator,
        "regions": list(found.regions),
        "text": found.text,
        "checked": found.checked,
    }


@dataclass
class _Scores:
    """Pairwise and consensus scores of all tasks, by control; the overall one under the empty name."""

    pairwise: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    consensus: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, verdict: Verdict, answers: tuple[Answers, ...], policy: Policy) -> dict[str, Any]:
        """The scores of one task, noted and as JSON."""
        if verdict.agreement is None:
            return {"controls": {}, "consensus_score": None}
        pairs = verdict.measured
        those = {who for pair in pairs for who in (pair.a, pair.b)}
        who = [each.annotator for each in sorted(answers, key=lambda each: each.annotation) if each.annotator in those]
        controls: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
        for pair in pairs:
            for control, score in pair.controls.items():
                controls[control][pair.a, pair.b] = score
        told: dict[str, Any] = {}
        for control, found in controls.items():
            # A pair of whom neither used the control agrees on it.
            full = {pair: found.get(pair, 1.0) for pair in combinations(who, 2)}
            pairwise, together = pairwise_score(found), consensus_score(who, full, policy.agreement)
            told[control] = {"pairwise": pairwise, "consensus": together}
            self.pairwise[control].append(pairwise or 0.0)
            self.consensus[control].append(together)
        scores = {(pair.a, pair.b): pair.overall for pair in pairs}
        full = {pair: scores.get(pair, 0.0) for pair in combinations(who, 2)}
        overall = consensus_score(who, full, policy.agreement)
        self.pairwise[""].append(verdict.agreement)
        self.consensus[""].append(overall)
        return {"controls": told, "consensus_score": overall}

    def told(self) -> dict[str, Any]:
        """Means over the tasks with their intervals, by control and overall."""
        means = {
            control: {"pairwise": mean_estimate(self.pairwise[control]), "consensus": mean_estimate(values)}
            for control, values in self.consensus.items()
        }
        weighed = {name: each["pairwise"].value for name, each in means.items() if name and each["pairwise"].value}
        return {
            "overall": means.pop("", None),
            "weighted": overall_score({name: value for name, value in weighed.items() if value is not None}),
            "controls": means,
        }


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise LabelingError(f"cannot be written as JSON: {error}") from error
