"""Assign file names to images: safe on every file system, unique in the data set, and close to the source's name."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import msgspec
from xxhash import xxh3_64_intdigest

from exporters.structures.integer_sets import SpillingSet
from exporters.structures.split_keys import SplitKeys, with_split
from labelloop.labeling.splits import SPLITS

# Longest stem in bytes of UTF-8; file systems allow 255 bytes with suffix and extension.
STEM_BYTES = 120

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".heic", ".ppm"})

_OPAQUE_URL = re.compile(
    r"(?!https?:|data:)[a-z][a-z0-9+.-]*://", re.IGNORECASE
)  # an address without a query, such as s3://
_SAFE_NAME = (  # a safe stem and an extension
    r"(?!(?i:con|prn|aux|nul|(?:com|lpt)[1-9])\.)([\w-](?:[\w.-]{0,98}[\w-])?)(\.(?:jpe?g|png|webp|bmp|tiff?))"
)
_PLAIN_NAME = re.compile(_SAFE_NAME, re.ASCII)
_PLAIN_URL = re.compile(  # an address that is public as it stands and ends in a safe name
    r"(?:(?!https?:|data:)[a-z][a-z0-9+.-]*://(?:.*/)?"
    r"|(?:https?://[\w.:-]+/|/data/local-files/\?d=)(?!(?:.*/)?data/upload/)(?:[\w.~/-]*/)?"
    r"|/data/upload/(?:[\w.~/-]*/)?(?:[0-9a-f]{8}-)?+)" + _SAFE_NAME,
    re.ASCII,
)
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_HASH64 = hashlib.blake2b(digest_size=8)
_UNSAFE_CHARACTERS = re.compile(r"[^\w.\-]+")
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_SIGNATURE_PARAMETERS = (
    "signature",
    "sig",
    "token",
    "credential",
    "expires",
    "accesskeyid",
    "awsaccesskeyid",
    "googleaccessid",
)

# Key of a task's ``meta`` where `labelloop import` stores the image's ``id``, ``name`` and `COCO_FIELDS`.
IMPORT_META = "labelloop_import"
_UPLOADS_PATH = "/data/upload/"


# Key below `IMPORT_META`: the fields of a COCO image other than its name and size.
COCO_FIELDS = "coco"


def public_url(url: str) -> str:
    """Return the URL without passwords, signatures and the bytes of a data URI.

    A presigned query string would give readers of the data set access to the bucket, and differs at each export.
    """
    if _OPAQUE_URL.match(url):
        return url
    if url.startswith("data:"):
        kind = url[5:60].split(",", 1)[0].split(";", 1)[0]
        return f"data:{kind};sha256={hashlib.sha256(url.encode()).hexdigest()}"
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if parts.scheme not in ("http", "https"):
        return url
    names = [name.lower().rpartition("-")[2] for name in parse_qs(parts.query, keep_blank_values=True)]
    query = "" if any(name in _SIGNATURE_PARAMETERS for name in names) else parts.query
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))


def source_name(url: str) -> str:
    """Return the file name of an image at its source: the last part of its path, or of the path in its query.

    For an upload, the eight random digits that Label Studio prepends are removed.
    """
    if _OPAQUE_URL.match(url):  # in s3:// and similar "?" and "#" are part of the key
        return url.rpartition("/")[2]
    if url.startswith("data:"):
        extension = public_url(url)[5:].split(";", 1)[0].rpartition("/")[2].lower()
        return f"image.{'jpg' if extension == 'jpeg' else extension}"
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.rpartition("/")[2]
    if parts.scheme not in ("", "http", "https"):
        return url.rpartition("/")[2]
    path = parse_qs(parts.query).get("d", [parts.path])[0] if parts.path.endswith("/local-files/") else parts.path
    name = unquote(path).rpartition("/")[2]
    return _UPLOAD_PREFIX.sub("", name) or name if "/data/upload/" in path else name


def safe_name(name: str) -> tuple[str, str]:
    """Return a (stem, extension) that is valid for file systems, list files and trainers.

    Letters of every script stay; spaces, separators and control characters become ``_``; leading dots are removed.
    A stem over ``STEM_BYTES`` is cut between characters and ends in a hash of the full name.
    """
    plain = _PLAIN_NAME.fullmatch(name)
    if plain:
        return plain[1], plain[2]
    name = unicodedata.normalize("NFC", name)
    stem, dot, extension = name.rpartition(".")
    extension = (dot + extension).lower()
    if extension not in EXTENSIONS:
        stem, extension = name, ".jpg"
    stem = _UNSAFE_CHARACTERS.sub("_", stem).lstrip(".").rstrip(". ") or "image"
    if stem.casefold() in _RESERVED:
        stem = f"_{stem}"
    if len(stem.encode()) > STEM_BYTES:
        short = stem.encode()[: STEM_BYTES - 11].decode(errors="ignore")
        stem = f"{short}-{_digest(name)}"
    return stem, extension


def imported_coco_fields(meta: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the fields of a COCO image stored by an import, with its ``license`` and its data set's ``info``."""
    stored = meta.get(IMPORT_META) if meta else None
    fields = stored.get(COCO_FIELDS) if isinstance(stored, dict) else None
    return fields if isinstance(fields, dict) else {}


