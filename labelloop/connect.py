"""Connect a Label Studio project to labelloop: ML backend, QC's webhook and tabs, sampling. Idempotent."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.learning.service import connect_to_learning
from ml_backend.studio.connect import basic_auth, is_same_url
from ml_backend.studio.connect import connect as connect_ml_backend
from qc_webhooks.studio.connect import connect as connect_qc

Step = Callable[[Studio, int, Settings], Sequence[ConnectionChange]]
OnChange = Callable[[ConnectionChange], None]


@dataclass(frozen=True)
class ConnectFailure:
    """A part whose connection failed.

    Attributes:
        part: The part's name in ``STEPS``.
        what: What is wrong.
        fix: What to do about it.
    """

    part: str
    what: str
    fix: str


class IncompleteConnection(LabelloopError):
    """Some part of the project could not be connected; the other parts are connected.

    Attributes:
        project: The project's id.
        changes: What was done, or was correct already.
        failures: What could not be done.
    """

    code = "not_connected"
    status = 502

    def __init__(self, project: int, changes: Sequence[ConnectionChange], failures: Sequence[ConnectFailure]) -> None:
        self.project, self.changes, self.failures = project, tuple(changes), tuple(failures)
        fixes = dict.fromkeys(failure.fix for failure in failures if failure.fix)
        super().__init__(
            "\n".join([f"Project {project} is not fully connected.", *(f"  {f.part}: {f.what}" for f in failures)]),
            fix=" ".join([*fixes, f"Then run `labelloop connect {project}` again; it continues where it stopped."]),
        )


def rewrite_endpoint_urls(studio: Studio, project: int, settings: Settings) -> Sequence[ConnectionChange]:
    """Move the ML backend and the webhooks that point to former addresses of our services to the current ones.

    Ours are the webhooks with our secret, and an ML backend whose webhook has it. Without a secret they cannot be
    recognised, and nothing is moved.

    Args:
        studio: Label Studio.
        project: The project's id.
        settings: The current addresses, the secret, and Basic auth.

    Returns:
        One change for each former address; empty if there is none.
    """
    secrets = {
        secret.get_secret_value() for secret in (settings.webhook_secret, settings.webhook_secret_previous) if secret
    }
    current = [f"{url.rstrip('/')}/webhook" for url in (settings.ml_url, settings.qc_url)]
    own_hooks = [hook for hook in studio.webhooks(project) if (hook["headers"] or {}).get(SECRET_HEADER) in secrets]
    outdated = [hook for hook in own_hooks if not any(is_same_url(hook["url"], url) for url in current)]
    if not outdated:
        return []
    changes = []
    backends = studio.ml_backends(project)
    has_current = any(is_same_url(row["url"], settings.ml_url) for row in backends)
    for hook in outdated:
        row = next((row for row in backends if is_same_url(f"{row['url'].rstrip('/')}/webhook", hook["url"])), None)
        if row is None:
            what = "webhook"  # quality control's, or that of a removed backend: its own step creates it again
        elif has_current:
            studio.delete_ml_backend(row["id"])
            what = "ML backend"
        else:
            studio.update_ml_backend(row["id"], url=settings.ml_url, basic_auth=basic_auth(settings))
            has_current, what = True, "ML backend"
        studio.delete_webhook(hook["id"])
        changes.append(ConnectionChange(f"{what} no longer at {hook['url'].removesuffix('/webhook')}", done=True))
    return changes


def _quality_control(studio: Studio, project: int, settings: Settings) -> Sequence[ConnectionChange]:
    return connect_qc(studio, project, settings, open_database(settings))


def _learning(studio: Studio, project: int, settings: Settings) -> Sequence[ConnectionChange]:
    return connect_to_learning(studio, project, settings, open_database(settings))


STEPS: Mapping[str, Step] = {
    "addresses": rewrite_endpoint_urls,
    "ml-backend": connect_ml_backend,
    "learning": _learning,
    "qc": _quality_control,
}


def print_change(change: ConnectionChange) -> None:
    """Print one change with its state: done, already correct, a choice of the user, or a note."""
    kinds = {"done": change.done, "your choice": change.choice, "note": change.note}
    state = next((name for name, holds in kinds.items() if holds), "already right")
    print(f"  {state:<13}  {change.what}")


def connect(
    project: int,
    settings: Settings,
    *,
    on_change: OnChange = print_change,
    studio: Studio | None = None,
    steps: Mapping[str, Step] = STEPS,
) -> list[ConnectionChange]:
    """Connect a project; only what is not correct yet is changed.

    Args:
        project: The project's id in Label Studio, the number in its address.
        settings: The addresses and secrets.
        on_change: Called with each change, part by part. Default: prints it.
        studio: Label Studio. Default: from the settings.
        steps: The parts to connect.

    Returns:
        Everything that the connected project has, and whether this run created it.

    Raises:
        StudioError: Label Studio does not answer or has no such project; nothing was changed.
        IncompleteConnection: Some part could not be connected; the others are.
    """
    if studio is None:
        with contextlib.closing(Studio.from_settings(settings)) as own:
            return connect(project, settings, on_change=on_change, studio=own, steps=steps)
    studio.project(project)
    changes: list[ConnectionChange] = []
    failures: list[ConnectFailure] = []
    for part, step in steps.items():
        try:
            step_changes = step(studio, project, settings)
        except LabelloopError as error:
            failures.append(ConnectFailure(part, error.message, error.fix))
            continue
        for change in step_changes:
            on_change(change)
        changes += step_changes
    if failures:
        raise IncompleteConnection(project, changes, failures)
    return changes
