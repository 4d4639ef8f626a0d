"""The manifest: what one version of a data set holds, what it was made from and by which rules."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from exporters.accounting import Accounts
from exporters.errors import DatasetDamaged

FORMAT = "labelloop-dataset/1"


class File(msgspec.Struct, frozen=True, gc=False):
    """One file of a version, its path relative to the version's folder."""

    path: str
    size: int
    sha256: str


class Head(msgspec.Struct, frozen=True):
    """``HEAD.json``: the one pointer that moves. It names the published version and its manifest's checksum."""

    version: str
    manifest: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``versions/vNNNNNN/manifest.json``: written create-only and last, so that a version with a manifest is whole.

    ``classes`` is label -> number from 1 (a format that counts from 0 takes one off); ``splits`` is split -> images.
    Each image's source, task and name is a line of ``images.jsonl``, each loss one of ``dropped.jsonl``.
    """

    format: str = FORMAT
    version: str
    parent: str | None
    created_at: str
    published: bool
    code: str
    source: Mapping[str, Any]
    policy: Mapping[str, Any]
    formats: tuple[str, ...]
    classes: Mapping[str, int]
    splits: Mapping[str, int]
    accounts: Accounts
    files: tuple[File, ...] = ()


def encode_manifest(manifest: Manifest, files: Iterable[bytes]) -> bytes:
    """The manifest as JSON with ``files``, each already encoded: a list of a million files costs its bytes only."""
    head = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    opening, closing = head.rsplit(b'"files": []', 1)
    return b'%b"files": [\n    %b\n  ]%b\n' % (opening, b",\n    ".join(files), closing)


def decode_manifest(data: bytes, *, url: str, key: str) -> Manifest:
    """Read a manifest.

    Raises:
        DatasetDamaged: it is not one, or of a format that this labelloop does not know.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise DatasetDamaged(url, key, str(error)) from error
    if manifest.format != FORMAT:
        raise DatasetDamaged(url, key, f"its format is {manifest.format!r}, this labelloop reads {FORMAT!r}")
    return manifest
