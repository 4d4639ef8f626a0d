"""Base classes of all labelloop errors; each message names the item and the fix."""

from typing import Any


class LabelloopError(Exception):
    """Base class; the message is one sentence for the user.

    A subclass declares `code`, `status` and, as `str.format` templates, `message` and `fix`; a field of the templates
    that is read elsewhere is declared with its type as well.

    Args:
        message: The message, verbatim, instead of the template of the class.
        fix: The fix, verbatim, instead of the template of the class.
        data: Fields of the templates; each becomes an attribute, so that ``code=`` and ``status=`` set those of one
            error.

    Attributes:
        code: Machine-readable code, snake_case.
        status: HTTP status of the response.
        retry_after_s: Value of the header Retry-After, in seconds; None: no header.
        message: What is wrong.
        fix: What to do next; shown on the command line and by ``labelloop doctor``.
    """

    code: str = "labelloop_error"
    status: int = 500
    retry_after_s: int | None = None
    message: str = ""
    fix: str = ""

    def __init__(self, message: str = "", *, fix: str = "", **data: Any) -> None:
        self.__dict__.update(data)
        self.message = message or self.message.format(**data)
        self.fix = fix or self.fix.format(**data)
        super().__init__(self.message)

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
    message = "{what} was written by a newer labelloop ({newer}) than this one ({version})."
    fix = "Upgrade labelloop to that version or later, or restore a backup made by this version."


class HomeUnusable(LabelloopError):
    """The home folder is not writable, or its disk is full."""

    code = "home_unusable"
    status = 503
    message = "The home folder {home} cannot be written: {reason}."
    fix = "Set LABELLOOP_HOME to a writable folder on a disk with free space, or free some space."


class Busy(LabelloopError):
    """The process is at capacity; the client may retry later."""

    code = "busy"
    status = 503
    retry_after_s = 5
    message = "The service is busy: {reason}"
    fix = "Retry in a moment, or send less per request. LABELLOOP_WEB_WORKERS adds processes."


class MissingExtra(LabelloopError):
    """A feature needs an optional extra that is not installed."""

    code = "missing_extra"
    message = "{what} needs the extra `{extra}`."
    fix = "Run: pip install 'labelloop[{extra}]'"


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
