"""The manifest: what one version of a data set holds, what it was made from and by which rules.

A version is a list of generations. The first holds every task of its time, each later one the tasks that an export
converted because they were new or had changed; what a later generation holds of a task counts. Generations never change
and are shared by the versions after them, so an export writes what changed and refers to the rest.
``exporters.dataset.shards`` reads a version's tables out of its generations.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from exporters.errors import DatasetDamaged
from exporters.model.accounting import Accounts
from exporters.model.class_map import Categories

FORMAT = "labelloop-dataset/2"

IMAGES, DROPPED, PHOTOS = "images", "dropped", "photos"
"""Tables beside those of the formats: `exporters.model.records.Image`, `exporters.model.accounting.Loss`, `Photo`."""


class Shard(msgspec.Struct, frozen=True, gc=False):
    """An object of the store that holds so many records. It is named by its content: ``object_key(sha256)``."""

    sha256: str
    size: int
    records: int


class Photo(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A record of the table ``photos``: the copy of an image that lies in the data set, as an object of the store.

    One that the S3 server copied by itself was never read here: it has a ``key`` of its own, made from its source and
    the server's etag, no ``sha256``, and the copy's ``etag``.
    """

    file_name: str
    sha256: str
    size: int
    key: str = ""
    etag: str = ""

    @property
    def place(self) -> str:
        """Where it is in the store."""
        return self.key or object_key(self.sha256)

    @property
    def content(self) -> str:
        """What two copies of the same bytes have in common."""
        return f"{self.size} {self.sha256 or self.etag}"


class File(msgspec.Struct, frozen=True, gc=False):
    """A file that readers may take straight from the store: ``path`` as ``pull`` lays it out, ``key`` in the store."""

    path: str
    key: str
    size: int
    sha256: str


class Generation(msgspec.Struct, frozen=True):
    """What one export converted. ``index`` says which tasks, and which of older generations are gone."""

    index: Shard
    tables: Mapping[str, tuple[Shard, ...]]

    def shards(self) -> Iterator[Shard]:
        """Every shard, the index's first."""
        yield self.index
        for shards in self.tables.values():
            yield from shards


class Head(msgspec.Struct, frozen=True):
    """``HEAD.json``: the one pointer that moves. It names the published version and its manifest's checksum."""

    version: str
    manifest: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``versions/vNNNNNN/manifest.json``: written create-only and last, so that a version with a manifest is whole.

    ``classes`` is label -> number from 1 (a format that counts from 0 takes one off); ``splits`` is split -> images;
    ``keypoints`` are the names of the label config's key points, ``skeleton`` the pairs of their places that COCO draws
    a line between; ``categories`` is what COCO says of the classes. ``refused`` says why it was not published.
    ``rules`` is a digest of all that decides what a task becomes: a later export may refer to this version's
    generations only where it is the same.
    """

    format: str = FORMAT
    version: str = ""
    parent: str | None = None
    created_at: str
    published: bool
    refused: str = ""
    code: str
    source: Mapping[str, Any]
    policy: Mapping[str, Any]
    rules: str
    formats: tuple[str, ...]
    classes: Mapping[str, int]
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    categories: Categories = Categories()
    splits: Mapping[str, int]
    accounts: Accounts
    generations: tuple[Generation, ...]
    files: tuple[File, ...] = ()

    def shards(self) -> dict[str, Shard]:
        """Every shard that the version is made of, by its SHA-256 (photos: see the table ``photos``)."""
        return {shard.sha256: shard for generation in self.generations for shard in generation.shards()}


def object_key(sha256: str) -> str:
    """Where the object of this content is in the store."""
    return f"objects/{sha256[:2]}/{sha256}"


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, *, url: str, key: str) -> Manifest:
    """Read a manifest.

    Raises:
        DatasetDamaged: it is not one, or of a format that this labelloop does not know.
    """
    try:
        stated = msgspec.json.decode(data, type=dict[str, Any]).get("format")
        if stated != FORMAT:
            raise DatasetDamaged(url, key, f"its format is {stated!r}, this labelloop reads {FORMAT!r}")
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise DatasetDamaged(url, key, str(error)) from error
