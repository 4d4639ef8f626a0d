"""Errors of quality control: each names the item and the fix."""

from collections.abc import Sequence
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
    message = "This is not an event of Label Studio: {reason}."


class WebhookHostRefused(QualityControlError):
    """Label Studio rejects the URL of our webhook."""

    code = "webhook_host_refused"
    message = "Label Studio does not accept {url} as a webhook: {reason}."


class WriteLost(QualityControlError):
    """Label Studio accepted a change of a task but returned other values."""

    code = "write_lost"
    status = 502
    message = "Task {task} of project {project} did not keep what was written: {expected!r} became {actual!r}."


class ExportUnreadable(QualityControlError):
    """An input file that cannot be read or has the wrong content."""

    code = "unreadable_file"
    message = "{path}: {reason}."
    fix = "Give --from a JSON export of Label Studio (or JSON lines), --label-config the project's XML."
