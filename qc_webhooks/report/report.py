"""Report on an export: verdict and conflicts per task, agreement statistics, reliability per annotator.

An export is streamed twice: the first pass estimates the annotator model from the answers of all tasks, the second one
computes the consensus of each task with it.
"""

from collections import Counter, defaultdict, deque
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
from labelloop.labeling.studio.latest import latest_annotations, with_malformed_annotations
from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_file_type
from labelloop.labeling.studio.stream import check_complete, iter_raw_tasks
from labelloop.labeling.studio.task import Task, read_task
from qc_webhooks.agreement import Answers, complete_answers, read_answers
from qc_webhooks.annotators import find_diagnoses, profile_annotators
from qc_webhooks.decision.review_reasons import BLOCKED, is_for_review, judge_task, lacks_predictions
from qc_webhooks.errors import ExportUnreadable
from qc_webhooks.policy import Policy
from qc_webhooks.policy.guideline_rules import Violation, describe_violations
from qc_webhooks.report.project_statistics import RECENT_TASKS, ProjectStatistics, mean_estimate
from qc_webhooks.statistics import consensus_score, overall_score, pairwise_score
from qc_webhooks.verdict.dispute_card import AttributedConflict, annotator_view, conflicts_of
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.merged_annotation import Merged, merge, whole_annotation
from qc_webhooks.verdict.model_voice import Hearing, hear_prediction
from qc_webhooks.verdict.note import write_note
from qc_webhooks.verdict.task_facts import TaskFacts
from qc_webhooks.verdict.verdict import TaskVerdict, judge

# Called with the bytes read so far and the bytes of the file.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """An exported file and what is needed to read it.

    Attributes:
        path: Label Studio's JSON export (an array of tasks), or JSON lines.
        config: The label config; None reads without one.
        progress: Called with the bytes read and the size of the file.
    """

    path: Path
    config: LabelConfig | None = None
    progress: Progress | None = None

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Yield each task, or the error of a task that cannot be read.

        Raises:
            ExportUnreadable: The file does not exist, or holds no tasks.
        """
        try:
            with self.path.open("rb") as file:
                size = self.path.stat().st_size
                yield from self._read(file, size)
        except OSError as error:
            raise ExportUnreadable(path=self.path, reason=error.strerror or str(error)) from error

    def _read(self, file: BinaryIO, size: int) -> Iterator[Task | MalformedTask]:
        if other := sniff_file_type(file.read(HEAD_BYTES)):
            raise ExportUnreadable(
                path=self.path, reason=f"it is {other.what}, not Label Studio's tasks", fix=other.fix
            )
        file.seek(0)
        count = 0
        try:
            check_complete(file)
            for raw in iter_raw_tasks(file):
                count += 1
                if self.progress and count % 50 == 0:
                    self.progress(file.tell(), size)
                yield _read_task(raw)
        except MalformedTask as error:
            raise ExportUnreadable(path=self.path, reason=f"{error.reason} (after {count} tasks)") from error


def _read_task(raw: bytes) -> Task | MalformedTask:
    try:
        return with_malformed_annotations(read_task(raw))
    except MalformedTask as error:
        return error


@dataclass
class ReportSummary:
    """Counts and statistics of a report for its printed summary.

    Attributes:
        tasks: Number of tasks.
        outcomes: Verdict -> tasks.
        conflicts: Type of conflict -> count.
        unreadable: One message per task that could not be read.
        unread: Number of results of other tasks that could not be read.
        reviewed: Tasks for a reviewer when no further annotator is asked.
        truth_doubts: Tasks with a ground truth in doubt.
        without_prelabel: Tasks whose pre-label the policy needs and the export names only by id.
        carried: Consensus only: control -> tasks where it is one annotator's answer; "" for a whole annotation.
        left: Consensus only: regions and results that are not part of it.
        statistics: As in the report.
        annotators: As in the report.
        splits: As in the report.
        used: Newest tasks that reliability, patterns and the statistics of labels are from.
        voice: How often the model's prediction was one more voice (``heard``), and why it was not.
    """

    tasks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unread: int = 0
    reviewed: int = 0
    truth_doubts: int = 0
    without_prelabel: int = 0
    carried: Counter[str] = field(default_factory=Counter)
    left: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)
    annotators: list[dict[str, Any]] = field(default_factory=list)
    splits: list[dict[str, Any]] = field(default_factory=list)
    voice: Counter[str] = field(default_factory=Counter)
    used: int = 0


# Key of ``ReportSummary.voice``: the prediction was heard.
HEARD = "heard"


def collect_statistics(export: Export, policy: Policy, voice: Counter[str] | None = None) -> ProjectStatistics:
    """First pass: collect the evidence of all tasks.

    Args:
        export: The export.
        policy: Says whether the model's prediction is one more voice.
        voice: Counts how often it is heard, and the reasons why not.

    Raises:
        ExportUnreadable: See ``Export.tasks``.
    """
    collected = ProjectStatistics()
    for task in export.tasks():
        if isinstance(task, Task):
            answers = read_answers(task, config=export.config)
            hearing = _hear(task, answers, policy, export.config)
            if voice is not None and policy.model_voice and answers:
                voice[hearing.reason or HEARD] += 1
            collected.add(task, answers, voice=hearing.voice)
    return collected


