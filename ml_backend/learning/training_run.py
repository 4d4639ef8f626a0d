"""Owns a run of learning: from events of a project to a candidate, judged, and served where it passes."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event
from labelloop.service.media import MediaError
from labelloop.service.studio import NotFound
from ml_backend.errors import ModelError, OtherModel
from ml_backend.learning.annotations import config_of
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import Verdict
from ml_backend.learning.evaluation.candidate import CANDIDATE, CandidateEvaluator
from ml_backend.learning.evaluation.evaluator import known_classes
from ml_backend.learning.events import LEARN, TrainingRequest, now_hint, opinion_hint, queue_hint
from ml_backend.learning.label_errors import CALM_S
from ml_backend.learning.publish import LATEST_TOLD_S, make_room, store_candidate, tell_version
from ml_backend.learning.store.annotations import fingerprint
from ml_backend.learning.store.runs import Metrics, Run, VerdictName
from ml_backend.learning.store.tasks import photo_key
from ml_backend.learning.training_set import RunInput, Stopwatch, sample
from ml_backend.policy import LearningPolicy, read_learning_policy, too_few
from ml_backend.predict.control_support import NotServed, controls_of, learnable
from ml_backend.serving import activation
from ml_backend.serving.active_versions import activate_in
from ml_backend.studio.connect import same_address
from ml_backend.training.acquisition import photo_vector
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.model_selection import FitResult, select_and_fit

MOST_WAIT_S = 10.0
"""A burst that never ends is answered after so long."""

BURST, IN_BURST = 3, 4
"""From so many submits at once it is waited so many times longer for the next."""

TOLD = 3
"""Photos that could not be had, that a run names."""

log = structlog.get_logger(__name__)


class NothingToLearn(LabelloopError):
    """A project has nothing that a version could be fitted to; the message says why."""

    code = "nothing_to_learn"
    status = 409

    def __init__(self, of: RunInput, reason: str) -> None:
        super().__init__(reason)
        self.of = of


class Learner:
    """Learns projects. One run of a project at a time: the inbox sees to that."""

    def __init__(self, kit: LearningContext) -> None:
        """Opens nothing yet."""
        self._kit = kit
        self._judge = CandidateEvaluator(kit)

    def learn(self, project: int, events: Sequence[Event]) -> Run | None:
        """Answers events of a project. They decide only when and where to look: Label Studio says what is.

        Returns:
            What came of it; None where there was nothing to fit.

        Raises:
            StudioError, StoreError: Label Studio or the store cannot be asked; trying again helps.
            LearningPolicyError: The project's learn.toml cannot be used.
        """
        policy = read_learning_policy(self._kit.settings.home, project)
        new = self._kit.lessons.connect(project)
        if not policy.learn:
            return None
        watch = Stopwatch(lambda name, done, total: self._kit.lessons.phase(project, name, done, total))
        try:
            asked = TrainingRequest.of(events)
            with watch.phase("wait"):
                read = self._read_ahead(project, asked, policy) if policy.debounce_s and not new else None
                asked = self._debounce(project, asked, policy.debounce_s)
            material = self._material(project, asked, policy, watch, sweep=new or asked.sweep, read=read)
            return self._run(material) if material is not None else None
        except NothingToLearn as error:
            return self._finish(error.of, "failed", reason=error.message) if error.of.asked.now else None
        except NotFound:
            log.info("project_gone", project=project)
            self._kit.forget(project)
            return None
        finally:
            self._kit.lessons.phase(project, "")

    def _read_ahead(self, project: int, asked: TrainingRequest, policy: LearningPolicy) -> TrainingRequest | None:
        """Reads and looks at what is asked for, while it is waited for more anyway; gives back what was read."""
        if asked.sweep or asked.now or asked.annotations or len(asked.tasks) > BURST:
            return None
        config = self._kit.studio.label_config(project)
        self._kit.reader.read(project, asked.tasks, config=config, held_out=policy.held_out)
        with contextlib.suppress(ModelError, MediaError):  # the run meets them again, and tells
            backbone = self._kit.bases.backbone(self._kit.bases.served(project))
            for task, _, photos in self._kit.lessons.training_tasks(project, only=asked.tasks):
                for photo in photos:
                    self._kit.album.sight(backbone, photo.url, task=task)
        return asked

    def _debounce(self, project: int, asked: TrainingRequest, quiet_s: float) -> TrainingRequest:
        """Waits until nothing new came for a while, so that a burst of submits is one fit. What came is answered too.

        A single submit waits for no longer than it must; where several are there already more are to be expected. The
        events that came meanwhile stay in the inbox: they find nothing new and cost one request.
        """
        deadline = time.monotonic() + MOST_WAIT_S
        while not asked.now:
            events = self._kit.inbox.open_events(LEARN, str(project))
            asked = TrainingRequest.of(events) if events else asked
            pause_s = quiet_s * (1 if len(events) < BURST else IN_BURST)
            left = min(asked.newest_at + pause_s - time.time(), deadline - time.monotonic(), pause_s)
            if left <= 0:
                break
            time.sleep(max(left, 0.01))
        return asked

    def _material(
        self,
        project: int,
        asked: TrainingRequest,
        policy: LearningPolicy,
        watch: Stopwatch,
        *,
        sweep: bool,
        read: TrainingRequest | None,
    ) -> RunInput | None:
        """Reads Label Studio, but for what was read already; None where that gives nothing to fit."""
        started_at = time.time()
        watch.seconds["wait"] = round(started_at - asked.asked_at, 3)
        with watch.phase("read"):
            config = self._kit.studio.label_config(project)
            if not learnable(config):
                self._kit.lessons.update_project(project, swept_at=time.time(), config=config_of(config))
                served = self._kit.bases.served(project)
                nothing = RunInput(project, asked, policy, config, served, [], [], started_at, watch)
                raise NothingToLearn(nothing, NotServed(project, "learned from", controls_of(config)).message)
            before = self._kit.lessons.project(project)
            if sweep or (before is not None and before.config != config_of(config)):
                self._kit.reader.sweep(project, config=config, held_out=policy.held_out)
            tasks = (
                asked.tasks | self._kit.lessons.tasks_of_annotations(project, asked.annotations)
                if asked.annotations
                else asked.tasks
            )
            if asked != read:
                self._kit.reader.read(project, tasks, config=config, held_out=policy.held_out)
            lessons, held = (
                self._kit.lessons.training_tasks(project, "teaches"),
                self._kit.lessons.training_tasks(project, "held_out"),
            )
            served = self._kit.bases.served(project)
        material = RunInput(project, asked, policy, config, served, lessons, held, started_at, watch)
        now = self._fingerprint(material)
        learner = self._kit.lessons.project(project)
        if learner is not None and learner.fingerprint == now and not asked.now:
            return None
        if material.labelled < policy.first:
            if served.learned and self._kit.lessons.withdrawn(project):
                self._withdraw(material)
            self._kit.lessons.update_project(project, fingerprint=now)
            raise NothingToLearn(material, too_few(material.labelled, policy.first))
        return material

    def _run(self, of: RunInput) -> Run:
        try:
            self._check_served_model(of)
            return self._fitted(of)
        except ModelError as error:
            log.warning("not_learned", project=of.project, reason=str(error))
            return self._finish(of, "failed", reason=str(error))

    def _check_served_model(self, of: RunInput) -> None:
        """Sees that the backend serves what this worker takes for served: a fit on another base would replace it.

        Raises:
            OtherModel: It serves something else.
        """
        if of.served.pointer or of.served.learned:
            return  # named by the store, which both read
        rows = self._kit.studio.ml_backends(of.project)
        told = [str(row["model_version"]) for row in rows if same_address(row["url"], self._kit.settings.ml_url)]
        if told and told[0] not in {"", "None", of.served.version}:
            raise OtherModel(told[0], of.served.version)

    def _fitted(self, of: RunInput) -> Run:
        backbone = self._kit.bases.backbone(of.served)
        examples, bad = self._examples(of, backbone)
        if not any(one.labels for one in examples):
            return self._finish(of, "failed", reason=f"there is no photo to learn from{_lost(bad)}")
        with of.watch.phase("fit"):
            known = known_classes(of.config, backbone.names, of.classes)
            learned = select_and_fit(examples, levels=backbone.levels, known=known)
        with of.watch.phase("judge"):
            verdict = self._judge.judge(of, backbone, learned)
            thresholds = {}
            if of.policy.thresholds:
                self._judge.ask(of, backbone)
                thresholds = self._judge.thresholds(of, backbone, learned)
        with of.watch.phase("publish"):
            version = self._publish(of, backbone, learned, verdict, thresholds)
        if not version:  # somebody else activated something meanwhile: what it was judged against is not served
            self._ask_again(of)
            return self._finish(of, "refused", verdict=verdict, reason="another version was activated meanwhile")
        if verdict.passed:
            with of.watch.phase("follow"):
                self._announce_version(of, version)
        name: VerdictName = "published" if verdict.passed else "refused"
        return self._finish(
            of, name, learned=learned, verdict=verdict, version=version, reason=verdict.reason + _lost(bad),
            thresholds=thresholds,
        )  # fmt: skip

    def _examples(self, of: RunInput, backbone: FrozenBackbone) -> tuple[list[Example], list[str]]:
        """The labelled photos with what is seen on them, and which could not be had, and why."""
        lessons = sample([(task, photo) for task, _, photos in of.lessons for photo in photos])
        known = self._kit.looks.seen(of.project, backbone.version, {task for task, _ in lessons})
        vectors: dict[int, Any] = {}
        examples: list[Example] = []
        bad: list[str] = []
        with of.watch.phase("photos", len(lessons)) as tell:
            for place, (task, lesson) in enumerate(lessons):
                if place % 10 == 9:
                    tell(place)
                try:
                    examples.append(self._kit.album.example(backbone, lesson, task=task))
                except MediaError as error:
                    log.warning("photo_not_learned_from", project=of.project, task=task, reason=str(error))
                    bad.append(f"task {task}, {error.reason}")
                    continue
                if task not in known and task not in vectors:
                    vectors[task] = photo_key([lesson.url]), photo_vector(examples[-1].sight)
            self._kit.looks.keep(of.project, backbone.version, vectors, annotated=True)
        return examples, bad

    def _publish(
        self,
        of: RunInput,
        backbone: FrozenBackbone,
        learned: FitResult,
        verdict: Verdict,
        thresholds: Mapping[str, float],
    ) -> str:
        metrics: dict[str, Any] = {
            "verdict": "published" if verdict.passed else "refused",
            "reason": verdict.reason,
            "judged_by": verdict.judged_by,
        }
        if verdict.ap50 is not None:
            metrics["ap50"] = round(verdict.ap50, 4)
        manifest = store_candidate(
            self._kit.bases.registry, backbone, learned.head, served=of.served, project=of.project,
            tasks=len(of.lessons), metrics=metrics, thresholds=thresholds,
        )  # fmt: skip
        if not verdict.passed:
            return manifest.version
        if self._kit.bases.served(of.project).version != of.served.version:
            return ""
        activate_in(self._kit.bases.registry.store, manifest.version, str(of.project))
        self._kit.examiner.rename(CANDIDATE, manifest.version)
        self._kit.lessons.published(of.project, {task: seen for task, seen, _ in of.lessons})
        return manifest.version

    def _withdraw(self, of: RunInput) -> Run:
        """What is served was learned from annotations that are gone, and too few are left: the base is served again."""
        activate_in(self._kit.bases.registry.store, of.served.pointer, str(of.project))
        self._kit.lessons.published(of.project, {})
        version = activation.served_version(self._kit.settings, self._kit.bases.registry.store, of.project)
        tell_version(self._kit, of.project, version)
        return self._finish(
            of, "withdrawn", version=version,
            reason=f"{of.labelled} labelled tasks are left, fewer than {of.policy.first}: the base is served again",
        )  # fmt: skip

    def _announce_version(self, of: RunInput, version: str) -> None:
        """Label Studio is told of a version once the next tasks have its pre-labels, which comes right after this run.

        It serves tasks in the order of the version that it names: named before it has one, they would come by chance,
        and whoever asks second may be told that nothing is left. Submits may come faster than an order can be made: a
        version is named after a while all the same.
        """
        learner = self._kit.lessons.project(of.project)
        since = learner.untold_since if learner is not None and learner.untold_since else time.time()
        if of.policy.prelabels and time.time() - since < LATEST_TOLD_S:
            self._kit.lessons.update_project(of.project, untold_since=since)
        else:
            tell_version(self._kit, of.project, version)

    def _ask_again(self, of: RunInput) -> None:
        self._kit.enqueue(now_hint(of.project, source="activation"))

    def _finish(
        self,
        of: RunInput,
        name: VerdictName,
        *,
        reason: str,
        learned: FitResult | None = None,
        verdict: Verdict | None = None,
        version: str = "",
        thresholds: Mapping[str, float] | None = None,
    ) -> Run:
        run = Run(
            project=of.project, asked_at=of.asked.asked_at, started_at=of.started_at, finished_at=time.time(),
            source=of.asked.source, tasks=len(of.lessons), held_out=len(of.held), boxes=sum(of.classes.values()),
            classes=of.classes, base=of.served.base, parent=of.served.version, version=version, verdict=name,
            judged_by=verdict.judged_by if verdict else "", reason=reason, ap50=verdict.ap50 if verdict else None,
            parent_ap50=verdict.parent_ap50 if verdict else None, tolerance=of.policy.tolerance,
            metrics=_metrics(learned, verdict, thresholds or {}), seconds=dict(of.watch.seconds),
        )  # fmt: skip
        self._kit.runs.add(run)
        self._kit.lessons.update_project(of.project, fingerprint=self._fingerprint(of))
        log.info("learned", project=of.project, verdict=name, version=version, reason=reason, seconds=run.seconds)
        if name != "failed":
            self._kit.enqueue(opinion_hint(of.project, since=run.finished_at), delay_s=CALM_S)
        if name in {"published", "withdrawn"}:
            self._kit.enqueue(queue_hint(of.project, source=name))
            make_room(self._kit.bases.registry.store, self._kit.bases.registry, of.project, keep=of.policy.keep)
        return run

    def _fingerprint(self, of: RunInput) -> str:
        return fingerprint(
            [(task, seen) for task, seen, _ in of.lessons], of.served.base, repr(sorted(of.config.controls))
        )


def _lost(bad: Sequence[str]) -> str:
    """Photos that could not be had, in words; the first of them by name."""
    if not bad:
        return ""
    more = f"; and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
    return f"; {len(bad)} photo{'s' if len(bad) > 1 else ''} could not be had ({'; '.join(bad[:TOLD])}{more})"


def _metrics(learned: FitResult | None, verdict: Verdict | None, thresholds: Mapping[str, float]) -> Metrics:
    scores: Mapping[Any, float] = learned.judged if learned else {}
    return Metrics(
        by_class={name: round(score, 4) for name, score in (verdict.by_class if verdict else {}).items()},
        parent_by_class={name: round(score, 4) for name, score in (verdict.parent_by_class if verdict else {}).items()},
        photos=verdict.photos if verdict else 0,
        boxes=verdict.boxes if verdict else 0,
        cross_validation={_named(choice): round(float(score), 4) for choice, score in scores.items()},
        choice=_named(learned.choice) if learned else "",
        thresholds=dict(thresholds),
    )


def _named(choice: Any) -> str:
    """A way to fit, in words."""
    return ", ".join(f"{name} {value}" for name, value in asdict(choice).items())
