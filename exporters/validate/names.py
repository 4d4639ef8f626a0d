"""Names that a person or a format takes for one: classes written two ways, two images of one label file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from exporters.model.class_map import alike
from exporters.validate.issues import Problems


def check_classes(names: Iterable[str], file: str, where: str, problems: Problems) -> None:
    """Find classes that differ only in case, spaces, ``-`` or ``_``: those that an export refuses."""
    for first, name in alike(names):
        problems.add("class-alike", file, where, f"{first!r} and {name!r}")


def check_shared(photos: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """Find label files that two images share: ``photos`` are the images of each label file."""
    for file, names in photos.items():
        if len(names) > 1:
            problems.add("labels-shared", file, detail=" and ".join(sorted(PurePosixPath(name).name for name in names)))
