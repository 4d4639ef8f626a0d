"""The errors of quality control: each names the item and how to put it right."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from labelloop.service.errors import LabelloopError


class QualityControlError(LabelloopError):
    """Something about quality control is not as it must be."""

    code = "quality_control"


class PolicyFault(NamedTuple):
    """One setting of a policy that cannot be followed.

    Attributes:
        where: The file, or ``policy`` for a value given in code.
        field: The name of the setting ("" when the whole file cannot be read).
        reason: What is wrong with it, in words.
    """

    where: str
    field: str
    reason: str

    def __str__(self) -> str:
        setting = self.field + ("" if not self.field else " " if self.reason.startswith("names ") else ": ")
        return f"{self.where}: {setting}{self.reason}."


class PolicyError(QualityControlError):
    """Policy files or values that cannot be followed; every fault is named.

    Attributes:
        faults: All of them, in the order of the files.
    """

    code = "bad_policy"

    def __init__(self, faults: Sequence[PolicyFault]) -> None:
        super().__init__(
            " ".join(map(str, faults)),
            fix="Put it right in the file; docs/reference/policy.md lists every setting with its default.",
        )
        self.faults = tuple(faults)

    @property
    def field(self) -> str:
        """The name of the first setting at fault."""
        return self.faults[0].field


class NotAnEvent(QualityControlError):
    """A webhook body that no Label Studio sends."""

    code = "not_an_event"
    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"This is no event of Label Studio: {reason}.")


class HostRefused(QualityControlError):
    """Label Studio will not accept the address of our webhook.

    Attributes:
        url: The address.
    """

    code = "webhook_host_refused"

    def __init__(self, url: str, reason: str, *, fix: str) -> None:
        super().__init__(f"Label Studio does not accept {url} as a webhook: {reason}.", fix=fix)
        self.url = url


class NoteRefused(QualityControlError):
    """A labelling interface that the note cannot be put into."""

    code = "note_refused"

    def __init__(self, project: int, reason: str) -> None:
        super().__init__(
            f"The note cannot be shown in project {project}: {reason}.",
            fix='Put <Header value="$qc_note"/> into the labeling interface yourself, where it is to stand.',
        )


class NotConnected(QualityControlError):
    """A project that quality control has not been connected to."""

    code = "not_connected"
    status = 404

    def __init__(self, project: int) -> None:
        super().__init__(
            f"Project {project} is not connected to quality control.", fix=f"Run: labelloop connect {project}"
        )
        self.project = project


class WriteLost(QualityControlError):
    """Label Studio took a change of a task and answered other values than we sent.

    Attributes:
        project: The project's id.
        task: The task's id.
        wanted: What we wrote.
        found: What Label Studio answered.
    """

    code = "write_lost"
    status = 502

    def __init__(self, project: int, task: int, wanted: object, found: object) -> None:
        super().__init__(
            f"Task {task} of project {project} did not keep what was written: {wanted!r} became {found!r}."
        )
        self.project, self.task, self.wanted, self.found = project, task, wanted, found


class WrongSecret(QualityControlError):
    """A webhook without our secret."""

    code = "wrong_secret"
    status = 401


class ExportUnreadable(QualityControlError):
    """A file that quality control was given cannot be read, or is not what it should be."""

    code = "unreadable_file"

    def __init__(self, path: Path, reason: str, fix: str = "") -> None:
        super().__init__(
            f"{path}: {reason}.",
            fix=fix or "Give --from a JSON export of Label Studio (or JSON lines), --label-config the project's XML.",
        )
        self.path = path
        self.reason = reason


class OutputUnwritable(QualityControlError):
    """There is no writing where a report or a consensus was to go."""

    code = "unwritable_file"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be written: {reason}.", fix='Name a file in a folder that is there; "-" prints it.'
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
    """A worker has a task in hand and does not let go of it."""

    code = "task_busy"
    status = 409

    def __init__(self, project: int, task: int) -> None:
        super().__init__(
            f"Task {task} of project {project} is in a worker's hands for too long.",
            fix="See `labelloop inbox counts`, and try again.",
        )
        self.project, self.task = project, task
