"""Owns the ML backend's web app: every endpoint that Label Studio calls or reserves, and nothing behind them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from flask import Flask, Response, request

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.studio import Studio
from labelloop.service.web.app import client_left, create_web, json_body, metrics_of
from labelloop.service.web.webhook_secret import WebhookSecrets
from ml_backend.inference.detector import Detector
from ml_backend.learning.events import ACTIONS, project_of
from ml_backend.learning.service import LearningService
from ml_backend.malloc import give_memory_back
from ml_backend.predict.control_support import NO_CONTROL, ModelOutputs, controls_of, reasons, unlearned
from ml_backend.predict.label_mapping import MappingReport, Target, find_targets, mapping_report, unknown_thresholds
from ml_backend.predict.predictor import Photos, Predictor
from ml_backend.predict.protocol import (
    Prediction,
    PredictRequest,
    ProjectOptions,
    SetupRequest,
    read_config,
    read_message,
    read_options,
    with_thresholds,
)
from ml_backend.server.concurrency_limit import ConcurrencyLimiter
from ml_backend.server.pages import LONGEST_ID, Pages
from ml_backend.server.project_options import Projects
from ml_backend.server.readiness import ready_checks
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry
from ml_backend.smart import SmartTools

log = structlog.get_logger(__name__)

JOB = "learn-"
"""Begins the id of a training job; the project's id follows."""


DECODE_WAIT_S = 30.0
"""How long a photo waits until other requests' pixels are out of memory; then the request is answered with 503."""


def create_app(settings: Settings | None = None, *, photos: Photos | None = None) -> Flask:
    """The ML backend.

    Args:
        settings: Read from the environment where None.
        photos: Where photos come from; default: the addresses in the tasks, by `Media`.
    """
    settings = settings or Settings()
    setup_logging(settings)
    give_memory_back()
    serving = ModelServer.from_settings(settings)
    serving.start()
    if photos is None:
        studio = Studio.from_settings(settings) if settings.label_studio_api_key else None
        photos = Media(settings, studio, decode_wait_s=DECODE_WAIT_S)
    app = create_web("ml_backend", settings, ready=ready_checks(settings, serving), open_paths=("/health", "/health/"))
    _Endpoints(app, settings, serving, photos).add()
    return app


