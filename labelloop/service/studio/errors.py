"""What can go wrong between labelloop and Label Studio, each with the fix in plain words; never a token."""

from labelloop.service.errors import LabelloopError


class StudioError(LabelloopError):
    """Label Studio could not be asked, or refused what was asked."""

    code = "label_studio"
    status = 502


class StudioUnreachable(StudioError):
    """Label Studio does not answer at its address (refused, unknown host, timeout, or not Label Studio at all)."""

    code = "label_studio_unreachable"
    status = 503

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"Label Studio does not answer at {url}: {reason}.",
            fix="Start it, or set LABELLOOP_LABEL_STUDIO_URL to the address where it answers.",
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
    """Label Studio answered, with an error.

    Attributes:
        answer: HTTP status that Label Studio gave.
        detail: Its own words, at most 500 characters.
    """

    code = "label_studio_refused"
    status = 502

    def __init__(self, what: str, answer: int, detail: str, *, fix: str = "") -> None:
        super().__init__(f"Label Studio refused {what}: {answer} {detail}".rstrip(), fix=fix)
        self.what = what
        self.answer = answer
        self.detail = detail


_NOT_THERE = (
    "See that the number is right (a project's stands in its address, /projects/NUMBER/), and that the account whose "
    "token is used may see it."
)


class NotFound(StudioRefused):
    """What was asked for is not in Label Studio, or this token may not see it."""

    code = "label_studio_not_found"
    status = 404

    def __init__(self, what: str, answer: int, detail: str, *, fix: str = "") -> None:
        super().__init__(what, answer, detail, fix=fix or _NOT_THERE)


class PredictionsDropped(StudioError):
    """Label Studio said yes to an import of predictions and kept fewer than it was given.

    Attributes:
        sent: How many were sent.
        created: How many Label Studio kept.
    """

    code = "predictions_dropped"
    status = 502

    def __init__(self, project: int, sent: int, created: int) -> None:
        super().__init__(
            f"Label Studio kept {created} of {sent} predictions imported into project {project} and named no reason.",
            fix="Compare each result's from_name, to_name, type and labels with the project's labeling interface, "
            "and each task id with the project's tasks.",
        )
        self.project = project
        self.sent = sent
        self.created = created
