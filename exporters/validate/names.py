"""Names that a person or a format takes for one: classes written two ways, two images of one label file."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from exporters.validate.flaws import Problems

_APART = re.compile(r"[\s_\-]+")


def check_classes(names: Iterable[str], file: str, where: str, problems: Problems) -> None:
    """Find classes that differ only in case, spaces, ``-`` or ``_``. Single characters may: ``a`` and ``A`` are two."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if len(name.strip()) > 1:
            first = seen.setdefault(_APART.sub(" ", name).strip().casefold(), name)
            if first != name:
                problems.add("class-alike", file, where, f"{first!r} and {name!r}")


def check_shared(photos: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """Find label files that two images share: ``photos`` are the images of each label file."""
    for file, names in photos.items():
        if len(names) > 1:
            problems.add("labels-shared", file, detail=" and ".join(sorted(PurePosixPath(name).name for name in names)))
