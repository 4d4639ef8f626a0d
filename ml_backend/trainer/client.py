"""HTTP client of a trainer: it only calls, so it needs no open port and works behind NAT."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec

from labelloop.service.errors import LabelloopError
from ml_backend.finetune.protocol import (
    LEASE_HEADER,
    MAX_WAIT_S,
    TOKEN_HEADER,
    TrainingSet,
    TrainOffer,
    TrainProgress,
    TrainRequest,
)

# Most seconds that the ML backend can make a trainer wait until it asks again.
MAX_PAUSE_S = 60.0

# Statuses of a server, or of a proxy before it, that is busy: the same request may succeed later.
BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})

# Seconds for an answer, beyond what a request for work is kept open; and for a model to be sent.
TIMEOUT_S, SEND_TIMEOUT_S = 30.0, 600.0

# Most bytes of one image, and of the list of images.
MAX_IMAGE_BYTES, MAX_DATA_BYTES = 512 * 2**20, 512 * 2**20

Kind = TypeVar("Kind")


class BackendRefused(LabelloopError):
    """The ML backend refuses the trainer: asking again would not help."""

    code = "backend_refused"
    status = 403
    message = "The ML backend at {url} refuses this trainer ({status}): {reason}"
    fix = "Set LABELLOOP_TRAINER_TOKEN there, and give it here with --token or in the same variable."


class BackendUnreachable(LabelloopError):
    """The ML backend does not answer now."""

    code = "backend_unreachable"
    status = 503
    message = "The ML backend at {url} cannot be reached: {reason}"
    fix = "Check --url, and that the ML backend runs; the trainer asks again by itself."


class LeaseGone(LabelloopError):
    """The job was given to another."""

    code = "lease_lost"
    status = 409
    message = "Job {job} was given to another."


class TrainerClient:
    """Calls the trainer endpoints of one ML backend."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        auth: tuple[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            url: Address of the ML backend; a user and password in it are sent as Basic auth.
            token: LABELLOOP_TRAINER_TOKEN of the ML backend.
            auth: User and password of Basic auth; those in the URL come first.
            transport: For tests; default: the network.
        """
        address = httpx.URL(url.rstrip("/"))
        auth = (address.username, address.password) if address.username else auth
        self.url = str(address.copy_with(username=None, password=None)).rstrip("/")
        self._http = httpx.Client(
            base_url=self.url, headers={TOKEN_HEADER: token}, auth=auth, timeout=TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def work(self, trainer: str, device: str, *, wait_s: float = MAX_WAIT_S) -> tuple[TrainOffer | None, float]:
        """Ask for work; returns (the job or None, seconds until the next request).

        Raises:
            BackendRefused, BackendUnreachable: See there.
        """
        body = msgspec.to_builtins(TrainRequest(trainer, device, wait_s))
        answer = self._call("POST", "/trainer/work", json=body, timeout=TIMEOUT_S + wait_s)
        if answer.status_code == HTTPStatus.NO_CONTENT:
            stated = answer.headers.get("Retry-After", "0")  # a proxy may state a date
            return None, min(float(stated), MAX_PAUSE_S) if stated.isdecimal() else MAX_WAIT_S
        return self._decoded(answer.content, TrainOffer), 0.0

    def data(self, offer: TrainOffer) -> TrainingSet:
        """The labelled images of a job."""
        return self._decoded(self._bytes(offer, "data", MAX_DATA_BYTES), TrainingSet)

    def model(self, offer: TrainOffer, to: Path) -> None:
        """Download the model of a job.

        Raises:
            BackendUnreachable: It did not arrive whole.
        """
        content = self._bytes(offer, "model", offer.max_bytes)
        if hashlib.sha256(content).hexdigest() != offer.sha256:
            raise BackendUnreachable(url=self.url, reason="the model did not arrive whole: its SHA-256 differs")
        to.write_bytes(content)

    def image(self, offer: TrainOffer, name: str) -> bytes:
        """One image of a job.

        Raises:
            LabelloopError: The ML backend cannot load it.
        """
        return self._bytes(offer, f"images/{name}", MAX_IMAGE_BYTES)

    def progress(self, offer: TrainOffer, progress: TrainProgress) -> bool:
        """Send the progress, which renews the lease; False if it was lost."""
        try:
            self._of_job("POST", offer, "progress", json=msgspec.to_builtins(progress))
        except LeaseGone:
            return False
        return True

    def hand_back(self, offer: TrainOffer, file: Path) -> None:
        """Send the trained model.

        Raises:
            LeaseGone: The job was given to another.
        """
        content = file.read_bytes()
        headers = {"X-Labelloop-Sha256": hashlib.sha256(content).hexdigest()}
        self._of_job("PUT", offer, "model", content=content, headers=headers, timeout=SEND_TIMEOUT_S)

    def release(self, offer: TrainOffer, reason: str, *, failed: bool = False, lost: bool = False) -> None:
        """Give a job back, or end it where no trainer could do it."""
        self._of_job("POST", offer, "release", json={"reason": reason, "failed": failed, "lost": lost})

    def _of_job(self, method: str, offer: TrainOffer, part: str, **options: Any) -> httpx.Response:
        headers = {LEASE_HEADER: offer.lease, **options.pop("headers", {})}
        return self._call(method, f"/trainer/jobs/{offer.id}/{part}", headers=headers, **options)

    def _bytes(self, offer: TrainOffer, part: str, most: int) -> bytes:
        """Download with a limit."""
        parts, size = [], 0
        path, headers = f"/trainer/jobs/{offer.id}/{part}", {LEASE_HEADER: offer.lease}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                for chunk in answer.iter_bytes():
                    size += len(chunk)
                    if size > most:
                        raise LabelloopError(f"{path} has more than {most:,} bytes.", code="too_large", status=413)
                    parts.append(chunk)
                content = b"".join(parts)
                self._check(answer, content, offer.id)
                return content
        except httpx.HTTPError as error:
            raise BackendUnreachable(url=self.url, reason=str(error) or type(error).__name__) from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise BackendUnreachable(url=self.url, reason=str(error) or type(error).__name__) from error
        self._check(answer, answer.content, path)
        return answer

    def _check(self, answer: httpx.Response, content: bytes, job: object) -> None:
        if answer.is_success:
            return
        code, message = _error(content)
        status = answer.status_code  # any number: proxies have their own
        if code == "lease_lost":
            raise LeaseGone(job=job)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST}:
            raise BackendRefused(url=self.url, status=status, reason=message)
        if answer.has_redirect_location:
            to = httpx.URL(answer.headers["Location"]).copy_with(username=None, password=None, query=None)
            reason = f"it redirects to {to}"
            raise BackendRefused(url=self.url, status=status, reason=reason, fix="Give --url the address it has now.")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in BUSY:
            raise BackendUnreachable(url=self.url, reason=f"{status} {message}")
        if status == HTTPStatus.NOT_FOUND and not code:
            raise BackendRefused(
                url=self.url, status=404, reason="it has no endpoint for trainers; is it an ML backend?"
            )
        raise LabelloopError(message or f"The ML backend answers {status}.", code=code or "refused")

    def _decoded(self, content: bytes, kind: type[Kind]) -> Kind:
        """An answer as the ML backend gives it; a page of a proxy is none."""
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BackendUnreachable(url=self.url, reason="the answer is not that of an ML backend") from None


def _error(content: bytes) -> tuple[str, str]:
    """(code, message) of an error of the ML backend."""
    try:
        error = msgspec.json.decode(content)["error"]
        return str(error["code"]), str(error["message"])
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        return "", content[:200].decode(errors="replace")
