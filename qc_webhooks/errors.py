"""Errors of quality control: each names the item and the fix."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from labelloop.service.errors import LabelloopError


class QualityControlError(LabelloopError):
    """Base class of all errors of quality control."""

    code = "quality_control"


class PolicyFault(NamedTuple):
    """One invalid setting of a policy.

    Attributes:
        where: The file, or ``policy`` for a value given in code.
        field: Name of the setting ("" if the whole file cannot be read).
        reason: What is wrong with it.
    """

    where: str
    field: str
    reason: str

    def __str__(self) -> str:
        setting = self.field + ("" if not self.field else " " if self.reason.startswith("names ") else ": ")
        return f"{self.where}: {setting}{self.reason}."


class PolicyError(QualityControlError):
    """Policy files or values that are invalid; lists every fault.

    Attributes:
        faults: All faults, in the order of the files.
    """

    code = "bad_policy"

    def __init__(self, faults: Sequence[PolicyFault]) -> None:
        super().__init__(
            " ".join(map(str, faults)),
            fix="Correct the file; docs/reference/policy.md lists every setting with its default.",
        )
        self.faults = tuple(faults)

    @property
    def field(self) -> str:
        """Name of the first invalid setting."""
        return self.faults[0].field


class NotAnEvent(QualityControlError):
    """A webhook body that Label Studio does not send."""

    code = "not_an_event"
    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"This is not an event of Label Studio: {reason}.")


class WebhookHostRefused(QualityControlError):
    """Label Studio rejects the URL of our webhook.

    Attributes:
        url: The URL.
    """

    code = "webhook_host_refused"

    def __init__(self, url: str, reason: str, *, fix: str) -> None:
        super().__init__(f"Label Studio does not accept {url} as a webhook: {reason}.", fix=fix)
        self.url = url


class NoteRefused(QualityControlError):
    """A labeling interface that the note cannot be added to."""

    code = "note_refused"

    def __init__(self, project: int, reason: str) -> None:
        super().__init__(
            f"The note cannot be shown in project {project}: {reason}.",
            fix='Add <Header value="$qc_note"/> to the labeling interface where the note should be shown.',
        )


class ProjectNotConnected(QualityControlError):
    """A project that is not connected to quality control."""

    code = "not_connected"
    status = 404

    def __init__(self, project: int) -> None:
        super().__init__(
            f"Project {project} is not connected to quality control.", fix=f"Run: labelloop connect {project}"
        )
        self.project = project


class WriteLost(QualityControlError):
    """Label Studio accepted a change of a task but returned other values.

    Attributes:
        project: Project id.
        task: Task id.
        expected: The values that we wrote.
        actual: The values that Label Studio returned.
    """

    code = "write_lost"
    status = 502

    def __init__(self, project: int, task: int, expected: object, actual: object) -> None:
        super().__init__(
            f"Task {task} of project {project} did not keep what was written: {expected!r} became {actual!r}."
        )
        self.project, self.task, self.expected, self.actual = project, task, expected, actual


class WrongSecret(QualityControlError):
    """A webhook request without the correct secret."""

    code = "wrong_secret"
    status = 401


class ExportUnreadable(QualityControlError):
    """An input file that cannot be read or has the wrong content."""

    code = "unreadable_file"

    def __init__(self, path: Path, reason: str, fix: str = "") -> None:
        super().__init__(
            f"{path}: {reason}.",
            fix=fix or "Give --from a JSON export of Label Studio (or JSON lines), --label-config the project's XML.",
        )
        self.path = path
        self.reason = reason


class OutputUnwritable(QualityControlError):
    """An output path that cannot be written."""

    code = "unwritable_file"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be written: {reason}.", fix='Name a file in an existing folder; "-" prints it.'
        )
        self.path = path


class ConsensusUnwritable(QualityControlError):
    """A region of the consensus cannot be written as Label Studio's JSON."""

    code = "consensus_unwritable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The consensus cannot be written: {reason}.", fix="Give the label config that the export is of."
        )


class TaskBusy(QualityControlError):
    """A task that a worker has been processing for too long."""

    code = "task_busy"
    status = 409

    def __init__(self, project: int, task: int) -> None:
        super().__init__(
            f"Task {task} of project {project} is still being processed by a worker.",
            fix="See `labelloop inbox counts`, and try again.",
        )
        self.project, self.task = project, task
