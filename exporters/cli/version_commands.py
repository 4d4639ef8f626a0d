"""The commands `labelloop dataset list`, `diff` and `gc`."""

from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from exporters.console import Json, counted, progress_bar, shown, write_json
from exporters.dataset.diff import Change, ClassChange, Differences, differences
from exporters.dataset.gc import GRACE_H, Garbage, collect, look
from exporters.dataset.versions import read_head, read_version, versions
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

_SHOWN = 20


def dataset_list(url: str, *, json: Json = None) -> int:
    """List the versions of a data set, the published one marked.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        json: where to write the list as JSON ("-": to the standard output).
    """
    store = open_store(url, Settings())
    head, _ = read_head(store)
    found = list(versions(store))
    told: list[dict[str, Any]] = [
        {
            "version": each.version,
            "head": head is not None and head.version == each.version,
            "parent": each.parent,
            "created_at": each.created_at,
            "published": each.published,
            "refused": each.refused,
            "images": dict(each.splits),
            "formats": list(each.formats),
            "classes": dict(each.classes),
            "source": dict(each.source),
            "bytes": sum(shard.size for shard in each.shards().values()) + sum(file.size for file in each.files),
        }
        for each in found
    ]
    if write_json(json, told):
        return 0
    for each in told:
        splits = ", ".join(f"{name} {count}" for name, count in each["images"].items())
        note = "" if each["published"] else f"  not published: {each['refused']}"
        print(
            f"{'*' if each['head'] else ' '} {each['version']}  {each['created_at']}  images: {splits}"
            f"  formats: {', '.join(each['formats'])}{note}"
        )
    if not found:
        print(f"No version at {url} yet. `labelloop export --to {url} --from ...` makes the first.")
    return 0


def dataset_diff(url: str, a: str, b: str = "latest", *, json: Json = None) -> int:
    """Say what changed from one version of a data set to another: tasks, images, splits, classes and objects.

    Objects are compared by class and place in a format that both versions have. One that is gone and one that is new
    are the same object, moved or relabelled, where their boxes overlap by half (IoU).

    ```
    labelloop dataset diff s3://bucket/cars 11 12
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        a: the version before, such as 11 or v000011.
        b: the version after; "latest" is the published one.
        json: where to write it as JSON ("-": to the standard output).
    """
    store = open_store(url, Settings())
    found = differences(store, read_version(store, a), read_version(store, b))
    if not write_json(json, found):
        print(diff_text(found))
    return 0


def dataset_gc(
    url: str,
    *,
    keep: int | None = None,
    grace: float = GRACE_H,
    delete: Annotated[bool, Parameter(negative=())] = False,
    json: Json = None,
) -> int:
    """Say what of a data set nobody refers to any more and, with --delete, remove it.

    Objects and unfinished files of exports that were killed, objects of versions that are gone, and with --keep the
    older versions. Nothing is removed that is younger than the grace period, so exports may go on meanwhile.

    ```
    labelloop dataset gc s3://bucket/cars --keep 10
    labelloop dataset gc s3://bucket/cars --keep 10 --delete
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        keep: keep only so many published versions, counted from the newest; without it all of them stay.
        grace: hours for which everything stays after it was written; longer than any export takes.
        delete: remove it; without this nothing is changed.
        json: where to write what goes as JSON ("-": to the standard output).
    """
    store = open_store(url, Settings())
    if delete:
        with progress_bar("objects") as progress:
            found = collect(store, keep=keep, grace_h=grace, progress=progress)
    else:
        found = look(store, keep=keep, grace_h=grace)
    if not write_json(json, found):
        print(gc_text(found, deleted=delete))
    return 0


def diff_text(found: Differences) -> str:
    """The differences as a person reads them."""
    lines = [f"{found.url}: {found.a} -> {found.b}"]
    for name, (before, after) in found.rules.items():
        lines.append(f"  {name}: {_short(before)} -> {_short(after)}")
    if found.classes_added:
        lines.append(f"  new classes: {', '.join(map(shown, found.classes_added))}")
    lines.append(f"  tasks    {_change(found.tasks)}")
    lines.append(f"  images   {_change(found.images)}")
    lines += [f"    {number} moved: {move}" for move, number in found.splits.items()]
    lines.append(f"  objects  {_objects(found.objects)}   (from {found.format})")
    if found.classes:
        width = max(len(shown(name)) for name in found.classes)
        head = ("class".ljust(width), "added", "removed", "moved", "relabelled")
        lines += ["", "  " + "  ".join((head[0], *(word.rjust(10) for word in head[1:])))]
        for name, each in found.classes.items():
            numbers = (each.added, each.removed, each.moved, each.relabelled)
            lines.append("  " + "  ".join((shown(name).ljust(width), *(str(number).rjust(10) for number in numbers))))
    if found.samples:
        lines.append("")
        lines += [f"  task {each.task} {each.image}: {each.what}" for each in found.samples[:_SHOWN]]
        changed = found.images.added + found.images.removed + found.images.changed
        if changed > _SHOWN:
            lines.append(f"  and {changed - _SHOWN} more images")
    return "\n".join(lines)


def gc_text(found: Garbage, *, deleted: bool) -> str:
    """What goes as a person reads it."""
    what = "Removed" if deleted else "Would remove"
    size = f"{found.bytes / 1e6:,.1f} MB"
    lines = [
        f"{what} {counted(len(found.versions), 'version')} and {counted(len(found.objects), 'object')} ({size}).",
        f"What stays: {counted(len(found.kept_versions), 'version')}, {counted(found.kept_objects, 'object')}."
        + ("" if found.kept_versions else " Is the address the one of a data set?"),
    ]
    if found.versions:
        lines.insert(1, f"  versions: {', '.join(found.versions)}")
    if found.young:
        young = counted(found.young, "object")
        lines.append(f"{young} that no version names, younger than the grace period: they stay too.")
    if found.unfinished:
        unfinished = counted(found.unfinished, "unfinished write")
        lines.append(f"{what} {unfinished} of killed exports ({found.unfinished_bytes / 1e6:,.1f} MB).")
    if not deleted and (found.versions or found.objects or found.unfinished):
        lines.append("Nothing was changed. With --delete they go.")
    return "\n".join(lines)


def _change(each: Change) -> str:
    return f"{each.added} added, {each.removed} removed, {each.changed} changed, {each.same} the same"


def _objects(each: ClassChange) -> str:
    return f"{each.added} added, {each.removed} removed, {each.moved} moved, {each.relabelled} relabelled"


def _short(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:100]
