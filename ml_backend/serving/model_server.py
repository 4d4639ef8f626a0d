"""Owns the detectors that a worker serves: loaded in the background, swapped in one assignment, versions known at once.

The pointer on the store says which version is active, for every project and for single ones. A thread looks at it
several times a second; another loads what became active while the old one goes on, and then one reference is replaced.
A request keeps the model that it began with. What cannot be loaded is marked on the store, and the old one stays.
"""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from ml_backend.errors import ModelBroken, ModelError, ModelLoading, ModelMissing
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.inference.version_id import model_version
from ml_backend.serving.active_versions import EVERYWHERE, GIVEN, Pointer
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.pointer_watcher import PointerWatcher
from ml_backend.serving.registry import Registry

log = structlog.get_logger(__name__)

LOAD_WAIT_S = 60.0
"""How long `/predict` waits for a model that is being loaded; Label Studio gives up after 100 s."""

FIRST_LOOK_S = 1.5
"""How long a fresh worker waits for the store to say what is active, before it serves what it knows."""

RETRY_S = 5.0
"""Pause before a version is tried again that the store could not give."""

RETRY_REFUSED_S = 60.0
"""The same of one that could not be opened: its files may have been put right."""

IDLE_AFTER_S = 120.0
"""A worker that nobody asked for so long looks at a bucket less often; the next who asks makes it look at once."""

MOST_PROJECTS = 8
"""Projects with a model of their own that a worker keeps in memory: those asked for last."""


@dataclass(frozen=True)
class LoadedModel:
    """What answers a request, from its beginning to its end.

    Attributes:
        version: What `/setup` answers and every prediction carries.
        detector: The model.
        thresholds: Lowest score by class, where the version has its own.
    """

    version: str
    detector: Detector
    thresholds: Mapping[str, float] = field(default_factory=dict)


class NotServedVersion(ModelError):
    """A version is active and cannot be served; another goes on under its own name."""

    code: ClassVar[str] = "active_version_not_served"

    def __init__(self, wanted: str, served: str, error: Exception) -> None:
        reason = error.message if isinstance(error, LabelloopError) else str(error)
        super().__init__(
            f"{served or 'Nothing'} is served, for the active version {wanted or 'of LABELLOOP_MODEL'} cannot be "
            f"opened: {reason}",
            fix=(error.fix if isinstance(error, LabelloopError) else "") or "It is tried again by itself.",
        )
        self.wanted = wanted


class ModelReplaced(ModelError):
    """The file of LABELLOOP_MODEL is no longer the one that is in memory."""

    code: ClassVar[str] = "model_file_replaced"

    def __init__(self, path: Path, served: str, now: str) -> None:
        super().__init__(
            f"{path} was {'replaced' if now else 'removed'} since it was opened: {served} is still served.",
            fix=f"Restart the ML backend to serve {now}." if now else "Put it back before the ML backend is restarted.",
        )


class _Slot:
    """What one place serves: everybody's, or one project's."""

    def __init__(self, served: LoadedModel | None = None) -> None:
        self.served = served
        self.error: ModelError | None = None
        self.settled = threading.Event()
        self.refused: dict[str, ModelError] = {}
        self.unserved: NotServedVersion | None = None
        self.retry_at: float | None = None
        if served is not None:
            self.settled.set()


