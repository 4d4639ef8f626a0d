"""The names of splits, as data sets and people write them."""

import re

SPLITS = ("train", "val", "test")
_SPLIT = re.compile(r"(train|val|test)(?:id|idation|ing)?[-_ ]?(?:\d{4})?", re.IGNORECASE)


def split_of(name: str) -> str:
    """The split that a word names: ``train``, ``val`` or ``test``, also as ``valid`` or ``train2017``; else empty."""
    found = _SPLIT.fullmatch(name.strip())
    return found[1].lower() if found else ""
