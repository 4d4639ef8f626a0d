"""Serve the active detectors of a worker with hot swaps: background loading, then one atomic assignment.

The pointer on the store names the active version, for all projects and per project. One thread polls it several times
a second; another loads a newly active version while the old one serves, then replaces one reference. A request keeps
the model it started with. A version that cannot be loaded is marked on the store, and the old one stays.
"""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from ml_backend.errors import ModelBroken, ModelError, ModelMissing
from ml_backend.heads import load_heads
from ml_backend.heads.base import Head
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.inference.version_id import model_version
from ml_backend.serving.active_versions import ALL_PROJECTS, DEFAULT_MODEL, Pointer
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.pointer_watcher import PointerWatcher
from ml_backend.serving.registry import Registry

log = structlog.get_logger(__name__)

# Seconds that `/predict` waits for a model that is loading; Label Studio times out after 100 s.
LOAD_WAIT_S = 60.0

# Seconds that a new worker waits for the pointer before it serves its local copy.
FIRST_POLL_S = 1.5

# Seconds before a retry of a version that could not be downloaded.
RETRY_S = 5.0

# Seconds before a retry of a version that could not be opened: its files may have been repaired.
RETRY_REFUSED_S = 60.0

# Seconds without a request after which a worker polls a bucket less often; the next request polls at once.
IDLE_AFTER_S = 120.0

