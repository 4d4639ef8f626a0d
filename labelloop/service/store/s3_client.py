"""The client for the S3 server that the settings name, by botocore, boto3's core: imported when first used (0.15 s)."""

import gzip
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from labelloop.service.settings import Settings

CONNECTIONS = 32
ATTEMPTS = 8
_SILENCES, _REFUSALS = 2, 4
"""Times that a request is sent to a server that says nothing at all, and to an address where none is."""
_BUSY = frozenset({429, 500, 502, 503, 504})
_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_ASK_FIRST = 1 << 20
"""Bytes from which the server is asked whether it takes an object before it is sent: one that says no need not read it.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store's objects are.

    Attributes:
        client: A botocore S3 client.
        bucket: Its bucket.
        prefix: In front of every key; empty, or ending with a slash.
        url: The store's address, for errors.
    """

    client: Any
    bucket: str
    prefix: str
    url: str

    def of(self, key: str) -> dict[str, str]:
        """The arguments of the client's calls that name an object."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    @property
    def decides(self) -> bool:
        """Whether the server is known to let one of several creators through: AWS, wherever its address came from."""
        return (urlsplit(str(self.client.meta.endpoint_url)).hostname or "").endswith(_AWS)


def s3_client(settings: Settings, *, timeout_s: float = 25.0, attempts: int = ATTEMPTS) -> Any:
    """A thread-safe S3 client with its own pool of connections.

    Args:
        settings: Endpoint, region and keys; keys left empty come from botocore's own chain: environment, profile, role.
        timeout_s: Longest silence of the server.
        attempts: Times that a request is sent to a server that answers 500 or 503, or breaks the connection: 8 last
            for some ten seconds.
    """
    from botocore import handlers
    from botocore.config import Config
    from botocore.session import Session

    from labelloop.service.store.s3_responses import look_at, refuse_redirect

    own = bool(settings.s3_endpoint_url)
    secret = settings.s3_secret_access_key.get_secret_value()
    session = Session()
    session.register_component("data_loader", _loader())
    client = session.create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=secret or None,
        config=Config(
            signature_version="s3v4",
            max_pool_connections=CONNECTIONS,
            connect_timeout=min(timeout_s, 10.0),
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": "path" if own else "auto"},
            # Not every S3-compatible server knows the checksums that newer clients add unasked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register_first("needs-retry.s3", partial(_patience, most=attempts))
    client.meta.events.register_first("needs-retry.s3", refuse_redirect)
    client.meta.events.register("after-call.s3", look_at)
    # Bytes as a file go out 16 KB at a time, after a question; as bytes they go at once, while other threads work.
    client.meta.events.unregister("before-parameter-build.s3.PutObject", handlers.convert_body_to_file_like_object)
    client.meta.events.register("before-call.s3.PutObject", _ask_first)
    return client


def _loader() -> Any:
    """What finds and reads botocore's descriptions of services, in a third of the time that its own takes."""
    from botocore.loaders import JSONFileLoader, Loader

    class Files(JSONFileLoader):  # type: ignore[misc]
        def load_file(self, file_path: str) -> Any:
            for ending, opened in ((".json", open), (".json.gz", gzip.open)):
                try:
                    with opened(f"{file_path}{ending}", "rb") as file:
                        return msgspec.json.decode(file.read())
                except FileNotFoundError:
                    continue
            return None

    class Folders(Loader):  # type: ignore[misc]
        def list_available_services(self, type_name: str) -> list[str]:
            del type_name  # none of the 400 is looked into
            return [path.name for path in Path(self.BUILTIN_DATA_PATH).iterdir()]

    return Folders(file_loader=Files())


def _ask_first(params: dict[str, Any], **_: Any) -> None:
    if isinstance(params["body"], bytes) and len(params["body"]) >= _ASK_FIRST:
        params["headers"]["Expect"] = "100-continue"


def _patience(
    response: tuple[Any, Any] | None, attempts: int, caught_exception: Exception | None, *, most: int, **_: Any
) -> float | None:
    """Seconds until a request is sent again; None: botocore decides.

    botocore alone waits for less than a second in all, and all requests of a client share a few attempts: a server that
    is started again, or asks to slow down, ended an export. On the other hand it waits for each timeout in turn.

    Args:
        response: What came, (HTTP response, what it says).
        attempts: Times that it was sent.
        caught_exception: What went wrong without an answer.
        most: Times that it is sent at most.

    Raises:
        BotoCoreError: The exception itself, where sending again is no use.
    """
    from botocore.exceptions import (
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    if isinstance(caught_exception, ReadTimeoutError | ConnectTimeoutError) and attempts >= _SILENCES:
        raise caught_exception
    if isinstance(caught_exception, EndpointConnectionError) and attempts >= _REFUSALS:
        raise caught_exception
    again = (EndpointConnectionError, ConnectionClosedError, ResponseStreamingError)
    if attempts < most and (
        isinstance(caught_exception, again) or (response is not None and response[0].status_code in _BUSY)
    ):
        longest = min(0.2 * 2.0 ** (attempts - 1), 4.0)
        return random.uniform(0.5, 1) * longest  # noqa: S311 - spreads requests
    return None
