"""The commands of the local stack, `labelloop connect` and `labelloop worker`, as plain functions."""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.settings import Settings
from labelloop.stack.errors import StackError
from labelloop.stack.progress import Steps
from labelloop.stack.state import running_supervisor

Port = Annotated[int, Parameter(validator=Number(gte=1, lte=65535))]


def up(
    *,
    images: Path | None = None,
    port: Port | None = None,
    ml_port: Port | None = None,
    qc_port: Port | None = None,
    label_studio: Path | None = None,
    reset: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Start the whole loop on this machine: Label Studio, ML backend, quality control and worker, connected.

    The first start installs stock Label Studio into the home folder and creates the demo projects; later
    starts take seconds and keep everything. Ctrl-C stops all services.

    ```
    labelloop up
    labelloop up --images ./photos      # your images, as a project of their own
    labelloop up --port 8180 --ml-port 9190 --qc-port 9191
    ```

    Args:
        images: Folder of your own images, for a separate project. Default: photographs from installed packages.
        port: Port of Label Studio. Default: that of the last run, else 8080.
        ml_port: Port of the ML backend. Default: that of the last run, else 9090.
        qc_port: Port of quality control. Default: that of the last run, else 9091.
        label_studio: Folder in which stock Label Studio is (or will be) installed, to share it between home folders.
            Default: that of the last run, else `label-studio` in the home folder.
        reset: Start again: delete the accounts, projects and annotations of earlier runs. Exported data sets stay.
    """
    from labelloop.stack.layout import StackLayout
    from labelloop.stack.up import up as run
    from labelloop.stack.welcome import welcome

    home = Settings().home
    plan = StackLayout.for_home(home, port=port, ml_port=ml_port, qc_port=qc_port, label_studio=label_studio)
    command = _as_called()
    return run(plan, Steps(), images=images, reset=reset, show=lambda ready: welcome(ready, command=command))


def install(*, label_studio: Path | None = None) -> None:
    """Install stock Label Studio before the first `labelloop up`, for instance while a network is available.

    ```
    labelloop install
    labelloop install --label-studio /srv/label-studio     # then: labelloop up --label-studio /srv/label-studio
    ```

    Args:
        label_studio: Folder to install into. Default: `label-studio` in the home folder.
    """
    from labelloop.stack.layout import StackLayout

    installation = StackLayout.for_home(Settings().home, label_studio=label_studio).label_studio
    installation.prepare(Steps())
    print(f"Label Studio {installation.version} is in {installation.folder}.")


def down(*, wait_s: float = 30.0) -> None:
    """Stop the loop that `labelloop up` runs in another terminal (Ctrl-C there does the same), or left when killed.

    Args:
        wait_s: Seconds to wait until all services have stopped. Those of a killed `labelloop up` get SIGKILL then.
    """
    home = Settings().home
    holder = running_supervisor(home)
    if holder is None:
        from labelloop.stack.process import RECORDS, stop_orphans
        from labelloop.stack.state import sole_supervisor

        left = []
        if (home / RECORDS).is_dir():
            with sole_supervisor(home, None):  # the records are not those of an `up` that starts meanwhile
                left = stop_orphans(home / RECORDS, grace_s=wait_s)
        if not left:
            raise StackError(f"No labelloop up is running in {home}.", fix="Nothing to do.", code="not_running")
        print(f"labelloop up had been killed; what it left running has been stopped: {', '.join(left)}.")
        return
    os.kill(holder.pid, signal.SIGTERM)
    until = time.monotonic() + wait_s
    while running_supervisor(home) is not None:
        if time.monotonic() > until:
            raise StackError(
                f"Process {holder.pid} did not stop within {wait_s:.0f} s.",
                fix=f"See the logs in {home / 'logs'}.",
                code="not_running",
            )
        time.sleep(0.2)
    print("All services have stopped.")


def connect(project: int, *, note: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Connect a Label Studio project to the loop: ML backend, webhooks, tabs, sampling. Safe to repeat.

    ```
    labelloop connect 7
    labelloop connect 7 --note
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        note: Also add a line to the labeling interface, above the image, that says why a task is disputed.
    """
    from labelloop.connect import connect as run
    from labelloop.service.logging import setup_logging

    settings = Settings()
    setup_logging(settings)
    changes = _put_note(project, settings) if note else []
    changes += run(project, settings)
    changed = sum(change.done for change in changes)
    print(f"Project {project} is connected; {changed} of {len(changes)} settings were changed.")


def _put_note(project: int, settings: Settings) -> list[ConnectionChange]:
    """Add the note above the image, and print the change."""
    from labelloop.connect import print_change
    from labelloop.service.studio import Studio
    from qc_webhooks.studio.connect import show_note

    with contextlib.closing(Studio.from_settings(settings)) as studio:
        change = show_note(studio, project)
    print_change(change)
    return [change] if change.done else []


def worker(*, threads: int | None = None) -> None:
    """Run the background worker: quality control, learning, exports, reconciliation. Ctrl-C stops it.

    It waits for Label Studio if that does not answer yet.

    Args:
        threads: Concurrent jobs. Default: the setting job_threads.
    """
    from labelloop.cli.worker import run_background_worker

    run_background_worker(Settings(), threads=threads)


def _as_called() -> str:
    """The command to type in another terminal: the short name if the shell finds it, otherwise the path."""
    if shutil.which("labelloop"):
        return "labelloop"
    called = Path(sys.argv[0])
    return os.path.relpath(called) if called.name == "labelloop" else f"{sys.executable} -m labelloop.cli.main"
