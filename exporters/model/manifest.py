"""Define the manifest of a version: its contents, source and conversion rules.

A version is a list of generations. The first holds all tasks of its time; each later one holds the tasks that an export
converted because they were new or changed. For a task in several generations the latest counts. Generations are
immutable and shared with later versions, so an export writes only what changed. `exporters.dataset.shards` reads the
tables of a version from its generations.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from exporters.errors import DatasetDamaged
from exporters.model.accounting import Accounts
from exporters.model.class_map import Categories

FORMAT = "labelloop-dataset/2"

# Tables in addition to those of the formats: of `records.Image`, `accounting.Loss` and `ImageCopy`.
IMAGES, DROPPED, PHOTOS = "images", "dropped", "photos"


class Shard(msgspec.Struct, frozen=True, gc=False):
    """A content-addressed object of the store with ``records`` records; its key is ``object_key(sha256)``."""

    sha256: str
    size: int
    records: int


class ImageCopy(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A record of the table ``photos``: the copy of an image in the data set, an object of the store.

    A server-side copy was never read here: its ``key`` is derived from its source and the source's etag, ``sha256`` is
    empty, and ``etag`` is that of the copy.
    """

    file_name: str
    sha256: str
    size: int
    key: str = ""
    etag: str = ""

    @property
    def store_key(self) -> str:
        """Its key in the store."""
        return self.key or object_key(self.sha256)

    @property
    def content_key(self) -> str:
        """A text that is equal for two copies of the same bytes."""
        return f"{self.size} {self.sha256 or self.etag}"


class PlainFile(msgspec.Struct, frozen=True, gc=False):
    """A file that readers fetch directly from the store: ``path`` as ``pull`` writes it, ``key`` in the store."""

    path: str
    key: str
    size: int
    sha256: str


class Generation(msgspec.Struct, frozen=True):
    """The tasks converted by one export; ``index`` lists them, and the removed tasks of older generations."""

    index: Shard
    tables: Mapping[str, tuple[Shard, ...]]

    def shards(self) -> Iterator[Shard]:
        """Yield all shards, that of the index first."""
        yield self.index
        for shards in self.tables.values():
            yield from shards


class DatasetHead(msgspec.Struct, frozen=True):
    """``HEAD.json``: a mutable pointer to the published version, with the SHA-256 of its manifest."""

    version: str
    manifest: str
    sha256: str


class DatasetManifest(msgspec.Struct, frozen=True, kw_only=True):
    """``versions/vNNNNNN/manifest.json``: written last and create-only, so that a version with a manifest is complete.

    ``classes`` is label -> number from 1; ``splits`` is split -> number of images; ``lines`` is split -> number of
    lines of tasks, for formats of tasks; ``keypoints`` are the names of the label config's key points, ``skeleton``
    pairs of their 1-based indices (COCO); ``categories`` are COCO's category ids and supercategories. ``refused`` is
    the reason why the version was not published. ``rules`` is a digest of everything that determines the conversion
    of a task: a later export reuses generations only if it is equal.
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
    lines: Mapping[str, int] = {}
    accounts: Accounts
    generations: tuple[Generation, ...]
    files: tuple[PlainFile, ...] = ()

    def shards(self) -> dict[str, Shard]:
        """Return all shards of the version by SHA-256; image copies are listed in the table ``photos``."""
        return {shard.sha256: shard for generation in self.generations for shard in generation.shards()}


def object_key(sha256: str) -> str:
    """Return the key in the store of the object with this content."""
    return f"objects/{sha256[:2]}/{sha256}"


def encode_manifest(manifest: DatasetManifest) -> bytes:
    """Encode a manifest as JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, *, url: str, key: str) -> DatasetManifest:
    """Decode a manifest.

    Raises:
        DatasetDamaged: the data is not a manifest, or its format is not supported.
    """
    try:
        stated = msgspec.json.decode(data, type=dict[str, Any]).get("format")
        if stated != FORMAT:
            raise DatasetDamaged(url=url, key=key, reason=f"its format is {stated!r}, this labelloop reads {FORMAT!r}")
        return msgspec.json.decode(data, type=DatasetManifest)
    except msgspec.DecodeError as error:
        raise DatasetDamaged(url=url, key=key, reason=str(error)) from error
