"""One task, checked: read from Label Studio, judged by the policy, routed, remembered."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import msgspec
import structlog

from labelloop.labeling.consensus.clustering import Cluster, cluster_regions
from labelloop.labeling.consensus.consensus import evidence
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import with_unread
from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.studio import Studio
from qc_webhooks.agreement import Answers, read_answers, whole_answers
from qc_webhooks.artifacts.overlays import accepted_annotation, mark_of, overlays_of
from qc_webhooks.artifacts.review_copy import Copy, ReviewCopyContent, imported_decision
from qc_webhooks.decision.context import Action, LastDecision, RoutingContext
from qc_webhooks.decision.dispute_drawing import draw
from qc_webhooks.decision.expected_gain import ExpectedGain, expected_gain
from qc_webhooks.decision.ground_truth_sampling import RequestedOverlap
from qc_webhooks.decision.proposal import propose
from qc_webhooks.decision.review_reasons import judge_task
from qc_webhooks.decision.routes import is_adjudicated, is_copied, needs_review, plan, qc_keys
from qc_webhooks.pipeline.review_project import ReviewDesk, ReviewStore
from qc_webhooks.pipeline.task_writer import Writer
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.schedulers.annotator_model import CrowdStore
from qc_webhooks.schedulers.ground_truth import TruthStore
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.dispute_card import stance_of
from qc_webhooks.verdict.task_facts import facts_of
from qc_webhooks.verdict.verdict import Verdict

# A label config changes seldom; asking for it at every task would double our requests.
CONFIG_KEPT_S = 60.0
# Brought back, accepted.
_MOST_DECISIONS = 2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """What came of a check.

    Attributes:
        verdict: None: the task is gone.
        actions: What was written to the task; empty: it was as it should be.
    """

    verdict: Verdict | None
    actions: tuple[Action, ...] = ()


class Checker:
    """Checks tasks of one Label Studio. Thread-safe; the inbox gives one task to one worker at a time.

    Args:
        studio: Label Studio.
        memory: What was decided and written before.
        home: The folder that the policies are in (the setting ``home``).
        base: The path under which a browser finds Label Studio, empty or ``/path``.
    """

    def __init__(self, studio: Studio, memory: DecisionStore, home: Path, *, base: str = "") -> None:
        self._studio = studio
        self._memory = memory
        self._facts = FactStore(memory.engine)
        self._crowds = CrowdStore(memory.engine)
        self._truths = TruthStore(memory.engine)
        self.desk = ReviewDesk(studio, ReviewStore(memory.engine), base=base)
        self._writer = Writer(studio, memory, self.desk)
        self._home = home
        self._configs: dict[int, tuple[float, LabelConfig]] = {}

    def check(self, project: int, task: int) -> CheckResult:
        """Judges a task as it is in Label Studio now and makes it say so. Doing it twice writes once.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses.
            MalformedTask, MalformedConfig: It answered something that is no task or no label config.
            PolicyError: The policy cannot be followed.
            WriteLost: Label Studio answered a write with other values than we wrote.
        """
        checked = self._check_once(project, task)
        actions = checked.actions
        # What a reviewer submitted is brought back, then marked as the ground truth: each time the task is another one.
        for _ in range(_MOST_DECISIONS):
            if not any(action.decides for action in checked.actions):
                break
            checked = self._check_once(project, task)
            actions = (*actions, *checked.actions)
        return CheckResult(checked.verdict, actions)

    def acknowledge(self, project: int, task: int, *, overlays: bool) -> None:
        """Takes a task as it is now for settled, so that what was undone is not done again before something happens.

        Args:
            project: The project's id.
            task: The task's id.
            overlays: Whether the absence of overlays is to stand too.
        """
        found = self._read(project, task)
        if found is None:
            return
        _, situation, _ = self._judged(project, found)
        held = situation.memory or LastDecision("")
        settled = situation.fingerprint if overlays else None
        if overlays and situation.desk and situation.copy is None and needs_review(situation):
            review = self.desk.store.review_of(project) or 0
            self.desk.store.keep(project, task, Copy(review, 0, situation.fingerprint, ""))
        self._remember(project, found, situation, replace(held, fingerprint=situation.fingerprint, overlay=settled))

    def is_judged(self, project: int, task: int) -> bool:
        """Whether nothing happened to the task since it was judged last."""
        found = self._read(project, task)
        return found is not None and not self._judged(project, found)[1].is_news

    def _check_once(self, project: int, task: int) -> CheckResult:
        # First, so that little time passes between reading the task and writing to it.
        self._config(project)
        found = self._read(project, task)
        if found is None:
            self._writer.abandon(project, task)
            self._memory.forget(project, task)
            self._facts.forget(project, task)
            self._truths.forget(project, task)
            self.desk.clear(project, task)
            return CheckResult(None)
        answers, situation, config = self._judged(project, found)
        situation = replace(situation, memory=self._writer.settle(project, found, situation.memory))
        clusters = cache(partial(_clusters, answers))
        situation = self._with_proposal(project, found, answers, situation, config, clusters=clusters)
        actions = plan(situation)
        self._writer.carry_out(project, found, actions, situation.fingerprint)
        if not any(action.decides for action in actions):
            self._remember(project, found, situation, memory_after(situation, actions))
            self._keep_facts(project, found, answers, situation, config, clusters=clusters)
            self._truths.keep(
                project,
                found.id or 0,
                truth=situation.verdict.ground_truth,
                annotators=situation.verdict.annotators,
                ours=situation.overlap_is_ours,
                carried=situation.wish,
            )
        log.info(
            "task_checked",
            project=project,
            task=task,
            outcome=situation.verdict.outcome,
            agreement=situation.verdict.agreement,
            annotators=situation.verdict.annotators,
            routes=[action.route for action in actions],
        )
        return CheckResult(situation.verdict, actions)

    def _read(self, project: int, task: int) -> Task | None:
        source = self._studio.task_json(project, task)
        return None if source is None else with_unread(read_task(source))

    def _judged(self, project: int, found: Task) -> tuple[tuple[Answers, ...], RoutingContext, LabelConfig]:
        config = self._config(project)
        policy = read_policy(self._home, project, config=config)
        answers = read_answers(found, config=config)
        judged = judge_task(found, answers, policy, config=config)
        verdict = judged.verdict
        copy = self.desk.store.copy(project, found.id or 0)
        decision = self.desk.decision(copy)
        submitted = None if decision is None else imported_decision(found, decision.annotator, decision.mark)
        situation = RoutingContext(
            data=found.data,
            overlap=1 if found.overlap is None else found.overlap,
            is_labeled=bool(found.is_labeled),
            verdict=verdict,
            policy=policy,
            fingerprint=fingerprint(answers, policy),
            memory=self._memory.recall(project, found.id or 0, task_created_at=found.created_at),
            accepted=accepted_annotation(found) or submitted,
            held=tuple(mark_of(each) for each in overlays_of(found)),
            broken=judged.broken,
            reasons=judged.reasons,
            outlook=self._outlook(project, answers, policy)
            if verdict.outcome not in {"waiting", "not_judged"}
            else None,
            wish=RequestedOverlap() if verdict.ground_truth is None else self._truths.wish(project, found.id or 0),
            desk=policy.review_project and self.desk.store.review_of(project) is not None,
            copy=copy,
            decision=decision,
            is_brought=submitted is not None,
        )
        return answers, situation, config

    def _outlook(self, project: int, answers: Sequence[Answers], policy: Policy) -> ExpectedGain:
        said = evidence([stance_of(each) for each in whole_answers(answers)])
        return expected_gain(said, self._crowds.crowd(project), most=policy.max_annotators)

    def _with_proposal(
        self,
        project: int,
        found: Task,
        answers: Sequence[Answers],
        situation: RoutingContext,
        config: LabelConfig,
        *,
        clusters: Callable[[], Sequence[Cluster]],
    ) -> RoutingContext:
        """With the overlays of a dispute, for the task and for its copy in the review project, where they are needed.

        Without a model version of the project, Label Studio prefills an annotator's editor with the newest prediction
        and counts the overlays in a task's prediction score: then the task gets none.
        """
        here = is_adjudicated(situation) and not situation.overlays_stand
        if here and not self._studio.project(project).get("model_version"):
            log.warning("overlays_withheld", project=project, task=found.id, reason="the project has no model_version")
            here = False
        there = is_copied(situation) and not situation.copy_stands
        if not (here or there):
            return situation
        crowd = self._crowds.crowd(project)
        overlays = propose(
            found, answers, situation.verdict, situation.policy, config=config, crowd=crowd, clusters=clusters()
        )
        keys = qc_keys(situation)
        sheet = ReviewCopyContent(overlays, keys["qc_note"], keys["qc_agreement"])
        return replace(situation, wanted=overlays if here else None, sheet=sheet if there else None)

    def _remember(self, project: int, found: Task, situation: RoutingContext, memory: LastDecision) -> None:
        self._memory.remember(
            project,
            found.id or 0,
            memory,
            situation.verdict,
            found.annotations,
            born=found.created_at,
            review=needs_review(situation),
            stamp=found.updated_at,
        )

    def _keep_facts(
        self,
        project: int,
        found: Task,
        answers: Sequence[Answers],
        situation: RoutingContext,
        config: LabelConfig,
        *,
        clusters: Callable[[], Sequence[Cluster]],
    ) -> None:
        """Keeps what the dashboard and the statistics tell of the task; the verdict stands whatever becomes of it."""
        verdict, policy = situation.verdict, situation.policy
        tolerance = policy.tolerance
        try:
            facts = facts_of(found, answers, verdict, tolerance, config=config, clusters=clusters())
            drawing = draw(answers, verdict, policy, clusters=clusters()) if verdict.outcome == "disputed" else None
            self._facts.keep(project, msgspec.structs.replace(facts, review=needs_review(situation)), drawing)
        except Exception:  # a shape that cannot be drawn must not cost the task its verdict
            log.exception("facts_failed", project=project, task=found.id)

    def _config(self, project: int) -> LabelConfig:
        kept = self._configs.get(project)
        if kept is None or time.monotonic() - kept[0] > CONFIG_KEPT_S:
            kept = time.monotonic(), self._studio.label_config(project)
            self._configs[project] = kept
        return kept[1]


def _clusters(answers: Sequence[Answers]) -> Sequence[Cluster]:
    """As ``consensus`` takes them."""
    ordered = sorted(whole_answers(answers), key=lambda each: each.annotator)
    return cluster_regions([stance_of(each).regions for each in ordered])


def fingerprint(answers: Sequence[Answers], policy: Policy) -> str:
    """What a verdict is drawn from, as a hash: the same fingerprint gives the same verdict."""
    versions = sorted((item.annotation, item.annotator, item.updated_at, item.ground_truth) for item in answers)
    return hashlib.sha256(msgspec.json.encode([versions, asdict(policy)])).hexdigest()


def memory_after(situation: RoutingContext, actions: Sequence[Action]) -> LastDecision:
    """What is to be remembered once the actions are carried out."""
    before = situation.memory or LastDecision("")
    keys, asked, at, found = before.keys, before.asked_overlap, before.asked_at, before.found_overlap
    for action in actions:
        if action.keys:
            keys = action.keys
        if action.route == "raise_overlap":
            asked, at, found = action.overlap, None, action.overlap  # nobody takes it back when the task is settled
        if action.route == "one_more_annotator":
            asked, at = action.overlap, situation.verdict.annotators
            found = situation.overlap if found is None else found
        if action.route == "seed":
            # `at` stays open: when nobody is to be measured any more, the overlap goes back without further news.
            asked, at = action.overlap, None
            found = situation.overlap if found is None else found
        if action.route == "withdraw":
            asked = at = found = None
    settled = needs_review(situation) and (
        not situation.policy.adjudicate or situation.overlays_stand or situation.wanted is not None
    )
    return LastDecision(situation.fingerprint, keys, asked, at, found, situation.fingerprint if settled else None)
