"""The command `labelloop export`. Rarely needed modules are imported where they are used, for a fast start."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from exporters.automation.notify import (
    CommandFailed,
    WebhookFailed,
    WebhookForbidden,
    command_environment,
    require_executable,
    run_post_export_command,
    send,
    split_command,
    webhook_body,
)
from exporters.automation.policy import ExportPolicy
from exporters.cli.export_summary import failures, summary
from exporters.console import JsonPath, progress_bar, progress_bars, writable_json_path, write_json
from exporters.errors import BadOption, ExportError
from exporters.model.accounting import ExportReport
from exporters.model.splits import DEFAULT_SPLIT
from exporters.pipeline.export import MAX_ERRORS
from exporters.pipeline.export import export as run_export
from exporters.tasks.table import format_names
from labelloop.service.logging import setup_lazy_logging, setup_logging
from labelloop.service.settings import Settings
from labelloop.service.store import open_store


def export(
    source: Annotated[str, Parameter(name=["--from"])],
    *,
    formats: Annotated[str, Parameter(name=["--format"])] = "",
    to: str | None = None,
    label_config: Path | None = None,
    annotation: str = "latest",
    split: str = DEFAULT_SPLIT,
    split_key: str = "",
    group_by: str = "",
    disputed: Literal["in", "out", "apart"] = "out",
    rename: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    category_ids: Literal["classes", "original"] = "classes",
    max_errors: float = MAX_ERRORS,
    allow_shrink: Annotated[bool, Parameter(negative=())] = False,
    fetch: bool = True,
    copy_images: Annotated[bool, Parameter(negative=())] = False,
    archives: bool = True,
    latest: bool = True,
    afresh: Annotated[bool, Parameter(negative=())] = False,
    workers: int = 0,
    ray: str = "",
    json: JsonPath = None,
    watch: Annotated[bool, Parameter(negative=())] = False,
    every_tasks: int = 0,
    every_hours: float = 0.0,
    at: str = "",
    when_done: Annotated[bool, Parameter(negative=())] = False,
    webhook: str = "",
    then: str = "",
) -> int:
    """Write annotated tasks as COCO, Pascal VOC, YOLO or JSON Lines into a new version of a data set.

    ```
    labelloop export 7 --to s3://bucket/cars --format coco,yolo-detect
    aws s3 sync s3://bucket/cars/latest/yolo-detect cars && yolo train data=cars/data.yaml
    labelloop export export.json --label-config config.xml --to /data/cars     # then: /data/cars/latest/coco/
    labelloop export 9 --to /data/reviews --format tasks-jsonl,csv             # text, audio, chats: any project
    labelloop export 7 --to s3://bucket/cars --watch --at 02:30 --then ./train.sh
    ```

    latest/ holds the newest version as plain files, versions/vNNNNNN/ each version: COCO files, a zip of VOC and of
    YOLO, README.md and report.html. A version is complete or absent, and never changes. Everything left out is listed
    with the reason.

    Args:
        source: A project's number, a Label Studio JSON export (or JSON lines) on the disk or at s3://BUCKET/KEY.json,
            or Label Studio's own target storage: s3://BUCKET/PREFIX or a folder. Also gs:// and az://.
        formats: The formats to write, comma-separated: coco, voc, voc-masks, yolo-detect, yolo-segment, yolo-obb,
            yolo-pose, yolo-classify, ndjson-detect, ndjson-segment, ndjson-obb, ndjson-pose, webdataset,
            semantic-png, coco-panoptic, dota, imagefolder; of projects of any kind: tasks-jsonl, tasks-parquet,
            conll, spacy-jsonl, csv, preference-jsonl. Default: coco,voc,yolo-detect; tasks-jsonl where nothing is
            drawn on images.
        to: The data set: a folder, s3://BUCKET/PREFIX, gs:// or az://. Default: the store, under the project's name.
        label_config: The label config (XML) of a JSON file; without it the labels in use are the classes.
        annotation: Which annotations to export: latest, consensus, ground-truth, user:ID or all. `latest` and
            `consensus` prefer the ground truth if a task has one. Otherwise `latest` is the one updated last, and
            `consensus` fuses all annotators, weighted by their reliability.
        split: Shares of the splits. An image stays in its split as the project grows.
        split_key: A key of the tasks' data that holds the image's split (train, val or test), such as the `split` that
            `labelloop import` sets; without a value the shares decide.
        group_by: A key of the tasks' data, such as patient or video.id: all images of one value are in one split.
            `folder` uses the folder of the image's address. `look` reads the images, and keeps near-duplicates in
            one split; an image that the published version has stays where it is, and moves are reported.
        disputed: Tasks that quality control marked as disputed or could not judge: out of the data set, in it, or
            apart, in a split named `disputed`.
        rename: Count a label as another class: OLD=NEW, such as --rename butterfly=Butterfly. Once for each label.
        category_ids: The ids of COCO's categories: those of the data set's classes, from 1, or the original ones of
            the COCO file that `labelloop import` read.
        max_errors: The share of regions that may fail (malformed, outside the image) before the version is not
            published and the exit status is 1.
        allow_shrink: Publish a version that has less than two thirds of the tasks, images or objects of the published
            one. Without it such a version is stored unpublished, as it may come from a truncated source.
        fetch: Read the header of an image if neither its regions nor its task state its size.
        copy_images: Copy the images too, next to the labels, so that a trainer can load the data set directly.
        archives: Write the plain files of versions/vNNNNNN/. Without them `labelloop dataset pull` reads a version.
        latest: Make latest/ equal to the version: only changed files are written or removed.
        afresh: Convert every task and write every object again, including those unchanged since the published
            version. It repairs a data set that lost objects.
        workers: The number of processes. Default: one, or one per core for a large source; 1 uses one always.
        ray: Convert on a Ray cluster: its address (`auto`, `ray://host:10001`), or `local` for one on this machine.
            Every machine must reach the store.
        json: Where to write the report as JSON ("-": to the standard output).
        watch: Keep running, and export the project whenever it is due; Ctrl-C ends it. Needs one of the next four
            options.
        every_tasks: With --watch: after this many newly accepted tasks.
        every_hours: With --watch: this many hours after the last export, if anything changed.
        at: With --watch: every day at this time, such as 02:30, if anything changed.
        when_done: With --watch: when the last task is accepted.
        webhook: An address that receives an event for each published version, signed with the setting
            export_webhook_secret.
        then: A command to run for each published version, with DATASET_URL, DATASET_VERSION, DATASET_LATEST (empty if
            latest/ is of another version) and DATASET_MANIFEST in its environment. It is not run by a shell.

    Returns:
        0; 1 if nothing was published (more than ``max_errors`` failed, no image, far fewer than before), latest/ could
            not be updated, or the webhook failed; or the status of the command.
    """
    settings = Settings()
    (setup_logging if source.isdecimal() else setup_lazy_logging)(settings)
    policy = ExportPolicy(
        to=_location(to),
        format=",".join(format_names(formats)),
        annotation=annotation,
        split=split,
        split_key=split_key,
        group_by=group_by,
        disputed=disputed,
        rename=rename,
        category_ids=category_ids,
        max_errors=max_errors,
        allow_shrink=allow_shrink,
        copy_images=copy_images,
        archives=archives,
        latest=latest,
        every_tasks=every_tasks,
        every_hours=every_hours,
        at=at,
        when_done=when_done,
        webhook=webhook,
        then=require_executable(split_command(then)) if then else (),
    ).validated()
    if watch or policy.is_automatic:
        incompatible = {
            "--label-config": label_config,
            "--no-fetch": not fetch,
            "--afresh": afresh,
            "--workers": workers,
            "--ray": ray,
            "--json": json,
        }
        if wrong := [name for name, value in incompatible.items() if value]:
            raise BadOption("--watch", ", ".join(wrong), "it without " + ", ".join(incompatible))
        return _watch(source, policy, settings)
    config, report_to = _config(label_config), writable_json_path(json)
    with progress_bars("tasks", "files of latest/", "images") as (progress, file_progress, look_progress):
        report = run_export(
            source,
            settings=settings,
            label_config=config,
            fetch=fetch,
            afresh=afresh,
            workers=workers,
            ray=ray,
            progress=progress,
            file_progress=file_progress,
            look_progress=look_progress,
            **policy.options(),
        )
    if not write_json(report_to, report):
        print(_summary(report, policy, settings))
    for warning in report.warnings:
        print(f"Warning: {warning}.", file=sys.stderr)
    if not report.published:
        return 1
    return _follow(report, int(source) if source.isdecimal() else None, policy, settings)


def _location(to: str | None) -> str:
    """Return where the data set is to lie; empty for the store."""
    if to is not None and not to.strip():
        fix = "Pass a folder or the address of a bucket. Without --to the data set lies in the store."
        raise ExportError("--to is empty.", fix=fix, code=BadOption.code, status=BadOption.status)
    return to or ""


def _config(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        wanted = f"a file on this machine with the label config's XML ({reason})"
        raise BadOption("--label-config", str(path), wanted) from error


def _summary(report: ExportReport, policy: ExportPolicy, settings: Settings) -> str:
    failed = failures(open_store(report.url, settings), report) if report.version else ()
    return summary(report, failed, max_errors=policy.max_errors)


def _follow(report: ExportReport, project: int | None, policy: ExportPolicy, settings: Settings) -> int:
    """Call the webhook, then run the command; a failure of the webhook does not prevent the command."""
    status = int(report.latest == "")
    if policy.webhook:
        try:
            send(settings, policy.webhook, webhook_body(report, project, "asked for"))
        except (WebhookFailed, WebhookForbidden) as error:
            print(error, file=sys.stderr)
            status = 1
    if policy.then:
        try:
            run_post_export_command(policy.then, command_environment(report, project))
        except CommandFailed as error:
            print(error, file=sys.stderr)
            return error.exit_status
    return status


def _watch(source: str, policy: ExportPolicy, settings: Settings) -> int:
    if not source.isdecimal():
        raise BadOption("--from", source, "a project's number: only a live project can be watched")
    if not policy.is_automatic:
        raise BadOption("--watch", "", "it with --every-tasks N, --every-hours H, --at HH:MM or --when-done")
    from exporters.automation.watch import post_export_handlers
    from exporters.automation.watch import watch as watch_project

    with progress_bar("tasks") as progress:
        watch_project(
            int(source),
            policy,
            settings=settings,
            handlers=post_export_handlers(settings),
            on_message=lambda line: print(line, flush=True),
            on_report=lambda report: print(_summary(report, policy, settings), flush=True),
            progress=progress,
        )
    return 0
