"""The name that a photo had before Label Studio changed it, where `labelloop import` wrote it into the task."""

from collections.abc import Mapping
from typing import Any

from exporters.names import safe_name, source_name

META = "labelloop_import"
"""The key of a task's ``meta`` under which an import keeps what it knows of the photo: ``id`` and ``name``."""
_UPLOADS = "/data/upload/"


def original_name(meta: Mapping[str, Any] | None, url: str) -> str:
    """The file name of an uploaded photo at its source; empty where none is told, or the address tells it as well.

    Label Studio drops what is no letter, digit, ``_``, ``-`` or ``.`` from the name of an upload, and cuts a long one.
    """
    told = meta.get(META) if meta else None
    if not isinstance(told, dict) or _UPLOADS not in url:
        return ""
    name = told.get("name")
    if not isinstance(name, str):
        return ""
    name = name.rpartition("/")[2]
    return name if name and safe_name(name) != safe_name(source_name(url)) else ""
