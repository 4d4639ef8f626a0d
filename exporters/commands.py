"""The commands of the exporters, as plain functions that ``labelloop`` mounts: export, dataset list, dataset pull."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from exporters.accounting import Report
from exporters.export import MAX_ERRORS
from exporters.export import export as run_export
from exporters.formats import DEFAULT_FORMATS, format_names
from exporters.pull import pull
from exporters.splits import DEFAULT_SPLIT
from exporters.versions import read_head, read_version, versions
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio


def export(
    source: Annotated[str, Parameter(name=["--from"])],
    *,
    formats: Annotated[str, Parameter(name=["--format"])] = ",".join(DEFAULT_FORMATS),
    to: str | None = None,
    label_config: Path | None = None,
    annotation: str = "latest",
    split: str = DEFAULT_SPLIT,
    disputed: Literal["in", "out", "apart"] = "out",
    max_errors: float = MAX_ERRORS,
    fetch: bool = True,
    copy_images: bool = False,
    afresh: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Write annotated tasks as COCO, Pascal VOC and YOLO into a new version of a data set, in a folder or in S3.

    Args:
        source: a project's number, a Label Studio JSON export (or JSON lines), or s3://BUCKET/KEY.json.
        formats: the formats to write, by commas: coco, voc, yolo-detect, yolo-segment, yolo-obb, yolo-pose.
        to: where the data set lives: file:///DIR or s3://BUCKET/PREFIX. Default: the store, under the project's name.
        label_config: the label config (XML) of a JSON file; without it the labels in use are the classes.
        annotation: whose annotation counts: latest, consensus, ground-truth, user:ID or all. `latest` and `consensus`
            take the ground truth where a task has one, else what was updated last, or what all annotators say
            together, weighed by how reliable each is.
        split: shares of the splits. An image stays in its split as the project grows.
        disputed: tasks that quality control holds for disputed: out of the data set, in it, or apart, in a split
            named `disputed`.
        max_errors: the share of regions that may fail (malformed, outside the image) before the version is not
            published and the exit status is 1.
        fetch: read the header of an image whose size neither the regions nor the task tell.
        copy_images: copy the photos into the version too, so that a trainer can load it as it is.
        afresh: convert every task again; else those that are in the published version just as they are now are not.
        json: where to write the report as JSON ("-": to the standard output).

    Returns:
        0, or 1 where more than ``max_errors`` failed.
    """
    settings = Settings()
    with _progress("tasks") as progress:
        report = run_export(
            source,
            settings=settings,
            formats=format_names(formats),
            to=to,
            label_config=label_config.read_text(encoding="utf-8") if label_config else None,
            annotation=annotation,
            split=split,
            disputed=disputed,
            max_errors=max_errors,
            fetch=fetch,
            copy_images=copy_images,
            afresh=afresh,
            progress=progress,
        )
    if json is not None:
        data = msgspec.json.format(msgspec.json.encode(report)) + b"\n"
        if str(json) == "-":
            sys.stdout.write(data.decode())
        else:
            json.write_bytes(data)
    if str(json) != "-":
        print(summary(report))
    return 0 if report.published else 1


def dataset_list(url: str) -> int:
    """List the versions of a data set, the published one marked.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
    """
    store = open_store(url, Settings())
    head, _ = read_head(store)
    found = False
    for each in versions(store):
        found = True
        mark = "*" if head and head.version == each.version else " "
        splits = ", ".join(f"{name} {count}" for name, count in each.splits.items())
        note = "" if each.published else "  not published: too much failed"
        print(f"{mark} {each.version}  {each.created_at}  images: {splits}  formats: {', '.join(each.formats)}{note}")
    if not found:
        print(f"No version at {url} yet. `labelloop export --to {url} --from ...` makes the first.")
    return 0


def dataset_pull(
    url: str,
    *,
    to: Path,
    version: str = "latest",
    formats: Annotated[str | None, Parameter(name=["--format"])] = None,
    images: bool = True,
) -> int:
    """Lay a version of a data set out as plain folders that a trainer reads.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        to: the folder to write; one sub-folder for each format when there are several.
        version: "latest" or v000001.
        formats: the formats wanted, by commas; all of the version by default.
        images: lay the photos beside the labels too: the version's copies, or from their source.

    Returns:
        0, or 1 where photos could not be had.
    """
    settings = Settings()
    store = open_store(url, settings)
    with ExitStack() as opened:
        media = None
        if images:
            studio = Studio.from_settings(settings) if settings.label_studio_api_key.get_secret_value() else None
            media = opened.enter_context(closing(Media(settings, studio)))
            if studio is not None:
                opened.callback(studio.close)
        progress = opened.enter_context(_progress("images"))
        pulled = pull(
            store,
            read_version(store, version),
            to=to,
            formats=format_names(formats) if formats else (),
            media=media,
            progress=progress,
        )
    for name, folder in pulled.folders.items():
        print(f"{pulled.version} {name}: {folder}")
    print(f"{pulled.files} files, {pulled.photos} photos")
    for address, reason in pulled.missing[:10]:
        print(f"no photo: {address}: {reason}", file=sys.stderr)
    if len(pulled.missing) > 10:
        print(f"and {len(pulled.missing) - 10} more photos", file=sys.stderr)
    return 1 if pulled.missing else 0


def summary(report: Report) -> str:
    """The report as a person reads it: what was written, what was not and why."""
    accounts = report.accounts
    lines = [
        f"{report.url} {report.version}" + ("" if report.published else "  (NOT published: too much failed)"),
        f"  images   {_counts(report.images)}",
        f"  classes  {_counts(report.classes)}",
    ]
    for name, count in (
        ("tasks", accounts.tasks),
        ("annotations", accounts.annotations),
        ("images", accounts.images),
        ("regions", accounts.regions),
    ):
        lines.append(f"  {name}: {count.kept} of {count.input}")
        lines += [f"    {number} not: {reason}" for reason, number in count.dropped.items()]
    for name, each in accounts.formats.items():
        lines.append(f"  {name}: {each.objects} objects")
        lines += [f"    {number} not: {reason}" for reason, number in each.dropped.items()]
        lines += [f"    {number} {change}" for change, number in each.converted.items()]
    for title, numbers in (
        ("repaired", accounts.repaired),
        ("noted", accounts.notes),
        ("annotation chosen by", accounts.chosen_by),
        ("results that are no regions", accounts.other_results),
    ):
        if numbers:
            lines.append(f"  {title}: {_counts(numbers)}")
    lines.append(f"  failed: {accounts.failed} ({accounts.failed_share:.1%})")
    lines.append(
        f"  {report.objects} objects, {report.bytes:,} bytes; new: {report.written.objects} objects, "
        f"{report.written.bytes:,} bytes, {report.written.tasks} tasks converted"
    )
    lines.append("  each loss is a line of dropped.jsonl, which `labelloop dataset pull` lays out")
    return "\n".join(lines)


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A progress bar on the standard error stream; none where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(unit, total=None)

        def show(done: int, total: int | None) -> None:
            if done % 50 == 0 or done == total:
                bar.update(row, completed=done, total=total)

        yield show
