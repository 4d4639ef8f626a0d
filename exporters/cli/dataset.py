"""The commands `labelloop dataset list`, `diff`, `gc`, `pull`, `latest`, `link` and `report`."""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from exporters.console import JsonPath, progress_bar, terminal_label, write_json
from exporters.dataset.folder import local_folder
from exporters.dataset.gc import GRACE_H, Garbage, collect_garbage, find_garbage
from exporters.dataset.latest import read_latest, update_latest
from exporters.dataset.pull import pull
from exporters.dataset.signed_links import signed_lines
from exporters.dataset.versions import read_head, read_version, versions
from exporters.errors import BadOption, ExportError, VersionNotFound
from exporters.tasks.table import format_names
from labelloop.service.charts import pluralize
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import is_bucket_url, open_store
from labelloop.service.store.signing import LONGEST_HOURS, signer
from labelloop.service.studio import Studio

if TYPE_CHECKING:
    from exporters.dataset.diff import ChangeCounts, ClassChange, Differences
    from exporters.dataset.task_diff import TaskDifferences

# Changed images that `dataset diff` prints, and missing images of each reason that `dataset pull` prints.
_SAMPLES, _MISSING = 20, 3


def dataset_list(url: str, *, json: JsonPath = None) -> int:
    """List the versions of a data set; mark the published one, and the one that latest/ holds.

    ```
    labelloop dataset list s3://bucket/cars
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        json: Where to write the list as JSON ("-": to the standard output).
    """
    store = open_store(url, Settings())
    (head, _), latest = read_head(store), read_latest(store)
    manifests = list(versions(store))
    if not manifests:
        raise VersionNotFound(store.url, "latest")
    entries: list[dict[str, Any]] = [
        {
            "version": manifest.version,
            "head": head is not None and head.version == manifest.version,
            "latest": latest.state if latest is not None and latest.version == manifest.version else "",
            "parent": manifest.parent,
            "created_at": manifest.created_at,
            "published": manifest.published,
            "refused": manifest.refused,
            "images": dict(manifest.splits),
            "lines": dict(manifest.lines),
            "formats": list(manifest.formats),
            "classes": dict(manifest.classes),
            "source": dict(manifest.source),
            "bytes": sum(shard.size for shard in manifest.shards().values())
            + sum(file.size for file in manifest.files),
        }
        for manifest in manifests
    ]
    if write_json(json, entries):
        return 0
    for entry in entries:
        counted = [("images", entry["images"]), ("tasks", entry["lines"])]
        contents = "  ".join(
            f"{what}: {', '.join(f'{name} {count}' for name, count in numbers.items())}"
            for what, numbers in counted
            if any(numbers.values()) or (what == "images" and not entry["lines"])
        )
        note = "" if entry["published"] else f"  not published: {entry['refused']}"
        note += {"complete": "  in latest/", "updating": "  latest/ is being updated to it"}.get(entry["latest"], "")
        print(
            f"{'*' if entry['head'] else ' '} {entry['version']}  {entry['created_at']}  {contents}"
            f"  formats: {', '.join(entry['formats'])}{note}"
        )
    return 0


def dataset_diff(url: str, a: str, b: str = "latest", *, json: JsonPath = None) -> int:
    """Compare two versions of a data set: tasks, images, splits, classes and objects.

    Objects are compared by class and position in a format that both versions have. A removed and an added object count
    as one that was moved or relabelled if the IoU of their boxes is at least 0.5.

    ```
    labelloop dataset diff s3://bucket/cars 11 12
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        a: The earlier version, such as 11 or v000011.
        b: The later version; "latest" is the published one.
        json: Where to write the changes as JSON ("-": to the standard output).
    """
    store = open_store(url, Settings())
    from exporters.dataset.diff import diff_versions  # imports SciPy

    changes = diff_versions(store, read_version(store, a), read_version(store, b))
    if not write_json(json, changes):
        print(diff_text(changes))
    return 0


