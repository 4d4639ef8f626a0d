"""What can be wrong with the photos beside labels: they cannot be opened, or have another size than the labels say."""

from pathlib import PurePosixPath

from exporters.validate.issues import Problems
from labelloop.service.datasets import Photos


def check_photo(
    photos: Photos, photo: str, file: str, where: str, *, size: tuple[float, float] | None, problems: Problems
) -> None:
    """Look at a photo's header.

    Args:
        photos: The photos beside the labels.
        photo: The name of the one that is meant.
        file: The file of its labels.
        where: Its place in that file.
        size: What the labels say of its size; ``None`` where they say nothing, or nothing that makes sense.
        problems: Where faults go.
    """
    problems.looked_at["photos"] += 1
    found, name = photos.size(photo), PurePosixPath(photo).name
    if isinstance(found, str):
        problems.add("photo-unreadable", file, where, f"{name}: {found}")
    elif size is not None and size != found:
        turned = ": it is to be turned by its EXIF, which the labels do not know" if size == found[::-1] else ""
        told = f"{size[0]:g} x {size[1]:g}"
        problems.add("photo-size", file, where, f"{name} has {found[0]} x {found[1]}, the labels say {told}{turned}")
