"""Why an image could not be had: each error names the address (signatures and passwords cut out) and the fix."""

from urllib.parse import urlsplit, urlunsplit

from labelloop.service.errors import LabelloopError


def redacted(url: str) -> str:
    """The address without its query, fragment, user and password; a data URI shows its type alone."""
    if url.startswith("data:"):
        return url.split(",", 1)[0][:60] + ",..."
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return url.partition("?")[0][:200]
    query = parts.query if parts.path.endswith("/local-files/") else ("..." if parts.query else "")
    return urlunsplit((parts.scheme, host, parts.path, query, ""))[:300]


class MediaError(LabelloopError):
    """An image could not be had."""

    code = "media"
    status = 422

    def __init__(self, url: str, reason: str, *, fix: str = "") -> None:
        self.url = redacted(url)
        self.reason = reason
        super().__init__(f"Image {self.url}: {reason}.", fix=fix)


class MediaUnreachable(MediaError):
    """The host did not answer, answered with an error that may pass, or was too slow."""

    code = "media_unreachable"
    status = 503


class NoAnswer(MediaUnreachable):
    """The host is silent: it cannot be connected, or says nothing in time."""

    code = "media_no_answer"


class MediaMissing(MediaError):
    """The host says that there is no such image, or that we may not read it."""

    code = "media_missing"
    status = 404


class HostRefused(MediaError):
    """Our rules forbid the address: a private or reserved network, an unknown scheme, a path outside its folder."""

    code = "media_host_refused"
    status = 403


class MediaTooLarge(MediaError):
    """More bytes or more pixels than the settings allow."""

    code = "media_too_large"
    status = 413


class NotAnImage(MediaError):
    """The bytes are not an image that we read, or are damaged."""

    code = "not_an_image"
    status = 422
