"""Names that a person or a format takes for one: classes written two ways, two images of one label file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from exporters.classes import alike
from exporters.validate.flaws import Problems


def check_classes(names: Iterable[str], file: str, where: str, problems: Problems) -> None:
    """Find classes that differ only in case, spaces, ``-`` or ``_``: those that an export refuses."""
    for first, name in alike(names):
        problems.add("class-alike", file, where, f"{first!r} and {name!r}")


def check_shared(photos: Mapping[str, Sequence[Path]], labels: Mapping[str, str], problems: Problems) -> None:
    """Find label files that two images share.

    Args:
        photos: the images that a label file is taken for, by its stem.
        labels: the label files' names in the problems, by their stems.
        problems: where faults go.
    """
    for stem, file in labels.items():
        if len(paths := photos.get(stem, ())) > 1:
            problems.add("labels-shared", file, detail=" and ".join(sorted(path.name for path in paths)))
