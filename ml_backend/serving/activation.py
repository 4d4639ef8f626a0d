"""Owns activating a version and taking it back: tried first, one pointer moved, then Label Studio follows."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.service.connect_report import Change
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.store import Store, StoreError, open_store
from labelloop.service.studio import Studio, StudioError
from ml_backend.errors import ModelError
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.inference.session_cache import OnnxSessionCache
from ml_backend.inference.version_id import model_version
from ml_backend.predict.control_support import ModelOutputs
from ml_backend.serving.active_versions import EVERYWHERE, GIVEN, Pointer, activate_in, read_pointer, roll_back_in
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.registry import Manifest, Registry
from ml_backend.serving.smoke_test import check_model
from ml_backend.studio.model_version import SWAP_S, NotSwapped, follow_version


@dataclass(frozen=True)
class Activation:
    """What became of an activation.

    Attributes:
        version: What is served now where it was asked for; the given model's own where nothing is active any more.
        before: What was served there before.
        changes: What Label Studio was told, project by project.
        notes: What could not be done there, and how to do it.
        projects: The projects that are served it now, as far as Label Studio could be asked.
    """

    version: str
    before: str
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    projects: tuple[int, ...] = ()


def activate(
    version: str,
    *,
    settings: Settings,
    project: int | None = None,
    studio: Studio | None = None,
    tried: bool = False,
) -> Activation:
    """Makes a version the one that is served, for every project or for one. Every worker takes it over by itself.

    Args:
        version: Its name, as `labelloop models list` shows it.
        settings: Where the store and Label Studio are.
        project: The project; None: every project without an activation of its own.
        studio: Label Studio; None: as the settings name it.
        tried: Whether this process has loaded the model already; else it is opened once, in another process.

    Raises:
        UnknownVersion: There is no such version.
        ModelError: It cannot be loaded; it is marked so, and what was served goes on.
        StoreError: The store cannot be read or written.
    """
    store = open_store(settings.store_url, settings)
    registry = Registry(store)
    manifest = registry.manifest(version)
    try:
        _open_once(registry, manifest, settings, here=tried)
    except ModelError as error:
        registry.refuse(version, str(error))
        raise
    registry.forgive(version)
    before = served_version(settings, store, project)
    activate_in(store, version, _place(project))
    return _followed(Activation(version, before), store, settings, project, studio)


def roll_back(*, settings: Settings, project: int | None = None, studio: Studio | None = None) -> Activation:
    """Goes back to what was active before, in one step; again, one step further.

    Raises:
        NothingBefore: Nothing was.
        StoreError: The store cannot be read or written.
    """
    store = open_store(settings.store_url, settings)
    before = served_version(settings, store, project)
    roll_back_in(store, _place(project))
    return _followed(Activation(served_version(settings, store, project), before), store, settings, project, studio)


def served_version(settings: Settings, store: Store | None = None, project: int | None = None) -> str:
    """The version that is served to a project now, by what the pointer says; no model is opened."""
    pointer, _ = read_pointer(store or open_store(settings.store_url, settings))
    return pointer.active(_place(project)) or given_version(settings)


def open_served(settings: Settings, project: int | None = None) -> tuple[Detector, dict[str, float]]:
    """The model that is served to a project, opened in this process, and the thresholds that come with it."""
    store = open_store(settings.store_url, settings)
    return open_version(settings, read_pointer(store)[0].active(_place(project)))


def served_outputs(settings: Settings, project: int | None = None) -> ModelOutputs | None:
    """What decides which controls the served model fills; None where it cannot be opened here."""
    try:
        return ModelOutputs.of(open_served(settings.but(inference_threads=1), project)[0])
    except (ModelError, StoreError):
        return None


def open_version(settings: Settings, version: str) -> tuple[Detector, dict[str, float]]:
    """A version opened in this process, and its thresholds; `GIVEN`, or its own version, is the model of the settings.

    Raises:
        UnknownVersion: There is no such version.
        ModelError: It cannot be opened.
        StoreError: The store cannot be read.
    """
    threads, cache = settings.inference_threads, cache_of(settings)
    if version in {GIVEN, given_version(settings)}:
        path = settings.model or embedded_model()
        return load_detector(path, layout=settings.model_layout, threads=threads), {}
    registry = Registry(open_store(settings.store_url, settings))
    manifest = registry.manifest(version)
    path, kept = cache.fetch(registry, manifest), cache.opening(manifest.checksum)
    detector = load_detector(path, layout=manifest.layout, threads=threads, version=version, kept=kept)
    return detector, dict(manifest.thresholds)


def given_version(settings: Settings) -> str:
    """The version of the model that the backend is started with; empty where its file is gone."""
    with contextlib.suppress(ModelError):
        return model_version(settings.model or embedded_model(), layout=settings.model_layout)
    return ""


def cache_of(settings: Settings) -> ModelCache:
    """The copies of versions on this machine."""
    return ModelCache(settings.home / "ml_backend" / "models")


def follow(
    versions: Sequence[tuple[int, str]], settings: Settings, studio: Studio
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Has Label Studio follow the versions of these projects: (what was changed, what could not be)."""
    changes: list[Change] = []
    notes: list[str] = []
    wait_s = SWAP_S
    for project, version in versions:
        try:
            changes += follow_version(studio, project, version, settings, wait_s=wait_s)
        except LabelloopError as error:
            wait_s = 0.0 if isinstance(error, NotSwapped) else wait_s  # waited for once, not for each project
            notes.append(f"Project {project}: {error}")
    return tuple(changes), tuple(notes)


def _open_once(registry: Registry, manifest: Manifest, settings: Settings, *, here: bool) -> None:
    """Opens a version on this machine before any worker does, so that theirs takes a moment (see `Openings`)."""
    cache = cache_of(settings)
    path, kept = cache.fetch(registry, manifest), cache.opening(manifest.checksum)
    if not here:
        check_model(path, layout=manifest.layout, kept=kept)
    elif OnnxSessionCache(kept).find() is None:
        load_detector(path, layout=manifest.layout, threads=1, version=manifest.version, kept=kept)


def _followed(
    done: Activation, store: Store, settings: Settings, project: int | None, studio: Studio | None
) -> Activation:
    if studio is None:
        if not settings.label_studio_api_key.get_secret_value():
            return Activation(done.version, done.before, notes=(_NO_TOKEN,))
        with contextlib.closing(Studio.from_settings(settings)) as own:
            return _followed(done, store, settings, project, own)
    try:
        projects = [project] if project is not None else [int(one["id"]) for one in studio.projects()]
        pointer = read_pointer(store)[0]
        versions = [(one, _active(pointer, one) or done.version) for one in projects]
        if project is None:
            versions = [one for one in versions if one[1] == done.version]
        changes, notes = follow(versions, settings, studio)
        served = tuple(one for one, _ in versions)
    except StudioError as error:
        changes, notes, served = (), (f"Label Studio could not be told: {error} {_LATER}",), ()
    return Activation(done.version, done.before, changes, notes, served)


_LATER = "The version is served all the same; `labelloop connect PROJECT` puts the rest right later."
_NO_TOKEN = f"Label Studio was not told: LABELLOOP_LABEL_STUDIO_API_KEY is empty. {_LATER}"


def _active(pointer: Pointer, project: int) -> str:
    return pointer.active(str(project))


def _place(project: int | None) -> str:
    return EVERYWHERE if project is None else str(project)