def dataset_gc(
    url: str,
    *,
    keep: int | None = None,
    grace: float = GRACE_H,
    delete: Annotated[bool, Parameter(negative=())] = False,
    json: JsonPath = None,
) -> int:
    """List what no version of a data set refers to; with --delete, remove it.

    This covers objects and unfinished files of killed exports, objects of removed versions, and with --keep the older
    versions. Nothing younger than the grace period is removed, so exports may run at the same time.

    ```
    labelloop dataset gc s3://bucket/cars --keep 10
    labelloop dataset gc s3://bucket/cars --keep 10 --delete
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        keep: The number of published versions to keep, counted from the newest; default: all.
        grace: Hours during which new objects and versions are never removed; longer than any export takes.
        delete: Remove it; without this nothing is changed.
        json: Where to write what is removed as JSON ("-": to the standard output).

    Returns:
        0, or 1 if there is no data set.
    """
    store = open_store(url, Settings())
    if (folder := local_folder(store)) is not None and not folder.exists():
        raise VersionNotFound(store.url, "latest")
    if delete:
        with progress_bar("objects") as progress:
            garbage = collect_garbage(store, keep=keep, grace_h=grace, progress=progress)
    else:
        garbage = find_garbage(store, keep=keep, grace_h=grace)
    if not write_json(json, garbage):
        print(gc_text(garbage, deleted=delete))
    return 0 if garbage.has_data_set else 1


def diff_text(changes: "Differences") -> str:
    """Format the changes for people."""
    lines = [f"{changes.url}: {changes.a} -> {changes.b}"]
    for name, (before, after) in changes.rules.items():
        lines.append(f"  {name}: {_short(before)} -> {_short(after)}")
    if changes.classes_added:
        lines.append(f"  new classes: {', '.join(map(terminal_label, changes.classes_added))}")
    lines.append(f"  tasks    {_change(changes.tasks)}")
    if changes.lines is not None:
        lines += _line_changes(changes.lines)
    if not changes.format:
        return "\n".join(lines)
    lines.append(f"  images   {_change(changes.images)}")
    lines += [f"    {number} moved: {move}" for move, number in changes.splits.items()]
    lines.append(f"  objects  {_objects(changes.objects)}   (from {changes.format})")
    if changes.classes:
        width = max(len(terminal_label(name)) for name in changes.classes)
        head = ("class".ljust(width), "added", "removed", "moved", "relabelled")
        lines += ["", "  " + "  ".join((head[0], *(word.rjust(10) for word in head[1:])))]
        for name, counts in changes.classes.items():
            numbers = (counts.added, counts.removed, counts.moved, counts.relabelled)
            lines.append(
                "  " + "  ".join((terminal_label(name).ljust(width), *(str(number).rjust(10) for number in numbers)))
            )
    if changes.samples:
        lines.append("")
        lines += [f"  task {sample.task} {sample.image}: {sample.what}" for sample in changes.samples[:_SAMPLES]]
        changed = changes.images.added + changes.images.removed + changes.images.changed
        if changed > _SAMPLES:
            lines.append(f"  and {changed - _SAMPLES} more images")
    return "\n".join(lines)


def gc_text(garbage: Garbage, *, deleted: bool) -> str:
    """Format the garbage for people."""
    what = "Removed" if deleted else "Would remove"
    size, versions_text = f"{garbage.bytes / 1e6:,.1f} MB", pluralize(len(garbage.versions), "version")
    lines = [
        f"{what} {versions_text} and {pluralize(len(garbage.objects), 'object')} ({size}).",
        f"Kept: {pluralize(len(garbage.kept_versions), 'version')}, {pluralize(garbage.kept_objects, 'object')}."
        + ("" if garbage.kept_versions else " There is no version: check the address."),
    ]
    if garbage.versions:
        lines.insert(1, f"  versions: {', '.join(garbage.versions)}")
    if garbage.young:
        young = pluralize(garbage.young, "object")
        lines.append(f"{young} that no version names, younger than the grace period: kept.")
    if garbage.unfinished:
        unfinished = pluralize(garbage.unfinished, "unfinished write")
        lines.append(f"{what} {unfinished} of killed exports ({garbage.unfinished_bytes / 1e6:,.1f} MB).")
    if not deleted and (garbage.versions or garbage.objects or garbage.unfinished):
        lines.append("Nothing was changed. Pass --delete to remove them.")
    return "\n".join(lines)


