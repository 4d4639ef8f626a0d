"""Connects a Label Studio project to labelloop: ML backend, QC's webhook and tabs, sampling. Twice changes nothing."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labelloop.moved import follow_addresses
from labelloop.service.connect_report import Change
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.connect import connect as connect_learning
from ml_backend.studio.connect import connect as connect_ml_backend
from qc_webhooks.studio.connect import connect as connect_qc

Step = Callable[[Studio, int, Settings], Sequence[Change]]
Tell = Callable[[Change], None]


@dataclass(frozen=True)
class Failure:
    """A part that could not be connected.

    Attributes:
        part: the part's name in ``STEPS``.
        what: what is wrong, in plain words.
        fix: what to do about it.
    """

    part: str
    what: str
    fix: str


class NotConnected(LabelloopError):
    """Some part of the project could not be connected; the other parts are connected all the same.

    Attributes:
        project: the project's id.
        changes: what was done, or was right already.
        failures: what could not be done.
    """

    code = "not_connected"
    status = 502

    def __init__(self, project: int, changes: Sequence[Change], failures: Sequence[Failure]) -> None:
        self.project, self.changes, self.failures = project, tuple(changes), tuple(failures)
        fixes = dict.fromkeys(failure.fix for failure in failures if failure.fix)
        super().__init__(
            f"Project {project} is not fully connected. " + " ".join(f"{f.part}: {f.what}" for f in failures),
            fix=" ".join([*fixes, f"Then run `labelloop connect {project}` again; it goes on where it stopped."]),
        )


def _quality_control(studio: Studio, project: int, settings: Settings) -> Sequence[Change]:
    return connect_qc(studio, project, settings, open_database(settings))


def _learning(studio: Studio, project: int, settings: Settings) -> Sequence[Change]:
    return connect_learning(studio, project, settings, open_database(settings))


STEPS: Mapping[str, Step] = {
    "addresses": follow_addresses,
    "ml-backend": connect_ml_backend,
    "learning": _learning,
    "qc": _quality_control,
}


def show(change: Change) -> None:
    """Print one change: what was done or was right already, what a person may choose, what the project does not get."""
    kinds = {"done": change.done, "your choice": change.choice, "note": change.note}
    state = next((name for name, holds in kinds.items() if holds), "already right")
    print(f"  {state:<13}  {change.what}")


def connect(
    project: int,
    settings: Settings,
    *,
    tell: Tell = show,
    studio: Studio | None = None,
    steps: Mapping[str, Step] = STEPS,
) -> list[Change]:
    """Connect a project, changing only what is not right yet.

    Args:
        project: the project's id in Label Studio, the number in its address.
        settings: where everything is.
        tell: called with each change, part by part; prints it by default.
        studio: Label Studio; made from the settings by default.
        steps: the parts to connect.

    Returns:
        Every thing that the connected project has, and whether this run made it.

    Raises:
        StudioError: Label Studio cannot be asked, or has no such project; nothing was changed.
        NotConnected: some part could not be connected; the others are.
    """
    if studio is None:
        with contextlib.closing(Studio.from_settings(settings)) as own:
            return connect(project, settings, tell=tell, studio=own, steps=steps)
    studio.project(project)
    changes: list[Change] = []
    failures: list[Failure] = []
    for part, step in steps.items():
        try:
            made = step(studio, project, settings)
        except LabelloopError as error:
            failures.append(Failure(part, error.message, error.fix))
            continue
        for change in made:
            tell(change)
        changes += made
    if failures:
        raise NotConnected(project, changes, failures)
    return changes
