"""Base classes of all labelloop errors; each message names the item and the fix."""

from pathlib import Path
from typing import ClassVar


class LabelloopError(Exception):
    """Base class; the message is one sentence for the user.

    Attributes:
        code: Machine-readable code of the class, snake_case.
        status: HTTP status of the response.
        retry_after_s: Value of the header Retry-After, in seconds; None: no header.
        message: What is wrong.
        fix: What to do next; shown on the command line and by ``labelloop doctor``.
    """

    code: ClassVar[str] = "labelloop_error"
    status: ClassVar[int] = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".rstrip()


class SettingsError(LabelloopError):
    """A setting has an invalid value; the message names its environment variable."""

    code = "bad_setting"


class DatabaseError(LabelloopError):
    """The database cannot be opened or migrated."""

    code = "database_unavailable"
    status = 503


class SchemaTooNew(DatabaseError):
    """A newer labelloop release wrote the state."""

    code = "schema_too_new"

    def __init__(self, what: str, newer: str, version: str) -> None:
        super().__init__(
            f"{what} was written by a newer labelloop ({newer}) than this one ({version}).",
            fix="Upgrade labelloop to that version or later, or restore a backup made by this version.",
        )


class HomeUnusable(LabelloopError):
    """The home folder is not writable, or its disk is full."""

    code = "home_unusable"
    status = 503

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(
            f"The home folder {home} cannot be written: {reason}.",
            fix="Set LABELLOOP_HOME to a writable folder on a disk with free space, or free some space.",
        )
        self.home = home


class Busy(LabelloopError):
    """The process is at capacity; the client may retry later."""

    code = "busy"
    status = 503
    retry_after_s = 5

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The service is busy: {reason}",
            fix="Retry in a moment, or send less per request. LABELLOOP_WEB_WORKERS adds processes.",
        )


class MissingExtra(LabelloopError):
    """A feature needs an optional extra that is not installed."""

    code = "missing_extra"

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs the extra `{extra}`.", fix=f"Run: pip install 'labelloop[{extra}]'")
        self.extra = extra


class BadRequest(LabelloopError):
    """The request is malformed; the message says which part."""

    code = "bad_request"
    status = 400


class Unauthorized(LabelloopError):
    """Credentials are missing or wrong."""

    code = "unauthorized"
    status = 401


class Forbidden(LabelloopError):
    """The shared secret is missing or wrong."""

    code = "forbidden"
    status = 403


class PortInUse(LabelloopError):
    """Another program listens on the port of a service."""

    code = "port_taken"

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(
            f"Cannot listen on {host}:{port}: {reason}.",
            fix=f"Stop the program that listens there (`ss -ltnp 'sport = :{port}'` names it), or choose another port.",
        )
        self.host, self.port = host, port
