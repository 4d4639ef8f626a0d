"""Translate errors of S3 servers and botocore to `StoreError` with a fix; never a secret."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from labelloop.service.store.errors import AccessDenied, ObjectNotFound, StoreError, StoreSilent, StoreUnreachable

_KEYS = "Check LABELLOOP_S3_ACCESS_KEY_ID and LABELLOOP_S3_SECRET_ACCESS_KEY."
_REGION = "Set LABELLOOP_S3_REGION to the bucket's region."
_ADDRESS = (
    "Check LABELLOOP_S3_ENDPOINT_URL and LABELLOOP_S3_REGION: the answer may come from a proxy or another server."
)
_STALLS = "Check the network and the server's log; then run it again."
_RIGHTS = "Grant this key read, write, list and delete access to the bucket."
_DENIED = {"AccessDenied": _RIGHTS, "403": f"{_KEYS} {_RIGHTS}"}
# Operation -> the right that it needs, where the name is another one.
_ACTIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CopyObject": "s3:GetObject and s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
}
_STATED_ACTION = re.compile(r"\bs3:[A-Za-z]+")
_LATER = "The server failed several times in a row: check its log, and try again later."
_REASONS = {  # S3 error code -> (reason, fix)
    "InvalidAccessKeyId": ("the server does not know the access key", _KEYS),
    "SignatureDoesNotMatch": ("the secret does not match the access key", _KEYS),
    "InvalidToken": (
        "the session token is not valid",
        "Log in again: the temporary credentials are invalid or expired.",
    ),
    "ExpiredToken": ("the session token has expired", "Log in again: the temporary credentials have expired."),
    "RequestTimeTooSkewed": ("the clocks differ too much", "Set this machine's clock."),
    "NoSuchBucket": (
        "the bucket does not exist",
        "Create the bucket, or correct its name in the address (LABELLOOP_STORE_URL by default).",
    ),
    "InvalidBucketName": ("the bucket name is invalid", "Correct LABELLOOP_STORE_URL: s3://bucket/prefix."),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "301": ("the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "EntityTooLarge": (
        "the object is too large for the server",
        "Pass it as a local file (Path), which is uploaded in parts.",
    ),
    "QuotaExceeded": ("the bucket is full", "Delete objects from the bucket, or raise its quota."),
}


def to_store_error(url: str, key: str, error: Exception) -> StoreError:
    """The `StoreError` for an exception of botocore or s3transfer."""
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

    from labelloop.service.store.s3_responses import BodyStalled, NotAnS3Response, UnexpectedRedirect

    if isinstance(error, ClientError):
        code = error_code(error)
        if code in {"NoSuchKey", "404"}:
            return ObjectNotFound(url, key)
        if code in _DENIED:
            stated = _STATED_ACTION.search(_message(error))  # AWS names it
            operation = str(error.operation_name)
            right = stated[0] if stated else _ACTIONS.get(operation, f"s3:{operation}")
            return AccessDenied(url, key, right, detail=code, fix=_DENIED[code])
        if code in _REASONS:
            reason, fix = _REASONS[code]
            return StoreUnreachable(url, key, f"{reason} ({code})", fix=fix)
        return StoreError(
            url,
            key,
            f"the server answered {code}: {_message(error)}",
            fix=_LATER if error_status(error) >= 500 else "",
        )
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnreachable(url, key, "no credentials were found", fix=_KEYS)
    if isinstance(error, NotAnS3Response | UnexpectedRedirect):
        return StoreUnreachable(url, key, str(error), fix=_ADDRESS)
    if isinstance(error, IncompleteReadError | ResponseStreamingError | BodyStalled):
        return StoreUnreachable(
            url, key, f"its response was cut off or stalled on every attempt ({error})", fix=_STALLS
        )
    if isinstance(error, NoConnection | HTTPClientError):
        return StoreSilent(
            url, key, f"the server does not answer ({error})", fix="Check LABELLOOP_S3_ENDPOINT_URL and the network."
        )
    if isinstance(error, BotoCoreError):
        return StoreError(url, key, str(error))
    # s3transfer wraps the error of a part of a multipart upload
    cause = error.__cause__ or error.__context__
    return to_store_error(url, key, cause) if isinstance(cause, Exception) else StoreError(url, key, str(error))


@contextmanager
def translate_errors(url: str, key: str) -> Iterator[None]:
    """Raise botocore errors of the block as `StoreError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise to_store_error(url, key, error) from None


def error_code(error: Exception) -> str:
    """The S3 error code of a ClientError, such as `NoSuchKey`; the HTTP status if the response has no body."""
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def error_status(error: Exception) -> int:
    """The HTTP status of a ClientError."""
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _message(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Message", ""))[:200]
