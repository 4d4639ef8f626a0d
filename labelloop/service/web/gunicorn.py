"""Serving: gunicorn run from Python, with threads, metrics that are right over its workers, and a clean end."""

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

from labelloop.service.errors import PortTaken, SettingsError
from labelloop.service.settings import Settings
from labelloop.service.web.metrics import FOLDER, forget_process, share_metrics

# Time that requests get to finish when the service is stopped.
GRACE_S = 5
log = structlog.get_logger(__name__)


def run_gunicorn(
    factory: str, *, bind: str, settings: Settings, workers: int | None = None, threads: int | None = None
) -> None:
    """Serve an app until SIGTERM or SIGINT; returns when all workers have ended.

    Args:
        factory: an app factory that takes the settings, such as "ml_backend.server.app:create_app".
        bind: "host:port".
        settings: handed to the factory, in each worker: nothing is opened before the fork.
        workers: processes; by default `web_workers`.
        threads: threads of each; by default `web_threads`.

    Raises:
        PortTaken: something listens there already, or the address is not ours.
        SettingsError: `bind` is no "host:port", or there is no such factory.
    """
    _check_port(bind)
    folder = Path(tempfile.mkdtemp(prefix="labelloop-metrics-"))
    before, master = os.environ.get(FOLDER), os.getpid()
    share_metrics(folder)
    options = {
        "bind": bind,
        "worker_class": "labelloop.service.web.gthread.ReceivingWorker",
        "workers": workers or settings.web_workers,
        "threads": threads or settings.web_threads,
        "preload_app": False,
        "timeout": 120,
        "graceful_timeout": GRACE_S,
        "keepalive": 5,
        "logger_class": _Logger,
        "child_exit": _child_exit,
        "control_socket_disable": True,  # gunicorn's remote control: one more door that nobody asked for
        "proc_name": factory.partition(":")[0],
    }
    try:
        _Service(load_factory(factory), settings, options).run()
    except SystemExit as end:  # how gunicorn's master ends; an unsuccessful end stays one
        if end.code:
            raise
    finally:
        if os.getpid() == master:  # a worker that ends comes through here too, while others still serve
            shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop(FOLDER, None)


def require_key(host: str, *, closed: bool, service: str, keys: str) -> None:
    """Refuse to listen beyond loopback without a key: whoever reaches the port could use the service.

    Args:
        host: Address to listen on.
        closed: Whether callers need a key.
        service: Its name in the message.
        keys: The settings that close it.

    Raises:
        SettingsError: Other machines could reach it, and nothing is asked of them.
    """
    if closed or host.strip("[]") in {"localhost", "::1"} or host.startswith("127."):
        return
    raise SettingsError(
        f"{service} would listen on {host} and ask callers for no key.",
        fix=f"Set {keys}, or listen on 127.0.0.1.",
    )


def load_factory(factory: str) -> Callable[[Settings], Any]:
    """The function that "module:function" or "module:function()" names."""
    module, _, name = factory.removesuffix("()").partition(":")
    try:
        found: Callable[[Settings], Any] = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise SettingsError(f"There is no app factory {factory!r}: {error}.") from error
    return found


class _Service(BaseApplication):
    def __init__(self, factory: Callable[[Settings], Any], settings: Settings, options: dict[str, Any]) -> None:
        self._factory, self._settings, self._options = factory, settings, options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._factory(self._settings)


class _Logger(Logger):
    """gunicorn's own lines go through the root logger, where secrets are taken out; requests are logged by the app."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.access_log.handlers.clear()
        self.access_log.disabled = True
        self.cfg = cfg


def _child_exit(_server: Any, worker: Any) -> None:
    forget_process(worker.pid)


def _check_port(bind: str) -> None:
    """Bind once and let go: gunicorn itself tries five times and then ends with a log line that nobody reads."""
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
            raise PortTaken(host, int(port), error.strerror or str(error)) from None