def _hear(task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None) -> Hearing:
    return hear_prediction(task, answers, config=config) if policy.model_voice else Hearing(None)


def write_report(export: Export, policy: Policy, out: IO[bytes]) -> ReportSummary:
    """Write the report as one JSON object: ``tasks``, ``statistics``, ``annotators``, ``splits``, ``summary``.

    Raises:
        ExportUnreadable: See ``Export.tasks``.
    """
    summary, scores = ReportSummary(), _Scores()
    collected = collect_statistics(export, policy, summary.voice)
    tolerance, recent = policy.tolerance, deque[TaskFacts](maxlen=RECENT_TASKS)
    out.write(b'{"tasks": [')
    for task in export.tasks():
        if not isinstance(task, Task):
            summary.unreadable.append(str(task))
            continue
        answers = read_answers(task, config=export.config)
        judged = judge_task(task, answers, policy, config=export.config)
        verdict, broken, reasons = judged.verdict, judged.violations, judged.reasons
        summary.reviewed += is_for_review(verdict, policy, reasons)
        summary.truth_doubts += bool(judged.truth_doubts)
        summary.without_prelabel += lacks_predictions(task, policy)
        views = sorted((annotator_view(item) for item in complete_answers(answers)), key=lambda item: item.annotator)
        clusters = cluster_regions([item.regions for item in views])
        fused = consensus(views, collected.annotator_model, match_iou=policy.match_iou, clusters=clusters)
        facts = facts_of(task, answers, verdict, tolerance, config=export.config, clusters=clusters)
        recent.append(facts)
        collected.add_facts(facts)
        conflicts = conflicts_of(answers, fused, tolerance)
        summary.outcomes[verdict.outcome] += 1
        summary.conflicts.update(item.conflict.type for item in conflicts)
        summary.unread += len(verdict.unread)
        out.write(b"\n" if summary.tasks == 0 else b",\n")
        record = _task_json(task, verdict, conflicts, scores.add(verdict, answers, policy))
        extra = [*describe_violations(broken), *(item for item in reasons if item != BLOCKED)]
        record |= {
            "note": write_note(verdict, policy, more=extra if verdict.ground_truth is None else reasons),
            "ground_truth_doubts": [doubt.as_json() for doubt in judged.truth_doubts],
            "violations": [_violation_json(item) for item in broken],
            "review": list(reasons),
        }
        out.write(_json(record))
        summary.tasks += 1
    summary.used = len(recent)
    summary.statistics = {"scores": scores.means(), "controls": collected.statistics()}
    diagnoses = find_diagnoses(list(recent))
    model, match_iou = collected.annotator_model, policy.match_iou
    profiles = profile_annotators(list(recent), model, diagnoses, match_iou=match_iou)
    summary.annotators = [item.as_json() for item in profiles]
    summary.splits = [asdict(item) for item in diagnoses]
    counts = {"tasks": summary.tasks, "verdicts": dict(summary.outcomes), "conflicts": dict(summary.conflicts),
            "unreadable": summary.unreadable, "unread_results": summary.unread, "to_review": summary.reviewed,
            "ground_truths_in_doubt": summary.truth_doubts,
            "without_prelabel": summary.without_prelabel, "model_voice": dict(summary.voice),
            "used": summary.used,
            "policy": asdict(policy)}  # fmt: skip
    sections = {"statistics": summary.statistics, "annotators": summary.annotators, "splits": summary.splits}
    for key, value in {**sections, "summary": counts}.items():
        out.write(b"\n],\n" if key == "statistics" else b",\n")
        out.write(f'"{key}": '.encode() + _json(value))
    out.write(b"}\n")
    return summary


def write_consensus(export: Export, out: IO[bytes], policy: Policy | None = None) -> ReportSummary:
    """Write each annotated task with one consensus annotation, as Label Studio's JSON.

    An annotation marked as the ground truth is used unchanged. Results that cannot be merged are one annotator's answer
    (see ``merged_annotation``).

    Raises:
        ExportUnreadable: See ``Export.tasks``.
        LabelingError: A region needs a control that the label config lacks.
    """
    summary, policy = ReportSummary(), policy or Policy()
    collected = collect_statistics(export, policy, summary.voice)
    out.write(b"[")
    for task in export.tasks():
        if not isinstance(task, Task):
            summary.unreadable.append(str(task))
            continue
        answers = read_answers(task, config=export.config)
        if not answers:
            continue
        out.write(b"\n" if summary.tasks == 0 else b",\n")
        merged = _merge_task(task, answers, collected, export.config, policy)
        out.write(_json(_consensus_json(task, merged, answers)))
        summary.carried.update(line.get("control", "") for line in merged.carried)
        summary.left += sum(line.get("results", 1) for line in merged.rejected)
        summary.unread += sum(len(item.unread) for item in answers)
        summary.tasks += 1
    out.write(b"\n]\n")
    return summary