def _line_changes(changes: "TaskDifferences") -> list[str]:
    """Format the changes of lines of tasks."""
    numbers = changes.lines
    changed_lines = ", ".join(f"{numbers[name]} {name}" for name in ("added", "removed", "changed"))
    lines = [f"  lines    {changed_lines}, {numbers['same']} the same"]
    lines += [f"    {number} moved: {move}" for move, number in changes.splits.items()]
    for control, counts in changes.answers.items():
        lines.append(
            f"    answers to {terminal_label(control)}: {counts.added} added, {counts.removed} removed,"
            f" {counts.changed} changed"
        )
    for label, regions in changes.regions.items():
        added, removed = regions.get("added", 0), regions.get("removed", 0)
        lines.append(f"    regions labelled {terminal_label(label)}: {added} added, {removed} removed")
    lines += [f"  task {task}: {what}" for task, what in changes.samples[:_SAMPLES]]
    changed = numbers["added"] + numbers["removed"] + numbers["changed"]
    return [*lines, *([f"  and {changed - _SAMPLES} more tasks"] if changed > _SAMPLES else [])]


def _change(counts: "ChangeCounts") -> str:
    return f"{counts.added} added, {counts.removed} removed, {counts.changed} changed, {counts.same} the same"


def _objects(counts: "ClassChange") -> str:
    return f"{counts.added} added, {counts.removed} removed, {counts.moved} moved, {counts.relabelled} relabelled"


def _short(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:100]


