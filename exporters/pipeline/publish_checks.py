"""Why a version is not published: it failed too much, it is empty, or it is far smaller than the published one."""

from collections.abc import Iterable, Mapping

from exporters.model.accounting import Accounts

TOO_MUCH_FAILED = "too much failed"
NOTHING_LEFT = "no image is in it, and images are in the one before"
NO_IMAGE = "no image is in it"
NO_CLASS = "no object is in it, and there is no label config that names classes"
SHRUNK = "far smaller than the published version"
SHRINK = 1 / 3
"""Share of the published tasks, images, regions or objects of a format that may be missing in a version."""
WITHOUT_CLASSES = frozenset({"yolo-classify"})
"""Formats that need no class of objects."""
EMPTY = frozenset({NO_IMAGE, NO_CLASS})
"""Reasons for which no version is made at all: there is nothing in it to look at."""


def refusal_reason(
    accounts: Accounts,
    images: Mapping[str, int],
    classes: Iterable[str],
    *,
    before: tuple[Accounts, Mapping[str, int]] | None,
    max_errors: float,
    allow_shrink: bool,
) -> str:
    """Why a version is not published; empty where it is.

    Args:
        accounts: Its bill.
        images: How many images each of its splits has.
        classes: Its classes.
        before: The bill and the images of the published version.
        max_errors: The share of failures from which it is not published.
        allow_shrink: Publish it also where it is far smaller than the published one.
    """
    filled = any(images.values())
    if not filled and before and any(before[1].values()):
        return NOTHING_LEFT
    if not filled:
        return NO_IMAGE
    if accounts.failed_share > max_errors:
        return TOO_MUCH_FAILED
    if not any(classes) and not WITHOUT_CLASSES & accounts.formats.keys():
        return NO_CLASS
    if before and not allow_shrink and (lost := _lost(accounts, before[0])):
        return f"{SHRUNK}: {lost}"
    return ""


def _lost(now: Accounts, before: Accounts) -> str:
    """What is missing of the published version, in numbers; empty where little is."""
    counts = (
        ("tasks", now.tasks.kept, before.tasks.kept),
        ("images", now.images.kept, before.images.kept),
        ("regions", now.regions.kept, before.regions.kept),
        *(
            (f"objects of {name}", each.objects, before.formats[name].objects)
            for name, each in now.formats.items()
            if name in before.formats
        ),
    )
    return ", ".join(
        f"{kept} of {was} {name} ({1 - kept / was:.0%} fewer)"
        for name, kept, was in counts
        if kept < (1 - SHRINK) * was
    )
