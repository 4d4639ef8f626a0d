"""What can be wrong with the photos beside labels: they cannot be opened, or have another size than the labels say."""

from pathlib import Path

from exporters.validate.flaws import Problems
from labelloop.service.media import MediaError, photo_size


def check_photo(path: Path, file: str, where: str, size: tuple[float, float] | None, problems: Problems) -> None:
    """Look at a photo's header.

    Args:
        path: The photo, which is there.
        file: The file of its labels.
        where: Its place in that file.
        size: What the labels say of its size; ``None`` where they say nothing, or nothing that makes sense.
        problems: Where faults go.
    """
    problems.looked_at["photos"] += 1
    try:
        found = photo_size(path, name=path.name)
    except (MediaError, OSError) as error:
        reason = error.reason if isinstance(error, MediaError) else str(error)
        problems.add("photo-unreadable", file, where, f"{path.name}: {reason}")
        return
    if size is not None and size != found:
        turned = ": it is to be turned by its EXIF, which the labels do not know" if size == found[::-1] else ""
        told = f"{size[0]:g} x {size[1]:g}"
        problems.add(
            "photo-size", file, where, f"{path.name} has {found[0]} x {found[1]}, the labels say {told}{turned}"
        )
