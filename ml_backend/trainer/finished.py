"""Trained models that the ML backend has not taken yet: kept in the home folder, offered until it does."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from labelloop.service.errors import LabelloopError
from ml_backend.finetune.protocol import TrainOffer, TrainProgress
from ml_backend.trainer.client import BackendRefused, BackendUnreachable, LeaseGone, TrainerClient

DROPPED = "dropped, it was given to another or cancelled."

log = structlog.get_logger(__name__)


class _Finished(msgspec.Struct, frozen=True):
    """A trained model's job, and the progress at its end. Its lease is a secret."""

    url: str
    offer: TrainOffer
    progress: TrainProgress


class FinishedModels:
    """The trained models of one home folder for one ML backend: a JSON and an ONNX file each."""

    def __init__(self, home: Path, client: TrainerClient) -> None:
        """Touch no file yet."""
        self.folder = home / "train" / "finished"
        self._client = client

    def keep(self, offer: TrainOffer, progress: TrainProgress, model: Path) -> None:
        """Move the model of a job here; it survives the end of the process from then on.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(f"{self._client.url} {offer.id} {offer.lease}".encode()).hexdigest()[:16]
        record = self.folder / f"{name}.json"
        shutil.move(model, record.with_suffix(".onnx"))
        part = record.with_suffix(".partial")
        part.touch(mode=0o600)
        part.write_bytes(msgspec.json.encode(_Finished(self._client.url, offer, progress)))
        part.replace(record)  # last: a record without its model would be of no use

    def elsewhere(self) -> list[str]:
        """Return the addresses of other ML backends that models are kept for."""
        return sorted({finished.url for _, finished in self._records() if finished.url != self._client.url})

    def hand_back(self, say: Callable[[str], None]) -> None:
        """Offer each model; those that are taken, refused or not wanted any more are deleted.

        Args:
            say: Prints a line.

        Raises:
            BackendRefused, BackendUnreachable: See there; the models stay.
        """
        for record, finished in self._records():
            if finished.url != self._client.url:
                continue
            offer = finished.offer
            try:
                self._client.progress(offer, finished.progress)  # where the lease is lost, the next request says so
                self._client.hand_back(offer, record.with_suffix(".onnx"))
            except (BackendRefused, BackendUnreachable):
                raise
            except LeaseGone:
                say(f"Job {offer.id}: {DROPPED}")
            except LabelloopError as error:
                say(f"Job {offer.id} failed: {error}")
                with contextlib.suppress(LabelloopError):  # its lease ends by itself
                    self._client.release(offer, str(error), failed=True)
            else:
                say(f"Job {offer.id}: handed back; the ML backend evaluates it.")
            record.unlink(missing_ok=True)
            record.with_suffix(".onnx").unlink(missing_ok=True)

    def _records(self) -> Iterator[tuple[Path, _Finished]]:
        for record in sorted(self.folder.glob("*.json")):
            try:
                finished = msgspec.json.decode(record.read_bytes(), type=_Finished)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("finished_model_unreadable", file=str(record), reason=str(error))
                continue
            if record.with_suffix(".onnx").is_file():
                yield record, finished
