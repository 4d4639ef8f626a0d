"""What an export did, as a person reads it: what is in the version, what is not and why, and what to do about it."""

from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from exporters.console import shown
from exporters.convert.annotation_policy import NONE_CHOSEN, NOT_ANNOTATED, NOT_CHOSEN, PREDICTED, SKIPPED, UNSETTLED
from exporters.convert.consensus import JOINED, NOT_WHOLE, OUTVOTED
from exporters.convert.loss_recorder import MALFORMED
from exporters.dataset.shards import read_table
from exporters.dataset.versions import read_version
from exporters.formats.base import UNSIZED
from exporters.model.accounting import Loss, Report
from exporters.model.manifest import DROPPED
from exporters.pipeline.publish_checks import EMPTY, NO_CLASS, NOTHING_LEFT, SHRUNK
from labelloop.service.store import Store

EXAMPLES = 3
"""Failures that are shown of each reason."""
_LOOKED_AT = 20_000
_BY_THE_RULES = frozenset(
    {*UNSETTLED.values(), SKIPPED, NOT_CHOSEN, NOT_ANNOTATED, PREDICTED, NONE_CHOSEN, JOINED, OUTVOTED, NOT_WHOLE}
)
_FILL = {  # why most tasks are not in -> what would bring them in
    PREDICTED: "No option exports predictions. In Label Studio's Data Manager select the tasks and choose Create"
    " Annotations From Predictions, or have annotators submit them.",
    NOT_ANNOTATED: "Annotate and submit tasks in Label Studio, then export again.",
    SKIPPED: "Annotate the skipped tasks in Label Studio, then export again.",
    NONE_CHOSEN: "--annotation says whose annotation counts: latest takes any.",
    UNSETTLED["disputed"]: "Resolve the disputes, or take these tasks with --disputed in (or apart).",
    UNSETTLED["not_judged"]: "Review these tasks (qc_note says why they are not judged), or take them with"
    " --disputed in (or apart).",
}


def failures(store: Store, report: Report) -> list[Loss]:
    """Some things of the input that were wrong in themselves, of each reason the first few; none where none was."""
    if not report.accounts.failed:
        return []
    losses = (
        msgspec.json.decode(record.body, type=Loss)
        for record in islice(read_table(store, read_version(store, report.version), DROPPED), _LOOKED_AT)
    )
    found: dict[str, list[Loss]] = {}
    told: set[int | None] = set()
    for loss in losses:
        if loss.format or loss.reason in _BY_THE_RULES:
            continue
        if loss.kind == "image":
            told.add(loss.task)
        # An annotation goes with its task, a task with its image.
        follows = loss.kind == "annotation" or (loss.kind == "task" and loss.task in told)
        if loss.reason == MALFORMED or not follows:
            some = found.setdefault(loss.reason, [])
            some += [loss] * (len(some) < EXAMPLES)
    return [loss for some in found.values() for loss in some]


def summary(report: Report, failed: Iterable[Loss] = (), *, max_errors: float | None = None) -> str:
    """The report as text.

    Args:
        report: What the export did.
        failed: Examples of what was wrong: see `failures`.
        max_errors: The share of failures up to which the version would have been published.
    """
    accounts = report.accounts
    refused = f"  (NOT published: {report.refused})" if report.refused else ""
    lines = [
        f"{report.url} {report.version or '(no version)'}{refused}",
        f"  images   {_counts(report.images)}",
        f"  classes  {_counts({shown(label): number for label, number in report.classes.items()})}",
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
    lines += [f"  {name}: left out: {reason}" for name, reason in report.left_out.items()]
    for title, numbers in (
        ("repaired", accounts.repaired),
        ("noted", accounts.notes),
        ("annotation chosen by", accounts.chosen_by),
        ("results that are no regions", accounts.other_results),
    ):
        if numbers:
            lines.append(f"  {title}: {_counts(numbers)}")
    lines.append(f"  failed: {accounts.failed} ({accounts.failed_share:.1%})")
    lines += [f"    {_told(loss)}" for loss in failed]
    lines.append(
        f"  {report.objects} objects, {report.bytes:,} bytes; new: {report.written.objects} objects, "
        f"{report.written.bytes:,} bytes, {report.written.tasks} tasks converted"
    )
    lines += _advice(report, max_errors)
    return "\n".join(lines)


def _advice(report: Report, max_errors: float | None) -> list[str]:
    pull = f"`labelloop dataset pull {report.url} --version {report.version} --to DIR`"
    if report.refused in EMPTY:
        return [f"NOT published, and no version made: {report.refused}. {_why_empty(report)}", f"→ {_fill(report)}"]
    if report.refused == NOTHING_LEFT:
        return [
            f"NOT published: {NOTHING_LEFT}. That one stays. {_why_empty(report)}",
            f"→ {_fill(report)} A data set that begins anew gets another --to.",
        ]
    if report.refused.startswith(SHRUNK):
        return [
            f"NOT published: {report.refused}. That one stays.",
            f"→ Is the source whole? Are --from and --annotation right? {pull} lays it out. If meant: --allow-shrink.",
        ]
    if not report.published:
        limit = "" if max_errors is None else f", over --max-errors {max_errors:g}"
        return [
            f"NOT published: {report.accounts.failed_share:.1%} failed{limit}. What was published before stays.",
            f"→ {pull} lays out dropped.jsonl, a line for each loss. Mend these, or take a higher --max-errors.",
        ]
    lines = [f"  each loss is a line of dropped.jsonl: {pull}"] if _lost(report) else []
    unsized = [name for name, each in report.accounts.formats.items() if UNSIZED in each.converted]
    if unsized:
        lines.append(f"{', '.join(unsized)}: images of unknown size left out. They are looked up without --no-fetch.")
    if empty := [split for split, images in report.images.items() if not images]:
        lines.append(f"No image is in {' and '.join(empty)}. For a small set: --split train=.7,val=.3, or train=1.")
    return lines


def _why_empty(report: Report) -> str:
    """Why no task is in, in numbers."""
    tasks, regions = report.accounts.tasks, report.accounts.regions
    if report.refused == NO_CLASS:
        lost = ", ".join(f"{number}: {reason}" for reason, number in regions.dropped.items())
        return f"Of its regions {lost}." if lost else "The annotations that count are empty."
    if not tasks.input:
        return "The source holds no task."
    return "Of its tasks " + ", ".join(f"{number}: {reason}" for reason, number in tasks.dropped.items()) + "."


def _fill(report: Report) -> str:
    """What would bring tasks in, by the most frequent reason."""
    if report.refused == NO_CLASS:
        return "Give --label-config if it is meant: its labels are the classes."
    dropped = report.accounts.tasks.dropped
    most = max(dropped, key=lambda reason: dropped[reason], default="")
    return _FILL.get(most, "Check --from, --annotation, --label-config and --disputed.")


def _lost(report: Report) -> bool:
    accounts = report.accounts
    counts = (accounts.tasks, accounts.annotations, accounts.images, accounts.regions)
    return any(each.dropped for each in counts) or any(each.dropped for each in accounts.formats.values())


def _told(loss: Loss) -> str:
    names = (("task", loss.task), ("annotation", loss.annotation), ("region", loss.region))
    where = ", ".join(f"{name} {value}" for name, value in names if value not in (None, ""))
    return f"{where or 'a task'}: {loss.reason}" + (f": {loss.detail}" if loss.detail else "")


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"
