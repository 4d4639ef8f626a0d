"""`S3Downloader`: download images from S3 with the credentials of the settings."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO

from labelloop.service.media.download import copy_limited, too_many_bytes
from labelloop.service.media.errors import MediaHostRefused, MediaHostSilent, MediaMissing, MediaUnreachable, NotAnImage
from labelloop.service.settings import Settings
from labelloop.service.store.s3_client import s3_client

_CHUNK = 1 << 16
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "404", "AccessDenied", "403", "InvalidBucketName"})
_NO_RANGE = frozenset({"InvalidRange", "416"})
_CREDENTIALS_FIX = (
    "Set LABELLOOP_S3_ACCESS_KEY_ID and LABELLOOP_S3_SECRET_ACCESS_KEY, or let Label Studio read it:"
    " LABELLOOP_LABEL_STUDIO_URL and LABELLOOP_LABEL_STUDIO_API_KEY."
)


class S3Downloader:
    """Downloads objects; thread-safe. boto3 is imported on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._cached_client: Any = None

    def fetch(self, url: str, into: BinaryIO) -> None:
        """Download `s3://bucket/key` into a file.

        Raises:
            MediaMissing: The object does not exist, or access is denied.
            MediaUnreachable: The server does not answer in time or fails.
            MediaTooLarge: More bytes than `media_max_bytes`.
            MediaHostRefused: The address is invalid.
        """
        limit = self._settings.media_max_bytes
        deadline = time.monotonic() + self._settings.media_timeout_s
        with self._opened(url) as (length, body):
            if length > limit:
                raise too_many_bytes(url, limit)
            copy_limited(body.iter_chunks(_CHUNK), into, url, limit, deadline)

    def start(self, url: str, size: int) -> bytes:
        """The first ``size`` bytes of an object, or all of a shorter one. Raises as `fetch`."""
        with self._opened(url, Range=f"bytes=0-{size - 1}") as (_, body):
            return bytes(body.read(size))  # a server without ranges sends all

    @contextmanager
    def _opened(self, url: str, **options: str) -> Iterator[tuple[int, Any]]:
        """The length and the body of an object; errors of the client become those of media."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectTimeoutError,
            EndpointConnectionError,
            NoCredentialsError,
            ReadTimeoutError,
        )

        bucket, key = split_s3(url)
        try:
            answer = self._client().get_object(Bucket=bucket, Key=key, **options)
            with closing(answer["Body"]) as body:  # its own context manager yields the raw HTTP response
                yield answer["ContentLength"], body
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise MediaMissing(
                    url,
                    f"the S3 server denies access or has no such object ({code})",
                    fix="Check the key and the S3 credentials.",
                ) from None
            if code in _NO_RANGE:
                raise NotAnImage(url, "an empty object") from None
            raise MediaUnreachable(url, f"the S3 server answered {code}") from None
        except NoCredentialsError:
            raise MediaMissing(url, "no credentials for its bucket were found", fix=_CREDENTIALS_FIX) from None
        except BotoCoreError as error:
            silent = isinstance(error, (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError))
            raise (MediaHostSilent if silent else MediaUnreachable)(
                url, str(error), fix="Check LABELLOOP_S3_ENDPOINT_URL and the S3 credentials."
            ) from None

    def _client(self) -> Any:
        with self._lock:
            if self._cached_client is None:
                self._cached_client = s3_client(self._settings, timeout_s=self._settings.media_timeout_s, attempts=3)
            return self._cached_client


def split_s3(url: str) -> tuple[str, str]:
    """`s3://bucket/some key` -> (bucket, key); the key is not URL-decoded."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise MediaHostRefused(url, "not s3://bucket/key")
    return bucket, key
