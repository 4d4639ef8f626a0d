"""The commands of the local stack and of the worker, as plain functions that `labelloop` mounts."""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.connect_report import Change
from labelloop.service.settings import Settings
from labelloop.stack.errors import NotRunning
from labelloop.stack.progress import Steps
from labelloop.stack.state import running


def up(
    *,
    images: Path | None = None,
    port: int | None = None,
    ml_port: int | None = None,
    qc_port: int | None = None,
    label_studio: Path | None = None,
    reset: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Bring the whole loop up on this machine: Label Studio, ML backend, quality control and worker, connected.

    The first start installs stock Label Studio into the home folder and makes a project with photographs in it; later
    starts take seconds and find everything as it was. Ctrl-C ends everything.

    Args:
        images: Folder with your own photographs, for a project of their own. Default: photographs that come inside
            installed packages.
        port: Port of Label Studio. Default: that of the last run, else 8080.
        ml_port: Port of the ML backend. Default: that of the last run, else 9090.
        qc_port: Port of quality control. Default: that of the last run, else 9091.
        label_studio: Folder where stock Label Studio is (or will be) installed, to share it between home folders.
            Default: `label-studio` in the home folder.
        reset: Begin anew: delete the accounts, projects and annotations of earlier runs. Exported data sets stay.
    """
    from labelloop.stack.layout import Plan
    from labelloop.stack.up import up as run
    from labelloop.stack.welcome import welcome

    home = Settings().home
    plan = Plan.make(home, port=port, ml_port=ml_port, qc_port=qc_port, label_studio=label_studio)
    command = _as_called()
    return run(plan, Steps(), images=images, reset=reset, show=lambda ready: welcome(ready, command=command))


def install(*, label_studio: Path | None = None) -> None:
    """Install stock Label Studio ahead of the first `labelloop up`, for instance where the network is there only now.

    Args:
        label_studio: Folder to install into. Default: `label-studio` in the home folder.
    """
    from labelloop.stack.layout import Plan

    installation = Plan.make(Settings().home, label_studio=label_studio).label_studio
    installation.prepare(Steps())
    print(f"Label Studio {installation.version} is in {installation.folder}.")


def down(*, wait_s: float = 30.0) -> None:
    """End the loop that `labelloop up` runs in another terminal (Ctrl-C there does the same).

    Args:
        wait_s: How long to wait until everything has ended.
    """
    home = Settings().home
    holder = running(home)
    if holder is None:
        raise NotRunning(f"No labelloop up is running in {home}.", fix="Nothing to do.")
    os.kill(holder.pid, signal.SIGTERM)
    until = time.monotonic() + wait_s
    while running(home) is not None:
        if time.monotonic() > until:
            raise NotRunning(
                f"Process {holder.pid} has not ended within {wait_s:.0f} s.",
                fix=f"Look at the logs in {home / 'logs'}.",
            )
        time.sleep(0.2)
    print("Everything has ended.")


def connect(project: int, *, note: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Join a project of Label Studio to the loop: ML backend, webhooks, tabs, sampling. Twice changes nothing.

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        note: Also put a line into the labeling interface that shows above the photo why a task is disputed.
    """
    from labelloop.connect import connect as run
    from labelloop.service.logging import setup_logging

    settings = Settings()
    setup_logging(settings)
    changes = _put_note(project, settings) if note else []
    changes += run(project, settings)
    made = sum(change.done for change in changes)
    print(f"Project {project} is connected; {made} of {len(changes)} things were changed.")


def _put_note(project: int, settings: Settings) -> list[Change]:
    """Shows the note above the photo, as somebody asked, and says so."""
    from labelloop.connect import show
    from labelloop.service.studio import Studio
    from qc_webhooks.studio.connect import show_note

    with contextlib.closing(Studio.from_settings(settings)) as studio:
        made = show_note(studio, project)
    show(made)
    return [made] if made.done else []


def worker(*, threads: int | None = None) -> None:
    """Do what events ask for: check submits, route disputes, look for what no webhook told. Ends on Ctrl-C.

    It waits for Label Studio where that is not up yet.

    Args:
        threads: Jobs at a time. Default: the setting job_threads.
    """
    from labelloop.cli.worker import run_worker

    run_worker(Settings(), threads=threads)


def _as_called() -> str:
    """What to type in another terminal: the short name where the shell finds it, else the path."""
    if shutil.which("labelloop"):
        return "labelloop"
    called = Path(sys.argv[0])
    return os.path.relpath(called) if called.name == "labelloop" else f"{sys.executable} -m labelloop.cli.main"
