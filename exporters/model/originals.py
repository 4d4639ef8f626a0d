"""What `labelloop import` wrote into a task's meta: the image's name at its source, and fields of its data set."""

from collections.abc import Mapping
from typing import Any

from exporters.model.names import safe_name, source_name

META = "labelloop_import"
"""The key of a task's ``meta`` under which an import keeps what it knows of the photo: ``id`` and ``name``."""
_UPLOADS = "/data/upload/"


ABOUT = "coco"
"""The key, under `META`, of what a COCO file says of an image beside its name and size."""


def image_about(meta: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Fields of a COCO image that an import kept, with its ``license`` and the ``info`` of its data set."""
    kept = meta.get(META) if meta else None
    about = kept.get(ABOUT) if isinstance(kept, dict) else None
    return about if isinstance(about, dict) else {}


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
