"""Activate a model version or roll back: load it once, move the pointer, then update Label Studio."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.store import Store, StoreError, open_store
from labelloop.service.studio import Studio, StudioError
from ml_backend.errors import ModelError
from ml_backend.heads import load_heads
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.inference.session_cache import OnnxSessionCache
from ml_backend.inference.version_id import model_version
from ml_backend.predict.control_support import ModelOutputs
from ml_backend.serving.active_versions import (
    ALL_PROJECTS,
    DEFAULT_MODEL,
    Pointer,
    read_pointer,
    roll_back_active,
    set_active,
)
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.registry import Registry, VersionManifest
from ml_backend.serving.smoke_test import check_model
from ml_backend.studio.model_version import SWAP_S, NotSwapped, follow_version


@dataclass(frozen=True)
class Activation:
    """The result of an activation or a rollback.

    Attributes:
        version: The version served now; that of the default model where no version is active any more.
        before: The version served before.
        changes: Changes in Label Studio, per project.
        notes: What failed in Label Studio, with the fix.
        projects: Projects that are served the version; empty if Label Studio could not be reached.
    """

    version: str
    before: str
    changes: tuple[ConnectionChange, ...] = ()
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
    """Activate a version for all projects or for one; the workers load it by themselves.

    Args:
        version: Its name, as `labelloop models list` shows it.
        settings: Locate the store and Label Studio.
        project: The project; None: every project without its own activation.
        studio: Label Studio; None: from the settings.
        tried: Whether this process has loaded the model already; otherwise it is loaded once in another process.

    Raises:
        ModelError: There is no such version.
        ModelError: It cannot be loaded; it is marked as refused, and the served version stays.
        StoreError: The store cannot be read or written.
    """
    store = open_store(settings.store_url, settings)
    registry = Registry(store)
    manifest = registry.manifest(version)
    try:
        _open_once(registry, manifest, settings, opened=tried)
    except ModelError as error:
        registry.mark_refused(version, str(error))
        raise
    registry.clear_refused(version)
    before = served_version(settings, store, project)
    set_active(store, version, _state_key(project))
    return _with_label_studio(Activation(version, before), store, settings, project, studio)


def roll_back(*, settings: Settings, project: int | None = None, studio: Studio | None = None) -> Activation:
    """Roll back to the previously active version; each call goes one version further back.

    Raises:
        StoreError: There is none.
        StoreError: The store cannot be read or written.
    """
    store = open_store(settings.store_url, settings)
    before = served_version(settings, store, project)
    roll_back_active(store, _state_key(project))
    return _with_label_studio(
        Activation(served_version(settings, store, project), before), store, settings, project, studio
    )


def served_version(settings: Settings, store: Store | None = None, project: int | None = None) -> str:
    """Return the version served to a project according to the pointer; opens no model."""
    pointer, _ = read_pointer(store or open_store(settings.store_url, settings))
    return pointer.active(_state_key(project)) or default_version(settings)


def open_served_model(settings: Settings, project: int | None = None) -> tuple[Detector, dict[str, float]]:
    """Open the model served to a project in this process; returns it with its thresholds per class."""
    store = open_store(settings.store_url, settings)
    return open_version(settings, read_pointer(store)[0].active(_state_key(project)))


def served_outputs(settings: Settings, project: int | None = None) -> ModelOutputs | None:
    """Return the outputs of the served model, which decide the controls it fills; None if it cannot be opened."""
    try:
        return ModelOutputs.of(open_served_model(settings.replace(inference_threads=1), project)[0], reads_graph=True)
    except (ModelError, StoreError):
        return None


def open_version(settings: Settings, version: str) -> tuple[Detector, dict[str, float]]:
    """Open a version in this process; returns it with its thresholds per class.

    `DEFAULT_MODEL`, or the version of the default model, opens the model of the settings.

    Raises:
        ModelError: There is no such version.
        ModelError: It cannot be opened.
        StoreError: The store cannot be read.
    """
    threads, cache = settings.inference_threads, cache_of(settings)
    if version in {DEFAULT_MODEL, default_version(settings)}:
        path = settings.model or embedded_model()
        return load_detector(path, layout=settings.model_layout, threads=threads), {}
    registry = Registry(open_store(settings.store_url, settings))
    manifest = registry.manifest(version)
    path, session_folder = cache.fetch(registry, manifest), cache.session_folder(manifest.checksum)
    detector = load_detector(
        path, layout=manifest.layout, threads=threads, version=version, cache_folder=session_folder
    )
    return replace(detector, heads=load_heads(path.parent, manifest.heads)), dict(manifest.thresholds)


def default_version(settings: Settings) -> str:
    """Return the version of the default model; empty if its file is missing."""
    with contextlib.suppress(ModelError):
        return model_version(settings.model or embedded_model(), layout=settings.model_layout)
    return ""


def cache_of(settings: Settings) -> ModelCache:
    """Return the cache of model versions on this machine."""
    return ModelCache(settings.home / "ml_backend" / "models")


def follow(
    versions: Sequence[tuple[int, str]], settings: Settings, studio: Studio
) -> tuple[tuple[ConnectionChange, ...], tuple[str, ...]]:
    """Set the model versions of these projects in Label Studio; returns (changes, failures)."""
    changes: list[ConnectionChange] = []
    notes: list[str] = []
    wait_s = SWAP_S
    for project, version in versions:
        try:
            changes += follow_version(studio, project, version, settings, wait_s=wait_s)
        except LabelloopError as error:
            wait_s = 0.0 if isinstance(error, NotSwapped) else wait_s  # wait only once, not once per project
            notes.append(f"Project {project}: {error}")
    return tuple(changes), tuple(notes)


def _open_once(registry: Registry, manifest: VersionManifest, settings: Settings, *, opened: bool) -> None:
    """Open a version once, so that the workers on this machine load it from the session cache."""
    cache = cache_of(settings)
    path, session_folder = cache.fetch(registry, manifest), cache.session_folder(manifest.checksum)
    if not opened:
        check_model(path, layout=manifest.layout, session_folder=session_folder)
    elif OnnxSessionCache(session_folder).load() is None:
        load_detector(path, layout=manifest.layout, threads=1, version=manifest.version, cache_folder=session_folder)


def _with_label_studio(
    done: Activation, store: Store, settings: Settings, project: int | None, studio: Studio | None
) -> Activation:
    if studio is None:
        if not settings.label_studio_api_key.get_secret_value():
            return Activation(done.version, done.before, notes=(_NO_TOKEN,))
        with contextlib.closing(Studio.from_settings(settings)) as own:
            return _with_label_studio(done, store, settings, project, own)
    try:
        projects = [project] if project is not None else [int(row["id"]) for row in studio.projects()]
        pointer = read_pointer(store)[0]
        versions = [(number, _active(pointer, number) or done.version) for number in projects]
        if project is None:
            versions = [entry for entry in versions if entry[1] == done.version]
        changes, notes = follow(versions, settings, studio)
        served = tuple(number for number, _ in versions)
    except StudioError as error:
        changes, notes, served = (), (f"Label Studio was not updated: {error} {_LATER_FIX}",), ()
    return Activation(done.version, done.before, changes, notes, served)


_LATER_FIX = "The version is served anyway. Run `labelloop connect PROJECT` later to update Label Studio."
_NO_TOKEN = f"Label Studio was not updated: LABELLOOP_LABEL_STUDIO_API_KEY is empty. {_LATER_FIX}"


def _active(pointer: Pointer, project: int) -> str:
    return pointer.active(str(project))


def _state_key(project: int | None) -> str:
    return ALL_PROJECTS if project is None else str(project)
