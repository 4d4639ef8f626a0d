"""Run an app factory under gunicorn, with threads, multi-process metrics and graceful shutdown."""

import importlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from labelloop.service.errors import LabelloopError, SettingsError
from labelloop.service.settings import Settings
from labelloop.service.web.metrics import MULTIPROCESS_FOLDER_ENV, mark_process_dead, share_metrics

# Time for running requests to finish when the service stops.
GRACEFUL_TIMEOUT_S = 5

# Folder of a service's metrics: this, the number of its process, and a random part.
METRICS_PREFIX = "labelloop-metrics-"
log = structlog.get_logger(__name__)


def run_gunicorn(
    factory: str, *, bind: str, settings: Settings, workers: int | None = None, threads: int | None = None
) -> None:
    """Serve an app until SIGTERM or SIGINT; returns after all workers have ended.

    Args:
        factory: App factory that takes the settings, such as "ml_backend.server.app:create_app".
        bind: "host:port".
        settings: Passed to the factory in each worker; nothing is opened before the fork.
        workers: Processes; default: `web_workers`.
        threads: Threads per process; default: `web_threads`.

    Raises:
        LabelloopError: Another program listens there, or the address is not local.
        SettingsError: `bind` is not "host:port", or there is no such factory.
    """
    _require_free_port(bind)
    remove_metrics_of_killed()
    before, master = os.environ.get(MULTIPROCESS_FOLDER_ENV), os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{METRICS_PREFIX}{master}-"))
    share_metrics(folder)
    options = {
        "bind": bind,
        "worker_class": "labelloop.service.web.gthread.BufferingWorker",
        "workers": workers or settings.web_workers,
        "threads": threads or settings.web_threads,
        "preload_app": False,
        "timeout": 120,
        "graceful_timeout": GRACEFUL_TIMEOUT_S,
        "keepalive": 5,
        "logger_class": _Logger,
        "child_exit": _child_exit,
        "control_socket_disable": True,  # gunicorn's remote control, not used
        "proc_name": factory.partition(":")[0],
    }
    try:
        _Application(load_factory(factory), settings, options).run()
    except SystemExit as end:  # gunicorn's master exits this way; keep a non-zero status
        if end.code:
            raise
    finally:
        if os.getpid() == master:  # a worker that ends also gets here while others still serve
            shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop(MULTIPROCESS_FOLDER_ENV, None)


def remove_metrics_of_killed() -> None:
    """Remove the metrics folders of services that were killed: no process has the number in their names."""
    for folder in Path(tempfile.gettempdir()).glob(f"{METRICS_PREFIX}*-*"):
        number = folder.name.removeprefix(METRICS_PREFIX).partition("-")[0]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def require_authentication(host: str, *, authenticated: bool, service: str, settings_names: str) -> None:
    """Refuse to listen on a non-loopback address without authentication.

    Args:
        host: Address to listen on.
        authenticated: Whether callers must authenticate.
        service: Name of the service, for the message.
        settings_names: The settings that enable authentication, for the message.

    Raises:
        SettingsError: Other machines could use the service without authentication.
    """
    if authenticated or host.strip("[]") in {"localhost", "::1"} or host.startswith("127."):
        return
    raise SettingsError(
        f"{service} would listen on {host} without authentication.",
        fix=f"Set {settings_names}, or listen on 127.0.0.1.",
    )


def load_factory(factory: str) -> Callable[[Settings], Any]:
    """Import the function named "module:function" or "module:function()"."""
    module, _, name = factory.removesuffix("()").partition(":")
    try:
        function: Callable[[Settings], Any] = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise SettingsError(f"There is no app factory {factory!r}: {error}.") from error
    return function


class _Application(BaseApplication):
    def __init__(self, factory: Callable[[Settings], Any], settings: Settings, options: dict[str, Any]) -> None:
        self._factory, self._settings, self._options = factory, settings, options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._factory(self._settings)


class _Logger(Logger):
    """Send gunicorn's log records to the root logger, which redacts secrets; the app logs requests itself."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.access_log.handlers.clear()
        self.access_log.disabled = True
        self.cfg = cfg


def _child_exit(_server: Any, worker: Any) -> None:
    mark_process_dead(worker.pid)


def _require_free_port(bind: str) -> None:
    """Bind once and release; gunicorn itself would retry five times and exit with a log line only."""
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"Cannot listen on {bind!r}.", fix="Give an address as host:port, such as 127.0.0.1:9090.")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise LabelloopError(
                f"Cannot listen on {host}:{int(port)}: {error.strerror or error}.",
                fix=f"Stop the program that listens there (`ss -ltnp 'sport = :{int(port)}'` names it), or choose"
                " another port.",
                code="port_taken",
            ) from None
