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

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"Label Studio does not answer at {url}: {reason}.",
            fix="Start it, or correct LABELLOOP_LABEL_STUDIO_URL.",
        )
        self.url = url
        self.reason = reason


class StudioUnauthorized(StudioError):
    """Label Studio does not accept our token.

    Attributes:
        kind: `missing`, `expired`, `wrong` or `legacy disabled`.
    """

    code = "label_studio_unauthorized"
    status = 502

    def __init__(self, url: str, kind: str, fix: str) -> None:
        super().__init__(f"Label Studio at {url} does not accept our token: {kind}.", fix=fix)
        self.url = url
        self.kind = kind


class StudioRefused(StudioError):
    """Label Studio responded with an error.

    Attributes:
        answer: HTTP status of the response.
        detail: Label Studio's message, at most 500 characters.
    """

    code = "label_studio_refused"
    status = 502

    def __init__(self, what: str, answer: int, detail: str, *, fix: str = "") -> None:
        super().__init__(f"Label Studio refused {what}: {answer} {detail}".rstrip(), fix=fix)
        self.what = what
        self.http_status = answer
        self.detail = detail


_NOT_FOUND_FIX = (
    "Check the id (a project's is in its URL, /projects/ID/), and that the account of the token has access."
)


class StudioNotFound(StudioRefused):
    """The resource does not exist in Label Studio, or the token's user has no access."""

    code = "label_studio_not_found"
    status = 404

    def __init__(self, what: str, answer: int, detail: str, *, fix: str = "") -> None:
        super().__init__(what, answer, detail, fix=fix or _NOT_FOUND_FIX)


class PredictionsDropped(StudioError):
    """Label Studio accepted an import of predictions but stored fewer than were sent.

    Attributes:
        sent: Number of predictions sent.
        created: Number of predictions stored.
    """

    code = "predictions_dropped"
    status = 502

    def __init__(self, project: int, sent: int, created: int) -> None:
        super().__init__(
            f"Label Studio stored {created} of {sent} predictions imported into project {project} and gave no reason.",
            fix="Compare each result's from_name, to_name, type and labels with the project's labeling interface, "
            "and each task id with the project's tasks.",
        )
        self.project = project
        self.sent = sent
        self.created = created
