"""The family that every package's errors derive from: each names the item and the fix."""

from pathlib import Path
from typing import ClassVar


class LabelloopError(Exception):
    """What went wrong, in a sentence for the user.

    Subclasses set ``code`` (machine-readable, snake_case), ``status`` (the HTTP answer where it reaches one) and may
    carry data as attributes; ``retry_after_s`` becomes the header Retry-After. ``fix`` says what to do next; it is
    shown on the command line and by ``labelloop doctor``.
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
    """A setting has a value that cannot be used; the message names its environment variable."""

    code = "bad_setting"


class DatabaseError(LabelloopError):
    """The database cannot be opened or migrated."""

    code = "database_unavailable"
    status = 503


class SchemaTooNew(DatabaseError):
    """A newer labelloop wrote the state."""

    code = "schema_too_new"

    def __init__(self, what: str, found: str, version: str) -> None:
        super().__init__(
            f"{what} was written by a newer labelloop ({found}) than this one ({version}).",
            fix="Install that version or a later one (upgrade labelloop), or restore a backup that this one made.",
        )


class HomeUnusable(LabelloopError):
    """The home folder cannot be written, or its disk is full."""

    code = "home_unusable"
    status = 503

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(
            f"The home folder {home} cannot be written: {reason}.",
            fix="Set LABELLOOP_HOME to a folder that you may write, on a disk with room; or make room.",
        )
        self.home = home


class Busy(LabelloopError):
    """More was asked of this process than it takes on now."""

    code = "busy"
    status = 503
    retry_after_s = 5

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The service is busy: {reason}",
            fix="Ask again in a moment, or for less at once. More processes: LABELLOOP_WEB_WORKERS.",
        )


class MissingExtra(LabelloopError):
    """A URL asks for a part that is an optional extra, and that extra is not installed."""

    code = "missing_extra"

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs the extra `{extra}`.", fix=f"Run: pip install 'labelloop[{extra}]'")
        self.extra = extra


class BadRequest(LabelloopError):
    """The caller's request cannot be read; the message says which part."""

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


class NotFound(LabelloopError):
    """The thing that was asked for is not there."""

    code = "not_found"
    status = 404


class PortTaken(LabelloopError):
    """Another program listens where a service was to listen."""

    code = "port_taken"

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(
            f"Cannot listen on {host}:{port}: {reason}.",
            fix=f"Stop what listens there (`ss -ltnp 'sport = :{port}'` names it) or choose another port.",
        )
        self.host, self.port = host, port
