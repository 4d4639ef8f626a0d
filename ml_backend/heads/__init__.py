"""Heads: the learned parts of a version in addition to its boxes, each fitted, judged, stored and served on its own.

`HEADS` lists the kinds in the order in which the predictor applies them: heads that move points and angles, then masks,
then labels of objects, then labels of images. A version on the store has one file per head, `<name>.head.npz`.

A kind is the module of its name. It is imported when it is first used, so that a worker without heads stays small.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import structlog

from ml_backend.heads.base import Head, HeadKind

log = structlog.get_logger(__name__)

# Ending of the file of a head in a version.
SUFFIX = ".head.npz"

# Names of the kinds, in the order in which they are applied.
NAMES = ("keypoints", "angles", "masks", "region_labels", "image_labels")


class _Kinds(Mapping[str, HeadKind]):
    """`HeadKind` of each module, imported at the first access."""

    def __getitem__(self, name: str) -> HeadKind:
        if name not in NAMES:
            raise KeyError(name)
        kind: HeadKind = import_module(f"{__name__}.{name}").KIND
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    def __contains__(self, name: object) -> bool:
        return name in NAMES


HEADS: Mapping[str, HeadKind] = _Kinds()


def head_file(name: str) -> str:
    """Name of the file of a head in a version."""
    return f"{name}{SUFFIX}"


def serialized(heads: Mapping[str, Head]) -> dict[str, bytes]:
    """Return the file content of each head by kind, sorted by kind; each is read back once, so that it loads later.

    Raises:
        ValueError: A head cannot be read back.
    """
    contents = {name: head.to_bytes() for name, head in sorted(heads.items())}
    for name, content in contents.items():
        if name in HEADS:
            HEADS[name].from_bytes(content)
    return contents


def load_heads(folder: Path, files: Mapping[str, str]) -> dict[str, Head]:
    """Load the heads of a version, in the order in which they are applied.

    A head of a kind or format that this release does not know is left out with a warning: the boxes are served.

    Args:
        folder: The local copy of the version.
        files: File name by kind, as in the version's manifest.
    """
    heads: dict[str, Head] = {}
    for name in HEADS:
        if name not in files:
            continue
        try:
            heads[name] = HEADS[name].from_bytes((folder / files[name]).read_bytes())
        except (OSError, ValueError, KeyError) as error:
            log.warning("head_not_loaded", head=name, reason=str(error) or type(error).__name__)
    for name in sorted(set(files) - set(HEADS)):
        log.warning("head_not_loaded", head=name, reason="this release does not know its kind")
    return heads
