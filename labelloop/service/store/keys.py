"""Validate object keys: the same rules for every store, so that a data set can move from a folder to a bucket."""

import re

from labelloop.service.store.errors import StoreError

# Prefix of internal objects (locks, partial files, probes), which `list` omits.
INTERNAL_PREFIX = ".labelloop/"
# Fast path for common keys: ASCII letters, digits, `_`, `.` and `-`; no part starts with `.` or `-`.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_MAX_BYTES = 900  # S3 allows 1024; the rest is for the prefix


def validate_key(url: str, key: str) -> str:
    """Return the key if it is valid.

    Raises:
        StoreError: The key is empty, too long, absolute or internal, or has an empty part, `.`, `..`, a backslash or a
            control character.
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
        (f"{INTERNAL_PREFIX} is reserved", f"{key}/".startswith(INTERNAL_PREFIX)),
    )
    for reason, is_invalid in bad:
        if is_invalid:
            raise StoreError(url, key[:100], f"the key is invalid: {reason}", code="bad_key", status=400)
    return key