def original_name(meta: Mapping[str, Any] | None, url: str) -> str:
    """Return the original file name of an imported upload; empty if unknown, or if its address has the same name.

    Label Studio removes all but letters, digits, ``_``, ``-`` and ``.`` from the name of an upload, and cuts a long
    one.
    """
    stored = meta.get(IMPORT_META) if meta else None
    if not isinstance(stored, dict) or _UPLOADS_PATH not in url:
        return ""
    name = stored.get("name")
    if not isinstance(name, str):
        return ""
    name = name.rpartition("/")[2]
    return name if name and safe_name(name) != safe_name(source_name(url)) else ""


class AssignedName(msgspec.Struct, gc=False):
    """The file name assigned to an image.

    Attributes:
        name: The file name.
        public_url: The image's address without secrets.
        keys: The hashes of its stem and of its address.
        free: Whether neither was in use, so that the name does not depend on other images.
        repeated: Whether an earlier image has the same address.
        split: With `FileNames` of splits, the split of the first image with its address; else the given one.
    """

    name: str
    public_url: str
    keys: tuple[int, int]
    free: bool
    repeated: bool
    split: str = ""


class FileNames:
    """Assigns unique file names, also when letter case, Unicode form and extension are ignored.

    The first image with a name keeps it, so that existing image folders match the data set. A later one gets a hash of
    its address appended, the same in every run. Label files are named after images, so ``a.jpg`` and ``a.png`` count
    as equal.

    Args:
        split: Whether images come with splits that do not follow from their addresses; images with one address then
            get the split of the first.
    """

    def __init__(self, *, split: bool = False) -> None:
        self._stems = SpillingSet()
        self._splits = SplitKeys() if split else None
        self._sources = SpillingSet()

    def assign(self, url: str, *, image_id: int, name: str = "", split: str = "") -> AssignedName:
        """Assign a file name to the image at ``url``.

        Args:
            url: its address.
            image_id: distinguishes images with one address.
            name: its original name, where the address does not have it.
            split: the split that it is to be in.
        """
        if name:
            public, (stem, extension) = public_url(url), safe_name(name)
        elif plain_url := _PLAIN_URL.fullmatch(url):
            public, (stem, extension) = url, plain_url.groups()
        else:
            public, (stem, extension) = public_url(url), safe_name(source_name(url))
        source = hash_key(public)
        if self._splits is not None:
            repeated = source in self._splits
            split = (split in SPLITS and self._splits.split(source)) or split
            source = with_split(source, split)
            self._splits.add(source)
        else:
            repeated = not self._sources.add(source)
        keys = _hash_stem(stem), source
        if self._stems.add(keys[0]):
            return AssignedName(stem + extension, public, keys, not repeated, repeated, split)
        stem = f"{stem}-{_digest(public)}"
        if not self._stems.add(_hash_stem(stem)):
            stem = f"{stem}-{image_id}"
            while not self._stems.add(_hash_stem(stem)):  # a source name that imitates a suffix of ours
                stem = f"{stem}-x"
        return AssignedName(stem + extension, public, keys, free=False, repeated=repeated, split=split)

    def try_reserve(self, keys: Sequence[tuple[int, int]]) -> bool:
        """Reserve the names of reused images. Return False, and reserve none, if one of them is in use."""
        stems, sources = {stem for stem, _ in keys}, {source for _, source in keys}
        used_sources = self.used_keys[1]
        if len(stems) < len(keys) or len(sources) < len(keys):
            return False
        if any(stem in self._stems for stem in stems) or any(source in used_sources for source in sources):
            return False
        for stem, source in keys:
            self._stems.add(stem)
            used_sources.add(source)
        return True

    @property
    def used_keys(self) -> tuple[SpillingSet, SpillingSet | SplitKeys]:
        """The keys of all stems and of all sources in use."""
        return self._stems, self._sources if self._splits is None else self._splits


def hash_key(text: str) -> int:
    """Return a 64-bit BLAKE2b hash of a text. That of an image's public address also determines its split."""
    digest = _HASH64.copy()  # half the cost of a new one
    digest.update(text.encode())
    return int.from_bytes(digest.digest())


def _hash_stem(stem: str) -> int:
    folded = stem.lower() if stem.isascii() else unicodedata.normalize("NFKC", stem.casefold())
    return xxh3_64_intdigest(folded.encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