def dataset_pull(
    url: str,
    *,
    to: Path,
    version: str = "latest",
    formats: Annotated[str | None, Parameter(name=["--format"])] = None,
    images: bool = True,
    link: Annotated[bool, Parameter(negative=())] = False,
    upright: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write a version of a data set as plain folders that a trainer reads.

    The folder changes only when everything is fetched. A later version replaces an earlier one, images already there
    are not fetched again, and everything else in the folder stays.

    ```
    labelloop dataset pull s3://bucket/cars --format yolo-detect --to ./cars
    yolo detect train data=./cars/data.yaml
    labelloop dataset pull /data/cars --version 3 --format coco,voc --to ./v3
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        to: The folder to write; one sub-folder per format if there are several.
        version: The version: "latest", or a number: 3 or v000003.
        formats: The formats to write, comma-separated; default: all of the version.
        images: Write the images too: the version's copies, or from their source.
        link: Link images that are files of this machine instead of copying them. Some trainers repair damaged images in
            place.
        upright: Rotate the pixels of images whose EXIF orientation is not upright, as phones write them: for trainers
            that open images with Pillow alone, such as RF-DETR, DETR and all others of torchvision.

    Returns:
        0, or 1 if images are not available.
    """
    settings = Settings()
    setup_logging(settings)
    store = open_store(url, settings)
    with ExitStack() as stack:
        media = None
        if images:
            studio = Studio.from_settings(settings) if settings.label_studio_api_key.get_secret_value() else None
            media = stack.enter_context(closing(Media(settings, studio)))
            if studio is not None:
                stack.callback(studio.close)
        progress = stack.enter_context(progress_bar("images"))
        pulled = pull(
            store,
            read_version(store, version),
            to=to,
            formats=format_names(formats) if formats else (),
            media=media,
            link=link,
            upright=upright,
            progress=progress,
        )
    for name, folder in pulled.folders.items():
        print(f"{pulled.version} {name}: {folder}")
    print(f"{pulled.files} files, {pluralize(pulled.images, 'image')}{_rotation_note(pulled.rotated, upright=upright)}")
    if pulled.missing:
        print(_missing(pulled.missing), file=sys.stderr)
    return 1 if pulled.missing else 0


def _rotation_note(photos: int, *, upright: bool) -> str:
    if not photos:
        return ""
    if upright:
        return f", {photos} of them rotated upright"
    return (
        f"\n{pluralize(photos, 'image')} with an EXIF rotation: OpenCV (Ultralytics, detectron2) applies it, Pillow"
        " alone (torchvision, RF-DETR) does not. Pass --upright to rotate the pixels."
    )


def _missing(missing: Sequence[tuple[str, str]]) -> str:
    """Format the images that are not available, by reason."""
    by_reason: dict[str, list[str]] = {}
    for address, reason in missing:
        by_reason.setdefault(reason, []).append(address)
    lines = [f"{pluralize(len(missing), 'image')} not available; the labels are complete."]
    for reason, addresses in by_reason.items():
        lines.append(f"  {pluralize(len(addresses), 'image')}: {reason}")
        lines += [f"    {address}" for address in addresses[:_MISSING]]
        if len(addresses) > _MISSING:
            lines.append(f"    and {len(addresses) - _MISSING} more")
    return "\n".join(lines)


def dataset_latest(url: str, *, json: JsonPath = None) -> int:
    """Make latest/ equal to the published version: write what differs, and remove what is not in the version.

    `labelloop export` does this for each version. This command finishes an update that was killed, and restores files
    that were changed or deleted by hand.

    ```
    labelloop dataset latest s3://bucket/cars
    ```

    Args:
        url: The data set: a folder, s3://BUCKET/PREFIX, gs:// or az://.
        json: Where to write what was done as JSON ("-": to the standard output).

    Returns:
        0, or 1 if no version is published.
    """
    settings = Settings()
    setup_logging(settings)
    store = open_store(url, settings)
    with store.scratch() as scratch, progress_bar("files of latest/") as progress:
        update = update_latest(store, scratch=scratch, check=True, progress=progress)
    if not write_json(json, update):
        if update is None:
            print(f"{url} has no published version. `labelloop export --to {url} --from ...` makes the first.")
        elif update.counts is not None:
            counts = update.counts
            print(
                f"{store.url}/latest/ is {update.version}: {pluralize(counts.written, 'file')} written,"
                f" {counts.removed:,} removed, {counts.same:,} the same."
            )
    return int(update is None)


def dataset_link(
    url: str,
    *,
    format: str = "",  # noqa: A002 - the option's name
    version: str = "latest",
    hours: float = 24.0,
    out: Path | None = None,
) -> None:
    """Print one address for `yolo train data=...`: an NDJSON file whose images can be fetched for some hours.

    For images in a private bucket and a trainer without a key. The version needs an ndjson format
    (`labelloop export --format ndjson-detect`).

    ```
    labelloop export 7 --to s3://bucket/cars --format ndjson-obb --copy-images
    yolo detect train data="$(labelloop dataset link s3://bucket/cars --hours 48)"
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        format: One of ndjson-detect, ndjson-segment, ndjson-obb or ndjson-pose; the version's only one by default.
        version: The version: "latest", or a number: 3 or v000003.
        hours: How long the addresses are valid, at most 168.
        out: A file to write instead of storing it in the bucket.
    """
    settings = Settings()
    if not 0 < hours <= LONGEST_HOURS:
        raise BadOption("--hours", f"{hours:g}", f"a number over 0, up to {LONGEST_HOURS}")
    store = open_store(url, settings)
    manifest = read_version(store, version)
    available = [name for name in manifest.formats if name.startswith("ndjson-")]
    name = format or (available[0] if len(available) == 1 else "")
    if name not in available:
        if not available:
            raise ExportError(
                f"{manifest.version} of {url} has no NDJSON, whose images a trainer downloads.",
                fix="Export one with --format ndjson-detect (ndjson-segment, -obb, -pose), then run this again.",
            )
        raise BadOption("--format", format, ", ".join(available))
    sign = signer(settings, hours)
    data = b"".join(signed_lines(store, manifest, name, sign))
    if out is not None or not is_bucket_url(store.url):
        path = out or Path(f"{manifest.version}-{name}.ndjson")
        path.write_bytes(data)
        print(f"{path}: valid for {hours:g} hours")
        return
    key = f"links/{hashlib.sha256(data).hexdigest()}/{manifest.version}.ndjson"
    store.put(key, data, content_type="application/x-ndjson")
    print(sign(f"{store.url}/{key}"))


def dataset_report(
    url: str, *, out: Path = Path("report.html"), version: str = "latest", samples: int = 24, images: bool = True
) -> None:
    """Write an HTML page about a version.

    It shows classes, sizes, splits, samples with their objects drawn, and what was left out and why. The page embeds
    its pictures and loads nothing, so it can be sent or stored with the data set.

    ```
    labelloop dataset report s3://bucket/cars --out cars.html
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        out: The HTML file to write.
        version: The version: "latest", or a number: 3 or v000003.
        samples: The number of images shown with their objects drawn.
        images: Fetch images that the version has no copy of.
    """
    settings = Settings()
    setup_logging(settings.replace(log_level="ERROR"))
    store = open_store(url, settings)
    manifest = read_version(store, version)
    with ExitStack() as opened:
        media = None
        if images:
            api_key = settings.label_studio_api_key.get_secret_value()
            studio = opened.enter_context(closing(Studio.from_settings(settings))) if api_key else None
            media = opened.enter_context(closing(Media(settings, studio)))
        from exporters.report.page import html_report

        page = html_report(store, manifest, media=media, samples=max(0, samples))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(f"{manifest.version} of {store.url}: {out} ({len(page.encode()) / 1e6:.1f} MB)")