# Most project-specific models in memory: the least recently used is dropped.
MAX_PROJECTS = 8


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory; a request uses one from start to end.

    Attributes:
        version: Returned by `/setup` and stored with every prediction.
        detector: The model.
        thresholds: Lowest score by class, if the version has its own.
        heads: Its heads by kind, in the order in which they are applied; see `ml_backend.heads`.
    """

    version: str
    detector: Detector
    thresholds: Mapping[str, float] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)


class NotServedVersion(ModelError):
    """The active version cannot be served; another one is served under its own name."""

    code = "active_version_not_served"
    wanted: str

    def __init__(self, wanted: str, served: str, error: Exception) -> None:
        reason = error.message if isinstance(error, LabelloopError) else str(error)
        super().__init__(
            f"{served or 'Nothing'} is served, because the active version {wanted or 'of LABELLOOP_MODEL'} cannot be "
            f"opened: {reason}",
            fix=(error.fix if isinstance(error, LabelloopError) else "") or "It is retried automatically.",
            wanted=wanted,
        )


class _Slot:
    """The model of one project, or of all projects."""

    def __init__(self, served: LoadedModel | None = None) -> None:
        self.served = served
        self.error: ModelError | None = None
        self.ready = threading.Event()
        self.refused: dict[str, ModelError] = {}
        self.unserved: NotServedVersion | None = None
        self.retry_at: float | None = None
        if served is not None:
            self.ready.set()


class ModelServer:
    """The detectors of one worker. Loading may take many seconds; only `/predict` waits for it."""

    def __init__(
        self,
        path: Path,
        *,
        layout: str = "",
        threads: int = 0,
        load: Callable[..., Detector] = load_detector,
        watcher: PointerWatcher | None = None,
        cache: ModelCache | None = None,
    ) -> None:
        """Load nothing yet; see `start`.

        Args:
            path: The ONNX file that is served while no version is active.
            layout: Its forced layout; empty: detected.
            threads: Threads per inference; 0: one per core.
            load: Opens a model; replaced in tests.
            watcher: Reads the pointer; None: no version is ever active.
            cache: Local copies of the versions; required with `watcher`.
        """
        self.path = path
        self._layout = layout
        self._threads = threads
        self._load = load
        self._watcher = watcher
        self._cache = cache
        self._pointer = watcher.pointer if watcher else Pointer()
        self._pointer_read = threading.Event()
        self._wake_event = threading.Event()
        self._last_request_at = time.monotonic()
        self._started = False
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._default_version = ""
        self._shared = _Slot()
        self._projects: OrderedDict[str, _Slot] = OrderedDict()
        self._requested: OrderedDict[str, None] = OrderedDict()
        self._loaded_by_version: weakref.WeakValueDictionary[str, LoadedModel] = weakref.WeakValueDictionary()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Create it from the settings: the default model, and the store whose active versions take precedence."""
        folder = settings.home / "ml_backend" / "models"
        return cls(
            settings.model or embedded_model(),
            layout=settings.model_layout,
            threads=settings.inference_threads,
            watcher=PointerWatcher(open_store(settings.store_url, settings), memory=folder / "active.json"),
            cache=ModelCache(folder),
        )

    def start(self) -> None:
        """Start loading and polling. Call it in the worker, after any fork.

        Loader threads are not daemons: a process that exits while ONNX Runtime opens a model would crash.
        """
        self._started = True
        if self._watcher is None:
            self._pointer_read.set()
        else:
            threading.Thread(
                target=_poll_until_collected, args=(weakref.ref(self),), name="watch-models", daemon=True
            ).start()
        threading.Thread(target=self._load_at_start, name="load-model").start()

    def version(self, project: str | int | None = None) -> str:
        """Return the version at once: it is known before the model is loaded.

        Args:
            project: Label Studio's `<id>.<creation time>`, or the id; None: the version of all projects.

        Raises:
            ModelError: There is no model that can be served.
        """
        self._touch()
        if self._started:
            self._pointer_read.wait(FIRST_POLL_S)
        slot = self._slot(project)
        served = slot.served
        if served is not None:
            return served.version
        if slot.error is not None:
            raise slot.error
        return self._pointer.candidates(self._state_key(project))[0] or self._default()

    def active(self, project: str | int | None = None) -> str:
        """Return the version served to a project, else the active one. Neither loads nor evicts a model.

        Raises:
            ModelError: No version is active and there is no default model.
        """
        slot = self._existing_slot(project)
        if slot is not None and slot.served is not None:
            return slot.served.version
        return self._pointer.active(self._state_key(project)) or self._default()

    def _existing_slot(self, project: str | int | None) -> _Slot | None:
        key = self._state_key(project)
        return self._shared if key == ALL_PROJECTS else self._projects.get(key)

    def _require_unchanged(self, version: str) -> None:
        """Raise ModelError if the file of the default model is not the one served as this version."""
        try:
            now = model_version(self.path, layout=self._layout)
        except ModelMissing:
            now = ""
        if now != version:
            raise ModelError(
                f"{self.path} was {'replaced' if now else 'removed'} after it was opened. {version} is still served.",
                fix=f"Restart the ML backend to serve {now}."
                if now
                else "Restore it before you restart the ML backend.",
                code="model_file_replaced",
            )

    def loaded(self, project: str | int | None = None) -> Detector | None:
        """Return the detector if it is in memory, else None."""
        served = self._slot(project).served
        return served.detector if served else None

    def served(self, project: str | int | None = None, *, wait_s: float = LOAD_WAIT_S) -> LoadedModel:
        """Return the model for a request of this project; waits while it loads.

        Raises:
            ModelError: It is not loaded after `wait_s` seconds, or it cannot be served.
        """
        self._touch()
        slot = self._slot(project)
        if slot.served is None and not slot.ready.is_set() and slot is not self._shared:
            threading.Thread(target=self._load_slot, args=(self._state_key(project), slot), name="load-model").start()
        if slot.served is None and not slot.ready.wait(wait_s):
            since = f" after {wait_s:.0f} s" if wait_s else ""
            raise ModelError(
                f"The model {self.path} is still being loaded{since}.",
                fix="Try again in a few seconds.",
                code="model_loading",
                retry_after_s=5,
            )
        if slot.served is None:
            raise slot.error or ModelBroken(path=self.path, reason="it could not be loaded")
        return slot.served

    def detector(self, wait_s: float = LOAD_WAIT_S, project: str | int | None = None) -> Detector:
        """Return the detector of `served`."""
        return self.served(project, wait_s=wait_s).detector

    def check(self) -> None:
        """Check readiness for `/ready`: the active version must be in memory for every requested project.

        Raises:
            ModelError: Nothing is served, a version other than the active one is served, or the file was replaced.
        """
        self.detector(wait_s=0)
        for _, slot in self._slots():
            if slot.unserved is not None:
                raise slot.unserved
        served = self._shared.served
        if served is not None and served.detector.path == self.path and served.version == self._default():
            self._require_unchanged(served.version)

    def unserved(self, project: str | int | None = None) -> str:
        """Return why a project is served another version than its active one; empty if it is not."""
        slot = self._existing_slot(project)
        return str(slot.unserved) if slot is not None and slot.unserved is not None else ""

    def poll(self) -> None:
        """Read the pointer and load newly active versions; called several times a second."""
        if self._watcher is None:
            return
        changed = self._watcher.poll()
        if changed:
            self._apply_pointer(self._watcher.pointer)
        self._pointer_read.set()
        now = time.monotonic()
        due = [slot for _, slot in self._slots() if slot.retry_at is not None and slot.retry_at <= now]
        for slot in due:
            slot.retry_at = None
            slot.refused.clear()
        if (changed and self._shared.ready.is_set()) or due:
            # Python starts no threads during shutdown; nothing is served then.
            with suppress(RuntimeError):
                threading.Thread(target=self._load_slots, name="load-model").start()

    def pause(self) -> threading.Event:
        """Return the event that ends the wait between two polls: set by the first request after an idle period."""
        return self._wake_event

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two polls."""
        return self._watcher.interval_s(idle=self._idle()) if self._watcher else 60.0

    def _idle(self) -> bool:
        return time.monotonic() - self._last_request_at > IDLE_AFTER_S

    def _touch(self) -> None:
        if self._idle():
            self._wake_event.set()
        self._last_request_at = time.monotonic()

    def _apply_pointer(self, pointer: Pointer) -> None:
        with self._lock:
            previous, self._pointer = self._pointer, pointer
            for key in self._requested:  # keep serving the shared model until the project's own is loaded
                if pointer.state(key).version and key not in self._projects and self._shared.served:
                    self._projects[key] = _Slot(self._shared.served)
            for key in list(self._projects):
                if not pointer.state(key).version:
                    del self._projects[key]
        for key, slot in self._slots():
            if (previous.state(key), previous.state()) != (pointer.state(key), pointer.state()):
                slot.refused.clear()
                slot.retry_at = None

    def _slots(self) -> list[tuple[str, _Slot]]:
        with self._lock:
            return [(ALL_PROJECTS, self._shared), *self._projects.items()]

    def _state_key(self, project: str | int | None) -> str:
        key = "" if project is None else str(project).partition(".")[0]
        return key if key and self._pointer.state(key).version else ALL_PROJECTS

    def _slot(self, project: str | int | None) -> _Slot:
        with self._lock:
            if project not in {None, ""}:
                key = str(project).partition(".")[0]
                self._requested[key] = None
                self._requested.move_to_end(key)
                while len(self._requested) > 64 * MAX_PROJECTS:
                    self._requested.popitem(last=False)
            state_key = self._state_key(project)
            if state_key == ALL_PROJECTS:
                return self._shared
            slot = self._projects.setdefault(state_key, _Slot())
            self._projects.move_to_end(state_key)
            while len(self._projects) > MAX_PROJECTS:
                self._projects.popitem(last=False)
            return slot

    def _load_at_start(self) -> None:
        self._pointer_read.wait(FIRST_POLL_S)
        self._load_slots()
        self._load_slots()  # versions activated in the meantime

    def _load_slots(self) -> None:
        for key, slot in self._slots():
            self._load_slot(key, slot)

    def _load_slot(self, key: str, slot: _Slot) -> None:
        """Load the first available candidate of a slot; on failure the slot keeps its current model."""
        with self._loading:
            try:
                self._load_first_available(key, slot)
            except Exception as error:
                log.exception("model_not_loaded")
                slot.error = ModelBroken(path=self.path, reason=f"{type(error).__name__}: {error}")
            finally:
                slot.ready.set()

    def _load_first_available(self, key: str, slot: _Slot) -> None:
        slot.retry_at = None
        failed: Exception | None = None  # why the first candidate, the active version, is not served
        wanted, *_ = choices = self._pointer.candidates(key)
        for version in choices:
            try:
                if version in slot.refused:
                    raise slot.refused[version]
                served = self._open(version)
            except StoreError as error:
                log.warning("model_not_fetched", model_version=version, reason=str(error))
                slot.retry_at = time.monotonic() + RETRY_S
                failed = failed or error
            except ModelError as error:
                slot.error, failed = error, failed or error
                slot.retry_at = slot.retry_at or time.monotonic() + RETRY_REFUSED_S
                if version not in slot.refused:
                    slot.refused[version] = error
                    self._mark_refused(version, error)
            else:
                if slot.unserved is not None and slot.unserved.wanted == version:
                    self._clear_refused(version)
                slot.error = None
                slot.unserved = NotServedVersion(wanted, served.version, failed) if failed else None
                if slot.served is not served:
                    slot.served = served
                    self._log_loaded(key, served)
                return
            if slot.served is not None and failed is not None:
                slot.unserved = NotServedVersion(wanted, slot.served.version, failed)
                return
        slot.unserved = None  # nothing is served: `error` says why

    def _open(self, version: str) -> LoadedModel:
        named = version or model_version(self.path, layout=self._layout)
        loaded = self._loaded_by_version.get(named)
        if loaded is not None:
            return loaded
        if version == DEFAULT_MODEL:
            session_folder = self._cache.session_folder(f"given-{named}") if self._cache else None
            detector = self._opened(self.path, self._layout, version=named, session_folder=session_folder)
            self._require_unchanged(named)  # otherwise the version would not match the opened file
            with self._lock:
                self._default_version = named
            served = LoadedModel(detector.version, replace(detector, gives_features=False))
        elif self._watcher is None or self._cache is None:
            raise ModelBroken(path=self.path, reason="there is no store to fetch versions from")
        else:
            registry = Registry(self._watcher.store)
            manifest = self._cache.manifest(registry, version)
            path = self._cache.fetch(registry, manifest)
            session_folder = self._cache.session_folder(manifest.checksum)
            detector = self._opened(path, manifest.layout, version=version, session_folder=session_folder)
            heads = load_heads(path.parent, manifest.heads)
            served = LoadedModel(
                version, replace(detector, heads=heads, gives_features=bool(heads)), dict(manifest.thresholds), heads
            )
        self._loaded_by_version[served.version] = served
        return served

    def _opened(self, path: Path, layout: str, *, version: str, session_folder: Path | None) -> Detector:
        try:
            return self._load(path, layout=layout, threads=self._threads, version=version, cache_folder=session_folder)
        except ModelError:
            raise
        except Exception as error:
            log.exception("model_not_loaded")
            raise ModelBroken(path=path, reason=f"{type(error).__name__}: {error}") from error

    def _default(self) -> str:
        with self._lock:
            if not self._default_version:
                self._default_version = model_version(self.path, layout=self._layout)
            return self._default_version

    def _mark_refused(self, version: str, error: ModelError) -> None:
        log.error("model_not_loaded", model_version=version or "given", code=error.code, reason=str(error))
        if version != DEFAULT_MODEL and self._watcher is not None:
            with suppress(StoreError):
                Registry(self._watcher.store).mark_refused(version, str(error))

    def _clear_refused(self, version: str) -> None:
        log.info("model_mended", model_version=version or "given")
        if version != DEFAULT_MODEL and self._watcher is not None:
            with suppress(StoreError):
                Registry(self._watcher.store).clear_refused(version)

    def _log_loaded(self, key: str, served: LoadedModel) -> None:
        detector = served.detector
        log.info(
            "model_loaded",
            model_version=served.version,
            project=key or "all",
            layout=detector.layout,
            why=detector.why,
            classes=len(detector.names.names),
            names_from=detector.names.source,
            heads=list(served.heads),
        )


def _poll_until_collected(serving: weakref.ref[ModelServer]) -> None:
    """Poll the pointer until the model server is garbage-collected."""
    while (model_server := serving()) is not None:
        try:
            model_server.poll()
        except Exception:
            log.exception("models_not_watched")
        interval_s, wake = model_server.poll_interval_s, model_server.pause()
        del model_server
        wake.wait(interval_s)
        wake.clear()
