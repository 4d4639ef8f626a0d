"""`labelloop qc report` and `labelloop qc consensus`: offline quality control of an exported file."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

from cyclopts import Parameter

from labelloop.labeling.consensus.model_voice import MIN_TASKS
from labelloop.labeling.errors import LabelingError, MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.charts import pluralize
from qc_webhooks.annotators import DIAGNOSES
from qc_webhooks.errors import ExportUnreadable, QualityControlError
from qc_webhooks.policy import Policy, parse_policy
from qc_webhooks.report.report import HEARD, Export, Progress, ReportSummary, write_consensus, write_report
from qc_webhooks.statistics import Estimate
from qc_webhooks.verdict.model_voice import NO_PREDICTION
from qc_webhooks.verdict.verdict import OUTCOMES

# Statistics of the printed summary, in addition to the alphas of all kinds but single tags and labels.
_PRINTED = {"gwet_ac1", "alpha_nominal", "f1_at_50", "icc", "mean_similarity", "kendall_w"}
# Smaller exports are read too fast for a progress bar.
_PROGRESS_MIN_BYTES = 4_000_000


def report(
    *,
    source: Annotated[Path, Parameter(name=["--from"])],
    label_config: Path,
    json: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    policy: Path | None = None,
) -> None:
    """Report on an export: agreement, conflicts and verdict per task, statistics, reliability per annotator.

    ```
    labelloop qc report --from export.json --label-config config.xml --json report.json
    ```

    Args:
        source: JSON export of Label Studio, or JSON lines.
        label_config: The project's labeling interface, as an XML file.
        json: Output file of the report ("-": standard output).
        policy: A policy.toml; the defaults where omitted.
    """
    config = read_config(label_config)
    rules = Policy() if policy is None else parse_policy(policy, config=config)
    with show_progress(source) as progress, _output(json) as out:
        summary = write_report(Export(source, config, progress), rules, out)
        check_readable(source, summary.tasks, summary.unreadable)
    if str(json) != "-":
        print(summary_text(summary))
        print(f"\nFull report: {json}")


def consensus(
    *,
    source: Annotated[Path, Parameter(name=["--from"])],
    label_config: Path,
    out: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    policy: Path | None = None,
) -> None:
    """Write one consensus annotation per task, as Label Studio's JSON.

    ```
    labelloop qc consensus --from export.json --label-config config.xml --out consensus.json
    ```

    Args:
        source: JSON export of Label Studio, or JSON lines.
        label_config: The project's labeling interface, as an XML file.
        out: Output file, one annotation per task ("-": standard output).
        policy: A policy.toml, whose `model_voice` applies; the defaults where omitted.
    """
    config = read_config(label_config)
    rules = Policy() if policy is None else parse_policy(policy, config=config)
    with show_progress(source) as progress, _output(out) as file:
        try:
            summary = write_consensus(Export(source, config, progress), file, rules)
        except LabelingError as error:
            raise QualityControlError(
                f"The consensus cannot be written: {error}.",
                fix="Give the label config that the export is of.",
                code="consensus_unwritable",
            ) from error
        check_readable(source, summary.tasks, summary.unreadable)
    if str(out) != "-":
        print(f"{pluralize(summary.tasks, 'task')}, one annotation each: {out}")
        lines = [*_unmerged(summary), *_voice(summary)]
        print("\n".join(lines), end="\n" if lines else "")
        print("\n".join(_problems(summary)), end="\n" if _problems(summary) else "")


def check_readable(source: Path, read: int, unreadable: Sequence[object]) -> None:
    """Fail where no task of a file could be read.

    Raises:
        ExportUnreadable: None of the file's tasks could be read.
    """
    if unreadable and not read:
        raise ExportUnreadable(path=source, reason=f"none of its {len(unreadable)} tasks can be read: {unreadable[0]}")


def summary_text(summary: ReportSummary) -> str:
    """Summary of a report in a few lines."""
    counts = ", ".join(f"{summary.outcomes.get(name, 0)} {name.replace('_', ' ')}" for name in OUTCOMES)
    lines = [f"{pluralize(summary.tasks, 'task')}: {counts}", f"for a reviewer       {summary.reviewed}"]
    if summary.truth_doubts:
        lines.append(
            f"ground truth in doubt {pluralize(summary.truth_doubts, 'task')}: see `ground_truth_doubts` in the report"
        )
    if overall := summary.statistics["scores"]["overall"]:
        lines.append(f"pairwise agreement   {_estimate_text(overall['pairwise'])}")
        lines.append(f"consensus score      {_estimate_text(overall['consensus'])}")
    for control, kinds in summary.statistics["controls"].items():
        for kind, statistics in kinds.items():
            lines += [
                f"{control:<12} {name:<20} {_estimate_text(estimate)}"
                for name, estimate in statistics.items()
                if (name.startswith("alpha") and kind != "nominal" and ":" not in name) or name in _PRINTED
            ]
    if summary.conflicts:
        lines.append("conflicts: " + ", ".join(f"{count} {name}" for name, count in summary.conflicts.most_common()))
    for person in summary.annotators[:20]:
        lines.append(
            f"annotator {person['annotator']}: {pluralize(person['tasks'], 'task')}{''.join(_reliability(person))}"
        )
        lines += [*_truth_agreement(person), *(f"  ! {line}" for line in person["concerns"])]
    lines += [f"{DIAGNOSES[split['kind']].name}: {split['text']}" for split in summary.splits if not split["who"]][:8]
    if len(summary.annotators) > 20:
        lines.append(f"and {len(summary.annotators) - 20} more annotators in the report")
    if summary.used < summary.tasks:
        lines.append(f"Reliability and statistics of labels are from the newest {summary.used:,} tasks.")
    return "\n".join(lines + _voice(summary) + _problems(summary))


def _unmerged(summary: ReportSummary) -> list[str]:
    """Lines about results of a consensus that are one annotator's answer or left out."""
    controls = ", ".join(
        f"{name or 'whole annotation'} ({pluralize(tasks, 'task')})" for name, tasks in summary.carried.items()
    )
    lines = [f"One annotator's answer, not merged: {controls}. See meta.consensus.carried."] if controls else []
    rejected = f"{summary.left} regions and results are left out. See meta.consensus.rejected."
    return [*lines, rejected] if summary.left else lines


