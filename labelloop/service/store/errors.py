"""What can go wrong with a store: each error names the store, the key and the fix; never a secret."""

from labelloop.service.errors import LabelloopError


class StoreError(LabelloopError):
    """An object could not be read or written."""

    code = "store"
    status = 502

    def __init__(self, url: str, key: str, reason: str, *, fix: str = "") -> None:
        place = f"{url.rstrip('/')}/{key}" if key else url
        super().__init__(f"Store {place}: {reason}.", fix=fix)
        self.url = url
        self.key = key
        self.reason = reason


class StoreUnreachable(StoreError):
    """The store does not answer, or does not let us in."""

    code = "store_unreachable"
    status = 503


class NotThere(StoreError):
    """No object has this key."""

    code = "not_there"
    status = 404

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url, key, "no such object")


class AlreadyThere(StoreError):
    """`create` found the key taken; what is there was kept."""

    code = "already_there"
    status = 409

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url, key, "is there already and was kept")


class Changed(StoreError):
    """`swap` found that somebody wrote since the object was read; nothing was written."""

    code = "changed"
    status = 409

    def __init__(self, url: str, key: str) -> None:
        super().__init__(
            url, key, "was changed since it was read; nothing was written", fix="Read it again and repeat the change."
        )


class BadKey(StoreError):
    """A key that no store takes: empty, absolute, with `..`, a backslash or a control character."""

    code = "bad_key"
    status = 400