class _Endpoints:
    """The views, on what one worker shares between requests."""

    def __init__(self, app: Flask, settings: Settings, serving: ModelServer, photos: Photos) -> None:
        metrics = metrics_of(app)
        self._app = app
        self._settings = settings
        self._serving = serving
        self._registry = Registry(open_store(settings.store_url, settings))
        self._projects = Projects.of(settings)
        self._tasks = metrics.counter("ml_tasks", "Tasks that a prediction was asked for.", ("kind",))
        self._regions = metrics.counter("ml_regions", "Results predicted.")
        self._skipped = metrics.counter("ml_photos_skipped", "Photos that could not be used, by reason.", ("reason",))
        self._predictor = Predictor(
            photos, score_threshold=settings.score_threshold, skipped=lambda code: self._skipped.labels(code).inc()
        )
        self._smart = SmartTools(photos, settings=settings)
        self._secrets = WebhookSecrets(settings)
        self._door = LearningService(settings)
        self._pages = Pages(settings, self._door, serving, self._projects)
        self._received = metrics.counter("ml_events", "Webhook events received, by action.", ("action",))
        # A batch of hundreds keeps nobody waiting who draws a box.
        self._turns, self._smart_turns = (
            ConcurrencyLimiter(settings.web_threads),
            ConcurrencyLimiter(settings.web_threads),
        )
        self._targets = _Cache()
        self._reported = _Cache()

    def add(self) -> None:
        """Mounts every view."""
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
        """The same as `/health`, for those who ask with a slash."""
        return _json({"status": "UP", "service": "ml_backend"})

    def setup(self) -> Response:
        """The version string, at once, and what each control gets. What does not fit is logged, once a config."""
        given = read_message(json_body(request), SetupRequest)
        options = read_options(given.extra_params)
        config = read_config(given.schema)
        version = self._serving.version(given.project)
        self._projects.keep(given.project, options)
        self._projects.keep_config(given.project, given.schema)
        self._report(given, config, options)
        self._door.open_in_background()  # an annotator will wait for the first event, nobody waits here
        detector = self._serving.loaded(given.project)
        supported = controls_of(config, ModelOutputs.of(detector) if detector else None)
        unserved = [one for one in [self._serving.unserved(given.project)] if one]
        return _json({"model_version": version, "controls": supported, "notes": [*unserved, *reasons(supported)]})

    def predict(self) -> Response:
        """One prediction a task."""
        given = read_message(json_body(request), PredictRequest)
        if given.interactive:
            self._tasks.labels("interactive").inc(len(given.tasks))
            config, context = read_config(given.label_config), (given.params or {})["context"]
            with self._smart_turns.acquire():
                return _json({"results": [self._smart.answer(task, config, context) for task in given.tasks]})
        with self._turns.acquire() as waited_s:
            served = self._serving.served(given.project)
            detector, options = served.detector, self._projects.options(given.project)
            entries = self._predictor.predict(
                given.tasks,
                detector=detector,
                targets=self._find_targets(given.label_config, detector),
                options=with_thresholds(options, served.thresholds),
                waited_s=waited_s,
                abandoned=client_left(request),
                unserved=lambda: self._unserved(given.label_config, detector),
            )
        self._tasks.labels("batch").inc(len(given.tasks))
        self._regions.inc(sum(len(entry.result) for entry in entries if isinstance(entry, Prediction)))
        return _json({"results": entries})

    def webhook(self) -> Response:
        """Events of the project, and "Start training": stored for the worker that learns, and answered at once."""
        body = json_body(request)
        action = str(body.get("action", ""))
        # Label Studio sends START_TRAINING with Basic auth or with nothing: it has no way to send a header of ours.
        if not self._settings.basic_auth_user and action != "START_TRAINING":
            self._secrets.check(request)
        self._received.labels(action if action in ACTIONS else "other").inc()
        if action == "START_TRAINING":
            return self._train(body)
        made, new = self._door.tell(body)
        return _json({"status": "ok" if made else "ignored", "action": action, "events": made, "new": new})

    def versions(self) -> Response:
        """The versions that can be had: the one that is served first, then those on the store, the newest first.

        `?project=` says whose; Label Studio names none. With `stored=no` only what is served is named, at once.
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
        """How learning of a project stands: what is being done, and what came of the last run."""
        job = str(json_body(request).get("job", ""))
        number = job.removeprefix(JOB)
        if not job.startswith(JOB) or not number.isdecimal() or len(number) > LONGEST_ID:
            reason = f"there is no job {job[:100]!r}; jobs are called {JOB} and the project's number"
            return _json({"job": job, "job_status": "removed", "reason": reason}, status=410)
        state = self._door.state(int(number))
        return _json({"job": job, **msgspec.to_builtins(state)})

    def validate(self) -> Response:
        """Whether boxes can be shown with a label config, and what does not meet."""
        given = read_message(json_body(request), _ValidateRequest)
        config, detector = read_config(given.config), self._serving.detector(project=given.project)
        report, supported = _report_of(config, detector), controls_of(config, ModelOutputs.of(detector))
        said = {"matched": dict(report.matched), "problems": [*report.lines(), *reasons(supported)]}
        return _json({"status": "ok", **said, "controls": supported})

    def train(self) -> Response:
        """The old form of "Start training"."""
        return self._train({**json_body(request), "action": "START_TRAINING"})

    def _train(self, body: dict[str, Any]) -> Response:
        """Asks the worker for a fit now; Label Studio may ask for the job's status later."""
        project = project_of(body)
        if not self._door.learns(project):
            return self._no_training(f"Project {project} does not learn: its learn.toml says so.")
        if reason := unlearned(project, self._projects.config(project)):
            return self._no_training(reason)
        self._door.tell(body)
        return _json({"status": "ok", "action": "START_TRAINING", "job": f"{JOB}{project}"})

    def _no_training(self, reason: str) -> Response:
        return _json({"status": "ignored", "action": "START_TRAINING", "reason": reason})

    def delete(self) -> Response:
        """Forgets what a project asked for."""
        self._projects.forget(read_message(json_body(request), SetupRequest).project)
        return _json({"status": "ok"})

    def duplicate_model(self) -> Response:
        """Gives a copied project the options of its source."""
        given = read_message(json_body(request), _DuplicateRequest)
        self._projects.keep(given.project_dst, self._projects.options(given.project_src))
        return _json({"status": "ok"})

    def _unserved(self, xml: str | None, detector: Detector) -> str:
        """Why no control of a project gets anything."""
        return " ".join(reasons(controls_of(read_config(xml), ModelOutputs.of(detector)))) or NO_CONTROL

    def _find_targets(self, xml: str | None, detector: Detector) -> tuple[Target, ...]:
        targets: tuple[Target, ...] = self._targets.get((detector.version, xml))
        if targets is None:
            names = detector.names.names
            targets = find_targets(read_config(xml), names, gives=detector.gives, points=detector.points)
            self._targets.put((detector.version, xml), targets)
        return targets

    def _report(self, given: SetupRequest, config: LabelConfig, options: ProjectOptions) -> None:
        detector = self._serving.loaded(given.project)
        if detector is None:
            return
        key = (detector.version, given.project, given.schema, *sorted(options.score_thresholds))
        if self._reported.get(key):
            return
        self._reported.put(key, value=True)
        lines = [*_report_of(config, detector).lines(), *reasons(controls_of(config, ModelOutputs.of(detector)))]
        targets = self._find_targets(given.schema, detector)
        if unknown := unknown_thresholds(targets, detector.names.names, options.score_thresholds):
            lines.append(f"score_thresholds names what is neither a class nor a label: {', '.join(unknown)}.")
        for line in lines:
            log.warning("labels_and_classes", project=given.project, model_version=detector.version, note=line)


class _ValidateRequest(msgspec.Struct, frozen=True):
    config: str | None = None
    project: str | int | None = None


class _DuplicateRequest(msgspec.Struct, frozen=True):
    project_src: str | int
    project_dst: str | int


class _Cache:
    """The last few values by key; safe to use from many threads."""

    def __init__(self, most: int = 256) -> None:
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._most = most

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)


def _report_of(config: LabelConfig, detector: Detector) -> MappingReport:
    return mapping_report(config, detector.names.names, gives=detector.gives, points=detector.points)


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")
