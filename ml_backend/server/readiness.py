"""Readiness checks of the ML backend for `/ready` and `labelloop doctor`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, open_database
from labelloop.service.readiness import (
    CACHE_TTL_S,
    INTEGRITY_INTERVAL_S,
    Check,
    DatabaseChecks,
    NotReady,
    cached,
    require_home,
    sqlite_file,
)
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.checksums import file_checksum, verify_file
from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.service import LearningService
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.tables import PROJECTS
from ml_backend.serving.activation import cache_of
from ml_backend.serving.active_versions import read_pointer
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import FOLDER, Registry

# Seconds between two checksum checks of the served files.
FILES_EVERY_S = 300.0

_DAMAGED = "its bytes are not those that were added as this version."
_FIX = "Activate another version (`labelloop models list` names them), or add the model again under another file name."


def ready_checks(settings: Settings, serving: ModelServer) -> Mapping[str, Check]:
    """Return the checks of `/ready`; each result is cached for some seconds.

    Database, worker and events are checked once a project is connected: before that, nothing is to be trained.
    """
    learning, service = _DatabaseChecks(settings), LearningService(settings)
    return {
        "model": serving.check,
        "model-files": cached(lambda: require_served_files(settings), FILES_EVERY_S, failed_s=FILES_EVERY_S / 10),
        "home": cached(lambda: require_home(settings)),
        "database": cached(lambda: learning.check(DatabaseChecks.reachable)),
        "integrity": cached(
            lambda: learning.check(DatabaseChecks.integrity), INTEGRITY_INTERVAL_S, failed_s=CACHE_TTL_S
        ),
        "worker": cached(lambda: learning.check(DatabaseChecks.worker)),
        "events": cached(lambda: learning.check(DatabaseChecks.events)),
        "training": cached(lambda: require_training(settings, service)),
    }


def require_training(settings: Settings, learning: LearningService) -> None:
    """Check that each project that is to be fine-tuned (`on = "on"` in the table [train]) can be.

    Raises:
        NotReady: No machine can: torch is not installed where the worker runs, and no trainer asks for work.
        LearningPolicyError: A learn.toml cannot be used.
    """
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        return  # no project was ever connected
    for state in TrainingDataStore(learning.engine).projects():
        if reason := learning.finetuning(state.project):
            raise NotReady(reason)


def require_served_files(settings: Settings) -> None:
    """Compare the served files with their checksums: the model of the settings, and those of active versions.

    For versions these are the files of a store in a local folder, and the cached copies on this machine.

    Raises:
        ModelError: An active version is not in the store.
        ModelBroken: The content of a file differs from its checksum.
        StoreError: The store cannot be read.
    """
    verify_file(settings.model or embedded_model())
    store = open_store(settings.store_url, settings)
    registry, cache = Registry(store), cache_of(settings)
    for version in sorted(read_pointer(store)[0].used()):
        manifest = registry.manifest(version)
        for name, file in manifest.files.items():
            places = [*_on_disk(settings, version, name), cache.folder_of(manifest) / name]
            for path in places:
                if path.is_file() and file_checksum(path) != file.sha256:
                    raise ModelBroken(path=path, reason=_DAMAGED, fix=_FIX)


class _DatabaseChecks:
    """The database checks; the database is opened once it exists."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: tuple[sa.Engine, DatabaseChecks] | None = None

    def check(self, run: Callable[[DatabaseChecks], None]) -> None:
        file = sqlite_file(self._settings.database_url)
        if self._opened is None:
            if file is not None and not file.exists():
                return  # no project was ever connected
            engine = open_database(self._settings)
            self._opened = engine, DatabaseChecks(self._settings, engine)
        engine, checks = self._opened
        if run in (DatabaseChecks.worker, DatabaseChecks.events):
            with begin_read(engine) as connection:
                if connection.scalar(sa.select(PROJECTS.c.project).limit(1)) is None:
                    return
        run(checks)


def _on_disk(settings: Settings, version: str, name: str) -> Iterator[Path]:
    if settings.store_url.startswith("file://"):
        yield Path(settings.store_url.removeprefix("file://")) / FOLDER / version / name
