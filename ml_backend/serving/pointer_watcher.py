"""Owns looking at the pointer: often where that is a file, seldom where it is a request, and through an outage."""

import tempfile
from contextlib import suppress
from pathlib import Path

import structlog

from labelloop.service.store import NotThere, Store, StoreError
from ml_backend.serving.active_versions import KEY, Pointer, decode

log = structlog.get_logger(__name__)

FILE_S = 0.05
"""Seconds between two looks at a folder: 0.1 ms each."""

REMOTE_S = 0.35
"""Seconds between two looks at a bucket by a worker that is at work."""

IDLE_S = 2.0
"""The same by one that nobody asks: 1,800 small reads an hour."""


class PointerWatcher:
    """The pointer as it was seen last. For one thread."""

    def __init__(self, store: Store, *, memory: Path | None = None) -> None:
        """Reads at most the memory, never the store.

        Args:
            store: Where the pointer is.
            memory: File in which the last pointer of a bucket is kept, so that a restart while the bucket is out of
                reach goes on with it.
        """
        self.store = store
        self._remote = not store.url.startswith("file:")
        self._memory = memory if self._remote else None
        self._seen: bytes | None = None
        self._failing = False
        self.pointer = self._remembered()

    def every_s(self, *, idle: bool) -> float:
        """Seconds from one look to the next.

        Args:
            idle: Whether nobody asked for a prediction or a version lately.
        """
        if not self._remote:
            return FILE_S
        return IDLE_S if idle else REMOTE_S

    def look(self) -> bool:
        """Whether the pointer changed. A store that does not answer changes nothing."""
        try:
            data = self.store.get(KEY)
            pointer = decode(self.store.url, data) if data != self._seen else self.pointer
        except NotThere:
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
