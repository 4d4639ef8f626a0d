"""Poll the pointer: often on a local file system, less often on a bucket, and tolerate outages."""

import tempfile
from contextlib import suppress
from pathlib import Path

import structlog

from labelloop.service.store import ObjectNotFound, Store, StoreError
from ml_backend.serving.active_versions import KEY, Pointer, decode

log = structlog.get_logger(__name__)

# Seconds between two polls of a folder; each takes 0.1 ms.
FILE_S = 0.05

# Seconds between two polls of a bucket by a busy worker.
REMOTE_S = 0.35

# Seconds between two polls of a bucket by an idle worker: 1,800 small reads an hour.
IDLE_S = 2.0


class PointerWatcher:
    """The pointer as last read. Not thread-safe."""

    def __init__(self, store: Store, *, memory: Path | None = None) -> None:
        """Read the local copy of the pointer, never the store.

        Args:
            store: Holds the pointer.
            memory: File with a copy of the last pointer of a bucket, used after a restart while the bucket cannot be
                reached.
        """
        self.store = store
        self._remote = not store.url.startswith("file:")
        self._memory = memory if self._remote else None
        self._seen: bytes | None = None
        self._failing = False
        self.pointer = self._remembered()

    def interval_s(self, *, idle: bool) -> float:
        """Return the seconds between two polls.

        Args:
            idle: Whether no prediction or version was requested recently.
        """
        if not self._remote:
            return FILE_S
        return IDLE_S if idle else REMOTE_S

    def poll(self) -> bool:
        """Read the pointer; returns whether it changed. If the store does not answer, it stays."""
        try:
            data = self.store.get(KEY)
            pointer = decode(self.store.url, data) if data != self._seen else self.pointer
        except ObjectNotFound:
            data, pointer = b"", Pointer()
        except StoreError as error:
            if not self._failing:
                log.warning("active_models_unknown", reason=str(error))
            self._failing = True
            return False
        self._failing = False
        if data == self._seen:
            return False
        self._seen, self.pointer = data, pointer
        self._remember(data)
        return True

    def _remembered(self) -> Pointer:
        if self._memory is not None:
            with suppress(OSError, StoreError):
                return decode(self.store.url, self._memory.read_bytes())
        return Pointer()

    def _remember(self, data: bytes) -> None:
        if self._memory is None:
            return
        with suppress(OSError):
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._memory.parent, delete=False) as file:
                file.write(data or b"{}")
            Path(file.name).replace(self._memory)
