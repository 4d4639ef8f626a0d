"""Names of splits, in the spellings of data sets."""

import re

SPLITS = ("train", "val", "test")
_SPLIT = re.compile(r"(train|val|test)(?:id|idation|ing)?[-_ ]?(?:\d{4})?", re.IGNORECASE)


def split_of(name: str) -> str:
    """Normalise a split name to ``train``, ``val`` or ``test`` (``valid``, ``train2017``); empty if it is none."""
    match = _SPLIT.fullmatch(name.strip())
    return match[1].lower() if match else ""
