"""The ML backend's web app: the endpoints that Label Studio calls or reserves."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from cachetools import LRUCache
from flask import Flask, Response, request

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.errors import Busy
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.studio import Studio
from labelloop.service.web.app import create_web_app, metrics_of
from labelloop.service.web.request_body import client_disconnected, json_body
from labelloop.service.web.webhook_secret import WebhookSecrets
from ml_backend.errors import ModelError
from ml_backend.inference.detector import Detector
from ml_backend.learning.events import ACTIONS, project_of
from ml_backend.learning.service import LearningService
from ml_backend.malloc import return_freed_memory
from ml_backend.predict.control_notes import notes_of
from ml_backend.predict.control_support import NO_CONTROL, ModelOutputs, controls_of, reasons, why_not_learnable
from ml_backend.predict.label_mapping import MappingReport, Target, find_targets, mapping_report, unknown_thresholds
from ml_backend.predict.predictor import ImageSource, Predictor
from ml_backend.predict.protocol import (
    PredictRequest,
    ProjectOptions,
    SetupRequest,
    TaskPrediction,
    check_controls,
    read_config,
    read_message,
    read_options,
    with_thresholds,
)
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.segmentation.pixel_head import PixelHead
from ml_backend.server.concurrency_limit import ConcurrencyLimiter
from ml_backend.server.pages import MAX_ID_DIGITS, Pages
from ml_backend.server.project_options import ProjectOptionsStore
from ml_backend.server.readiness import ready_checks
from ml_backend.server.trainer_endpoints import TrainerEndpoints
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry
from ml_backend.smart import SmartTools

log = structlog.get_logger(__name__)

# Prefix of a training job's id; the project id follows.
JOB_PREFIX = "learn-"


# Seconds that a request waits for decode memory before it is answered with 503.
DECODE_WAIT_S = 30.0


def create_app(settings: Settings | None = None, *, photos: ImageSource | None = None) -> Flask:
    """Create the ML backend's Flask app.

    Args:
        settings: Read from the environment where None.
        photos: Image source; default: `Media`, which loads the URLs of the tasks.
    """
    settings = settings or Settings()
    setup_logging(settings)
    return_freed_memory()
    serving = ModelServer.from_settings(settings)
    serving.start()
    if photos is None:
        studio = Studio.from_settings(settings) if settings.label_studio_api_key else None
        photos = Media(settings, studio, decode_wait_s=DECODE_WAIT_S)
    app = create_web_app(
        "ml_backend", settings, ready=ready_checks(settings, serving), open_paths=("/health", "/health/")
    )
    learning = LearningService(settings)
    _Endpoints(app, settings, serving, photos, learning).add()
    TrainerEndpoints(settings, learning, photos).add(app)
    return app


class _Endpoints:
    """The views, with the state that one worker shares between requests."""

    def __init__(
        self, app: Flask, settings: Settings, serving: ModelServer, photos: ImageSource, learning: LearningService
    ) -> None:
        metrics = metrics_of(app)
        self._app = app
        self._settings = settings
        self._serving = serving
        self._registry = Registry(open_store(settings.store_url, settings))
        self._projects = ProjectOptionsStore.of(settings)
        self._tasks = metrics.counter("ml_tasks", "Tasks that a prediction was asked for.", ("kind",))
        self._regions = metrics.counter("ml_regions", "Results predicted.")
        self._skipped = metrics.counter("ml_photos_skipped", "Images that could not be used, by reason.", ("reason",))
        segmenter = BoxSegmenter(settings)  # one for pre-labels and smart tools
        self._predictor = Predictor(
            photos,
            score_threshold=settings.score_threshold,
            on_skipped=lambda code: self._skipped.labels(code).inc(),
            segmenter=segmenter,
        )
        self._smart = SmartTools(photos, segmenter=segmenter)
        self._secrets = WebhookSecrets(settings)
        self._learning = learning
        self._pages = Pages(settings, self._learning, serving, self._projects)
        self._received = metrics.counter("ml_events", "Webhook events received, by action.", ("action",))
        # Separate limits, so that a large batch does not delay an interactive request.
        self._limiter, self._smart_limiter = (
            ConcurrencyLimiter(settings.web_threads),
            ConcurrencyLimiter(settings.web_threads),
        )
        self._targets = _LruCache()
        self._reported = _LruCache()

    def add(self) -> None:
        """Register every view."""
        views: Mapping[tuple[str, str], Callable[..., Response]] = {
            ("GET", "/"): self._pages.front,
            ("GET", "/health/"): self.health,
            ("POST", "/setup"): self.setup,
            ("POST", "/predict"): self.predict,
            ("POST", "/webhook"): self.webhook,
            ("GET", "/versions"): self.versions,
            ("POST", "/job_status"): self.job_status,
            ("GET", "/projects/<int:project>/learning"): self._pages.learning,
            ("POST", "/validate"): self.validate,
            ("POST", "/train"): self.train,
            ("POST", "/delete"): self.delete,
            ("POST", "/duplicate_model"): self.duplicate_model,
        }
        for (method, path), view in views.items():
            self._app.add_url_rule(path, endpoint=path.strip("/") + ".ls", view_func=view, methods=[method])

    def health(self) -> Response:
        """The same as `/health`, with a trailing slash."""
        return _json({"status": "UP", "service": "ml_backend"})

    def setup(self) -> Response:
        """Return the model version and the support of each control. Mismatches are logged once per label config."""
        setup = read_message(json_body(request), SetupRequest)
        options = read_options(setup.extra_params)
        config = read_config(setup.schema)
        check_controls(config, options)
        version = self._serving.version(setup.project)
        self._projects.save(setup.project, options)
        self._projects.save_config(setup.project, setup.schema)
        self._report(setup, config, options)
        self._learning.open_in_background()  # opening takes a while; nothing in this response needs it
        detector = self._serving.loaded(setup.project)
        outputs = ModelOutputs.of(detector) if detector else None
        supported = controls_of(config, outputs, options=options.controls)
        unserved = [reason for reason in [self._serving.unserved(setup.project)] if reason]
        return _json(
            {
                "model_version": version,
                "controls": supported,
                "notes": [*unserved, *notes_of(config, supported, outputs)],
            }
        )

    def predict(self) -> Response:
        """Predict tasks, one entry per task; an interactive request goes to the smart tools."""
        predict_request = read_message(json_body(request), PredictRequest)
        if predict_request.interactive:
            self._tasks.labels("interactive").inc(len(predict_request.tasks))
            config, context = read_config(predict_request.label_config), (predict_request.params or {})["context"]
            head = self._mask_head(predict_request.project)
            answers = [self._answer_prompt(task, config, context, head) for task in predict_request.tasks]
            return _json({"results": answers})
        with self._limiter.acquire() as waited_s:
            served = self._serving.served(predict_request.project)
            detector, options = served.detector, self._projects.options(predict_request.project)
            entries = self._predictor.predict(
                predict_request.tasks,
                detector=detector,
                targets=self._find_targets(predict_request.label_config, detector, options),
                options=with_thresholds(options, served.thresholds),
                waited_s=waited_s,
                abandoned=client_disconnected(request),
                no_target_reason=lambda: self._unserved(predict_request.label_config, detector, options),
            )
        self._tasks.labels("batch").inc(len(predict_request.tasks))
        self._regions.inc(sum(len(entry.result) for entry in entries if isinstance(entry, TaskPrediction)))
        return _json({"results": entries})

    def _mask_head(self, project: str | int | None) -> PixelHead | None:
        """The last layer of the segmenter that a project learned; None where there is none, or it is being loaded."""
        try:
            learned: Any = self._serving.served(project, wait_s=0).heads.get("masks")
        except ModelError:
            return None
        head: PixelHead | None = learned
        return head

    def _answer_prompt(
        self, task: dict[str, Any], config: LabelConfig, context: Any, head: PixelHead | None
    ) -> TaskPrediction:
        """The smart tools' answer; if too many prompts wait, the shape as drawn, with a note."""
        try:
            with self._smart_limiter.acquire():
                return self._smart.answer(task, config, context, head=head)
        except Busy as error:
            return self._smart.answer(task, config, context, busy=error.message)

    def webhook(self) -> Response:
        """Store the project's events, "Start training" too, for the training worker; responds at once."""
        body = json_body(request)
        action = str(body.get("action", ""))
        # Label Studio sends START_TRAINING with Basic auth or none: it cannot send a custom header.
        if not self._settings.basic_auth_user and action != "START_TRAINING":
            self._secrets.check(request)
        self._received.labels(action if action in ACTIONS else "other").inc()
        if action == "START_TRAINING":
            return self._train(body)
        stored, new = self._learning.enqueue(body)
        return _json({"status": "ok" if stored else "ignored", "action": action, "events": stored, "new": new})

    def versions(self) -> Response:
        """List the available versions: the served one first, then those in the store, newest first.

        `?project=` selects the project; Label Studio sends none. `stored=no` lists the served version only.
        """
        served = self._serving.version(request.args.get("project"))
        if request.args.get("stored") == "no":
            return _json({"versions": [served]})
        try:
            stored = [manifest.version for manifest in reversed(self._registry.versions())]
        except StoreError as error:
            log.warning("versions_unknown", reason=str(error))
            stored = []
        return _json({"versions": list(dict.fromkeys([served, *stored]))})

    def job_status(self) -> Response:
        """Return the training state of a project: the current step and the result of the last run."""
        job = str(json_body(request).get("job", ""))
        number = job.removeprefix(JOB_PREFIX)
        if not job.startswith(JOB_PREFIX) or not number.isdecimal() or len(number) > MAX_ID_DIGITS:
            reason = f"there is no job {job[:100]!r}; jobs are called {JOB_PREFIX} and the project's number"
            return _json({"job": job, "job_status": "removed", "reason": reason}, status=410)
        state = self._learning.state(int(number))
        return _json({"job": job, **msgspec.to_builtins(state)})

    def validate(self) -> Response:
        """Check a label config against the served model."""
        validation = read_message(json_body(request), _ValidateRequest)
        config, detector = read_config(validation.config), self._serving.detector(project=validation.project)
        options = self._projects.options(validation.project)
        report = _report_of(config, detector, options)
        supported = controls_of(config, ModelOutputs.of(detector), options=options.controls)
        mapping = {"matched": dict(report.matched), "problems": [*report.lines(), *reasons(supported)]}
        return _json({"status": "ok", **mapping, "controls": supported})

    def train(self) -> Response:
        """The legacy endpoint of "Start training"."""
        return self._train({**json_body(request), "action": "START_TRAINING"})

    def _train(self, body: dict[str, Any]) -> Response:
        """Request a training run; Label Studio may poll the job's status later."""
        project = project_of(body)
        if not self._learning.learns(project):
            return self._no_training(f"Project {project} does not learn: its learn.toml says so.")
        if reason := why_not_learnable(project, self._projects.config(project)):
            return self._no_training(reason)
        self._learning.enqueue(body)
        return _json({"status": "ok", "action": "START_TRAINING", "job": f"{JOB_PREFIX}{project}"})

    def _no_training(self, reason: str) -> Response:
        return _json({"status": "ignored", "action": "START_TRAINING", "reason": reason})

    def delete(self) -> Response:
        """Delete the stored options of a project."""
        self._projects.delete(read_message(json_body(request), SetupRequest).project)
        return _json({"status": "ok"})

    def duplicate_model(self) -> Response:
        """Copy the options of a project to its duplicate."""
        duplication = read_message(json_body(request), _DuplicateRequest)
        self._projects.save(duplication.project_dst, self._projects.options(duplication.project_src))
        return _json({"status": "ok"})

    def _unserved(self, xml: str | None, detector: Detector, options: ProjectOptions) -> str:
        """Why no control of a project takes the model's output."""
        supported = controls_of(read_config(xml), ModelOutputs.of(detector), options=options.controls)
        return " ".join(reasons(supported)) or NO_CONTROL

    def _find_targets(self, xml: str | None, detector: Detector, options: ProjectOptions) -> tuple[Target, ...]:
        key = detector.version, xml, tuple(sorted(options.controls.items()))
        targets: tuple[Target, ...] = self._targets.get(key)
        if targets is None:
            names = detector.names.names
            targets = find_targets(
                read_config(xml),
                names,
                provides=detector.provides,
                keypoint_names=detector.keypoint_names,
                controls=options.controls,
                answers=detector.answers,
            )
            self._targets.put(key, targets)
        return targets

    def _report(self, setup: SetupRequest, config: LabelConfig, options: ProjectOptions) -> None:
        detector = self._serving.loaded(setup.project)
        if detector is None:
            return
        key = (
            detector.version,
            setup.project,
            setup.schema,
            *sorted(options.score_thresholds),
            *sorted(options.controls.items()),
        )
        if self._reported.get(key):
            return
        self._reported.put(key, value=True)
        supported = controls_of(config, ModelOutputs.of(detector), options=options.controls)
        lines = [*_report_of(config, detector, options).lines(), *reasons(supported)]
        targets = self._find_targets(setup.schema, detector, options)
        if unknown := unknown_thresholds(targets, detector.names.names, options.score_thresholds):
            lines.append(f"score_thresholds contains names that are neither a class nor a label: {', '.join(unknown)}.")
        for line in lines:
            log.warning("labels_and_classes", project=setup.project, model_version=detector.version, note=line)


class _ValidateRequest(msgspec.Struct, frozen=True):
    config: str | None = None
    project: str | int | None = None


class _DuplicateRequest(msgspec.Struct, frozen=True):
    project_src: str | int
    project_dst: str | int


class _LruCache:
    """A thread-safe LRU cache."""

    def __init__(self) -> None:
        self._values: LRUCache[Any, Any] = LRUCache(256)
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._lock:  # a read reorders the keys
            return self._values.get(key)

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._values[key] = value


def _report_of(config: LabelConfig, detector: Detector, options: ProjectOptions) -> MappingReport:
    return mapping_report(
        config,
        detector.names.names,
        provides=detector.provides,
        keypoint_names=detector.keypoint_names,
        controls=options.controls,
    )


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")
