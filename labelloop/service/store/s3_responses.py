"""What an answer of an S3 server has to be: S3's own, from where it was asked, and a body that comes at some speed."""

import time
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ReadTimeoutError, ResponseStreamingError
from botocore.response import StreamingBody
from urllib3.exceptions import ProtocolError
from urllib3.exceptions import ReadTimeoutError as NothingCame

STALL_S = 10.0
"""Longest silence in the middle of a body: it is read again at most four times, so a minute ends it."""
SLOWEST = 1 << 10
"""Bytes a second, on average, below which a body is given up after `STALL_S`."""
_CHUNK = 1 << 18
_WITH_ETAG = frozenset({"GetObject", "HeadObject", "PutObject"})


class NotS3(BotoCoreError):  # type: ignore[misc]
    """An answer of something else than an S3 server, such as a proxy's log-in page."""

    fmt = "the answer to {operation} is not S3's ({reason})"


class SentElsewhere(BotoCoreError):  # type: ignore[misc]
    """The server sends us to another address, and names no region of the bucket."""

    fmt = "the server redirects to {host}"


class Stalled(ReadTimeoutError):  # type: ignore[misc]
    """A body stopped coming, or comes too slowly."""

    fmt = "{silence}"

    def __init__(self, silence: str) -> None:
        super().__init__(silence=silence)


def look_at(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """For botocore's event ``after-call.s3``: refuse what is not S3's, and watch the body.

    Raises:
        NotS3: The answer has not what each of S3's has.
    """
    if http_response.status_code >= 300:
        return
    if model.name in _WITH_ETAG and "ETag" not in parsed:
        http_response.raw.close()  # its body is not read by anybody
        raise NotS3(operation=model.name, reason="it has no ETag")
    if model.name == "ListObjectsV2" and b"<ListBucketResult" not in http_response.content[:1000]:
        raise NotS3(operation=model.name, reason="it is no list of objects")
    body = parsed.get("Body")
    if type(body) is StreamingBody:
        parsed["Body"] = WatchedBody(http_response.raw, http_response.headers.get("content-length"))


def refuse_redirect(response: tuple[Any, Any] | None, operation: Any, **_: Any) -> None:
    """For botocore's event ``needs-retry.s3``: end what botocore asks without end.

    It asks for the bucket's region by HeadBucket where it is redirected, and where that is redirected too, again.

    Raises:
        SentElsewhere: HeadBucket is redirected, and no region is named.
    """
    if response is None or operation.name != "HeadBucket" or not 300 <= response[0].status_code < 400:
        return
    headers = response[0].headers
    if "x-amz-bucket-region" not in headers:
        raise SentElsewhere(host=urlsplit(headers.get("location", "")).netloc or "nowhere")


class WatchedBody(StreamingBody):  # type: ignore[misc]
    """A body that is given up where it stalls, or comes slower than `SLOWEST`."""

    def __init__(self, raw_stream: Any, content_length: str | None) -> None:
        super().__init__(raw_stream, content_length)
        self.set_socket_timeout(STALL_S)
        self._began = time.monotonic()

    def read(self, amt: int | None = None) -> bytes:
        """See `StreamingBody.read`."""
        parts, left = [], amt
        try:
            while left is None or left > 0:
                part = self._raw_stream.read1(_CHUNK if left is None else min(left, _CHUNK))
                if not part:
                    break
                parts.append(part)
                left = None if left is None else left - len(part)
                self._amount_read += len(part)
                self._check_speed()
        except NothingCame:
            self.close()
            raise Stalled(f"{STALL_S:g} seconds without a byte") from None
        except ProtocolError as error:
            raise ResponseStreamingError(error=error) from None
        if (not parts and amt != 0) or amt is None:
            self._verify_content_length()
        return b"".join(parts)

    def _check_speed(self) -> None:
        passed = time.monotonic() - self._began
        if passed > STALL_S and self._amount_read < SLOWEST * passed:
            self.close()
            raise Stalled(f"less than {SLOWEST} bytes a second")
