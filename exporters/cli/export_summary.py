"""Format the report of an export for people: what is in the version, what is not and why, and what to do next."""

from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from exporters.console import terminal_label
from exporters.convert.annotation_policy import NONE_CHOSEN, NOT_ANNOTATED, NOT_CHOSEN, PREDICTED, SKIPPED, UNSETTLED
from exporters.convert.tally import MALFORMED, MERGED, OUTVOTED, PARTLY_READABLE
from exporters.convert.task_assembler import NO_IMAGE_IN_DATA, NO_SIZED_IMAGE
from exporters.dataset.shards import read_table
from exporters.dataset.versions import read_version
from exporters.formats.base import UNSIZED
from exporters.model.accounting import ExportReport, Loss
from exporters.model.manifest import DROPPED
from exporters.pipeline.publish_checks import EMPTY, NO_CLASS, NO_TASK_LEFT, NOTHING_LEFT, SHRUNK
from labelloop.service.store import Store

# Examples shown of each reason.
EXAMPLES = 3
# Losses read to find examples.
_MAX_LOSSES_READ = 20_000
# Reasons that follow from the options, not from invalid input.
_BY_OPTIONS = frozenset(
    {*UNSETTLED.values(), SKIPPED, NOT_CHOSEN, NOT_ANNOTATED, PREDICTED, NONE_CHOSEN, MERGED, OUTVOTED, PARTLY_READABLE}
)
_ADVICE = {  # reason of most dropped tasks -> advice
    PREDICTED: "No option exports predictions. In Label Studio's Data Manager select the tasks and choose Create"
    " Annotations From Predictions, or have annotators submit them.",
    NOT_ANNOTATED: "Annotate and submit tasks in Label Studio, then export again.",
    SKIPPED: "Annotate the skipped tasks in Label Studio, then export again.",
    NONE_CHOSEN: "Select other annotations with --annotation; latest accepts any.",
    UNSETTLED["disputed"]: "Resolve the disputes, or include these tasks with --disputed in (or apart).",
    UNSETTLED["not_judged"]: "Review these tasks (qc_note has the reason), or include them with"
    " --disputed in (or apart).",
}


def failures(store: Store, report: ExportReport) -> list[Loss]:
    """Return examples of invalid input, the first few of each reason; none if nothing failed."""
    if not report.accounts.failed:
        return []
    losses = (
        msgspec.json.decode(record.body, type=Loss)
        for record in islice(read_table(store, read_version(store, report.version), DROPPED), _MAX_LOSSES_READ)
    )
    examples_by_reason: dict[str, list[Loss]] = {}
    tasks_with_image_loss: set[int | None] = set()
    for loss in losses:
        if loss.format or loss.reason in _BY_OPTIONS:
            continue
        if loss.kind == "image":
            tasks_with_image_loss.add(loss.task)
        # Losses of an annotation repeat those of its task, and losses of a task those of its image.
        follows = loss.kind == "annotation" or (loss.kind == "task" and loss.task in tasks_with_image_loss)
        if loss.reason == MALFORMED or not follows:
            examples = examples_by_reason.setdefault(loss.reason, [])
            examples += [loss] * (len(examples) < EXAMPLES)
    return [loss for examples in examples_by_reason.values() for loss in examples]


def summary(report: ExportReport, failed: Iterable[Loss] = (), *, max_errors: float | None = None) -> str:
    """Format the report as text.

    Args:
        report: The report.
        failed: Examples of invalid input: see `failures`.
        max_errors: The largest share of failures of a published version.
    """
    accounts = report.accounts
    refused = f"  (NOT published: {report.refused})" if report.refused else ""
    lines = [f"{report.url} {report.version or '(no version)'}{refused}"]
    if _is_of_images(report):
        lines += [
            f"  images   {_format_counts(report.images)}",
            f"  classes  {_format_counts({terminal_label(label): number for label, number in report.classes.items()})}",
        ]
    if report.lines:
        lines.append(f"  tasks    {_format_counts(report.lines)}")
    for name, count in (
        ("tasks", accounts.tasks),
        ("annotations", accounts.annotations),
        ("images", accounts.images),
        ("regions", accounts.regions),
    ):
        lines.append(f"  {name}: {count.kept} of {count.input}")
        lines += [f"    {number} not: {reason}" for reason, number in count.dropped.items()]
    for name, counts in accounts.formats.items():
        what = (
            f"{counts.objects} objects" if counts.tasks is None else f"{counts.tasks} tasks, {counts.objects} entries"
        )
        lines.append(f"  {name}: {what}")
        lines += [f"    {number} not: {reason}" for reason, number in counts.dropped.items()]
        lines += [f"    {number} {change}" for change, number in counts.converted.items()]
    lines += [f"  {name}: left out: {reason}" for name, reason in report.left_out.items()]
    for title, numbers in (
        ("repaired", accounts.repaired),
        ("noted", accounts.notes),
        ("annotation chosen by", accounts.chosen_by),
        ("results that are no regions", accounts.other_results),
    ):
        if numbers:
            lines.append(f"  {title}: {_format_counts(numbers)}")
    lines.append(f"  failed: {accounts.failed} ({accounts.failed_share:.1%})")
    lines += [f"    {_format_loss(loss)}" for loss in failed]
    lines.append(
        f"  {report.objects} objects, {report.bytes:,} bytes; new: {report.written.objects} objects, "
        f"{report.written.bytes:,} bytes, {report.written.tasks} tasks converted"
    )
    lines += _places(report)
    lines += _advice(report, max_errors)
    return "\n".join(lines)


