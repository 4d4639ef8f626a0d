"""`/ready` of the ML backend: its model, the files of what is active, and, once a project learns, the worker."""

import pytest
import sqlalchemy as sa

from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.readiness import NotReady
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.errors import ModelBroken, ModelError
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.tables import PROJECTS
from ml_backend.learning.store.train_jobs import TrainJobStore
from ml_backend.server.readiness import ready_checks, require_served_files
from ml_backend.serving.activation import cache_of
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def active(settings):
    """The manifest of an active version."""
    store = open_store(settings.store_url, settings)
    manifest = Registry(store).add(embedded_model(), thresholds={"person": 0.7})
    set_active(store, manifest.version)
    return manifest


@pytest.mark.parametrize("where", ["store", "copy"])
def test_a_changed_file_of_the_active_version_is_named(settings, active, where):
    registry = Registry(open_store(settings.store_url, settings))
    copy = cache_of(settings).fetch(registry, active)
    require_served_files(settings)
    stored = settings.home / "store" / "models" / "versions" / active.version / active.model
    file = stored if where == "store" else copy
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelBroken, match="not those that were added") as refused:
        require_served_files(settings)
    assert str(file) in str(refused.value)


def test_a_missing_active_version_is_named(settings, active):
    Registry(open_store(settings.store_url, settings)).remove(active.version)
    with pytest.raises(ModelError, match=active.version):
        require_served_files(settings)


def test_worker_and_events_count_once_a_project_learns(settings):
    checks = ready_checks(settings, ModelServer.from_settings(settings))
    for name in ("home", "database", "worker", "events", "model-files"):
        checks[name]()  # nothing was connected: a backend that only predicts needs no worker
    engine = open_database(settings)
    with engine.begin() as connection:
        row = {"project": 7, "connected_at": 0.0, "cursor": "", "phase": "", "config": "", "fingerprint": ""}
        connection.execute(sa.insert(PROJECTS).values(row | {"phase_done": 0, "phase_total": 0, "phase_at": 0.0}))
    checks = ready_checks(settings, ModelServer.from_settings(settings))
    with pytest.raises(NotReady, match="No worker"):
        checks["worker"]()
    WorkerHeartbeats(engine).record("me")
    ready_checks(settings, ModelServer.from_settings(settings))["worker"]()
    engine.dispose()


def test_a_database_that_was_lost_makes_the_backend_not_ready(settings):
    open_database(settings).dispose()
    checks = ready_checks(settings, ModelServer.from_settings(settings))
    from labelloop.service import readiness

    checks["database"]()
    (settings.home / "labelloop.sqlite3").unlink()
    clock = readiness.time.monotonic
    with pytest.MonkeyPatch.context() as moved:
        moved.setattr(readiness.time, "monotonic", lambda: clock() + readiness.CACHE_TTL_S + 1)
        with pytest.raises(DatabaseError, match="is gone"):
            checks["database"]()


@pytest.mark.parametrize(
    ("on", "heard", "ready"), [("on", "", False), ("on", "gpu-box", True), ("auto", "", True), ("off", "", True)]
)
def test_a_project_that_is_to_be_fine_tuned_needs_somebody_to_do_it(settings, on, heard, ready):
    check = ready_checks(settings, ModelServer.from_settings(settings))["training"]
    check()  # nothing was connected
    engine = open_database(settings)
    TrainingDataStore(engine).connect(7)
    policy = settings.home / "ml_backend" / "learn.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text(f'[train]\non = "{on}"\n')
    if heard:
        TrainJobStore(engine).heard(heard, "cuda")
    check = ready_checks(settings, ModelServer.from_settings(settings))["training"]
    if ready:
        check()
        return
    with pytest.raises(NotReady, match="Project 7: No fine-tuning: torch is not installed") as refused:
        check()
    assert "pip install 'labelloop[train]'" in str(refused.value)
