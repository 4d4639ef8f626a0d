"""Which keys a store takes: the same on every kind of store, so that a data set moves from a folder to a bucket."""

import re

from labelloop.service.store.errors import BadKey

OWN = ".labelloop/"
"""What a store keeps for itself (locks, unfinished files, self-tests) starts with this; `list` never shows it."""
# Keys as nearly all are: parts of ASCII letters, digits and a few signs that begin with none of them.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_MAX_BYTES = 900  # S3 allows 1024; the rest is for the prefix


def checked(url: str, key: str) -> str:
    """The key, if every store takes it.

    Raises:
        BadKey: Empty, too long, absolute, with an empty part, `.`, `..`, a backslash or a control character, or ours.
    """
    if _PLAIN.fullmatch(key) and len(key) <= _MAX_BYTES:
        return key
    parts = key.split("/")
    bad = (
        ("it is empty", not key),
        ("it starts with a slash", key.startswith("/")),
        ("it has a part that is empty, `.` or `..`", any(part in {"", ".", ".."} for part in parts)),
        ("it has a backslash or a control character", any(char == "\\" or ord(char) < 32 for char in key)),
        (f"it is longer than {_MAX_BYTES} bytes", len(key.encode(errors="replace")) > _MAX_BYTES),
        (f"{OWN} is the store's own", f"{key}/".startswith(OWN)),
    )
    for reason, found in bad:
        if found:
            raise BadKey(url, key[:100], f"not a key: {reason}")
    return key