def _places(report: ExportReport) -> list[str]:
    """Return where the plain files are."""
    lines = []
    if report.archives:
        tops = dict.fromkeys(path.partition("/")[0] + "/" * ("/" in path) for path in report.archives)
        lines.append(f"  open {report.url}/versions/{report.version}/: {', '.join(sorted(tops))}")
    if report.latest:
        counts = report.latest_files
        numbers = (
            f"{counts['written']:,} files written, {counts['removed']:,} removed, {counts['same']:,} the same"
            if counts
            else "up to date"
        )
        formats = ", ".join(f"{name}/" for name in report.accounts.formats)
        lines.append(f"  open {report.url}/latest/: {formats} ({report.latest}: {numbers})")
    return lines


def _advice(report: ExportReport, max_errors: float | None) -> list[str]:
    pull = f"`labelloop dataset pull {report.url} --version {report.version} --to DIR`"
    if report.refused in EMPTY:
        return [
            f"NOT published, and no version made: {report.refused}. {_why_empty(report)}",
            f"→ {_missing_tasks_advice(report)}",
        ]
    if report.refused in {NOTHING_LEFT, NO_TASK_LEFT}:
        return [
            f"NOT published: {report.refused}. The published version stays. {_why_empty(report)}",
            f"→ {_missing_tasks_advice(report)} To start a new data set, pass another --to.",
        ]
    if report.refused.startswith(SHRUNK):
        return [
            f"NOT published: {report.refused}. The published version stays.",
            f"→ Check the source, --from and --annotation; {pull} writes the version. If it is right: --allow-shrink.",
        ]
    if not report.published:
        limit = "" if max_errors is None else f", over --max-errors {max_errors:g}"
        return [
            f"NOT published: {report.accounts.failed_share:.1%} failed{limit}. The published version stays.",
            f"→ Each loss is a line of dropped.jsonl: {_dropped(report, pull)}. Fix these, or raise --max-errors.",
        ]
    lines = [f"  each loss is a line of dropped.jsonl: {_dropped(report, pull)}"] if _lost(report) else []
    unsized = [name for name, counts in report.accounts.formats.items() if UNSIZED in counts.converted]
    if unsized:
        lines.append(f"{', '.join(unsized)}: images of unknown size left out. Omit --no-fetch to read their size.")
    what, numbers = ("image", report.images) if _is_of_images(report) else ("task", report.lines)
    if empty := [split for split, number in numbers.items() if not number]:
        lines.append(
            f"There is no {what} in {' and '.join(empty)}. For a small set: --split train=.7,val=.3, or train=1."
        )
    return lines


def _is_of_images(report: ExportReport) -> bool:
    """Whether a format of images was asked for."""
    return any(counts.tasks is None for counts in report.accounts.formats.values())


def _dropped(report: ExportReport, pull: str) -> str:
    """Return where ``dropped.jsonl`` is, or the command that writes it."""
    return f"{report.url}/versions/{report.version}/{DROPPED}.jsonl" if report.archives else pull


def _why_empty(report: ExportReport) -> str:
    """Return why no task is in the data set, in numbers."""
    tasks, regions = report.accounts.tasks, report.accounts.regions
    if report.refused == NO_CLASS:
        if regions.kept:
            return "What is drawn are key points that belong to no region."
        lost = ", ".join(f"{number} ({reason})" for reason, number in regions.dropped.items())
        return f"Dropped regions: {lost}." if lost else "The selected annotations are empty."
    if not tasks.input:
        return "The source has no tasks."
    return "Dropped tasks: " + ", ".join(f"{number} ({reason})" for reason, number in tasks.dropped.items()) + "."


def _missing_tasks_advice(report: ExportReport) -> str:
    """Return how to get tasks into the data set, by the most frequent reason."""
    if report.refused == NO_CLASS and report.accounts.regions.kept:
        return (
            "Draw the object of the points too: RectangleLabels next to KeyPointLabels, then each point as a child of"
            " its region, or one object an image. The points as they are: --format tasks-jsonl."
        )
    if report.refused == NO_CLASS:
        return "Pass --label-config to use its labels as classes. If nothing is drawn on images: --format tasks-jsonl."
    dropped = report.accounts.tasks.dropped
    most = max(dropped, key=lambda reason: dropped[reason], default="")
    if most == NO_IMAGE_IN_DATA:
        return (
            "If the project is not of images: --format tasks-jsonl. Else check --label-config: its Image takes its"
            " value from another key of the task's data."
        )
    if most == NO_SIZED_IMAGE:
        read = "Make the images readable" if report.warnings else "Omit --no-fetch to read the sizes from the images"
        return (
            f"{read}, or state them in the tasks' data: width and height. Answers about whole images need no size:"
            " --format yolo-classify or tasks-jsonl."
        )
    return _ADVICE.get(most, "Check --from, --annotation, --label-config and --disputed.")


def _lost(report: ExportReport) -> bool:
    accounts = report.accounts
    all_counts = (accounts.tasks, accounts.annotations, accounts.images, accounts.regions)
    return any(counts.dropped for counts in all_counts) or any(counts.dropped for counts in accounts.formats.values())


def _format_loss(loss: Loss) -> str:
    names = (("task", loss.task), ("annotation", loss.annotation), ("region", loss.region))
    where = ", ".join(f"{name} {value}" for name, value in names if value not in (None, ""))
    return f"{where or 'a task'}: {loss.reason}" + (f": {loss.detail}" if loss.detail else "")


def _format_counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"
