"""The commands `labelloop dataset validate` (any data set) and `labelloop dataset verify` (a version of ours)."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.cli.locations import version_store
from exporters.console import JsonPath, writable_json_path, write_json
from exporters.dataset.pull import pull
from exporters.errors import DatasetNotFound
from exporters.model.manifest import DatasetManifest
from exporters.validate.folder import VALIDATED_FORMATS, validate
from exporters.validate.issues import ISSUE_KINDS, IssueReport
from exporters.validate.latest import check_latest
from exporters.validate.tasks import VALIDATED_TASK_FORMATS, check_content, check_task_files, task_folders
from exporters.validate.version import verify
from labelloop.service.charts import pluralize
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store

EXAMPLES = 20


def dataset_validate(place: str, *, version: str = "latest", json: JsonPath = None) -> int:
    """Find errors that loaders ignore: duplicate ids, boxes outside their image, mixed rows, images without labels.

    Reads every layout of `labelloop import`, in a folder, a zip or a bucket: COCO, Pascal VOC, YOLO (detect, segment,
    OBB, pose; also the layouts of Darknet and Label Studio), Ultralytics NDJSON, LabelMe, CVAT, Create ML, DOTA, Open
    Images, ImageFolder and masks. Versions made by
    `labelloop export` are also compared with their manifest: checksums, sizes and counts, and latest/ file by file.

    ```
    labelloop dataset validate ./yolo
    labelloop dataset validate annotations/instances_train.json
    labelloop dataset validate s3://bucket/cars
    ```

    Args:
        place: A folder, a zip, a COCO or NDJSON file, or s3://BUCKET/PREFIX (gs://, az://); also a data set of
            `labelloop export`.
        version: The version, for a data set of `labelloop export`: "latest", or a number: 3 or v000003.
        json: Where to write the findings as JSON ("-": to the standard output).

    Returns:
        0, or 1 if problems were found.
    """
    store, report_to = version_store(place, Settings()), writable_json_path(json)
    if store is None:
        path = unquote(urlsplit(place).path) if place.startswith("file://") else place
        return _print_problems(place, _check_folder(path), json=report_to)
    manifest, problems = verify(store, version)
    if manifest is not None and not problems:
        check_latest(store, problems)
        checked_formats = [name for name in manifest.formats if name in VALIDATED_FORMATS]
        with scratch_folder() as scratch:
            if checked_formats:
                folder = scratch / "dataset"  # keeps the lock file of the scratch folder out of the data set
                to = folder / checked_formats[0] if len(checked_formats) == 1 else folder
                pull(store, manifest, to=to, formats=checked_formats, copies=False)
                validate(folder, problems)
            _check_tasks(store, manifest, scratch / "tasks", problems)
    return _print_problems(f"{place} {manifest.version if manifest else version}", problems, json=report_to)


def _check_folder(path: str) -> IssueReport:
    """Check a folder or file of any origin; a folder may have formats of tasks, as `dataset pull` writes them."""
    problems, folder = IssueReport(), Path(path)
    has_tasks = bool(task_folders(folder))
    if has_tasks:
        check_task_files(folder, problems)
        check_content(folder, problems)
    try:
        validate(path, problems)
    except DatasetNotFound:
        if not has_tasks:
            raise
    return problems


def _check_tasks(store: Store, manifest: DatasetManifest, folder: Path, problems: IssueReport) -> None:
    """Check the files of the formats of tasks."""
    formats = [name for name in manifest.formats if name in VALIDATED_TASK_FORMATS]
    if formats:
        pull(store, manifest, to=folder / formats[0] if len(formats) == 1 else folder, formats=formats, copies=False)
        check_task_files(folder, problems)
        check_content(folder, problems)


def dataset_verify(url: str, *, version: str = "latest", json: JsonPath = None) -> int:
    """Compare a version with its manifest: size and SHA-256 of every file, and the numbers of images and labels.

    ```
    labelloop dataset verify s3://bucket/cars
    ```

    Args:
        url: The data set: file:///DIR, s3://BUCKET/PREFIX, gs:// or az://.
        version: The version: "latest", or a number: 3 or v000003.
        json: Where to write the findings as JSON ("-": to the standard output).

    Returns:
        0, or 1 if problems were found.
    """
    manifest, problems = verify(open_store(url, Settings()), version)
    return _print_problems(f"{url} {manifest.version if manifest else version}", problems, json=json)


def _print_problems(location: str, problems: IssueReport, *, json: Path | None) -> int:
    status = 1 if problems else 0
    report = {
        "place": location,
        "looked_at": dict(problems.checked),
        "counts": dict(problems.counts),
        "problems": problems.issues,
    }
    if write_json(json, report):
        return status
    checked = ", ".join(f"{number:,} {what}" for what, number in problems.checked.items())
    print(f"{location}: {checked or 'nothing'} checked")
    for name, number in problems.counts.items():
        flaw = ISSUE_KINDS[name]
        print(f"\n{number:,} x {name}: {flaw.title}\n  effect: {flaw.effect}\n  fix:  {flaw.fix}")
        examples = [problem for problem in problems.issues if problem.flaw == name]
        for problem in examples[:EXAMPLES]:
            print("  - " + ": ".join(filter(None, (problem.file, problem.where, problem.detail))))
        if number > EXAMPLES:
            print(f"    and {number - EXAMPLES:,} more")
    print("\nno problems found" if not problems else f"\n{pluralize(problems.counts.total(), 'problem')}")
    return status
