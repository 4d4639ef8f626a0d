"""Errors of images: each names the address, without signatures and passwords, and the fix."""

from urllib.parse import urlsplit, urlunsplit

from labelloop.service.errors import LabelloopError


def redacted(url: str) -> str:
    """The address without query, fragment, user and password; of a data URI only the type."""
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
    """An image could not be fetched or decoded."""

    code = "media"
    status = 422
    message = "Image {url}: {reason}."
    url: str
    reason: str

    def __init__(self, url: str, reason: str, *, fix: str = "") -> None:
        super().__init__(fix=fix, url=redacted(url), reason=reason)


class MediaUnreachable(MediaError):
    """The host did not answer, was too slow, or answered with a transient error."""

    code = "media_unreachable"
    status = 503


class MediaHostSilent(MediaUnreachable):
    """The host does not answer: the connection failed or timed out."""

    code = "media_no_answer"


class MediaMissing(MediaError):
    """The host answered that the image does not exist or that access is denied."""

    code = "media_missing"
    status = 404


class MediaHostRefused(MediaError):
    """The address is not allowed: a private or reserved network, an unknown scheme, or a path outside its folder."""

    code = "media_host_refused"
    status = 403


class MediaTooLarge(MediaError):
    """More bytes or more pixels than the settings allow."""

    code = "media_too_large"
    status = 413


class NotAnImage(MediaError):
    """The data is not an image of a supported format, or is damaged."""

    code = "not_an_image"
