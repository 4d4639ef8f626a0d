"""Checks that all formats share: class names, label files that images share, and the image files of the labels."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from exporters.model.class_map import near_duplicates
from exporters.validate.issues import IssueReport
from labelloop.service.datasets import ImageFiles

# Larger coordinates and sizes in text are reported as "not a number".
MAX_NUMBER = 1e9


def check_class_names(names: Iterable[str], file: str, where: str, report: IssueReport) -> None:
    """Report classes that differ only in case, spaces, ``-`` or ``_``, which an export refuses."""
    for first, name in near_duplicates(names):
        report.add("class-alike", file, where, f"{first!r} and {name!r}")


def check_shared_label_files(images_by_file: Mapping[str, Sequence[str]], report: IssueReport) -> None:
    """Report label files that more than one image uses; the argument maps label files to image names."""
    for file, names in images_by_file.items():
        if len(names) > 1:
            report.add("labels-shared", file, detail=" and ".join(sorted(PurePosixPath(name).name for name in names)))


def check_image_file(
    images: ImageFiles, image: str, file: str, where: str, *, size: tuple[float, float] | None, report: IssueReport
) -> None:
    """Compare the size in an image file's header with the size in its labels.

    Args:
        images: The image files of the data set.
        image: Name of the image file.
        file: The label file, for the report.
        where: Position in the label file, for the report.
        size: (width, height) in pixels as stated in the labels; ``None`` if not stated or invalid.
        report: Receives the issues.
    """
    report.checked["photos"] += 1
    actual, name = images.size(image), PurePosixPath(image).name
    if isinstance(actual, str):
        report.add("photo-unreadable", file, where, f"{name}: {actual}")
    elif size is not None and size != actual:
        rotated = ": its EXIF rotation is not applied in the labels" if size == actual[::-1] else ""
        stated = f"{size[0]:g} x {size[1]:g}"
        report.add("photo-size", file, where, f"{name} is {actual[0]} x {actual[1]}, the labels say {stated}{rotated}")
