"""The command `labelloop dataset check`."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from exporters.check.boxes import INPUT_SIZE
from exporters.check.findings import FINDING_KINDS, CheckReport, Finding, ShownImage
from exporters.check.images import CheckedDataset, folder_dataset, version_dataset
from exporters.check.run import CheckOptions, check
from exporters.console import JsonPath, pluralize, progress_bars, terminal_label, writable_json_path, write_json
from exporters.dataset.versions import read_version
from exporters.errors import BadOption
from exporters.model.manifest import DatasetManifest
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store

EXAMPLES = 5


def dataset_check(
    place: str,
    *,
    version: str = "latest",
    images: bool = True,
    mirror: Annotated[bool, Parameter(negative=())] = False,
    input_size: int = INPUT_SIZE,
    out: Path | None = None,
    workers: int = 0,
    strict: Annotated[bool, Parameter(negative=())] = False,
    json: JsonPath = None,
) -> int:
    """Find near-duplicate images, splits that leak by look, unbalanced classes, tiny and odd boxes, damaged images.

    Reads a data set of `labelloop export`, and every layout of `labelloop import` in a folder, a zip or a bucket.
    Images are read once: later checks of the data set read new images only.

    ```
    labelloop dataset check s3://bucket/cars --out report.html
    labelloop dataset check ./yolo --strict
    ```

    Args:
        place: a data set of `labelloop export`, or a folder, a zip, a COCO or NDJSON file, or s3://BUCKET/PREFIX.
        version: the version, for a data set of `labelloop export`: "latest", or a number: 3 or v000003.
        images: read the images. Without them, labels alone are checked.
        mirror: count mirror images as near-duplicates. Left and right may matter in your data.
        input_size: the longest side of an image at the model's input in pixels, which tiny boxes are measured at.
        out: an HTML page with the findings, near-duplicates drawn side by side.
        workers: the number of processes that read images. Default: one per core.
        strict: exit with 1 for warnings too.
        json: where to write the findings as JSON ("-": to the standard output).

    Returns:
        0; 1 for errors: near-duplicates in different splits, images that are missing or unreadable, or labels of
        another image size; with --strict also for warnings.
    """
    if input_size < 1:
        raise BadOption("--input-size", str(input_size), "pixels, such as 640")
    if workers < 0:
        raise BadOption("--workers", str(workers), "1 or more; 0 decides by itself")
    settings = Settings()
    setup_logging(settings.replace(log_level="ERROR"))
    report_to = writable_json_path(json)
    store = version_store(place, settings)
    manifest = read_version(store, version) if store is not None else None
    dataset = _open(place, store, manifest, settings)
    options = CheckOptions(images=images, mirror=mirror, input_size=input_size, workers=workers)
    with progress_bars("images", "pairs that look alike") as (reading, comparing):
        report = check(dataset, settings, options, reading=reading, comparing=comparing)
    if not write_json(report_to, {"place": dataset.title, **report.as_json()}):
        print(report_text(dataset.title, report))
    if out is not None:
        _write_page(out, dataset, report, settings, manifest=manifest, images=images)
        print(f"{out}: the findings, drawn") if str(json) != "-" else None
    failed = report.number("error", "warning") if strict else report.number("error")
    return 1 if failed else 0


def version_store(place: str, settings: Settings) -> Store | None:
    """Return the store of a data set made by `labelloop export`; None for any other."""
    if "://" in place and not place.startswith("file://"):
        if place.lower().endswith((".json", ".ndjson", ".jsonl", ".zip")):
            return None
        store = open_store(place, settings)
        return store if any(next(iter(store.list(name)), "") for name in ("HEAD.json", "versions/")) else None
    path = Path(unquote(urlsplit(place).path)) if place.startswith("file://") else Path(place).expanduser().absolute()
    is_ours = (path / "HEAD.json").is_file() or any(path.glob("versions/v*/manifest.json"))
    return open_store(path.as_uri(), settings) if is_ours else None


def _open(place: str, store: Store | None, manifest: DatasetManifest | None, settings: Settings) -> CheckedDataset:
    if store is not None and manifest is not None:
        return version_dataset(store, manifest)
    return folder_dataset(unquote(urlsplit(place).path) if place.startswith("file://") else place, settings)


def _write_page(
    out: Path,
    dataset: CheckedDataset,
    report: CheckReport,
    settings: Settings,
    *,
    manifest: DatasetManifest | None,
    images: bool,
) -> None:
    from exporters.report.check import CheckSection, check_page
    from exporters.report.page import html_report

    section = CheckSection.draw(dataset, report, settings, images=images)
    out.parent.mkdir(parents=True, exist_ok=True)
    if manifest is None or dataset.store is None:
        out.write_text(check_page(dataset, section), encoding="utf-8")
        return
    with ExitStack() as stack:
        media = None
        if images:
            from labelloop.service.media import Media
            from labelloop.service.studio import Studio

            api_key = settings.label_studio_api_key.get_secret_value()
            studio = stack.enter_context(closing(Studio.from_settings(settings))) if api_key else None
            media = stack.enter_context(closing(Media(settings, studio)))
        out.write_text(html_report(dataset.store, manifest, media=media, check=section), encoding="utf-8")


def report_text(title: str, report: CheckReport) -> str:
    """Format the findings for people."""
    checked = ", ".join(f"{number:,} {what}" for what, number in report.looked_at.items())
    lines = [f"{terminal_label(title)}: {checked or 'nothing'}"]
    splits = {split: number for split, number in report.splits.items() if split}
    if splits:
        lines.append("  splits: " + ", ".join(f"{name} {number:,}" for name, number in splits.items()))
    elif report.looked_at["images"]:
        lines.append("  no splits: leaks between splits cannot be found")
    kinds = report.kinds()
    if kinds:
        width = max(map(len, kinds))
        lines += ["", "  " + "finding".ljust(width) + "  severity      count"]
        lines += [f"  {kind:{width}}  {FINDING_KINDS[kind].severity:8}  {report.counts[kind]:9,}" for kind in kinds]
    for kind in kinds:
        about, number = FINDING_KINDS[kind], report.counts[kind]
        lines += ["", f"{number:,} x {kind}: {about.title}", f"  effect: {about.effect}", f"  fix:    {about.fix}"]
        lines += [f"  - {finding_text(finding)}" for finding in report.examples(kind)[:EXAMPLES]]
        if number > EXAMPLES and len(report.examples(kind)) > 1:
            lines.append(f"    and {number - EXAMPLES:,} more")
    lines += ["", *(f"Note: {note}" for note in report.notes)]
    errors, warnings = report.number("error"), report.number("warning")
    lines.append(f"{pluralize(errors, 'error')}, {pluralize(warnings, 'warning')}" if kinds else "nothing found")
    return "\n".join(lines)


def finding_text(finding: Finding) -> str:
    """Return one line about a finding."""
    images = " = ".join(map(_image_text, finding.images))
    return ": ".join(filter(None, (images, terminal_label(finding.detail) if not images else finding.detail)))


def _image_text(image: ShownImage) -> str:
    where = ", ".join(filter(None, (image.split, f"task {image.task}" if image.task else "")))
    return terminal_label(image.name) + (f" ({where})" if where else "")