def _consensus_json(task: Task, merged: Merged, answers: Sequence[Answers]) -> dict[str, Any]:
    annotations = [item for item in task.annotations if not item.was_cancelled]
    annotation: dict[str, Any] = {
        # Some readers require an annotation id; a task has one consensus, so its id serves.
        "id": task.id,
        "result": list(merged.results),
        "ground_truth": any(item.ground_truth for item in annotations),
        "was_cancelled": False,
        "updated_at": max(item.updated_at for item in annotations),
        "created_at": max(item.created_at for item in annotations),
    }
    details: dict[str, Any] = {"annotators": sorted(item.annotator for item in answers)}
    details |= {"rejected": list(merged.rejected), "carried": list(merged.carried), "choices": dict(merged.choices)}
    details |= {"intervals": dict(merged.intervals), "texts": dict(merged.texts)}
    details |= {"rankings": dict(merged.rankings)}
    return {
        "id": task.id,
        "data": task.data,
        "meta": {**(task.meta or {}), "consensus": details},
        "annotations": [annotation],
        "predictions": [],
    }


def _merge_task(
    task: Task, answers: Sequence[Answers], collected: ProjectStatistics, config: LabelConfig | None, policy: Policy
) -> Merged:
    truth = next((item for item in answers if item.ground_truth), None)
    if truth is not None:
        (annotation,) = (item for item in latest_annotations(task.annotations) if item.id == truth.annotation)
        return whole_annotation(annotation, truth.annotator, "the ground truth")
    return merge(
        task,
        answers,
        lambda: judge(answers, Policy()).measured,
        crowd=collected.annotator_model,
        config=config,
        voice=_hear(task, answers, policy, config).voice,
    )


def _task_json(
    task: Task, verdict: TaskVerdict, conflicts: tuple[AttributedConflict, ...], scores: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": task.id,
        "annotators": verdict.annotators,
        "agreement": None if verdict.agreement is None else round(verdict.agreement, 6),
        **scores,
        "conflicts": [conflict.as_json() for conflict in conflicts],
        "verdict": verdict.outcome,
        "majority": sorted(verdict.majority),
        "ground_truth": verdict.ground_truth,
        "unread": list(verdict.unread),
        "uncompared": list(verdict.uncompared),
        "not_judged": list(verdict.not_judged),
    }


def _violation_json(violation: Violation) -> dict[str, Any]:
    return {
        "rule": violation.rule.rule,
        "effect": violation.rule.effect,
        "annotator": violation.annotator,
        "regions": list(violation.regions),
        "text": violation.text,
        "checked": violation.checked,
    }


@dataclass
class _Scores:
    """Pairwise and consensus scores of all tasks, by control; overall scores under the empty name."""

    pairwise: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    consensus: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, verdict: TaskVerdict, answers: tuple[Answers, ...], policy: Policy) -> dict[str, Any]:
        """Add the scores of one task. Returns them for the report."""
        if verdict.agreement is None:
            return {"controls": {}, "consensus_score": None}
        pairs = verdict.measured
        compared = {annotators for pair in pairs for annotators in (pair.a, pair.b)}
        annotators = [
            item.annotator for item in sorted(answers, key=lambda item: item.annotation) if item.annotator in compared
        ]
        controls: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
        for pair in pairs:
            for control, score in pair.controls.items():
                controls[control][pair.a, pair.b] = score
        by_control: dict[str, Any] = {}
        for control, scores_by_pair in controls.items():
            # Two annotators who both left the control out agree on it.
            all_pairs = {pair: scores_by_pair.get(pair, 1.0) for pair in combinations(annotators, 2)}
            pairwise, consensus = (
                pairwise_score(scores_by_pair),
                consensus_score(annotators, all_pairs, policy.agreement),
            )
            by_control[control] = {"pairwise": pairwise, "consensus": consensus}
            self.pairwise[control].append(pairwise or 0.0)
            self.consensus[control].append(consensus)
        scores = {(pair.a, pair.b): pair.overall for pair in pairs}
        all_pairs = {pair: scores.get(pair, 0.0) for pair in combinations(annotators, 2)}
        overall = consensus_score(annotators, all_pairs, policy.agreement)
        self.pairwise[""].append(verdict.agreement)
        self.consensus[""].append(overall)
        return {"controls": by_control, "consensus_score": overall}

    def means(self) -> dict[str, Any]:
        """Means over the tasks with intervals, by control and overall."""
        means = {
            control: {"pairwise": mean_estimate(self.pairwise[control]), "consensus": mean_estimate(values)}
            for control, values in self.consensus.items()
        }
        by_name = {
            name: scores["pairwise"].value for name, scores in means.items() if name and scores["pairwise"].value
        }
        return {
            "overall": means.pop("", None),
            "weighted": overall_score({name: value for name, value in by_name.items() if value is not None}),
            "controls": means,
        }


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise LabelingError(f"cannot be written as JSON: {error}") from error
