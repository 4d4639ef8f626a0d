"""Check a data set for the command `labelloop dataset check`: what it prints, writes and returns."""

from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.check.findings import FINDING_KINDS, CheckReport, DatasetFinding, ShownImage
from exporters.check.images import CheckedDataset, folder_dataset, version_dataset
from exporters.check.opinion import SecondOpinion
from exporters.check.run import CheckOptions, check
from exporters.cli.locations import version_store
from exporters.console import JsonPath, progress_bars, terminal_label, writable_json_path, write_json
from exporters.dataset.versions import read_version
from exporters.model.manifest import DatasetManifest
from labelloop.service.charts import pluralize
from labelloop.service.settings import Settings
from labelloop.service.store import Store

EXAMPLES = 5


def check_place(
    place: str,
    settings: Settings,
    options: CheckOptions,
    *,
    version: str = "latest",
    out: Path | None = None,
    strict: bool = False,
    json: JsonPath = None,
    second_opinion: SecondOpinion | None = None,
) -> int:
    """Check a data set, and print, write and draw the findings.

    Args:
        place: A data set of `labelloop export`, or any that `labelloop dataset validate` reads.
        settings: Access to it.
        options: What is checked.
        version: The version, for a data set of `labelloop export`.
        out: An HTML page to write.
        strict: Whether warnings fail.
        json: Where to write the findings as JSON.
        second_opinion: A model that reviews the labels.

    Returns:
        0, or 1 for errors.
    """
    report_to = writable_json_path(json)
    store = version_store(place, settings)
    manifest = read_version(store, version) if store is not None else None
    dataset = _open(place, store, manifest, settings)
    with progress_bars("images", "pairs that look alike", "images for the model") as (reading, comparing, reviewing):
        report = check(
            dataset,
            settings,
            options,
            second_opinion=second_opinion,
            reading=reading,
            comparing=comparing,
            reviewing=reviewing,
        )
    if not write_json(report_to, {"place": dataset.title, **report.as_json()}):
        print(report_text(dataset.title, report))
    if out is not None:
        _write_page(out, dataset, report, settings, manifest=manifest, images=options.images)
        print(f"{out}: the findings, drawn") if str(json) != "-" else None
    failed = report.number("error", "warning") if strict else report.number("error")
    return 1 if failed else 0


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


def finding_text(finding: DatasetFinding) -> str:
    """Return one line about a finding."""
    images = " = ".join(map(_image_text, finding.images))
    return ": ".join(filter(None, (images, terminal_label(finding.detail) if not images else finding.detail)))


def _image_text(image: ShownImage) -> str:
    where = ", ".join(filter(None, (image.split, f"task {image.task}" if image.task else "")))
    return terminal_label(image.name) + (f" ({where})" if where else "")
