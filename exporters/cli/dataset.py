"""The commands `labelloop dataset list`, `diff`, `gc`, `pull`, `link` and `report`."""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from exporters.console import Json, counted, progress_bar, shown, write_json
from exporters.dataset.diff import Change, ClassChange, Differences, differences
from exporters.dataset.gc import GRACE_H, Garbage, collect, look
from exporters.dataset.pull import pull
from exporters.dataset.signed_links import LONGEST_HOURS, linked, signer
from exporters.dataset.versions import read_head, read_version, versions
from exporters.errors import BadOption
from exporters.formats import format_names
from exporters.report.page import html_report
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio

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


_SHOWN = 3


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
    """Lay a version of a data set out as plain folders that a trainer reads.

    Nothing is half there: the folder changes when everything has come. A later version takes the place of an earlier
    one in it, and photos that were there are not fetched again; what else is in the folder stays.

    ```
    labelloop dataset pull s3://bucket/cars --format yolo-detect --to ./cars
    yolo detect train data=./cars/data.yaml
    labelloop dataset pull /data/cars --version 3 --format coco,voc --to ./v3
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        to: the folder to write; one sub-folder for each format when there are several.
        version: "latest", or a version's number: 3 or v000003.
        formats: the formats wanted, by commas; all of the version by default.
        images: lay the photos beside the labels too: the version's copies, or from their source.
        link: link photos that lie on this machine instead of copying them. Some trainers mend damaged photos in place.
        upright: turn the pixels of photos that lie on their side and say so in their EXIF, as phones write them: for
            trainers that open photos by Pillow alone, such as RF-DETR, DETR and all others of torchvision.

    Returns:
        0, or 1 where photos could not be had.
    """
    settings = Settings()
    setup_logging(settings)
    store = open_store(url, settings)
    with ExitStack() as opened:
        media = None
        if images:
            studio = Studio.from_settings(settings) if settings.label_studio_api_key.get_secret_value() else None
            media = opened.enter_context(closing(Media(settings, studio)))
            if studio is not None:
                opened.callback(studio.close)
        progress = opened.enter_context(progress_bar("images"))
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
    print(f"{pulled.files} files, {counted(pulled.photos, 'photo')}{_lying(pulled.lying, upright=upright)}")
    if pulled.missing:
        print(_missing(pulled.missing), file=sys.stderr)
    return 1 if pulled.missing else 0


def _lying(photos: int, *, upright: bool) -> str:
    if not photos:
        return ""
    if upright:
        return f", {photos} of them turned upright"
    return (
        f"\n{counted(photos, 'photo')} to be turned by EXIF: OpenCV (Ultralytics, detectron2) does so, Pillow alone"
        " (torchvision, RF-DETR) does not. With --upright the pixels are turned."
    )


def _missing(missing: Sequence[tuple[str, str]]) -> str:
    """The photos that could not be had, by reason."""
    by_reason: dict[str, list[str]] = {}
    for address, reason in missing:
        by_reason.setdefault(reason, []).append(address)
    lines = [f"{counted(len(missing), 'photo')} could not be had; the labels are there."]
    for reason, addresses in by_reason.items():
        lines.append(f"  {counted(len(addresses), 'photo')}: {reason}")
        lines += [f"    {address}" for address in addresses[:_SHOWN]]
        if len(addresses) > _SHOWN:
            lines.append(f"    and {len(addresses) - _SHOWN} more")
    return "\n".join(lines)


def dataset_link(
    url: str,
    *,
    format: str = "",  # noqa: A002 - the option's name
    version: str = "latest",
    hours: float = 24.0,
    out: Path | None = None,
) -> None:
    """Make one address that `yolo train data=...` takes: an NDJSON file whose photos may be fetched for some hours.

    For photos in a private bucket and a trainer that has no key to it. The version needs an ndjson format
    (`labelloop export --format ndjson-detect`).

    ```
    labelloop export 7 --to s3://bucket/cars --format ndjson-obb --copy-images
    yolo detect train data="$(labelloop dataset link s3://bucket/cars --hours 48)"
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        format: ndjson-detect, ndjson-segment, ndjson-obb or ndjson-pose; the version's only one by default.
        version: "latest", or a number: 3 or v000003.
        hours: how long the addresses are good for, at most 168.
        out: a file to write instead of putting it into the bucket.
    """
    settings = Settings()
    if not 0 < hours <= LONGEST_HOURS:
        raise BadOption("--hours", f"{hours:g}", f"a number over 0, up to {LONGEST_HOURS}")
    store = open_store(url, settings)
    manifest = read_version(store, version)
    there = [name for name in manifest.formats if name.startswith("ndjson-")]
    name = format or (there[0] if len(there) == 1 else "")
    if name not in there:
        choices = ", ".join(there) or "a version that was exported with --format ndjson-detect or the like"
        raise BadOption("--format", format, choices)
    sign = signer(settings, hours)
    data = b"".join(linked(store, manifest, name, sign))
    if out is not None or not store.url.startswith("s3://"):
        path = out or Path(f"{manifest.version}-{name}.ndjson")
        path.write_bytes(data)
        print(f"{path}: good for {hours:g} hours")
        return
    key = f"links/{hashlib.sha256(data).hexdigest()}/{manifest.version}.ndjson"
    store.put(key, data, content_type="application/x-ndjson")
    print(sign(f"{store.url}/{key}"))


def dataset_report(
    url: str, *, out: Path = Path("report.html"), version: str = "latest", samples: int = 24, images: bool = True
) -> None:
    """Write a version as one page that a person reads.

    Classes, sizes, splits, samples with their objects drawn, what was left out and why. The page holds its pictures and
    loads nothing, so it can be sent or kept with the data set.

    ```
    labelloop dataset report s3://bucket/cars --out cars.html
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        out: the HTML file to write.
        version: "latest", or a number: 3 or v000003.
        samples: how many images are shown with their objects drawn.
        images: fetch photos that the version has no copy of.
    """
    settings = Settings()
    setup_logging(settings.but(log_level="ERROR"))
    store = open_store(url, settings)
    manifest = read_version(store, version)
    with ExitStack() as opened:
        media = None
        if images:
            known = settings.label_studio_api_key.get_secret_value()
            studio = opened.enter_context(closing(Studio.from_settings(settings))) if known else None
            media = opened.enter_context(closing(Media(settings, studio)))
        page = html_report(store, manifest, media=media, samples=max(0, samples))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(f"{manifest.version} of {store.url}: {out} ({len(page.encode()) / 1e6:.1f} MB)")
