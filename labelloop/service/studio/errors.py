"""Errors of the Label Studio client, each with a fix; messages never contain a token."""

from labelloop.service.errors import LabelloopError


class StudioError(LabelloopError):
    """Base class: a request to Label Studio failed."""

    code = "label_studio"
    status = 502


class StudioUnreachable(StudioError):
    """Label Studio does not answer at its URL (connection refused, unknown host, timeout, or another program)."""

    code = "label_studio_unreachable"
    status = 503
    message = "Label Studio does not answer at {url}: {reason}."
    fix = "Start it, or correct LABELLOOP_LABEL_STUDIO_URL."
    url: str
    reason: str


class StudioUnauthorized(StudioError):
    """Label Studio does not accept our token.

    Attributes:
        kind: `missing`, `expired`, `wrong` or `legacy disabled`.
    """

    code = "label_studio_unauthorized"
    status = 502
    message = "Label Studio at {url} does not accept our token: {kind}."
    url: str
    kind: str


class StudioRefused(StudioError):
    """Label Studio responded with an error.

    Attributes:
        what: The request.
        http_status: HTTP status of the response.
        detail: Label Studio's message, at most 500 characters.
    """

    code = "label_studio_refused"
    status = 502

    what: str
    http_status: int
    detail: str

    def __init__(self, what: str, http_status: int, detail: str, *, fix: str = "") -> None:
        message = f"Label Studio refused {what}: {http_status} {detail}".rstrip()
        super().__init__(message, fix=fix, what=what, http_status=http_status, detail=detail)


class StudioNotFound(StudioRefused):
    """The resource does not exist in Label Studio, or the token's user has no access."""

    code = "label_studio_not_found"
    status = 404
    fix = "Check the id (a project's is in its URL, /projects/ID/), and that the account of the token has access."


class PredictionsDropped(StudioError):
    """Label Studio accepted an import of predictions but stored fewer than were sent.

    Attributes:
        sent: Number of predictions sent.
        created: Number of predictions stored.
    """

    code = "predictions_dropped"
    status = 502
    message = "Label Studio stored {created} of {sent} predictions imported into project {project} and gave no reason."
    fix = (
        "Compare each result's from_name, to_name, type and labels with the project's labeling interface, "
        "and each task id with the project's tasks."
    )
    sent: int
    created: int