class ModelServer:
    """The detectors of one worker. Loading takes from a fraction of a second to many; nothing but `/predict` waits."""

    def __init__(
        self,
        path: Path,
        *,
        layout: str = "",
        threads: int = 0,
        load: Callable[..., Detector] = load_detector,
        watch: PointerWatcher | None = None,
        cache: ModelCache | None = None,
    ) -> None:
        """Loads nothing yet; see `start`.

        Args:
            path: The ONNX file that is served while no version is active.
            layout: Its forced layout; empty: recognised.
            threads: Threads of one run; 0: one a core.
            load: Opens a model; `load_detector` but in tests.
            watch: Says which versions are active; None: none ever is.
            cache: Where copies of the versions are kept; goes with `watch`.
        """
        self.path = path
        self._layout = layout
        self._threads = threads
        self._load = load
        self._watch = watch
        self._cache = cache
        self._pointer = watch.pointer if watch else Pointer()
        self._looked = threading.Event()
        self._hurry = threading.Event()
        self._asked_at = time.monotonic()
        self._started = False
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._given_version = ""
        self._shared = _Slot()
        self._projects: OrderedDict[str, _Slot] = OrderedDict()
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[str, LoadedModel] = weakref.WeakValueDictionary()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """What the settings name: the model to begin with, and the store whose versions go before it."""
        folder = settings.home / "ml_backend" / "models"
        return cls(
            settings.model or embedded_model(),
            layout=settings.model_layout,
            threads=settings.inference_threads,
            watch=PointerWatcher(open_store(settings.store_url, settings), memory=folder / "active.json"),
            cache=ModelCache(folder),
        )

    def start(self) -> None:
        """Begins to load, and to look for what becomes active. Call it in the worker, after any fork.

        Threads that load are no daemons: a process that ends while ONNX Runtime opens a model would crash instead.
        """
        self._started = True
        if self._watch is None:
            self._looked.set()
        else:
            threading.Thread(target=_follow, args=(weakref.ref(self),), name="watch-models", daemon=True).start()
        threading.Thread(target=self._begin, name="load-model").start()

    def version(self, project: str | int | None = None) -> str:
        """The version string, at once: it is known before the model is in memory.

        Args:
            project: As Label Studio names it, `<id>.<creation time>`, or its id; None: what holds for every project.

        Raises:
            ModelError: There is no model, or none that could be served.
        """
        self._wake()
        if self._started:
            self._looked.wait(FIRST_LOOK_S)
        slot = self._slot(project)
        served = slot.served
        if served is not None:
            return served.version
        if slot.error is not None:
            raise slot.error
        return self._pointer.choices(self._place(project))[0] or self._given()

    def active(self, project: str | int | None = None) -> str:
        """The version that is served to a project, else that is active for it. Asking loads nothing, and drops nothing.

        Raises:
            ModelError: None was, and there is no model to begin with.
        """
        slot = self._peek(project)
        if slot is not None and slot.served is not None:
            return slot.served.version
        return self._pointer.active(self._place(project)) or self._given()

    def _peek(self, project: str | int | None) -> _Slot | None:
        place = self._place(project)
        return self._shared if place == EVERYWHERE else self._projects.get(place)

    def _unchanged(self, version: str) -> None:
        """Raises where the file of the settings has other bytes than those that are served as this version."""
        try:
            now = model_version(self.path, layout=self._layout)
        except ModelMissing:
            now = ""
        if now != version:
            raise ModelReplaced(self.path, version, now)

    def loaded(self, project: str | int | None = None) -> Detector | None:
        """The detector where it is in memory already."""
        served = self._slot(project).served
        return served.detector if served else None

    def served(self, project: str | int | None = None, *, wait_s: float = LOAD_WAIT_S) -> LoadedModel:
        """What answers a request of this project, after waiting for it where it was not asked for before.

        Raises:
            ModelLoading: It is still not there.
            ModelError: It cannot be served.
        """
        self._wake()
        slot = self._slot(project)
        if slot.served is None and not slot.settled.is_set() and slot is not self._shared:
            threading.Thread(target=self._load_slot, args=(self._place(project), slot), name="load-model").start()
        if slot.served is None and not slot.settled.wait(wait_s):
            raise ModelLoading(self.path, wait_s)
        if slot.served is None:
            raise slot.error or ModelBroken(self.path, "it could not be loaded")
        return slot.served

    def detector(self, wait_s: float = LOAD_WAIT_S, project: str | int | None = None) -> Detector:
        """The detector of `served`."""
        return self.served(project, wait_s=wait_s).detector

    def check(self) -> None:
        """For `/ready`: raises unless what is active is in memory, for every project that was asked for.

        Raises:
            ModelError: Nothing is served, or another version than the active one, or the model's file was replaced.
        """
        self.detector(wait_s=0)
        for _, slot in self._slots():
            if slot.unserved is not None:
                raise slot.unserved
        served = self._shared.served
        if served is not None and served.detector.path == self.path and served.version == self._given():
            self._unchanged(served.version)

    def unserved(self, project: str | int | None = None) -> str:
        """Why a project is served another version than the one that is active; empty where it is not."""
        slot = self._peek(project)
        return str(slot.unserved) if slot is not None and slot.unserved is not None else ""

    def poll(self) -> None:
        """Asks the store what is active, and loads what became so; called several times a second."""
        if self._watch is None:
            return
        changed = self._watch.look()
        if changed:
            self._apply_pointer(self._watch.pointer)
        self._looked.set()
        now = time.monotonic()
        due = [slot for _, slot in self._slots() if slot.retry_at is not None and slot.retry_at <= now]
        for slot in due:
            slot.retry_at = None
            slot.refused.clear()
        if (changed and self._shared.settled.is_set()) or due:
            # Python lets no thread begin while it ends: then nothing is left to serve either.
            with suppress(RuntimeError):
                threading.Thread(target=self._settle_all, name="load-model").start()

    def pause(self) -> threading.Event:
        """What the thread that looks waits for between two looks: set when somebody asks after a long time."""
        return self._hurry

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two looks."""
        return self._watch.every_s(idle=self._idle()) if self._watch else 60.0

    def _idle(self) -> bool:
        return time.monotonic() - self._asked_at > IDLE_AFTER_S

    def _wake(self) -> None:
        if self._idle():
            self._hurry.set()
        self._asked_at = time.monotonic()

    def _apply_pointer(self, pointer: Pointer) -> None:
        with self._lock:
            before, self._pointer = self._pointer, pointer
            for place in self._asked:  # goes on with what it was served, until its own is in memory
                if pointer.place(place).version and place not in self._projects and self._shared.served:
                    self._projects[place] = _Slot(self._shared.served)
            for place in list(self._projects):
                if not pointer.place(place).version:
                    del self._projects[place]
        for place, slot in self._slots():
            if (before.place(place), before.place()) != (pointer.place(place), pointer.place()):
                slot.refused.clear()
                slot.retry_at = None

    def _slots(self) -> list[tuple[str, _Slot]]:
        with self._lock:
            return [(EVERYWHERE, self._shared), *self._projects.items()]

    def _place(self, project: str | int | None) -> str:
        key = "" if project is None else str(project).partition(".")[0]
        return key if key and self._pointer.place(key).version else EVERYWHERE

    def _slot(self, project: str | int | None) -> _Slot:
        with self._lock:
            if project not in {None, ""}:
                key = str(project).partition(".")[0]
                self._asked[key] = None
                self._asked.move_to_end(key)
                while len(self._asked) > 64 * MOST_PROJECTS:
                    self._asked.popitem(last=False)
            place = self._place(project)
            if place == EVERYWHERE:
                return self._shared
            slot = self._projects.setdefault(place, _Slot())
            self._projects.move_to_end(place)
            while len(self._projects) > MOST_PROJECTS:
                self._projects.popitem(last=False)
            return slot

    def _begin(self) -> None:
        self._looked.wait(FIRST_LOOK_S)
        self._settle_all()
        self._settle_all()  # what became active meanwhile

    def _settle_all(self) -> None:
        for place, slot in self._slots():
            self._load_slot(place, slot)

    def _load_slot(self, place: str, slot: _Slot) -> None:
        """Brings a slot to the first of its choices that can be served; one that serves keeps on where that fails."""
        with self._loading:
            try:
                self._load_first_available(place, slot)
            except Exception as error:
                log.exception("model_not_loaded")
                slot.error = ModelBroken(self.path, f"{type(error).__name__}: {error}")
            finally:
                slot.settled.set()

    def _load_first_available(self, place: str, slot: _Slot) -> None:
        slot.retry_at = None
        failed: Exception | None = None  # why the first choice, which is the active one, is not served
        wanted, *_ = choices = self._pointer.choices(place)
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
                    self._refuse(version, error)
            else:
                if slot.unserved is not None and slot.unserved.wanted == version:
                    self._forgive(version)
                slot.error = None
                slot.unserved = NotServedVersion(wanted, served.version, failed) if failed else None
                if slot.served is not served:
                    slot.served = served
                    self._log_loaded(place, served)
                return
            if slot.served is not None and failed is not None:
                slot.unserved = NotServedVersion(wanted, slot.served.version, failed)
                return
        slot.unserved = None  # nothing is served: `error` says why

    def _open(self, version: str) -> LoadedModel:
        named = version or model_version(self.path, layout=self._layout)
        known = self._alive.get(named)
        if known is not None:
            return known
        if version == GIVEN:
            kept = self._cache.opening(f"given-{named}") if self._cache else None
            detector = self._opened(self.path, self._layout, version=named, kept=kept)
            self._unchanged(named)  # else its name would not be that of what was opened
            with self._lock:
                self._given_version = named
            served = LoadedModel(detector.version, detector)
        elif self._watch is None or self._cache is None:
            raise ModelBroken(self.path, "there is no store to fetch versions from")
        else:
            registry = Registry(self._watch.store)
            manifest = self._cache.manifest(registry, version)
            path = self._cache.fetch(registry, manifest)
            kept = self._cache.opening(manifest.checksum)
            detector = self._opened(path, manifest.layout, version=version, kept=kept)
            served = LoadedModel(version, detector, dict(manifest.thresholds))
        self._alive[served.version] = served
        return served

    def _opened(self, path: Path, layout: str, *, version: str, kept: Path | None) -> Detector:
        try:
            return self._load(path, layout=layout, threads=self._threads, version=version, kept=kept)
        except ModelError:
            raise
        except Exception as error:
            log.exception("model_not_loaded")
            raise ModelBroken(path, f"{type(error).__name__}: {error}") from error

    def _given(self) -> str:
        with self._lock:
            if not self._given_version:
                self._given_version = model_version(self.path, layout=self._layout)
            return self._given_version

    def _refuse(self, version: str, error: ModelError) -> None:
        log.error("model_not_loaded", model_version=version or "given", code=error.code, reason=str(error))
        if version != GIVEN and self._watch is not None:
            with suppress(StoreError):
                Registry(self._watch.store).refuse(version, str(error))

    def _forgive(self, version: str) -> None:
        log.info("model_mended", model_version=version or "given")
        if version != GIVEN and self._watch is not None:
            with suppress(StoreError):
                Registry(self._watch.store).forgive(version)

    def _log_loaded(self, place: str, served: LoadedModel) -> None:
        detector = served.detector
        log.info(
            "model_loaded",
            model_version=served.version,
            project=place or "all",
            layout=detector.layout,
            why=detector.why,
            classes=len(detector.names.names),
            names_from=detector.names.source,
        )


def _follow(serving: weakref.ref[ModelServer]) -> None:
    """Looks for what is active as long as there is somebody to serve it."""
    while (one := serving()) is not None:
        try:
            one.poll()
        except Exception:
            log.exception("models_not_watched")
        every_s, hurry = one.poll_interval_s, one.pause()
        del one
        hurry.wait(every_s)
        hurry.clear()
