"""Fixtures that every test may use: settings in a folder of its own, free ports, real Postgres and Redis, a bare S3."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Before numpy is loaded, here and in what tests start: two processes of tests share the cores, and BLAS threads that
# wait for each other make a fit up to a hundred times slower.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Hundreds of processes are started: each would compile every module again, which takes .3 s of the processor.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import hypothesis
import pytest
import structlog

from labelloop.service.settings import Settings
from tests.bare_s3 import BareS3
from tests.fake_label_studio import FakeLabelStudio

# What a property says does not hang on how fast the machine is, and the same examples are tried everywhere.
# `pytest --hypothesis-profile explore` looks further.
_PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], database=None)
hypothesis.settings.register_profile("labelloop", _PATIENT, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("explore", _PATIENT, max_examples=2000)
hypothesis.settings.load_profile("labelloop")

# No test cuts the power, and exports waited for the disk longer than they computed. Like fsync, `fstat` refuses what is
# no open file. The order of syncs and renames has a test of its own (test_store.py); programs that tests start do wait.
os.fsync = os.fstat


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """The settings of the person who runs the tests stay out of them."""
    for name in list(os.environ):
        if name.startswith("LABELLOOP_") and not name.startswith("LABELLOOP_TEST_"):
            monkeypatch.delenv(name)
        if name.startswith(("AZURE_", "GOOGLE_")) or name == "STORAGE_EMULATOR_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no search for a server with Google's credentials
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)  # services close it for the whole process
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def settings(tmp_path) -> Settings:
    """Default settings with the home folder inside `tmp_path`."""
    return Settings(home=tmp_path / "home")


@pytest.fixture
def fake_label_studio() -> FakeLabelStudio:
    """A `Studio` over an empty Label Studio in memory."""
    return FakeLabelStudio()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that finds a TCP port on which nobody listens."""
    return _free_port


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(condition, timeout_s=60): poll until it holds; fail when it does not, even on a busy machine."""

    def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def bare_s3() -> Iterator[BareS3]:
    """The least of an S3 server, of this test's own."""
    with BareS3() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real Postgres for this session, on loopback, with a password; its URL, without a database's name."""
    found = importlib.util.find_spec("pgserver")
    if found is None or found.origin is None:
        pytest.skip("no Postgres: the package pgserver is not installed")
    binaries = Path(found.origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="labelloop-postgres-"))
    user = None
    if os.geteuid() == 0:  # Postgres refuses to run as root
        user = "nobody"
        # who may have no way into the folder of our virtual environment
        package, libraries = binaries.parents[1], binaries.parents[2] / "pgserver.libs"
        shutil.copytree(package / "pginstall", folder / "site" / "pgserver" / "pginstall", symlinks=True)
        if libraries.exists():  # found from the programs by a relative path
            shutil.copytree(libraries, folder / "site" / "pgserver.libs", symlinks=True)
        binaries = folder / "site" / "pgserver" / "pginstall" / "bin"
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = _free_port()
    (folder / "password").write_text("secret")
    (folder / "password").chmod(0o644)
    data = folder / "data"
    options = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    server = None
    try:
        try:
            subprocess.run(
                [binaries / "initdb", "-D", data, "-U", "labelloop", "-A", "scram-sha-256", "--no-sync",
                 "--pwfile", folder / "password", "--encoding=UTF8", "--locale=C"],
                check=True, capture_output=True, text=True, user=user, cwd=folder, timeout=240,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no Postgres: initdb does not run here: {getattr(error, 'stderr', '') or error}")
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", *options], stdout=log, stderr=log, user=user, cwd=folder, start_new_session=True
            )
        ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        if not _starts(server, lambda: subprocess.run(ready, check=False).returncode == 0):
            pytest.skip(f"no Postgres: it did not start: {(folder / 'log').read_text()[-500:]}")
        yield f"postgresql://labelloop:secret@127.0.0.1:{port}"
    finally:
        _stop(server, signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server) -> Iterator[str]:
    """The URL of an empty Postgres database of this test's own."""
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{postgres_server}/{name}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """A real Redis for this session, on loopback, with a password; its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no Redis: redis-server is not installed")
    port = _free_port()
    folder = Path(tempfile.mkdtemp(prefix="labelloop-redis-"))
    server = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "secret"],
        cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        if not _starts(server, lambda: _listens(port)):
            pytest.skip("no Redis: redis-server did not start")
        yield f"redis://:secret@127.0.0.1:{port}/0"
    finally:
        _stop(server, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server) -> str:
    """The URL of an empty Redis."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _starts(server: subprocess.Popen, ready: Callable[[], bool], timeout_s: float = 90.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.poll() is None:
        if ready():
            return True
        time.sleep(0.05)
    return False


def _stop(server: subprocess.Popen | None, how: signal.Signals) -> None:
    if server is None or server.poll() is not None:
        return
    server.send_signal(how)
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
