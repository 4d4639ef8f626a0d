"""Decide whether a version is published: not with too many failures, empty, or far smaller than the published one."""

from collections.abc import Iterable, Mapping

from exporters.model.accounting import Accounts

TOO_MUCH_FAILED = "too much failed"
NOTHING_LEFT = "no image is in it, and images are in the one before"
NO_TASK_LEFT = "no task is in it, and tasks are in the one before"
NO_IMAGE = "no image is in it"
NO_TASK = "no task is in it"
NO_CLASS = "no object is in it, and no label config names classes"
SHRUNK = "far smaller than the published version"
# Share of the published tasks, images, regions or objects of a format that may be missing in a version.
SHRINK = 1 / 3
# Formats that need no object classes.
WITHOUT_CLASSES = frozenset({"yolo-classify"})
# Reasons for which no version is made at all.
EMPTY = frozenset({NO_IMAGE, NO_TASK, NO_CLASS})


def refusal_reason(
    accounts: Accounts,
    images: Mapping[str, int],
    classes: Iterable[str],
    *,
    before: tuple[Accounts, Mapping[str, int]] | None,
    max_errors: float,
    allow_shrink: bool,
) -> str:
    """Return why a version is not published; empty if it is.

    Args:
        accounts: The accounts of the version.
        images: Split -> number of images, and of lines of tasks.
        classes: The classes.
        before: The accounts of the published version, and these numbers.
        max_errors: The largest share of failures of a published version.
        allow_shrink: Publish a version that is far smaller than the published one.
    """
    filled = any(images.values())
    has_images = any(count.tasks is None for count in accounts.formats.values())
    has_tasks = any(count.tasks is not None for count in accounts.formats.values())
    if not filled and before and any(before[1].values()):
        return NOTHING_LEFT if has_images else NO_TASK_LEFT
    if not filled:
        return NO_IMAGE if has_images else NO_TASK
    if accounts.failed_share > max_errors:
        return TOO_MUCH_FAILED
    if has_images and not has_tasks and not any(classes) and not WITHOUT_CLASSES & accounts.formats.keys():
        return NO_CLASS
    if before and not allow_shrink and (lost := _lost(accounts, before[0])):
        return f"{SHRUNK}: {lost}"
    return ""


def _lost(now: Accounts, before: Accounts) -> str:
    """Describe what is missing compared to the published version; empty if little is."""
    counts = (
        ("tasks", now.tasks.kept, before.tasks.kept),
        *(
            (("images", now.images.kept, before.images.kept), ("regions", now.regions.kept, before.regions.kept))
            if any(count.tasks is None for count in now.formats.values())
            else ()
        ),
        *(
            (f"objects of {name}", format_count.objects, before.formats[name].objects)
            for name, format_count in now.formats.items()
            if name in before.formats
        ),
    )
    return ", ".join(
        f"{current} of {previous} {name} ({1 - current / previous:.0%} fewer)"
        for name, current, previous in counts
        if current < (1 - SHRINK) * previous
    )
