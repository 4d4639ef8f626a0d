"""What can go wrong with the local stack, each with the fix that a user can do."""

from pathlib import Path

from labelloop.service.errors import LabelloopError


class StackError(LabelloopError):
    """A part of the local stack could not be prepared, started or kept running.

    Args:
        message: What happened, naming the part.
        fix: What the user can do about it.
        log: The file that tells more.
    """

    code = "stack"

    def __init__(self, message: str, *, fix: str, log: Path | None = None) -> None:
        super().__init__(message if log is None else f"{message} The log: {log}", fix=fix)
        self.log = log


class InstallFailed(StackError):
    """Stock Label Studio could not be installed into its own virtual environment."""

    code = "install_failed"


class TooLittleDisk(StackError):
    """The disk has less room than the step is known to take."""

    code = "too_little_disk"


class PortTaken(StackError):
    """Another program listens where a part of the stack should."""

    code = "port_taken"


class AlreadyRunning(StackError):
    """Another supervisor holds this home folder."""

    code = "already_running"


class NotRunning(StackError):
    """No supervisor holds this home folder."""

    code = "not_running"


class StartFailed(StackError):
    """A part ended, or did not answer in time, while it was being started."""

    code = "start_failed"


class AccountRefused(StackError):
    """Label Studio refused a sign-up, a log-in or a token."""

    code = "account_refused"


class NoPhotos(StackError):
    """The folder given for the demo project holds no image that Label Studio takes."""

    code = "no_photos"
