"""What `labelloop qc report` and `labelloop qc consensus` run: quality control of an exported file, offline."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

from cyclopts import Parameter

from labelloop.labeling.errors import LabelingError, MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from qc_webhooks.errors import ConsensusUnwritable, ExportUnreadable, OutputUnwritable
from qc_webhooks.policy import Policy, parse_policy
from qc_webhooks.report.report import Export, Progress, Summary, write_consensus, write_report
from qc_webhooks.statistics import Estimate
from qc_webhooks.verdict.verdict import OUTCOMES

# An export of a few megabytes is read before a bar could be looked at.
_LONG = 4_000_000


def report(
    *,
    source: Annotated[Path, Parameter(name=["--from"])],
    label_config: Path,
    json: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    policy: Path | None = None,
) -> None:
    """Measure an exported file: agreement, conflicts and verdict of each task, statistics, everybody's reliability.

    Args:
        source: A JSON export of Label Studio, or JSON lines.
        label_config: The project's labelling interface, as an XML file.
        json: Where the report is written ("-": to the standard output).
        policy: A policy.toml; without it the defaults hold.
    """
    config = read_config(label_config)
    rules = Policy() if policy is None else parse_policy(policy, config=config)
    with show_progress(source) as progress, _output(json) as out:
        summary = write_report(Export(source, config, progress), rules, out)
        refuse_unreadable(source, summary.tasks, summary.unreadable)
    if str(json) != "-":
        print(told(summary))
        print(f"\nThe whole report: {json}")


def consensus(
    *,
    source: Annotated[Path, Parameter(name=["--from"])],
    label_config: Path,
    out: Annotated[Path, Parameter(allow_leading_hyphen=True)],
) -> None:
    """Write the one annotation that a task's annotators make together, as Label Studio's JSON.

    Args:
        source: A JSON export of Label Studio, or JSON lines.
        label_config: The project's labelling interface, as an XML file.
        out: Where the tasks are written, each with one annotation ("-": to the standard output).
    """
    config = read_config(label_config)
    with show_progress(source) as progress, _output(out) as file:
        try:
            summary = write_consensus(Export(source, config, progress), file)
        except LabelingError as error:
            raise ConsensusUnwritable(str(error)) from error
        refuse_unreadable(source, summary.tasks, summary.unreadable)
    if str(out) != "-":
        print(f"{summary.tasks} tasks, each with one annotation: {out}")
        print("\n".join(_unmerged(summary)), end="\n" if _unmerged(summary) else "")
        print("\n".join(_trouble(summary)), end="\n" if _trouble(summary) else "")


def refuse_unreadable(source: Path, read: int, unreadable: Sequence[object]) -> None:
    """Ends a command where none of a file's tasks could be read.

    Raises:
        ExportUnreadable: It is so.
    """
    if unreadable and not read:
        raise ExportUnreadable(source, f"none of its {len(unreadable)} tasks can be read: {unreadable[0]}")


def told(summary: Summary) -> str:
    """The report in a few lines."""
    counts = ", ".join(f"{summary.outcomes.get(name, 0)} {name.replace('_', ' ')}" for name in OUTCOMES)
    lines = [f"{summary.tasks} tasks: {counts}", f"for a reviewer       {summary.reviewed}"]
    if overall := summary.statistics["scores"]["overall"]:
        lines.append(f"agreement of pairs   {_number(overall['pairwise'])}")
        lines.append(f"share that agrees    {_number(overall['consensus'])}")
    for control, kinds in summary.statistics["controls"].items():
        for kind, statistics in kinds.items():
            lines += [
                f"{control:<12} {name:<20} {_number(each)}"
                for name, each in statistics.items()
                if (name.startswith("alpha") and kind != "nominal") or name in {"gwet_ac1", "alpha_nominal"}
            ]
    if summary.conflicts:
        lines.append("conflicts: " + ", ".join(f"{count} {name}" for name, count in summary.conflicts.most_common()))
    for person in summary.annotators[:20]:
        lines.append(f"annotator {person['annotator']}: {person['tasks']} tasks{''.join(_reliability(person))}")
        lines += [*_against_truth(person), *(f"  ! {line}" for line in person["concerns"])]
    lines += [split["text"] for split in summary.splits if split["kind"] in {"guideline", "two views"}][:5]
    if len(summary.annotators) > 20:
        lines.append(f"and {len(summary.annotators) - 20} more annotators in the report")
    return "\n".join(lines + _trouble(summary))


def _unmerged(summary: Summary) -> list[str]:
    """What of a consensus is one annotator's answer, and how much is left out."""
    controls = ", ".join(f"{name or 'whole annotation'} ({tasks} tasks)" for name, tasks in summary.carried.items())
    lines = [f"One annotator's answer, as it is: {controls}. See meta.consensus.carried."] if controls else []
    left = f"{summary.left} regions and results are not in it. See meta.consensus.rejected."
    return [*lines, left] if summary.left else lines


def _reliability(person: dict[str, Any]) -> Iterator[str]:
    if person["regions"]:
        yield f"; finds {_number(Estimate(**person['regions']['recall']))}"
        yield f"; of the regions are right {_number(Estimate(**person['regions']['precision']))}"
    for control, rated in {**person["labels"], **person["choices"]}.items():
        if rated["accuracy"]["value"] is not None:
            yield f"; {control} right {_number(Estimate(**rated['accuracy']))}"


def _against_truth(person: dict[str, Any]) -> Iterator[str]:
    for name, what in (("against_truth", "the ground truth"), ("against_decided", "what was decided later")):
        if person[name]["n"]:
            yield f"  agrees with {what}: {_number(Estimate(**person[name]))}"


def _trouble(summary: Summary) -> list[str]:
    lines = (
        [f"{len(summary.unreadable)} tasks could not be read: {summary.unreadable[0]}"] if summary.unreadable else []
    )
    if summary.without_prelabel:
        lines.append(no_prelabels(summary.without_prelabel))
    return [*lines, f"{summary.unread} results could not be read"] if summary.unread else lines


def no_prelabels(tasks: int) -> str:
    """What is said where an export lacks what the policy looks at."""
    return (
        f"{tasks} tasks name their pre-labels by number only: least_model_score and least_model_agreement are left out."
        " Export a snapshot with full predictions."
    )


def _number(found: Estimate) -> str:
    if found.value is None or math.isnan(found.value):
        return found.evidence
    return f"{found.value:.3f} (95 %: {found.low:.3f} to {found.high:.3f}, n = {found.n})"


def read_config(path: Path) -> LabelConfig:
    """The labelling interface in an XML file.

    Raises:
        ExportUnreadable: There is no such file, or it is no labelling interface.
    """
    try:
        return LabelConfig.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportUnreadable(path, error.strerror or str(error)) from error
    except (MalformedConfig, UnicodeDecodeError) as error:
        raise ExportUnreadable(path, str(error)) from error


@contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there when it is whole: a report that failed halfway leaves the last one as it was."""
    if str(path) == "-":
        yield sys.stdout.buffer
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise OutputUnwritable(path, error.strerror or str(error)) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def show_progress(source: Path, *, rounds: int = 2) -> Iterator[Progress | None]:
    """A bar on a terminal where reading takes a while; the file is read so many times."""
    if not sys.stderr.isatty() or not source.is_file() or source.stat().st_size < _LONG:
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
        last = again = 0

        def show(done: int, total: int) -> None:
            nonlocal last, again
            again += done < last  # it is read from the start once more
            last = done
            bar.update(row, completed=again * total + done)

        yield show
