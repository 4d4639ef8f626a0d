"""What an S3 server says, in plain words with the fix; never a secret."""

from collections.abc import Iterator
from contextlib import contextmanager

from labelloop.service.store.errors import NotThere, StoreError, StoreUnreachable

_KEYS = "Check LABELLOOP_S3_ACCESS_KEY_ID and LABELLOOP_S3_SECRET_ACCESS_KEY."
_REGION = "Set LABELLOOP_S3_REGION to the bucket's region."
_ADDRESS = "Check LABELLOOP_S3_ENDPOINT_URL and LABELLOOP_S3_REGION: is a proxy or another server in between?"
_STALLS = "Check the network and the server's log; then run it again."
_RIGHTS = "Give this key the right to read, write, list and delete in the bucket."
_LATER = "The server failed several times in a row: look at its log, and try again later."
_SAYS = {  # code: (what it means, the fix)
    "InvalidAccessKeyId": ("the server does not know our access key", _KEYS),
    "SignatureDoesNotMatch": ("the secret does not fit the access key", _KEYS),
    "InvalidToken": ("the session token is not valid", "Log in again: the temporary credentials are wrong or over."),
    "ExpiredToken": ("the session token has expired", "Log in again: the temporary credentials are over."),
    "RequestTimeTooSkewed": ("the clocks differ by too much", "Set this machine's clock."),
    "AccessDenied": ("access is denied", _RIGHTS),
    "403": ("access is denied", f"{_KEYS} {_RIGHTS}"),
    "NoSuchBucket": (
        "there is no such bucket",
        "Create the bucket, or correct its name in the address (LABELLOOP_STORE_URL, where no other was given).",
    ),
    "InvalidBucketName": ("that is not a bucket's name", "Correct LABELLOOP_STORE_URL: s3://bucket/prefix."),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "301": ("the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "EntityTooLarge": ("the object is too large for the server", "Write it as a local file (Path): it goes in parts."),
    "QuotaExceeded": ("the bucket is full", "Free some room in the bucket."),
}


def plain(url: str, key: str, error: Exception) -> StoreError:
    """The error to raise for one of botocore's."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        PartialCredentialsError,
        ResponseStreamingError,
    )
    from botocore.exceptions import (
        ConnectionError as NoConnection,
    )

    from labelloop.service.store.s3_responses import NotS3, SentElsewhere, Stalled

    if isinstance(error, ClientError):
        said = code(error)
        if said in {"NoSuchKey", "404"}:
            return NotThere(url, key)
        if said in _SAYS:
            reason, fix = _SAYS[said]
            return StoreUnreachable(url, key, f"{reason} ({said})", fix=fix)
        return StoreError(
            url, key, f"the server answered {said}: {_message(error)}", fix=_LATER if status(error) >= 500 else ""
        )
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnreachable(url, key, "no credentials were found", fix=_KEYS)
    if isinstance(error, NotS3 | SentElsewhere):
        return StoreUnreachable(url, key, str(error), fix=_ADDRESS)
    if isinstance(error, IncompleteReadError | ResponseStreamingError | Stalled):
        return StoreUnreachable(url, key, f"its answer breaks off or stalls, each time ({error})", fix=_STALLS)
    if isinstance(error, NoConnection | HTTPClientError):
        return StoreUnreachable(
            url, key, f"the server does not answer ({error})", fix="Check LABELLOOP_S3_ENDPOINT_URL and the network."
        )
    if isinstance(error, BotoCoreError):
        return StoreError(url, key, str(error))
    # s3transfer wraps what went wrong in one part of a large upload
    cause = error.__cause__ or error.__context__
    return plain(url, key, cause) if isinstance(cause, Exception) else StoreError(url, key, str(error))


@contextmanager
def plainly(url: str, key: str) -> Iterator[None]:
    """Turns botocore's errors in its block into ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise plain(url, key, error) from None


def code(error: Exception) -> str:
    """The S3 error code of a ClientError, such as `NoSuchKey`; a bare status for answers without a body."""
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def status(error: Exception) -> int:
    """The HTTP status of a ClientError."""
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _message(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Message", ""))[:200]
