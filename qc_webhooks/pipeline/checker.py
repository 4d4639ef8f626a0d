"""Checks a task: reads it from Label Studio, judges it by the policy, applies the routes, and saves the decision."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from labelloop.labeling.consensus.clustering import Cluster, cluster_regions
from labelloop.labeling.consensus.consensus import collect_evidence
from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import with_malformed_annotations
from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.studio import Studio
from qc_webhooks.agreement import Answers, complete_answers, read_answers
from qc_webhooks.annotators import Diagnosis
from qc_webhooks.artifacts.overlays import accepted_annotation, overlay_key, overlays_of
from qc_webhooks.artifacts.review_copy import ReviewCopy, ReviewCopyContent, imported_annotation
from qc_webhooks.decision.context import (
    Action,
    Assessment,
    LastDecision,
    ReviewState,
    RoutingContext,
    TaskState,
)
from qc_webhooks.decision.dispute_drawing import conflict_areas, draw_dispute
from qc_webhooks.decision.expected_gain import ExpectedGain, expected_gain
from qc_webhooks.decision.ground_truth_sampling import RequestedOverlap
from qc_webhooks.decision.proposal import propose
from qc_webhooks.decision.review_reasons import judge_task
from qc_webhooks.decision.routes import is_adjudicated, is_copied, needs_review, plan, qc_keys
from qc_webhooks.decision.send_backs import SendBack, with_current_state
from qc_webhooks.pipeline.review_project import ReviewProjects, ReviewStore
from qc_webhooks.pipeline.task_writer import TaskWriter
from qc_webhooks.policy import ConflictPolicy, Policy
from qc_webhooks.policy.conflict_rules import BY_MEAN
from qc_webhooks.schedulers.annotator_model import AnnotatorModelStore
from qc_webhooks.schedulers.ground_truth import GroundTruthStore
from qc_webhooks.schedulers.project_summary import SummaryStore
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.previews import PreviewStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.send_backs import SendBackStore, user_names
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.model_voice import hear_prediction
from qc_webhooks.verdict.note import MOST_CONFLICTS
from qc_webhooks.verdict.verdict import TaskVerdict, judge

# The label config is cached this long: it changes seldom, and a request per task would double the load.
CONFIG_TTL_S = 60.0
# Explanations in a note.
MOST_EXPLANATIONS = 2
# Checks after the first: import the reviewer's decision, then mark it as the ground truth.
_MAX_FOLLOW_UPS = 2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        verdict: None where the task is deleted.
        actions: Actions written to the task.
    """

    verdict: TaskVerdict | None
    actions: tuple[Action, ...] = ()


