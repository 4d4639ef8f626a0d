"""Validate responses of S3 servers: that they come from S3, are not redirected, and that the body does not stall."""

import time
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ReadTimeoutError, ResponseStreamingError
from botocore.response import StreamingBody
from urllib3.exceptions import ProtocolError
from urllib3.exceptions import ReadTimeoutError as SocketReadTimeout

# Read timeout within a body, seconds. A body is read at most four times, so a request fails within a minute.
STALL_S = 10.0
# Minimum average speed of a body after `STALL_S` seconds.
MIN_BYTES_PER_S = 1 << 10
_CHUNK = 1 << 18
_WITH_ETAG = frozenset({"GetObject", "HeadObject", "PutObject"})


class NotAnS3Response(BotoCoreError):  # type: ignore[misc]
    """The response does not come from an S3 server but, for example, from the log-in page of a proxy."""

    fmt = "the response to {operation} is not from S3 ({reason})"


class UnexpectedRedirect(BotoCoreError):  # type: ignore[misc]
    """The server redirects to another address without naming the region of the bucket."""

    fmt = "the server redirects to {host}"


class BodyStalled(ReadTimeoutError):  # type: ignore[misc]
    """A body stalled or is too slow."""

    fmt = "{silence}"

    def __init__(self, silence: str) -> None:
        super().__init__(silence=silence)


def check_response(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """Handle botocore's event ``after-call.s3``: reject responses that are not from S3, and wrap the body.

    Raises:
        NotAnS3Response: The response lacks what every S3 response has.
    """
    if http_response.status_code >= 300:
        return
    if model.name in _WITH_ETAG and "ETag" not in parsed:
        http_response.raw.close()  # its body is never read
        raise NotAnS3Response(operation=model.name, reason="it has no ETag")
    if model.name == "ListObjectsV2" and b"<ListBucketResult" not in http_response.content[:1000]:
        raise NotAnS3Response(operation=model.name, reason="it is not a list of objects")
    body = parsed.get("Body")
    if type(body) is StreamingBody:
        parsed["Body"] = WatchedBody(http_response.raw, http_response.headers.get("content-length"))


def refuse_redirect(response: tuple[Any, Any] | None, operation: Any, **_: Any) -> None:
    """Handle botocore's event ``needs-retry.s3``: stop an endless redirect loop.

    On a redirect botocore asks for the bucket's region with HeadBucket; if that is redirected as well, it repeats it.

    Raises:
        UnexpectedRedirect: HeadBucket is redirected and the response has no region.
    """
    if response is None or operation.name != "HeadBucket" or not 300 <= response[0].status_code < 400:
        return
    headers = response[0].headers
    if "x-amz-bucket-region" not in headers:
        raise UnexpectedRedirect(host=urlsplit(headers.get("location", "")).netloc or "nowhere")


class WatchedBody(StreamingBody):  # type: ignore[misc]
    """A body that raises `BodyStalled` if it stalls or is slower than `MIN_BYTES_PER_S`."""

    def __init__(self, raw_stream: Any, content_length: str | None) -> None:
        super().__init__(raw_stream, content_length)
        self.set_socket_timeout(STALL_S)
        self._started = time.monotonic()

    def read(self, amt: int | None = None) -> bytes:
        """See `StreamingBody.read`."""
        parts, remaining = [], amt
        try:
            while remaining is None or remaining > 0:
                part = self._raw_stream.read1(_CHUNK if remaining is None else min(remaining, _CHUNK))
                if not part:
                    break
                parts.append(part)
                remaining = None if remaining is None else remaining - len(part)
                self._amount_read += len(part)
                self._check_speed()
        except SocketReadTimeout:
            self.close()
            raise BodyStalled(f"{STALL_S:g} seconds without a byte") from None
        except ProtocolError as error:
            raise ResponseStreamingError(error=error) from None
        if (not parts and amt != 0) or amt is None:
            self._verify_content_length()
        return b"".join(parts)

    def _check_speed(self) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed > STALL_S and self._amount_read < MIN_BYTES_PER_S * elapsed:
            self.close()
            raise BodyStalled(f"less than {MIN_BYTES_PER_S} bytes a second")
