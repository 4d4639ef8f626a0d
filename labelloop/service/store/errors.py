"""Errors of object stores: each names the store, the key and the fix, and never a secret."""

from typing import Any

from labelloop.service.errors import LabelloopError


class StoreError(LabelloopError):
    """An object could not be read or written."""

    code = "store"
    status = 502

    message = "Store {location}: {reason}."
    url: str
    key: str
    reason: str = ""

    def __init__(self, url: str, key: str, reason: str = "", *, fix: str = "", **data: Any) -> None:
        location = f"{url.rstrip('/')}/{key}" if key else url
        super().__init__(fix=fix, location=location, url=url, key=key, reason=reason or self.reason, **data)


class StoreUnreachable(StoreError):
    """The store does not answer or denies access."""

    code = "store_unreachable"
    status = 503


class StoreSilent(StoreUnreachable):
    """The server does not answer."""


class AccessDenied(StoreUnreachable):
    """The credentials lack a right.

    Attributes:
        right: The name of the right at its provider, such as `storage.objects.list`.
        detail: What the server said.
    """

    right: str = ""
    detail: str = ""

    def __init__(self, url: str, key: str, right: str, *, detail: str = "", fix: str = "") -> None:
        reason = f"access is denied: the right {right} is missing" + (f" ({detail})" if detail else "")
        super().__init__(url, key, reason, fix=fix, right=right, detail=detail)


class ObjectNotFound(StoreError):
    """No object has this key."""

    code = "not_there"
    status = 404
    reason = "no such object"


class ObjectExists(StoreError):
    """`create` found an existing object, which is unchanged."""

    code = "already_there"
    status = 409
    reason = "exists already and was kept"


class ObjectChanged(StoreError):
    """`swap` found that the object was changed since it was read; nothing was written."""

    code = "changed"
    status = 409
    reason = "was changed since it was read; nothing was written"
    fix = "Read it again and repeat the change."


def missing_extra(url: str, extra: str) -> StoreError:
    """The error for a kind of store whose client library is not installed."""
    fix = f"Run: pip install 'labelloop[{extra}]'"
    return StoreUnreachable(url, "", "its client library is not installed", fix=fix, code="missing_extra")


def lock_timeout(url: str, key: str, wait_s: float) -> StoreError:
    """The error of a writer that waited in vain for a lock."""
    return StoreError(url, key, f"other writers have held its lock for {wait_s:.0f} s", fix="Try again later.")
