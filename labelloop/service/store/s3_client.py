"""The boto3 client for the configured S3 server; boto3 is imported on first use."""

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
# Maximum attempts after a timeout, and after a refused connection.
_TIMEOUT_ATTEMPTS, _CONNECT_ATTEMPTS = 2, 4
_RETRYABLE_STATUS = frozenset({429, 500, 502, 503, 504})
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
# Objects of this size or larger are sent with `Expect: 100-continue`: a server can refuse them before the body is sent.
_EXPECT_CONTINUE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class S3Location:
    """The bucket and prefix of a store.

    Attributes:
        client: The S3 client.
        bucket: The bucket name.
        prefix: Prefix of every key; empty, or ending with a slash.
        url: The address of the store, for errors.
    """

    client: Any
    bucket: str
    prefix: str
    url: str

    def object_args(self, key: str) -> dict[str, str]:
        """The `Bucket` and `Key` arguments of client calls."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    @property
    def is_aws(self) -> bool:
        """Whether the server is AWS S3, which accepts exactly one of several concurrent creations."""
        return (urlsplit(str(self.client.meta.endpoint_url)).hostname or "").endswith(_AWS_DOMAINS)


def s3_client(settings: Settings, *, timeout_s: float = 25.0, attempts: int = ATTEMPTS) -> Any:
    """A thread-safe S3 client with its own connection pool.

    Args:
        settings: Endpoint, region and access key; an empty key uses botocore's credential chain.
        timeout_s: Read timeout in seconds; the connect timeout is at most 10.
        attempts: Maximum attempts of a request that fails with a 5xx status, 429 or a closed connection. 8 attempts
            take about ten seconds.
    """
    import boto3
    from botocore import handlers
    from botocore.config import Config
    from botocore.session import Session

    from labelloop.service.store.s3_responses import check_response, refuse_redirect

    has_endpoint = bool(settings.s3_endpoint_url)
    secret = settings.s3_secret_access_key.get_secret_value()
    session = Session()
    session.register_component("data_loader", _fast_loader())
    client = boto3.Session(botocore_session=session).client(
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
            s3={"addressing_style": "path" if has_endpoint else "auto"},
            # Some S3-compatible servers reject the checksums that newer clients add by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register_first("needs-retry.s3", partial(_retry_delay, max_attempts=attempts))
    client.meta.events.register_first("needs-retry.s3", refuse_redirect)
    client.meta.events.register("after-call.s3", check_response)
    # botocore wraps bytes in a file object, which is sent 16 KB at a time; plain bytes are sent in one call.
    client.meta.events.unregister("before-parameter-build.s3.PutObject", handlers.convert_body_to_file_like_object)
    client.meta.events.register("before-call.s3.PutObject", _expect_continue)
    return client


def _fast_loader() -> Any:
    """A loader of botocore's service descriptions that takes a third of the time of the default one."""
    from botocore.loaders import JSONFileLoader, Loader

    class MsgspecFileLoader(JSONFileLoader):  # type: ignore[misc]
        def load_file(self, file_path: str) -> Any:
            for suffix, open_file in ((".json", open), (".json.gz", gzip.open)):
                try:
                    with open_file(f"{file_path}{suffix}", "rb") as file:
                        return msgspec.json.decode(file.read())
                except FileNotFoundError:
                    continue
            return None

    class ServiceLoader(Loader):  # type: ignore[misc]
        def list_available_services(self, type_name: str) -> list[str]:
            del type_name  # the default loader opens every one of about 400 folders
            return [path.name for path in Path(self.BUILTIN_DATA_PATH).iterdir()]

    return ServiceLoader(file_loader=MsgspecFileLoader())


def _expect_continue(params: dict[str, Any], **_: Any) -> None:
    if isinstance(params["body"], bytes) and len(params["body"]) >= _EXPECT_CONTINUE_BYTES:
        params["headers"]["Expect"] = "100-continue"


def _retry_delay(
    response: tuple[Any, Any] | None, attempts: int, caught_exception: Exception | None, *, max_attempts: int, **_: Any
) -> float | None:
    """Seconds until the next attempt of a request; None: botocore decides.

    botocore's standard mode waits less than a second in total and shares a retry quota between all requests of a
    client, so a restarting or throttling server would fail an export. It also retries every timeout.

    Args:
        response: (HTTP response, parsed response), or None.
        attempts: Number of attempts so far.
        caught_exception: The exception if there was no response.
        max_attempts: Maximum number of attempts.

    Raises:
        BotoCoreError: `caught_exception`, if a retry is useless.
    """
    from botocore.exceptions import (
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    if isinstance(caught_exception, ReadTimeoutError | ConnectTimeoutError) and attempts >= _TIMEOUT_ATTEMPTS:
        raise caught_exception
    if isinstance(caught_exception, EndpointConnectionError) and attempts >= _CONNECT_ATTEMPTS:
        raise caught_exception
    retryable = (EndpointConnectionError, ConnectionClosedError, ResponseStreamingError)
    if attempts < max_attempts and (
        isinstance(caught_exception, retryable)
        or (response is not None and response[0].status_code in _RETRYABLE_STATUS)
    ):
        max_delay = min(0.2 * 2.0 ** (attempts - 1), 4.0)
        return random.uniform(0.5, 1) * max_delay  # noqa: S311 - spreads requests
    return None
