"""Trained models that the ML backend has not taken yet: kept in the home folder, offered until it does."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from labelloop.service.errors import LabelloopError
from ml_backend.finetune.protocol import TrainOffer, TrainProgress
from ml_backend.trainer.client import BackendRefused, BackendUnreachable, LeaseGone, TrainerClient

DROPPED = "dropped, it was given to another, cancelled or is too late."

# Seconds after which a file without its other half is what a crash left, not one that is being written.
LEFTOVER_S = 86400.0

_OTHER_HALF = {".json": ".onnx", ".onnx": ".json"}


class _Finished(msgspec.Struct, frozen=True):
    """A trained model's job, and the progress at its end. Its lease is a secret."""

    url: str
    offer: TrainOffer
    progress: TrainProgress


class FinishedModels:
    """The trained models of one home folder, which several trainers may share: a JSON and an ONNX file each."""

    def __init__(self, home: Path, client: TrainerClient) -> None:
        """Touch no file yet."""
        self.folder = home / "train" / "finished"
        self._client = client

    def keep(self, offer: TrainOffer, progress: TrainProgress, model: Path, say: Callable[[str], None]) -> bool:
        """Copy the model of a job here; it survives the end of the process from then on.

        Where the folder cannot be written, the model is offered once, at once.

        Returns:
            Whether it is kept.

        Raises:
            BackendRefused, BackendUnreachable: See there, of a model that cannot be kept.
        """
        finished = _Finished(self._client.url, offer, progress)
        name = hashlib.sha256(f"{self._client.url} {offer.id} {offer.lease}".encode()).hexdigest()[:16]
        record = self.folder / f"{name}.json"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(model, record.with_suffix(".onnx"))
            part = record.with_suffix(".partial")
            part.touch(mode=0o600)
            part.write_bytes(msgspec.json.encode(finished))
            part.replace(record)  # last: a record without its model would be of no use
        except OSError as error:
            say(f"Job {offer.id}: the model cannot be kept in {self.folder} ({error.strerror}), so it is offered once.")
            self._hand_back(finished, model, say)
            return False
        return True

    def tidy(self, say: Callable[[str], None]) -> None:
        """Say which models this trainer cannot hand back, and delete what a crash left of others."""
        for record in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # another trainer has handed it back
                finished = _decoded(record.read_bytes())
                if finished is None:
                    say(f"{record} cannot be read. Start the release of labelloop that wrote it, or delete it.")
                elif finished.url != self._client.url:
                    model = record.with_suffix(".onnx")
                    say(
                        f"{model} is a trained model for the ML backend at {finished.url}. Start a trainer with that "
                        "--url, or delete it."
                    )
        for file in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                half = _OTHER_HALF.get(file.suffix)
                whole = half is not None and file.with_suffix(half).exists()
                if not whole and time.time() - file.stat().st_mtime > LEFTOVER_S:
                    file.unlink()

    def hand_back(self, say: Callable[[str], None]) -> None:
        """Offer each model; those that are taken, refused or not wanted any more are deleted.

        Args:
            say: Prints a line.

        Raises:
            BackendRefused, BackendUnreachable: See there; the models stay.
        """
        for record in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), record.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a trainer that hands it back now
                finished = _decoded(file.read())
                if finished is not None and finished.url == self._client.url:
                    self._hand_back(finished, record.with_suffix(".onnx"), say)
                    record.unlink()
                    record.with_suffix(".onnx").unlink()

    def _hand_back(self, finished: _Finished, model: Path, say: Callable[[str], None]) -> None:
        """Offer one model. Raises FileNotFoundError where another trainer has handed it back."""
        offer = finished.offer
        try:
            self._client.progress(offer, finished.progress)  # where the lease is lost, the next request says so
            self._client.hand_back(offer, model)
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


def _decoded(content: bytes) -> _Finished | None:
    """A record; None if another release wrote it, or it is damaged."""
    try:
        return msgspec.json.decode(content, type=_Finished)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
