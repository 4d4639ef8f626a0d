"""Endpoints of `labelloop trainer`: work by long polling, the model and the data to train on, and the model back."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import structlog
from cachetools import LRUCache
from flask import Flask, Response, request, send_file

from labelloop.service.errors import BadRequest, Forbidden, LabelloopError
from labelloop.service.media import Media, MediaError
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.web.request_body import BodyTooLarge, client_disconnected, json_body
from ml_backend.finetune.classes import set_metadata
from ml_backend.finetune.protocol import (
    LEASE_HEADER,
    LEASE_S,
    MAX_REASON,
    MAX_WAIT_S,
    ROOM_BYTES,
    TOKEN_HEADER,
    TrainOffer,
    TrainProgress,
    TrainRequest,
    thinned,
)
from ml_backend.inference.detector import load_detector
from ml_backend.learning.base_models import BaseModels, ServedModel
from ml_backend.learning.service import LearningService
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.train_jobs import TrainJob, TrainJobStore, returned_key
from ml_backend.learning.train_schedule import WORKER, may_run, time_limit_s
from ml_backend.learning.training_data_set import image_address, training_set
from ml_backend.policy import LearningPolicyError, read_learning_policy

# Requests for work that one process keeps open at a time; others are answered at once.
MAX_WAITING = 1

# Seconds between two looks for work while a request is kept open, and until a refused trainer asks again.
LOOK_S, ASK_AGAIN_S = 1.0, 5

# Models whose checksum is kept.
MAX_MODELS = 16

# Most characters of a trainer's name.
MAX_NAME = 100

CHUNK_BYTES = 2**20

log = structlog.get_logger(__name__)


class LeaseLost(LabelloopError):
    """The job of a trainer was given to another, or is gone."""

    code = "lease_lost"
    status = 409
    message = "The lease of job {job} is not valid any more."
    fix = "Drop the job, and ask for work again."


class TrainerEndpoints:
    """The views. Every one needs the token of the settings; those of a job need its lease too."""

    def __init__(self, settings: Settings, learning: LearningService, media: Any) -> None:
        """Open nothing yet.

        Args:
            settings: The token; they locate the store and the policies.
            learning: Gives the database.
            media: Loads images; only `Media` can hand out files.
        """
        self._settings, self._learning, self._media = settings, learning, media
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._opening = threading.Lock()
        self._models: BaseModels | None = None
        self._handed_out: LRUCache[tuple[Path, str], tuple[str, int]] = LRUCache(MAX_MODELS)

    def add(self, app: Flask) -> None:
        """Register every view."""
        views: dict[tuple[str, str], Callable[..., Response]] = {
            ("POST", "/trainer/work"): self.work,
            ("GET", "/trainer/jobs/<int:number>/model"): self.model,
            ("GET", "/trainer/jobs/<int:number>/data"): self.data,
            ("GET", "/trainer/jobs/<int:number>/images/<name>"): self.image,
            ("POST", "/trainer/jobs/<int:number>/progress"): self.progress,
            ("PUT", "/trainer/jobs/<int:number>/model"): self.hand_back,
            ("POST", "/trainer/jobs/<int:number>/release"): self.release,
        }
        for (method, path), view in views.items():
            app.add_url_rule(path, endpoint=f"trainer.{view.__name__}", view_func=self._guarded(view), methods=[method])

    def work(self) -> Response:
        """Lease the next job to a trainer; the request is kept open until there is one. 204 without work."""
        wanted = _read(TrainRequest)
        name = wanted.trainer.strip()[:MAX_NAME]
        if not name or name.startswith(WORKER):
            raise BadRequest(f"{name!r} is no name of a trainer.", fix="Give --name a text, such as gpu-box.")
        jobs = self._jobs()
        jobs.heard(name, wanted.device[:MAX_NAME])
        deadline = time.monotonic() + min(max(wanted.wait_s, 0.0), MAX_WAIT_S)
        patient = self._waiting.acquire(blocking=False)
        try:
            gone = client_disconnected(request)
            while True:
                if (offer := self._claim(jobs, name)) is not None:
                    return _json(offer)
                if not patient or time.monotonic() >= deadline or gone():
                    return Response(status=204, headers={} if patient else {"Retry-After": str(ASK_AGAIN_S)})
                time.sleep(LOOK_S)
        finally:
            if patient:
                self._waiting.release()

    def model(self, number: int) -> Response:
        """The model to train, in one file."""
        served = self._served(self._leased(number))
        file = _handed_out(served)
        return send_file(file, "application/octet-stream") if isinstance(file, Path) else _bytes(file)

    def data(self, number: int) -> Response:
        """The labelled images: names, boxes and classes."""
        job = self._leased(number)
        data, classes = training_set(self._data(), job.project)
        if not self._jobs().handed(job.id, job.token, base=self._served(job).base, classes=classes):
            raise LeaseLost(job=number)
        return _json(data)

    def image(self, number: int, name: str) -> Response:
        """One image of the data, as stored."""
        job = self._leased(number)
        found = image_address(self._data(), job.project, name)
        if found is None or not isinstance(self._media, Media):
            raise BadRequest(f"Job {number} has no image {name[:100]!r}.", code="no_such_image", status=404)
        task, url = found
        try:
            file = self._media.path(url, task_id=task)
        except MediaError as error:  # of this image: 403 and 503 would be of the ML backend
            raise BadRequest(str(error), code="no_such_image", status=404) from None
        return send_file(file, "application/octet-stream")

    def progress(self, number: int) -> Response:
        """Renew the lease, and note the progress for the learning page."""
        job, sent = self._leased(number), _read(TrainProgress)
        tried = sent.crossed
        if tried is not None and not (0 <= tried.refit <= 1 and 0 <= tried.tuned <= 1 and tried.boxes >= 0):
            raise BadRequest("The request is malformed: an AP50 is between 0 and 1, and boxes are none or more.")
        sent = msgspec.structs.replace(
            sent, curve=thinned(sent.curve), phase=sent.phase[:MAX_NAME], device=sent.device[:MAX_NAME],
            data_version=sent.data_version[:MAX_NAME], ended=sent.ended[:MAX_NAME], untried=sent.untried[:MAX_REASON],
        )  # fmt: skip
        jobs = self._jobs()
        limit_s = time_limit_s(job.minutes, trained=bool(sent.ended))
        if jobs.now() - (job.started_at or 0.0) > limit_s:  # it hangs, though its heartbeat goes on
            jobs.release(job.id, job.token, reason=f"{job.holder} did not finish it in time", lost=True)
            raise LeaseLost(job=number)
        if not jobs.heartbeat(job.id, job.token, sent):
            raise LeaseLost(job=number)
        jobs.heard(job.holder, sent.device)
        return _json({"lease_s": LEASE_S})

    def hand_back(self, number: int) -> Response:
        """Take the trained model, which the worker checks and evaluates."""
        job = self._leased(number)
        limit = self._served(job).path.stat().st_size + ROOM_BYTES
        request.max_content_length = limit
        if request.content_length is None or request.content_length > limit:
            size = f"{request.content_length or 0:,} bytes" if request.content_length else "no stated length"
            raise BodyTooLarge(f"The model has {size}; its parent allows {limit:,}.", fix="Hand back the same graph.")
        with scratch_folder() as folder:
            file, digest = folder / "returned.onnx", hashlib.sha256()
            with file.open("wb") as stream:
                while chunk := request.stream.read(CHUNK_BYTES):
                    stream.write(chunk)
                    digest.update(chunk)
            stated = request.headers.get("X-Labelloop-Sha256", "")
            if not hmac.compare_digest(stated.lower(), digest.hexdigest()):
                raise BadRequest("The model did not arrive whole: its SHA-256 differs.", fix="Send it again.")
            if not self._jobs().heartbeat(job.id, job.token):  # it may have expired while the model was sent
                raise LeaseLost(job=number)
            open_store(self._settings.store_url, self._settings).put(returned_key(job.id), file)
        if not self._jobs().returned(job.id, job.token):
            raise LeaseLost(job=number)
        log.info("model_handed_back", job=job.id, project=job.project, trainer=job.holder)
        return _json({"status": "ok", "state": "returned"})

    def release(self, number: int) -> Response:
        """Give the job back: another goes on with it, unless it cannot be done at all (`failed`)."""
        job, body = self._leased(number), json_body(request)
        reason = str(body.get("reason", ""))[:MAX_REASON] or f"{job.holder} gave it back"
        if body.get("failed"):
            self._jobs().finish(job.id, job.token, state="failed", reason=reason)
        else:
            self._jobs().release(job.id, job.token, reason=reason, lost=bool(body.get("lost")))
        return _json({"status": "ok"})

    def _claim(self, jobs: TrainJobStore, name: str) -> TrainOffer | None:
        jobs.expire()
        now = jobs.now()
        for job in jobs.open("waiting"):
            try:
                policy = read_learning_policy(self._settings.home, job.project)
            except LearningPolicyError:
                continue  # the worker and the doctor name it
            if not policy.learn or not may_run(policy.train, job, trainer=True, known=(), now=now):
                continue
            try:
                offer = self._offer(job)
            except StoreError:
                raise  # nothing is leased: the trainer asks again
            except LabelloopError as error:  # no trainer gets this model
                if (claimed := jobs.claim(job.id, name)) is not None:
                    jobs.finish(job.id, claimed.token, state="failed", reason=str(error))
                continue
            claimed = jobs.claim(job.id, name)
            if claimed is not None:
                log.info("training_handed_out", job=job.id, project=job.project, trainer=name)
                return msgspec.structs.replace(offer, lease=claimed.token)
        return None

    def _offer(self, job: TrainJob) -> TrainOffer:
        """The offer of a waiting job, without a lease."""
        served = self._served(job)
        key = served.path, served.base
        with self._opening:
            if key not in self._handed_out:
                file = _handed_out(served)
                size = file.stat().st_size if isinstance(file, Path) else len(file)
                self._handed_out[key] = _sha256(file), size
            digest, size = self._handed_out[key]
        return TrainOffer(
            job.id, job.project, "", LEASE_S, job.minutes, served.path.name, digest, served.layout,
            size + ROOM_BYTES,
        )  # fmt: skip

    def _leased(self, number: int) -> TrainJob:
        """The job whose lease the request states; an expired lease is taken up again if no other trainer has the job.

        Raises:
            LeaseLost: It is not the one that is valid.
        """
        jobs, lease = self._jobs(), request.headers.get(LEASE_HEADER, "")
        job = jobs.job(number)
        if job is None or not lease or not hmac.compare_digest(job.token.encode(), lease.encode()):
            raise LeaseLost(job=number)
        if job.state == "waiting" and jobs.heartbeat(number, lease):
            log.info("training_resumed", job=number, project=job.project, trainer=job.holder)
            job = jobs.job(number)
        if job is None or job.state != "running" or job.token != lease:
            raise LeaseLost(job=number)
        return job

    def _guarded(self, view: Callable[..., Response]) -> Callable[..., Response]:
        """The view for callers with the token."""

        def guarded(**values: Any) -> Response:
            token = self._settings.trainer_token.get_secret_value()
            if not token:
                raise Forbidden(
                    "This ML backend hands out no work: it has no token for trainers.",
                    fix="Set LABELLOOP_TRAINER_TOKEN (at least 16 characters) for the ML backend, and restart it.",
                    code="trainers_off",
                )
            if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), token.encode()):
                raise Forbidden(
                    f"The token in {TOKEN_HEADER} is wrong or missing.",
                    fix="Give --token the value of LABELLOOP_TRAINER_TOKEN of the ML backend.",
                )
            return view(**values)

        return guarded

    def _served(self, job: TrainJob) -> ServedModel:
        with self._opening:
            if self._models is None:
                self._models = BaseModels(self._settings)
        return self._models.served(job.project)

    def _jobs(self) -> TrainJobStore:
        return TrainJobStore(self._learning.engine)

    def _data(self) -> TrainingDataStore:
        return TrainingDataStore(self._learning.engine)


def _handed_out(served: ServedModel) -> Path | bytes:
    """The base model as one file: its weights inside, and its class names in the metadata."""
    path = served.path
    detector = load_detector(path, layout=served.layout, threads=1, allow_numbered=True)
    if detector.names.source == "metadata" and not path.with_name(f"{path.name}.data").is_file():
        return path
    model = onnx.load(path)
    set_metadata(model, names=list(detector.names.names))
    return bytes(model.SerializeToString())


def _sha256(file: Path | bytes) -> str:
    return hashlib.sha256(file.read_bytes() if isinstance(file, Path) else file).hexdigest()


def _read(kind: Any) -> Any:
    try:
        return msgspec.convert(json_body(request), kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request is malformed: {error}.") from None


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json")


def _bytes(content: bytes) -> Response:
    return Response(content, content_type="application/octet-stream")