class Checker:
    """Checks tasks of one Label Studio. Thread-safe; the inbox gives one task to one worker at a time.

    Args:
        studio: Label Studio.
        decisions: Stored decisions and the write log.
        home: Folder of the policies (the setting ``home``).
        base: Path of Label Studio in a browser, empty or ``/path``.
        on_read: Called with each task as Label Studio sends it, before it is judged; it may raise.
    """

    def __init__(
        self,
        studio: Studio,
        decisions: DecisionStore,
        home: Path,
        *,
        base: str = "",
        on_read: Callable[[Mapping[str, Any]], None] = lambda _task: None,
    ) -> None:
        self._studio = studio
        self._on_read = on_read
        self._decisions = decisions
        self._facts = FactStore(decisions.engine)
        self._send_backs = SendBackStore(decisions.engine)
        self._projects, self._previews = ProjectStore(decisions.engine), PreviewStore(decisions.engine)
        self._models = AnnotatorModelStore(decisions.engine)
        self._ground_truths = GroundTruthStore(decisions.engine)
        self.reviews = ReviewProjects(studio, ReviewStore(decisions.engine), base=base)
        self._writer = TaskWriter(studio, decisions, self.reviews)
        self._home = home
        self._configs: dict[int, tuple[float, LabelConfig]] = {}
        self._summaries = SummaryStore(decisions.engine)
        self._diagnoses: dict[int, tuple[float, tuple[Diagnosis, ...]]] = {}

    def check(self, project: int, task: int) -> CheckResult:
        """Judge a task in its current state and write the result to it. Idempotent.

        Raises:
            StudioError: Label Studio cannot be reached, or refuses.
            MalformedTask, MalformedConfig: The answer is no task or no label config.
            PolicyError: The policy is invalid.
            WriteLost: Label Studio answered a write with other values than were written.
        """
        checked = self._check_once(project, task)
        actions = checked.actions
        # A reviewer's decision is imported, then marked as the ground truth; the task changes each time.
        for _ in range(_MAX_FOLLOW_UPS):
            if not any(action.changes_verdict for action in checked.actions):
                break
            checked = self._check_once(project, task)
            actions = (*actions, *checked.actions)
        return CheckResult(checked.verdict, actions)

    def acknowledge(self, project: int, task: int, *, overlays: bool) -> None:
        """Save the current state of a task as handled, so that an undone write is not repeated before the next change.

        Args:
            project: The project's id.
            task: The task's id.
            overlays: Whether missing overlays are also accepted.
        """
        labeled_task = self._read(project, task)
        if labeled_task is None:
            return
        _, context, _ = self._judged(project, labeled_task)
        previous = context.task.last_decision or LastDecision("")
        overlay = context.task.fingerprint if overlays else None
        if overlays and context.review.has_project and context.review.copy is None and needs_review(context):
            review = self.reviews.store.review_of(project) or 0
            self.reviews.store.save_copy(project, task, ReviewCopy(review, 0, context.task.fingerprint, ""))
        self._remember(
            project, labeled_task, context, replace(previous, fingerprint=context.task.fingerprint, overlay=overlay)
        )

    def is_judged(self, project: int, task: int) -> bool:
        """Whether the task is unchanged since it was judged."""
        labeled_task = self._read(project, task)
        return labeled_task is not None and not self._judged(project, labeled_task)[1].task.has_changed

    def send_backs(self, project: int, task: int) -> tuple[SendBack, ...]:
        """The send-backs of a task with their current state."""
        labeled_task = self._read(project, task)
        return () if labeled_task is None else self._judged(project, labeled_task)[1].review.send_backs

    def _check_once(self, project: int, task: int) -> CheckResult:
        # Fetched first, to keep the time between reading the task and writing to it short.
        self._config(project)
        labeled_task = self._read(project, task)
        if labeled_task is None:
            self._writer.abandon(project, task)
            self._decisions.delete_task(project, task)
            self._facts.delete(project, task)
            self._ground_truths.delete(project, task)
            self.reviews.delete_copy(project, task)
            return CheckResult(None)
        answers, context, config = self._judged(project, labeled_task)
        last_decision = self._writer.recover(project, labeled_task, context.task.last_decision)
        context = replace(context, task=replace(context.task, last_decision=last_decision))
        clusters = cache(partial(_clusters, answers))
        context = self._with_proposal(project, labeled_task, answers, context, config, clusters=clusters)
        actions = plan(context)
        self._writer.apply(project, labeled_task, actions, context.task.fingerprint)
        for action in actions:
            if action.ground_truth is not None:  # a reviewer decided, whatever the annotators say
                self._send_backs.confirm_truth(project, labeled_task.id or 0, action.ground_truth)
        self._save_send_backs(project, labeled_task.id or 0, context.review.send_backs)
        if not any(action.changes_verdict for action in actions):
            self._remember(project, labeled_task, context, decision_after(context, actions))
            self._keep_facts(project, labeled_task, answers, context, config, clusters=clusters)
            self._ground_truths.save(
                project,
                labeled_task.id or 0,
                truth=context.verdict.ground_truth,
                annotators=context.verdict.annotators,
                ours=context.task.overlap_is_ours,
                carried=context.task.requested_overlap,
            )
        log.info(
            "task_checked",
            project=project,
            task=task,
            outcome=context.verdict.outcome,
            agreement=context.verdict.agreement,
            annotators=context.verdict.annotators,
            routes=[action.route for action in actions],
        )
        return CheckResult(context.verdict, actions)

    def _read(self, project: int, task: int) -> Task | None:
        payload = self._studio.task_json(project, task)
        if payload is None:
            return None
        self._on_read(payload)
        return with_malformed_annotations(read_task(payload))

    def _judged(self, project: int, labeled_task: Task) -> tuple[tuple[Answers, ...], RoutingContext, LabelConfig]:
        config = self._config(project)
        policy = self._projects.policy(self._home, project, config=config)
        answers = read_answers(labeled_task, config=config)
        task_id = labeled_task.id or 0
        judged = judge_task(
            labeled_task, answers, policy, config=config,
            confirmed_truth=self._send_backs.confirmed_truth(project, task_id),
        )  # fmt: skip
        verdict = judged.verdict
        send_backs = self._current_send_backs(project, labeled_task, verdict)
        copy = self.reviews.store.copy(project, labeled_task.id or 0)
        decision = self.reviews.decision(copy)
        submitted = (
            None if decision is None else imported_annotation(labeled_task, decision.annotator, decision.content_hash)
        )
        has_gain = verdict.outcome not in {"waiting", "not_judged"}
        assessment = Assessment(
            verdict,
            policy,
            violations=judged.violations,
            reasons=judged.reasons,
            expected_gain=self._outlook(project, answers, policy) if has_gain else None,
            truth_doubts=judged.truth_doubts,
            explanations=self._explanations(project, answers, verdict),
        )
        state = TaskState(
            data=labeled_task.data,
            overlap=1 if labeled_task.overlap is None else labeled_task.overlap,
            is_labeled=bool(labeled_task.is_labeled),
            fingerprint=fingerprint(answers, policy, send_backs),
            last_decision=self._decisions.last_decision(project, task_id, task_created_at=labeled_task.created_at),
            requested_overlap=RequestedOverlap()
            if verdict.ground_truth is None
            else self._ground_truths.requested_overlap(project, task_id),
        )
        review = ReviewState(
            accepted=accepted_annotation(labeled_task) or submitted,
            overlays=tuple(overlay_key(overlay) for overlay in overlays_of(labeled_task)),
            has_project=policy.review_project and self.reviews.store.review_of(project) is not None,
            copy=copy,
            decision=decision,
            is_imported=submitted is not None,
            send_backs=send_backs,
        )
        context = RoutingContext(state, assessment, review)
        return answers, context, config

    def _current_send_backs(self, project: int, task: Task, verdict: TaskVerdict) -> tuple[SendBack, ...]:
        """The task's send-backs with what happened since; names are read from Label Studio for such tasks only."""
        stored = self._send_backs.of_task(project, task.id or 0)
        if not stored:
            return ()
        names = user_names(self._studio.users())
        return with_current_state(
            stored, task.annotations, names, is_resolved=verdict.ground_truth is not None, now=time.time()
        )

    def _save_send_backs(self, project: int, task: int, send_backs: Sequence[SendBack]) -> None:
        for stored in self._send_backs.of_task(project, task):
            for current in send_backs:
                times = current.redone_at, current.accepted_at
                if current.annotator == stored.annotator and times != (stored.redone_at, stored.accepted_at):
                    self._send_backs.set_times(
                        project, task, stored.annotator, redone_at=times[0], accepted_at=times[1]
                    )  # fmt: skip

    def _outlook(self, project: int, answers: Sequence[Answers], policy: Policy) -> ExpectedGain:
        votes = collect_evidence([annotator_view(answer) for answer in complete_answers(answers)])
        return expected_gain(votes, self._models.load(project), max_annotators=policy.max_annotators)

    def _with_proposal(
        self,
        project: int,
        labeled_task: Task,
        answers: Sequence[Answers],
        context: RoutingContext,
        config: LabelConfig,
        *,
        clusters: Callable[[], Sequence[Cluster]],
    ) -> RoutingContext:
        """Add the overlays of a dispute, for the task and for its copy in the review project, where needed.

        Without a model version of the project, Label Studio prefills the editor with the newest prediction and counts
        the overlays in a task's prediction score; such a task gets no overlays.
        """
        for_task = is_adjudicated(context) and not context.task.overlays_are_final
        if for_task and not self._studio.project(project).get("model_version"):
            log.warning(
                "overlays_withheld", project=project, task=labeled_task.id, reason="the project has no model_version"
            )
            for_task = False
        for_copy = is_copied(context) and not context.copy_is_final
        if not (for_task or for_copy):
            return context
        model = self._models.load(project)
        overlays = propose(
            labeled_task, answers, context.verdict, context.policy, config=config, crowd=model, clusters=clusters(),
            voice=_voice(labeled_task, answers, context.policy, config),
        )  # fmt: skip
        keys = qc_keys(context)
        content = ReviewCopyContent(overlays, keys["qc_note"], keys["qc_agreement"])
        review = replace(
            context.review,
            proposed_overlays=overlays if for_task else None,
            copy_content=content if for_copy else None,
        )
        return replace(context, review=review)

    def _remember(self, project: int, labeled_task: Task, context: RoutingContext, decision: LastDecision) -> None:
        self._decisions.save_decision(
            project,
            labeled_task.id or 0,
            decision,
            context.verdict,
            labeled_task.annotations,
            born=labeled_task.created_at,
            review=needs_review(context),
            stamp=labeled_task.updated_at,
        )

    def _keep_facts(
        self,
        project: int,
        labeled_task: Task,
        answers: Sequence[Answers],
        context: RoutingContext,
        config: LabelConfig,
        *,
        clusters: Callable[[], Sequence[Cluster]],
    ) -> None:
        """Save the facts for the dashboard and the statistics; a failure does not affect the verdict."""
        verdict, policy = context.verdict, context.policy
        tolerance = policy.tolerance
        try:
            voice = _voice(labeled_task, answers, policy, config)
            facts = facts_of(labeled_task, answers, verdict, tolerance, config=config, clusters=clusters(), voice=voice)
            doubts = context.assessment.truth_doubts
            drawing = (
                draw_dispute(
                    answers, verdict, policy, clusters=clusters(), truth_doubts=doubts, has_image=bool(facts.image_urls)
                )
                if verdict.outcome == "disputed" or doubts
                else None
            )
            self._facts.save(project, msgspec.structs.replace(facts, review=needs_review(context)), drawing)
            self._keep_preview(project, labeled_task, answers, context)
        except Exception:  # a shape that cannot be drawn must not block the verdict
            log.exception("facts_failed", project=project, task=labeled_task.id)

    def _keep_preview(
        self, project: int, labeled_task: Task, answers: Sequence[Answers], context: RoutingContext
    ) -> None:
        """Save the verdict under the newest defaults, for a project that keeps those of before."""
        if context.policy.conflicts != BY_MEAN or context.verdict.outcome == "waiting":
            return
        verdict = judge(answers, replace(context.policy, conflicts=ConflictPolicy()))
        kinds = {conflict.type for conflict in verdict.conflicts}
        self._previews.save(project, labeled_task.id or 0, verdict.outcome, kinds)

    def _explanations(self, project: int, answers: Sequence[Answers], verdict: TaskVerdict) -> tuple[str, ...]:
        """The diagnoses of the project that explain what the note of a dispute names, one sentence each."""
        conflicts = verdict.conflicts[:MOST_CONFLICTS]
        if not conflicts:
            return ()
        cached = self._diagnoses.get(project)
        if cached is None or time.monotonic() - cached[0] > CONFIG_TTL_S:
            cached = time.monotonic(), self._summaries.diagnoses(project)
            self._diagnoses[project] = cached
        regions = [annotator_view(answer).regions for answer in answers]
        areas = conflict_areas(conflicts, regions)
        found = (
            diagnosis.note
            for conflict, area in zip(conflicts, areas, strict=True)
            for diagnosis in cached[1]
            if diagnosis.covers(conflict.type, conflict.control, conflict.a, conflict.b, area=area)
        )
        return tuple(dict.fromkeys(filter(None, found)))[:MOST_EXPLANATIONS]

    def _config(self, project: int) -> LabelConfig:
        cached = self._configs.get(project)
        if cached is None or time.monotonic() - cached[0] > CONFIG_TTL_S:
            cached = time.monotonic(), self._studio.label_config(project)
            self._configs[project] = cached
        return cached[1]