def _voice(summary: ReportSummary) -> list[str]:
    """Line about the model as one more voice, where any task has a prediction."""
    reasons = {reason: count for reason, count in summary.voice.items() if reason not in {HEARD, NO_PREDICTION}}
    if not (reasons or summary.voice[HEARD]):
        return []
    left_out = "".join(f"; not on {count}: {reason}" for reason, count in sorted(reasons.items()))
    few = f" (too few: {MIN_TASKS} are required)" if 0 < summary.voice[HEARD] < MIN_TASKS else ""
    return [
        f"The model is one more voice of the consensus on {pluralize(summary.voice[HEARD], 'task')}{few}{left_out}."
    ]


def _reliability(person: dict[str, Any]) -> Iterator[str]:
    if regions := person["regions"]:
        named = {"recall": "recall", "recall of what others found": "recall_of_found", "precision": "precision"}
        texts = {name: _estimate_text(Estimate(**regions[rate])) for name, rate in named.items()}
        if len(set(texts.values())) == 1:  # none has enough evidence
            texts = {"recall and precision:": texts["recall"]}
        yield from (f"; {name} {text}" for name, text in texts.items())
    for control, rated in {**person["labels"], **person["choices"]}.items():
        if rated["accuracy"]["value"] is not None:
            yield f"; {control} accuracy {_estimate_text(Estimate(**rated['accuracy']))}"


def _truth_agreement(person: dict[str, Any]) -> Iterator[str]:
    for name, what in (("against_truth", "the ground truth"), ("against_decided", "later decisions")):
        if person[name]["n"]:
            yield f"  agreement with {what}: {_estimate_text(Estimate(**person[name]))}"


def _problems(summary: ReportSummary) -> list[str]:
    lines = (
        [f"{pluralize(len(summary.unreadable), 'task')} could not be read: {summary.unreadable[0]}"]
        if summary.unreadable
        else []
    )
    if summary.without_prelabel:
        lines.append(missing_prelabels_message(summary.without_prelabel))
    return [*lines, f"{pluralize(summary.unread, 'result')} could not be read"] if summary.unread else lines


def missing_prelabels_message(tasks: int) -> str:
    """Message for an export that lacks pre-labels that the policy needs."""
    return (
        f"{pluralize(tasks, 'task')} with pre-labels by id only: least_model_score and least_model_agreement are left"
        " out."
        " Export a snapshot with full predictions."
    )


def _estimate_text(estimate: Estimate) -> str:
    if estimate.value is None or math.isnan(estimate.value):
        return estimate.evidence
    return f"{estimate.value:.3f} (95 %: {estimate.low:.3f} to {estimate.high:.3f}, n = {estimate.n})"


def read_config(path: Path) -> LabelConfig:
    """Read a labeling interface from an XML file.

    Raises:
        ExportUnreadable: The file does not exist, or is no labeling interface.
    """
    try:
        return LabelConfig.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportUnreadable(path=path, reason=error.strerror or str(error)) from error
    except (MalformedConfig, UnicodeDecodeError) as error:
        raise ExportUnreadable(path=path, reason=str(error)) from error


@contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    """Open an output file that replaces the previous one only when complete."""
    if str(path) == "-":
        yield sys.stdout.buffer
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise QualityControlError(
            f"{path} cannot be written: {error.strerror or error}.",
            fix='Name a file in an existing folder; "-" prints it.',
            code="unwritable_file",
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def show_progress(source: Path, *, rounds: int = 2) -> Iterator[Progress | None]:
    """Show a progress bar on a terminal for large files.

    Args:
        source: The file to read.
        rounds: Number of passes over the file.
    """
    if not sys.stderr.isatty() or not source.is_file() or source.stat().st_size < _PROGRESS_MIN_BYTES:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(source.name, total=rounds * source.stat().st_size)
        last = rounds_done = 0

        def show(done: int, total: int) -> None:
            nonlocal last, rounds_done
            rounds_done += done < last  # the next pass begins
            last = done
            bar.update(row, completed=rounds_done * total + done)

        yield show
