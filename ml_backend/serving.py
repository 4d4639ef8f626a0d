"""Owns the detector that a worker serves: loaded in the background, its version known before it is in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from ml_backend.detector import Detector, load_detector
from ml_backend.errors import ModelBroken, ModelError, ModelLoading
from ml_backend.versions import model_version

log = structlog.get_logger(__name__)

LOAD_WAIT_S = 60.0
"""How long `/predict` waits for a model that is being loaded; Label Studio gives up after 100 s."""


class Serving:
    """The detector of one worker. Loading takes from a fraction of a second to many; nothing but `/predict` waits."""

    def __init__(
        self, path: Path, *, layout: str = "", threads: int = 0, load: Callable[..., Detector] = load_detector
    ) -> None:
        """Loads nothing yet; see `start`.

        Args:
            path: The ONNX file.
            layout: Forced layout; empty: recognised.
            threads: Threads of one run; 0: one a core.
            load: Opens the model; `load_detector` but in tests.
        """
        self.path = path
        self._layout = layout
        self._threads = threads
        self._load = load
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._version = ""
        self._detector: Detector | None = None
        self._error: ModelError | None = None

    def start(self) -> None:
        """Begins to load in a thread of its own. Call it in the worker, after any fork.

        The thread is no daemon: a process that ends while ONNX Runtime opens a model would crash instead.
        """
        threading.Thread(target=self._run, name="load-model").start()

    def version(self) -> str:
        """The version string, at once: it is made from the file's bytes and needs no session.

        Raises:
            ModelError: The model is missing, or turned out not to be servable.
        """
        if self._error is not None:
            raise self._error
        with self._lock:
            if not self._version:
                self._version = model_version(self.path, layout=self._layout)
            return self._version

    def loaded(self) -> Detector | None:
        """The detector where it is in memory already."""
        return self._detector

    def detector(self, wait_s: float = LOAD_WAIT_S) -> Detector:
        """The detector, after waiting for it where the worker has just started.

        Raises:
            ModelLoading: It is still not there.
            ModelError: It cannot be served.
        """
        if not self._done.wait(wait_s):
            raise ModelLoading(self.path, wait_s)
        if self._detector is None:
            raise self._error or ModelBroken(self.path, "it could not be loaded")
        return self._detector

    def check(self) -> None:
        """For `/ready`: raises unless the detector is in memory."""
        self.detector(wait_s=0)

    def _run(self) -> None:
        try:
            detector = self._load(self.path, layout=self._layout, threads=self._threads)
        except ModelError as error:
            log.error("model_not_loaded", code=error.code, reason=str(error))  # noqa: TRY400 - the message says it all
            self._error = error
        except Exception as error:
            log.exception("model_not_loaded")
            self._error = ModelBroken(self.path, f"{type(error).__name__}: {error}")
        else:
            self._detector = detector
            log.info(
                "model_loaded",
                model_version=detector.version,
                layout=detector.layout,
                why=detector.why,
                classes=len(detector.names.names),
                names_from=detector.names.source,
            )
        finally:
            self._done.set()
