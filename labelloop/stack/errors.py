"""Errors of the local stack, each with a fix for the user."""

from pathlib import Path

from labelloop.service.errors import LabelloopError


class StackError(LabelloopError):
    """A part of the local stack could not be prepared, started or kept running.

    Args:
        message: What went wrong, with the name of the part.
        fix: What the user can do.
        log: Log file with details.
        code: Machine-readable code.
    """

    log: Path | None

    def __init__(self, message: str, *, fix: str, log: Path | None = None, code: str = "stack") -> None:
        super().__init__(message if log is None else f"{message} The log: {log}", fix=fix, log=log, code=code)
