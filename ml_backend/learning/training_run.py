"""Training runs: debounce, sync, train boxes and heads, evaluate, gate, publish, re-rank.

`Learner.learn` runs the steps for the pending events of one project. The events only say that something changed; the
training data is read from Label Studio.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event
from labelloop.service.media import MediaError
from labelloop.service.studio import StudioNotFound
from ml_backend.errors import ModelError
from ml_backend.heads import HEADS
from ml_backend.learning.annotations import config_hash_of
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import AcceptanceVerdict
from ml_backend.learning.evaluation.candidate import CANDIDATE, CandidateEvaluator, CandidateResults
from ml_backend.learning.evaluator import known_classes
from ml_backend.learning.events import LEARN, TrainingRequest, label_error_event, queue_event, train_now_event
from ml_backend.learning.head_training import HeadOutcome, HeadTrainer
from ml_backend.learning.label_errors import QUIET_S
from ml_backend.learning.publish import (
    ANNOUNCE_AFTER_S,
    VersionParts,
    announce_version,
    remove_old_versions,
    store_candidate,
)
from ml_backend.learning.store.annotations import fingerprint
from ml_backend.learning.store.runs import RunMetrics, TrainingRun, VerdictName
from ml_backend.learning.store.tasks import image_key_of
from ml_backend.learning.training_set import RunInput, Stopwatch, sample_images
from ml_backend.policy import LearningPolicy, read_learning_policy, too_few_labelled
from ml_backend.predict.control_support import NotServed, controls_of, learnable
from ml_backend.serving import activation
from ml_backend.serving.active_versions import set_active
from ml_backend.studio.connect import is_same_url
from ml_backend.training.acquisition import image_vector
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.model_selection import FitResult
from ml_backend.training.tiles import Part, fit_on_best_view

# Longest debounce in seconds, for a burst of submits that does not end.
MAX_DEBOUNCE_S = 10.0

# With at least BURST pending submits, the debounce interval is multiplied by BURST_FACTOR.
BURST, BURST_FACTOR = 3, 4

# Most images that could not be loaded that a run names.
MAX_NAMED = 3

# Why heads are refused with the boxes: a version has one model.
OTHER_BASE = "the served boxes were learned on another base model, and those of this one did not pass"

log = structlog.get_logger(__name__)


class NothingToLearn(LabelloopError):
    """A project has no training data for a version; the message says why."""

    code = "nothing_to_learn"
    status = 409
    inputs: "RunInput"


class Learner:
    """Runs training for projects, one run of a project at a time (the inbox serialises them)."""

    def __init__(self, context: LearningContext) -> None:
        """Open nothing yet."""
        self._context = context
        self._evaluator = CandidateEvaluator(context)
        self._heads = HeadTrainer(context)

    def learn(self, project: int, events: Sequence[Event]) -> TrainingRun | None:
        """Run the steps for events of a project: debounce, sync, train, evaluate, gate, publish, re-rank.

        Returns:
            The recorded run; None if there was nothing to train.

        Raises:
            StudioError, StoreError: Label Studio or the store cannot be reached; a retry may help.
            LearningPolicyError: The project's learn.toml cannot be used.
        """
        policy = read_learning_policy(self._context.settings.home, project)
        new = self._context.training_data.connect(project)
        if not policy.learn:
            return None
        stopwatch = Stopwatch(
            lambda name, done, total: self._context.training_data.set_phase(project, name, done, total)
        )
        try:
            request = TrainingRequest.of(events)
            with stopwatch.phase("wait"):
                read = self._read_ahead(project, request, policy) if policy.debounce_s and not new else None
                request = self._debounce(project, request, policy.debounce_s)
            inputs = self._sync(project, request, policy, stopwatch, sweep=new or request.sweep, read=read)
            return self._run(inputs) if inputs is not None else None
        except NothingToLearn as error:
            return (
                self._record(error.inputs, "failed", reason=error.message) if error.inputs.request.immediate else None
            )
        except StudioNotFound:
            if not self._context.forget_if_deleted(project):
                raise
            return None
        finally:
            self._context.training_data.set_phase(project, "")

    def refit_upon(self, project: int, version: str) -> TrainingRun | None:
        """Train upon a new base that is not served yet: if the result passes, it is served at once, in one step.

        Args:
            project: The project.
            version: The base, which passed the gate.

        Returns:
            The recorded run; None if there was nothing to train.

        Raises:
            StudioError, StoreError: Label Studio or the store cannot be reached.
        """
        policy, now = read_learning_policy(self._context.settings.home, project), time.time()
        stopwatch = Stopwatch(
            lambda name, done, total: self._context.training_data.set_phase(project, name, done, total)
        )
        request = TrainingRequest(frozenset(), frozenset(), False, True, "activation", asked_at=now, newest_at=now)
        try:
            inputs = self._sync(project, request, policy, stopwatch, sweep=False, read=None, upon=version)
            return self._run(inputs) if inputs is not None else None
        except NothingToLearn:
            return None
        finally:
            self._context.training_data.set_phase(project, "")

    def _run(self, inputs: RunInput) -> TrainingRun:
        """Run the steps from training on; a model error is recorded as a failed run."""
        try:
            return self._run_steps(inputs)
        except ModelError as error:
            log.warning("not_learned", project=inputs.project, reason=str(error))
            return self._record(inputs, "failed", reason=str(error))

    def _run_steps(self, inputs: RunInput) -> TrainingRun:
        self._check_served_model(inputs)
        backbone = self._context.base_models.backbone(inputs.served)
        learned, failures = self._train(inputs, backbone)
        outcome = _Outcome()
        if learned is not None:
            with inputs.stopwatch.phase("judge"):
                results = self._evaluate(inputs, backbone, learned)
                verdict = self._gate(inputs, backbone, learned, results)
                outcome = _Outcome(learned, verdict, self._thresholds(inputs, backbone, learned))
        with inputs.stopwatch.phase("heads"):
            heads = self._heads.fit(inputs, backbone, names=self._names(inputs, backbone, outcome))
            if outcome.verdict is not None and not outcome.boxes_passed:
                heads = heads if self._context.base_models.has_base(inputs.served) else heads.refused(OTHER_BASE)
            outcome = replace(outcome, heads=heads)
        if learned is None and not heads.results and not heads.changed:
            why = "" if backbone.levels or not inputs.classes else f"boxes cannot be trained: {backbone.no_boxes}"
            reason = f"{why or 'there is no image to train on'}{_failure_summary(failures)}"
            return self._record(inputs, "failed", reason=reason)
        version = self._publish(inputs, backbone, outcome)
        if version is None:
            self._context.enqueue(train_now_event(inputs.project, source="activation"))
            reason = "another version was activated meanwhile"
            return self._record(inputs, "refused", outcome=outcome, reason=reason)
        run = self._record(
            inputs, "published" if outcome.passed else "refused", outcome=outcome, version=version,
            reason=outcome.reason + _failure_summary(failures),
        )  # fmt: skip
        if outcome.passed:
            self._rerank(inputs, "published")
        return run

    def _names(self, inputs: RunInput, backbone: FrozenBackbone, outcome: "_Outcome") -> tuple[str, ...]:
        """Return the class names of the version that heads are fitted for."""
        if outcome.learned is not None and outcome.boxes_passed:
            return outcome.learned.head.names
        if inputs.served.learned:
            return self._context.base_models.registry.manifest(inputs.served.version).classes
        return backbone.names

    def _debounce(self, project: int, request: TrainingRequest, quiet_s: float) -> TrainingRequest:
        """Debounce (step 1): wait until no event came for `quiet_s` seconds, so that a burst of submits is one run.

        A burst waits `BURST_FACTOR` times as long. Events that came meanwhile are included in the returned request and
        stay in the inbox: when they are handled, nothing has changed, which costs one request.
        """
        deadline = time.monotonic() + MAX_DEBOUNCE_S
        while not request.immediate:
            events = self._context.inbox.unfinished_events(LEARN, str(project))
            request = TrainingRequest.of(events) if events else request
            pause_s = quiet_s * (1 if len(events) < BURST else BURST_FACTOR)
            left = min(request.newest_at + pause_s - time.time(), deadline - time.monotonic(), pause_s)
            if left <= 0:
                break
            time.sleep(max(left, 0.01))
        return request

    def _sync(
        self,
        project: int,
        request: TrainingRequest,
        policy: LearningPolicy,
        stopwatch: Stopwatch,
        *,
        sweep: bool,
        read: TrainingRequest | None,
        upon: str = "",
    ) -> RunInput | None:
        """Sync (step 2): update the training data from Label Studio, and collect the inputs of the run.

        Args:
            project: The project.
            request: The coalesced events.
            policy: The project's learning policy.
            stopwatch: Measures the phases of the run.
            sweep: Whether to compare the whole project.
            read: The request whose tasks were read while waiting; None if none were.
            upon: The base to train upon; empty: that of the served version.

        Returns:
            None if the training data is that of the last run.

        Raises:
            NothingToLearn: No control can be trained, or too few tasks are labelled.
        """
        started_at = time.time()
        stopwatch.seconds["wait"] = round(started_at - request.asked_at, 3)
        with stopwatch.phase("read"):
            config = self._context.studio.label_config(project)
            if not learnable(config):
                self._context.training_data.update_project(project, swept_at=time.time(), config=config_hash_of(config))
                served = self._context.base_models.served(project)
                inputs = RunInput(project, request, policy, config, served, [], [], started_at, stopwatch)
                raise NothingToLearn(NotServed(project, "learned from", controls_of(config)).message, inputs=inputs)
            before = self._context.training_data.project(project)
            if sweep or (before is not None and before.config != config_hash_of(config)):
                self._context.sync.sweep(project, config=config, held_out=policy.held_out)
            tasks = (
                request.tasks | self._context.training_data.tasks_of_annotations(project, request.annotations)
                if request.annotations
                else request.tasks
            )
            if request != read:
                self._context.sync.read(project, tasks, config=config, held_out=policy.held_out)
            training, held_out = (
                self._context.training_data.training_tasks(project, "teaches"),
                self._context.training_data.training_tasks(project, "held_out"),
            )
            served = self._context.base_models.served(project)
            replaces = served.version
            if upon:
                served = self._context.base_models.base(upon)
        inputs = RunInput(project, request, policy, config, served, training, held_out, started_at, stopwatch, replaces)
        current = self._fingerprint(inputs)
        state = self._context.training_data.project(project)
        if state is not None and state.fingerprint == current and not request.immediate:
            return None
        if inputs.labelled < policy.first:
            if served.learned and self._context.training_data.count_withdrawn(project):
                self._withdraw(inputs)
            self._context.training_data.update_project(project, fingerprint=current)
            raise NothingToLearn(too_few_labelled(inputs.labelled, policy.first), inputs=inputs)
        return inputs

    def _train(self, inputs: RunInput, backbone: FrozenBackbone) -> tuple[FitResult | None, list[str]]:
        """Train (step 3): fit a candidate head on the labelled images, selected by cross-validation.

        Returns:
            (the candidate, None without any box or where boxes cannot be trained; the images that could not be loaded,
            as text).
        """
        examples, places, failures = self._examples(inputs, backbone)
        if not backbone.levels or not any(example.labels for example in examples):
            return None, failures
        with inputs.stopwatch.phase("fit"):
            classes = known_classes(inputs.config, backbone.names, inputs.classes)
            tiles = partial(self._tile_features, backbone, places)
            return fit_on_best_view(
                examples,
                tiles,
                spec=backbone.spec,
                levels=backbone.levels,
                backbone_classes=classes,
            ), failures

    def _tile_features(
        self, backbone: FrozenBackbone, places: Sequence[tuple[int, str]], index: int, parts: Sequence[Part]
    ) -> Sequence[CandidateFeatures]:
        """Return the features of parts of a training image, of (task, URL)."""
        task, url = places[index]
        try:
            return self._context.features.tile_features(backbone, url, parts, task=task)
        except MediaError as error:  # its features as a whole are cached
            log.warning("photo_not_learned_from", task=task, reason=str(error))
            return ()

    def _evaluate(self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult) -> CandidateResults:
        """Evaluate (step 4): run the candidate and the models it is compared with on labelled images."""
        return self._evaluator.evaluate(inputs, backbone, learned)

    def _gate(
        self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult, results: CandidateResults
    ) -> AcceptanceVerdict:
        """Gate (step 5): decide whether the candidate may replace the served version."""
        return self._evaluator.gate(inputs, backbone, learned, results)

    def _publish(self, inputs: RunInput, backbone: FrozenBackbone, outcome: "_Outcome") -> str | None:
        """Publish (step 6): store what passed as a version, activate it and announce it to Label Studio.

        Boxes and heads that did not pass stay those of the served version. Refused boxes are stored for inspection.

        Returns:
            The version, empty if nothing is stored; None if another version was activated meanwhile, because the
            verdict does not apply then.
        """
        learned = outcome.learned
        if not outcome.passed and learned is None:
            return ""
        with inputs.stopwatch.phase("publish"):
            metrics: dict[str, Any] = {
                "verdict": "published" if outcome.passed else "refused",
                "reason": outcome.reason,
                "judged_by": outcome.judged_by,
            }
            if outcome.verdict is not None and outcome.verdict.ap50 is not None and not outcome.boxes_kept:
                metrics["ap50"] = round(outcome.verdict.ap50, 4)
            if outcome.heads.results:
                metrics["heads"] = msgspec.to_builtins(outcome.heads.metrics)
            manifest = store_candidate(
                self._context.base_models,
                backbone,
                VersionParts(
                    head=None if learned is None or outcome.boxes_kept else learned.head,
                    heads=outcome.heads.next,
                    thresholds=self._context.base_models.thresholds(inputs.served.version)
                    if learned is None or outcome.boxes_kept
                    else outcome.thresholds,
                    drawn=any(photo.labels for _, _, photos in inputs.training for photo in photos),
                ),
                served=inputs.served,
                project=inputs.project,
                tasks=len(inputs.training),
                metrics=metrics,
            )
            if not outcome.passed:
                return manifest.version
            if self._context.base_models.served(inputs.project).version != inputs.replaces:
                return None
            set_active(self._context.base_models.registry.store, manifest.version, str(inputs.project))
            if outcome.boxes_passed:
                self._context.evaluator.rename(CANDIDATE, manifest.version)
            else:
                self._context.evaluator.share(inputs.served.version, to=manifest.version)
            published = {task: checksum for task, checksum, _ in inputs.training}
            self._context.training_data.mark_published(inputs.project, published)
        with inputs.stopwatch.phase("follow"):
            self._announce_version(inputs, manifest.version)
        return manifest.version

    def _rerank(self, inputs: RunInput, source: str) -> None:
        """Re-rank (step 7): enqueue pre-labelling and ranking of open tasks, and delete old versions."""
        self._context.enqueue(queue_event(inputs.project, source=source))
        registry = self._context.base_models.registry
        remove_old_versions(registry.store, registry, inputs.project, keep=inputs.policy.keep)

    def _read_ahead(self, project: int, request: TrainingRequest, policy: LearningPolicy) -> TrainingRequest | None:
        """Read the tasks of a small request and compute their features while waiting; returns the request if read."""
        if request.sweep or request.immediate or request.annotations or len(request.tasks) > BURST:
            return None
        config = self._context.studio.label_config(project)
        self._context.sync.read(project, request.tasks, config=config, held_out=policy.held_out)
        with contextlib.suppress(ModelError, MediaError):  # the run meets and reports them again
            backbone = self._context.base_models.backbone(self._context.base_models.served(project))
            for task, _, photos in self._context.training_data.training_tasks(project, only=request.tasks):
                for photo in photos:
                    self._context.features.features(backbone, photo.url, task=task)
        return request

    def _check_served_model(self, inputs: RunInput) -> None:
        """Check that the backend serves the same base as this worker; otherwise training would replace it.

        Raises:
            ModelError: The backend serves another version.
        """
        if inputs.served.pointer or inputs.served.learned:
            return  # the store names it, and both read the store
        rows = self._context.studio.ml_backends(inputs.project)
        served_versions = [
            str(row["model_version"]) for row in rows if is_same_url(row["url"], self._context.settings.ml_url)
        ]
        if served_versions and served_versions[0] not in {"", "None", inputs.served.version}:
            raise ModelError(
                f"The ML backend serves {served_versions[0]}, but the worker would train on {inputs.served.version}.",
                fix="Give both the same LABELLOOP_MODEL, or put the model on the store: "
                "`labelloop models add MODEL.onnx --activate`.",
                code="other_model",
            )

    def _examples(
        self, inputs: RunInput, backbone: FrozenBackbone
    ) -> tuple[list[Example], list[tuple[int, str]], list[str]]:
        """Return the training images with their features, (task, URL) of each, and those that could not be loaded.

        Where no boxes can be trained, only images without a vector are loaded, and none is returned.
        """
        images = sample_images([(task, photo) for task, _, photos in inputs.training for photo in photos])
        embedded = self._context.image_vectors.with_vectors(
            inputs.project, backbone.version, {task for task, _ in images}
        )
        trains_boxes = bool(backbone.levels and inputs.classes)
        if not trains_boxes:
            images = [(task, image) for task, image in images if task not in embedded]
        vectors: dict[int, Any] = {}
        examples: list[Example] = []
        places: list[tuple[int, str]] = []
        failures: list[str] = []
        with inputs.stopwatch.phase("photos", len(images)) as progress:
            for index, (task, image) in enumerate(images):
                if index % 10 == 9:
                    progress(index)
                try:
                    examples.append(self._context.features.example(backbone, image, task=task))
                    places.append((task, image.url))
                except MediaError as error:
                    log.warning("photo_not_learned_from", project=inputs.project, task=task, reason=str(error))
                    failures.append(f"task {task}, {error.reason}")
                    continue
                if task not in embedded and task not in vectors:
                    vectors[task] = image_key_of([image.url]), image_vector(examples[-1].candidates)
            self._context.image_vectors.save_vectors(inputs.project, backbone.version, vectors, annotated=True)
        return examples if trains_boxes else [], places, failures

    def _thresholds(self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult) -> dict[str, float]:
        """Return the score thresholds of the candidate; empty if the policy turns them off."""
        if not inputs.policy.thresholds:
            return {}
        self._evaluator.record_predictions(inputs, backbone)
        return self._evaluator.thresholds(inputs, backbone, learned)

    def _withdraw(self, inputs: RunInput) -> TrainingRun:
        """Serve the base again: the served version was trained on deleted annotations, and too few are left."""
        set_active(self._context.base_models.registry.store, inputs.served.pointer, str(inputs.project))
        self._context.training_data.mark_published(inputs.project, {})
        version = activation.served_version(
            self._context.settings, self._context.base_models.registry.store, inputs.project
        )
        announce_version(self._context, inputs.project, version)
        run = self._record(
            inputs,
            "withdrawn",
            version=version,
            reason=(
                f"{inputs.labelled} labelled tasks are left, fewer than {inputs.policy.first}: the base is served again"
            ),
        )
        self._rerank(inputs, "withdrawn")
        return run

    def _announce_version(self, inputs: RunInput, version: str) -> None:
        """Set the version in Label Studio, or defer that until the next tasks have its pre-labels.

        Label Studio serves tasks in the order of the version's predictions. Without any, the order would be random, and
        a second annotator might get no task. If submits arrive faster than a ranking completes, the version is
        announced after `ANNOUNCE_AFTER_S` seconds anyway.
        """
        state = self._context.training_data.project(inputs.project)
        since = state.untold_since if state is not None and state.untold_since else time.time()
        if inputs.policy.prelabels and time.time() - since < ANNOUNCE_AFTER_S:
            self._context.training_data.update_project(inputs.project, untold_since=since)
        else:
            announce_version(self._context, inputs.project, version)

    def _record(
        self,
        inputs: RunInput,
        name: VerdictName,
        *,
        reason: str,
        outcome: "_Outcome | None" = None,
        version: str = "",
    ) -> TrainingRun:
        """Store the run and the fingerprint of its training data, log it, and enqueue the label review."""
        outcome = outcome or _Outcome()
        verdict = outcome.verdict
        run = TrainingRun(
            project=inputs.project,
            asked_at=inputs.request.asked_at,
            started_at=inputs.started_at,
            finished_at=time.time(),
            source=inputs.request.source,
            tasks=len(inputs.training),
            held_out=len(inputs.held_out),
            boxes=sum(inputs.classes.values()),
            classes=inputs.classes,
            base=inputs.served.base,
            parent=inputs.served.version,
            version=version,
            verdict=name,
            judged_by=outcome.judged_by,
            reason=reason,
            ap50=verdict.ap50 if verdict and not outcome.boxes_kept else None,
            parent_ap50=verdict.parent_ap50 if verdict and not outcome.boxes_kept else None,
            tolerance=inputs.policy.tolerance,
            metrics=_metrics(outcome),
            seconds=dict(inputs.stopwatch.seconds),
        )
        self._context.runs.add(run)
        self._context.training_data.update_project(inputs.project, fingerprint=self._fingerprint(inputs))
        log.info("learned", project=inputs.project, verdict=name, version=version, reason=reason, seconds=run.seconds)
        if name != "failed":
            self._context.enqueue(label_error_event(inputs.project, since=run.finished_at), delay_s=QUIET_S)
        return run

    def _fingerprint(self, inputs: RunInput) -> str:
        return fingerprint(
            [(task, checksum) for task, checksum, _ in inputs.training],
            inputs.served.base,
            repr((sorted(inputs.config.controls), sorted(HEADS))),
        )


@dataclass(frozen=True)
class _Outcome:
    """What a training run learned: boxes with their verdict and thresholds, and heads with theirs."""

    learned: FitResult | None = None
    verdict: AcceptanceVerdict | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    heads: HeadOutcome = field(default_factory=HeadOutcome)

    @property
    def boxes_passed(self) -> bool:
        """Whether the learned boxes may be served."""
        return self.verdict is not None and self.verdict.passed

    @property
    def passed(self) -> bool:
        """Whether anything of the candidate may be served."""
        return self.boxes_passed or self.heads.changed

    @property
    def boxes_kept(self) -> bool:
        """Whether a version is published that has the boxes of its parent."""
        return self.passed and not self.boxes_passed

    @property
    def judged_by(self) -> str:
        """The data that decided on the boxes, else on the heads."""
        if self.verdict is not None:
            return self.verdict.judged_by
        return next((result.judged_by for result in self.heads.results.values()), "")

    @property
    def reason(self) -> str:
        """The reasons of all verdicts, in words."""
        boxes = [] if self.verdict is None else [self.verdict.reason]
        if self.verdict is not None and self.boxes_kept:
            boxes = [f"the boxes stay those of the served version: {self.verdict.reason}"]
        return "; ".join([*boxes, *self.heads.reasons])


def _failure_summary(failures: Sequence[str]) -> str:
    """Return the number of images that could not be loaded, with the first of them, as text."""
    if not failures:
        return ""
    more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
    count = "1 image" if len(failures) == 1 else f"{len(failures)} images"
    return f"; {count} could not be loaded ({'; '.join(failures[:MAX_NAMED])}{more})"


def _metrics(outcome: _Outcome) -> RunMetrics:
    learned, verdict = outcome.learned, outcome.verdict
    scores: Mapping[Any, float] = learned.scores if learned else {}
    return RunMetrics(
        by_class={name: round(score, 4) for name, score in (verdict.by_class if verdict else {}).items()},
        parent_by_class={name: round(score, 4) for name, score in (verdict.parent_by_class if verdict else {}).items()},
        photos=verdict.photos if verdict else 0,
        boxes=verdict.boxes if verdict else 0,
        cross_validation={choice.name: round(float(score), 4) for choice, score in scores.items()},
        choice=learned.choice.name if learned else "",
        tiling=learned.tiling if learned else "",
        thresholds=dict(outcome.thresholds),
        heads=outcome.heads.metrics,
        boxes_kept=outcome.boxes_kept,
    )
