"""File names of images: safe on every file system, unique in the data set, and as near to the source's as can be."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import msgspec
from xxhash import xxh3_64_intdigest

from exporters.structures.integer_sets import KeySet
from exporters.structures.split_keys import SplitKeys, marked
from labelloop.labeling.splits import SPLITS

STEM_BYTES = 120
"""Longest stem in bytes of UTF-8: room for a suffix and an extension within the 255 bytes file systems allow."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".heic", ".ppm"})

_KEY = re.compile(r"(?!https?:|data:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # an address that is a key, without a query
_NAME = (  # a stem that is safe, and an extension
    r"(?!(?i:con|prn|aux|nul|(?:com|lpt)[1-9])\.)([\w-](?:[\w.-]{0,98}[\w-])?)(\.(?:jpe?g|png|webp|bmp|tiff?))"
)
_PLAIN = re.compile(_NAME, re.ASCII)
_USUAL = re.compile(  # an address that may be written down, of an image whose name there is safe
    r"(?:(?!https?:|data:)[a-z][a-z0-9+.-]*://(?:.*/)?"
    r"|(?:https?://[\w.:-]+/|/data/local-files/\?d=)(?!(?:.*/)?data/upload/)(?:[\w.~/-]*/)?"
    r"|/data/upload/(?:[\w.~/-]*/)?(?:[0-9a-f]{8}-)?+)" + _NAME,
    re.ASCII,
)
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
_EIGHT_BYTES = hashlib.blake2b(digest_size=8)
_UNSAFE = re.compile(r"[^\w.\-]+")
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_SIGNED = ("signature", "sig", "token", "credential", "expires", "accesskeyid", "awsaccesskeyid", "googleaccessid")

META = "labelloop_import"
"""The key of a task's ``meta`` under which an import keeps what it knows of the photo: ``id`` and ``name``."""
_UPLOADS = "/data/upload/"


ABOUT = "coco"
"""The key, under `META`, of what a COCO file says of an image beside its name and size."""


def public_url(url: str) -> str:
    """The URL as it may be written down: without passwords, signatures or the bytes of a data URI.

    A presigned query string lets whoever reads the data set read the bucket, and differs at each export.
    """
    if _KEY.match(url):
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
    query = "" if any(name in _SIGNED for name in names) else parts.query
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))


def source_name(url: str) -> str:
    """The name the image has at its source: the last part of its path, or of the path that its query holds.

    An upload's name is the one it had before Label Studio set eight random digits in front of it.
    """
    if _KEY.match(url):  # in s3:// and the like "?" and "#" are letters of the key
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
    return _UPLOADED.sub("", name) or name if "/data/upload/" in path else name


def safe_name(name: str) -> tuple[str, str]:
    """(stem, extension) of a name with nothing in it that a file system, a list file or a trainer trips over.

    Letters of every script stay; spaces, separators and control characters become ``_``; leading dots go (``..``).
    A stem over ``STEM_BYTES`` is cut between characters and ends in a hash of the whole name.
    """
    plain = _PLAIN.fullmatch(name)
    if plain:
        return plain[1], plain[2]
    name = unicodedata.normalize("NFC", name)
    stem, dot, extension = name.rpartition(".")
    extension = (dot + extension).lower()
    if extension not in EXTENSIONS:
        stem, extension = name, ".jpg"
    stem = _UNSAFE.sub("_", stem).lstrip(".").rstrip(". ") or "image"
    if stem.casefold() in _RESERVED:
        stem = f"_{stem}"
    if len(stem.encode()) > STEM_BYTES:
        short = stem.encode()[: STEM_BYTES - 11].decode(errors="ignore")
        stem = f"{short}-{_digest(name)}"
    return stem, extension


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


class Named(msgspec.Struct, gc=False):
    """The name that an image got.

    Attributes:
        name: Its file name.
        public: Its address as it may be written down.
        keys: Those of its stem and of its address.
        free: Whether neither was taken, so that no other image decided about the name.
        repeated: Whether another image has its address.
        split: The split of the first image with its address, where splits were given; else the one given.
    """

    name: str
    public: str
    keys: tuple[int, int]
    free: bool
    repeated: bool
    split: str = ""


class Names:
    """Gives each image a name that no other has, also where letter case, Unicode form or the extension are ignored.

    The first image of a name keeps it, so a folder of photos fits the data set as it is. A later one of the same name
    gets a hash of its own source after it: the same one in every run. Label files take their name from the image's, so
    ``a.jpg`` and ``a.png`` count as the same.

    Args:
        split: Whether images are given with splits that their addresses do not decide: those of one address get one.
    """

    def __init__(self, *, split: bool = False) -> None:
        self._stems = KeySet()
        self._splits = SplitKeys() if split else None
        self._sources = KeySet()

    def take(self, url: str, *, image_id: int, name: str = "", split: str = "") -> Named:
        """A file name for the image at ``url``; ``image_id`` tells two images of one URL apart.

        ``name`` is the one that it had at its source, where the address does not tell.
        """
        if name:
            public, (stem, extension) = public_url(url), safe_name(name)
        elif usual := _USUAL.fullmatch(url):
            public, (stem, extension) = url, usual.groups()
        else:
            public, (stem, extension) = public_url(url), safe_name(source_name(url))
        source = key_of(public)
        if self._splits is not None:
            repeated = source in self._splits
            split = (split in SPLITS and self._splits.split(source)) or split
            source = marked(source, split)
            self._splits.add(source)
        else:
            repeated = not self._sources.add(source)
        keys = _stem_key(stem), source
        if self._stems.add(keys[0]):
            return Named(stem + extension, public, keys, not repeated, repeated, split)
        stem = f"{stem}-{_digest(public)}"
        if not self._stems.add(_stem_key(stem)):
            stem = f"{stem}-{image_id}"
            while not self._stems.add(_stem_key(stem)):  # a name made to look like ours
                stem = f"{stem}-x"
        return Named(stem + extension, public, keys, free=False, repeated=repeated, split=split)

    def reserve(self, keys: Sequence[tuple[int, int]]) -> bool:
        """Take names that were ``free`` before; False, and none is taken, where one is not any more."""
        stems, sources = {stem for stem, _ in keys}, {source for _, source in keys}
        taken = self.taken[1]
        if len(stems) < len(keys) or len(sources) < len(keys):
            return False
        if any(stem in self._stems for stem in stems) or any(source in taken for source in sources):
            return False
        for stem, source in keys:
            self._stems.add(stem)
            taken.add(source)
        return True

    @property
    def taken(self) -> tuple[KeySet, KeySet | SplitKeys]:
        """The keys of the stems and of the sources that are taken."""
        return self._stems, self._sources if self._splits is None else self._splits


def key_of(text: str) -> int:
    """Eight bytes of a text's hash, as a number: by the public address of an image also its place among the splits."""
    digest = _EIGHT_BYTES.copy()  # half the price of a new one
    digest.update(text.encode())
    return int.from_bytes(digest.digest())


def _stem_key(stem: str) -> int:
    folded = stem.lower() if stem.isascii() else unicodedata.normalize("NFKC", stem.casefold())
    return xxh3_64_intdigest(folded.encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