def _voice(
    labeled_task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None
) -> VoiceRegions | None:
    return hear_prediction(labeled_task, answers, config=config).voice if policy.model_voice else None


def _clusters(answers: Sequence[Answers]) -> Sequence[Cluster]:
    """Clusters of the regions, as ``consensus`` takes them."""
    ordered = sorted(complete_answers(answers), key=lambda item: item.annotator)
    return cluster_regions([annotator_view(item).regions for item in ordered])


def fingerprint(answers: Sequence[Answers], policy: Policy, send_backs: Sequence[SendBack] = ()) -> str:
    """Hash of a verdict's inputs: equal fingerprints give equal verdicts."""
    versions = sorted((item.annotation, item.annotator, item.updated_at, item.ground_truth) for item in answers)
    settings = asdict(policy)
    if policy.conflicts == BY_MEAN:
        del settings["conflicts"]  # as before there were any: the decisions of such a project stay as they are
    inputs: list[object] = [versions, settings]
    if send_backs:
        inputs.append([(item.annotator, item.comment, item.sent_at, item.state) for item in send_backs])
    return hashlib.sha256(msgspec.json.encode(inputs)).hexdigest()


def decision_after(context: RoutingContext, actions: Sequence[Action]) -> LastDecision:
    """Decision to save once the actions are applied."""
    previous = context.task.last_decision or LastDecision("")
    keys, asked_overlap, asked_at, found_overlap = (
        previous.keys,
        previous.asked_overlap,
        previous.asked_at,
        previous.found_overlap,
    )
    for action in actions:
        if action.keys:
            keys = action.keys
        if action.route == "raise_overlap":
            asked_overlap, asked_at, found_overlap = (
                action.overlap,
                None,
                action.overlap,
            )  # not withdrawn when the task is resolved
        if action.route == "one_more_annotator":
            asked_overlap, asked_at = action.overlap, context.verdict.annotators
            found_overlap = context.task.overlap if found_overlap is None else found_overlap
        if action.route == "seed":
            # `asked_at` stays None: the overlap is withdrawn without a new event once no annotator is left to measure.
            asked_overlap, asked_at = action.overlap, None
            found_overlap = context.task.overlap if found_overlap is None else found_overlap
        if action.route == "withdraw":
            asked_overlap = asked_at = found_overlap = None
    has_overlay = needs_review(context) and (
        not context.policy.adjudicate or context.task.overlays_are_final or context.review.proposed_overlays is not None
    )
    return LastDecision(
        context.task.fingerprint,
        keys,
        asked_overlap,
        asked_at,
        found_overlap,
        context.task.fingerprint if has_overlay else None,
    )
