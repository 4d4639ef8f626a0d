"""Errors of the local stack, each with a fix for the user."""

from pathlib import Path

from labelloop.service.errors import LabelloopError


class StackError(LabelloopError):
    """A part of the local stack could not be prepared, started or kept running.

    Args:
        message: What went wrong, with the name of the part.
        fix: What the user can do.
        log: Log file with details.
    """

    code = "stack"

    def __init__(self, message: str, *, fix: str, log: Path | None = None) -> None:
        super().__init__(message if log is None else f"{message} The log: {log}", fix=fix)
        self.log = log


class InstallFailed(StackError):
    """Stock Label Studio could not be installed into its own virtual environment."""

    code = "install_failed"


class TooLittleDisk(StackError):
    """The disk has less free space than the step needs."""

    code = "too_little_disk"


class StackPortTaken(StackError):
    """Another program listens on a port that a part of the stack needs."""

    code = "port_taken"


class AlreadyRunning(StackError):
    """Another supervisor holds this home folder."""

    code = "already_running"


class NotRunning(StackError):
    """No supervisor holds this home folder."""

    code = "not_running"


class StartFailed(StackError):
    """A part exited or did not answer in time while starting."""

    code = "start_failed"


class AccountRefused(StackError):
    """Label Studio refused a sign-up, a log-in or a token."""

    code = "account_refused"


class NoDemoImages(StackError):
    """No images for the demo project: the folder has none, or no package with sample images is installed."""

    code = "no_photos"
