"""The outcome of `--group-by look`, apart from the code that looks at images: most exports need none of it."""

from collections.abc import Mapping

import msgspec


class LookSplits(msgspec.Struct, frozen=True):
    """The outcome of `--group-by look`.

    Attributes:
        twins: `hash_key` of an image's public address -> its split, for images that are not where their own address
            puts them.
        moved_tasks: Keys of tasks whose images were in another split of the published version.
        moved_images: File names of these images in that version.
        notes: What is said about them.
    """

    twins: Mapping[int, str] = {}
    moved_tasks: frozenset[int] = frozenset()
    moved_images: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
