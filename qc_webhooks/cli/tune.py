"""`labelloop qc tune`: propose the policy that reaches a wanted error with the fewest labels."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.studio.task import Task
from labelloop.service.charts import pluralize
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from qc_webhooks.agreement import complete_answers, read_answers
from qc_webhooks.cli.offline import check_readable, read_config, show_progress
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy, parse_policy
from qc_webhooks.report.report import Export
from qc_webhooks.report.tuning import REVIEW_COST, Tuning, TuningPoint, policy_block, tune
from qc_webhooks.report.tuning_page import shown_curve, tuning_html
from qc_webhooks.report.tuning_replay import Progress
from qc_webhooks.report.tuning_store import save_tuning
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.task_facts import TaskFacts
from qc_webhooks.verdict.verdict import judge

# Newest tasks of a project that the replay draws from.
_MAX_PROJECT_TASKS = 10_000
# Lines of the printed curve.
_MAX_LINES = 14
_BAR = 24
# Share of tasks that would ask more annotators than are recorded, above which it is said.
_SHORT = 0.05


def tune_policy(
    *,
    source: Annotated[str, Parameter(name=["--from"])],
    target_error: float,
    label_config: Path | None = None,
    policy: Path | None = None,
    review_cost: float = REVIEW_COST,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    html: Path | None = None,
) -> None:
    """Propose the policy that reaches an error of the consensus with the fewest labels.

    Recorded annotations are replayed in random orders, as if annotators were asked one by one: 2 or more to begin with,
    then one more while it is expected to correct enough errors (least_gain), up to a maximum. The threshold of a
    dispute (agreement) is varied too: it decides where one more is asked although only shapes differ, and what
    reviewers see. Each policy gets its labels per task and the error of its consensus. The cheapest one that reaches
    the target is printed as a block for policy.toml; nothing is changed. Where none reaches it, reviewers decide
    disputed tasks and those of low agreement ([[review]]); otherwise tasks that are disputed in the end count with
    their consensus.

    The error is the share of wrong statements: missing, extra and mislabelled objects (1 - F1), wrong answers. It is
    measured against ground truths where tasks have one, else against the consensus of all recorded annotators, with
    reliability estimated from other tasks. That reference does not see errors that the whole crowd makes: mark 50
    ground truths to measure them.

    Needed are 30 tasks with three or more annotators, or with two and a ground truth. More annotators than are recorded
    cannot be replayed: let 5 or more do 50 tasks to see what 5 bring.

    ```
    labelloop qc tune --from export.json --label-config config.xml --target-error .05
    labelloop qc tune --from 7 --target-error .05
    ```

    Args:
        source: A JSON export of Label Studio (or JSON lines), or the id of a connected project.
        target_error: The wanted share of wrong statements, above 0 and below 1: .05 is 5 %.
        label_config: The labeling interface of the export, as an XML file.
        policy: A policy.toml whose other settings apply; by default the one in force (of an export: the defaults).
        review_cost: Labels that one review is worth; 0: without reviewers.
        json: Also write the proposal and the curve to this file ("-": only to standard output).
        html: Also write a page with the curve drawn.
    """
    if not 0 < target_error < 1:
        raise QualityControlError(
            f"--target-error is a share above 0 and below 1, not {target_error:g}.",
            fix="Give .05 for 5 % wrong statements.",
            code="bad_target",
            status=422,
        )
    if not 0 <= review_cost < math.inf:
        raise QualityControlError(
            f"--review-cost is a number of labels, 0 or more, not {review_cost:g}.",
            fix="Give 3 where a review costs as much as three labels, 0 where there are no reviewers.",
            code="bad_review_cost",
            status=422,
        )
    is_project = source.isdecimal() and not Path(source).exists()
    if is_project:
        settings = Settings()
        engine = open_existing_database(settings)
        projects = ProjectStore(engine)
        projects.require(int(source))
        own = projects.policy(settings.home, int(source))
        in_force = own if policy is None else parse_policy(policy, base=own)
        facts = [*FactStore(engine).iter_project(int(source), latest=_MAX_PROJECT_TASKS)]
        if not facts:
            raise QualityControlError(
                f"Project {source} has nothing to replay yet.",
                fix="Run `labelloop worker` until tasks are judged, or pass a JSON export.",
                code="no_record",
                status=404,
            )
    else:
        config = None if label_config is None else read_config(label_config)
        in_force = Policy() if policy is None else parse_policy(policy, config=config)
        with show_progress(Path(source), rounds=1) as progress:
            facts = _facts(Export(Path(source), config, progress), in_force)
    with _progress_bar("replaying") as shown:
        tuning = tune(facts, target_error, in_force, review_cost=review_cost, progress=shown)
    tuning = msgspec.structs.replace(tuning, made_at=time.time())
    if is_project:
        save_tuning(settings.home, int(source), tuning)
    _write(tuning, source, json, html)


def _write(found: Tuning, source: str, json: Path | None, html: Path | None) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(as_json(found)), indent=2) + b"\n"
    try:
        if html is not None:
            html.write_text(tuning_html(found, source=source), encoding="utf-8")
        if json is not None and str(json) != "-":
            json.write_bytes(encoded)
    except OSError as error:
        raise QualityControlError(
            f"{error.filename} cannot be written: {error.strerror or error}.",
            fix="Name a file in an existing folder.",
            code="unwritable_file",
        ) from error
    if str(json) == "-":
        sys.stdout.buffer.write(encoded)
    else:
        print("\n".join(tuning_text(found)))
    if found.proposed is None:
        raise QualityControlError(
            f"No policy reaches an error of {100 * found.target:g} %: all {found.annotators:g} recorded annotators"
            f" (median) together have {100 * found.full_error:.1f} %.",
            fix="Raise --target-error, let more annotators do some tasks, or see `labelloop qc report` for what they"
            " disagree about.",
            code="target_not_reached",
            status=422,
        )


def as_json(found: Tuning) -> dict[str, object]:
    """The result as JSON: the fields of ``Tuning``, the reference in words and the policy block."""
    block = "" if found.proposed is None else policy_block(found.proposed)
    return {**msgspec.to_builtins(found), "reference": found.reference, "policy": block}


def tuning_text(found: Tuning) -> Iterator[str]:
    """Lines of the printed result: the reference, the curve, the proposal."""
    yield (
        f"{found.tasks} tasks replayed, {found.annotators:g} annotators each (median). Error against {found.reference}."
    )
    yield f"All recorded annotators together: {_percent(found.full_error)}."
    yield from ("", *_curve_lines(shown_curve(found), found.proposed))
    if found.proposed is not None:
        yield from ("", *_proposal_lines(found, found.proposed))
        yield from ("", "# policy.toml", policy_block(found.proposed))
    yield from ("", *found.left_out) if found.left_out else ()


def _curve_lines(curve: Sequence[TuningPoint], proposed: TuningPoint | None) -> Iterator[str]:
    reviewed = any(point.reviewers for point in curve)
    review_head = "  review below (tasks)" if reviewed else ""
    yield (
        f"{'labels/task':>11} {'error':>7}  {'95 %':<14} {'annotators':<10} {'least_gain':>10} {'agreement':>9}"
        f"{review_head}"
    )
    if len(curve) > _MAX_LINES:
        kept = {round(index * (len(curve) - 1) / (_MAX_LINES - 1)) for index in range(_MAX_LINES)}
        curve = [point for index, point in enumerate(curve) if index in kept or point == proposed]
    highest = max((point.error for point in curve), default=1.0) or 1.0
    for point in curve:
        interval = f"{100 * point.low:.1f} to {100 * point.high:.1f}"
        people = f"{point.annotators} to {point.max_annotators}"
        review = f"  {point.review_below:<12g} ({_percent(point.reviewed)})" if reviewed else ""
        bar = "#" * max(1, round(_BAR * point.error / highest))
        mark = "  <- proposed" if point == proposed else ""
        yield (
            f"{point.labels:>11.2f} {_percent(point.error):>7}  {interval:<14} {people:<10} {point.least_gain:>10g}"
            f" {point.agreement:>9g}{review}  {bar}{mark}"
        )


def _proposal_lines(found: Tuning, proposed: TuningPoint) -> Iterator[str]:
    yield f"Proposed: {_cost_and_error(proposed)}."
    if found.held_out is not None:
        yield f"On tasks that did not choose it: {_cost_and_error(found.held_out)}."
    if proposed.disputed and not proposed.reviewers:
        yield (
            f"{_percent(proposed.disputed)} of the tasks are disputed in the end and wait for a reviewer; here their"
            " consensus counts."
        )
    other = found.with_reviewer
    if other is not None and other != proposed:
        yield f"With reviewers: {_cost_and_error(other)}. Its block:"
        yield from (f"    {line}" for line in policy_block(other).splitlines())
    if proposed.short > _SHORT:
        yield (
            f"{_percent(proposed.short)} of the tasks would ask more annotators than are recorded: the true number of"
            " labels is higher, and the error lower."
        )


def _cost_and_error(point: TuningPoint) -> str:
    reviews = f" and {100 * point.reviewed:.0f} reviews per 100 tasks" if point.reviewers else ""
    return (
        f"{point.labels:.2f} labels per task{reviews}, error {_percent(point.error)} (95 %: {_percent(point.low)} to"
        f" {_percent(point.high)})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _facts(export: Export, policy: Policy) -> list[TaskFacts]:
    facts, unreadable = list[TaskFacts](), list[object]()
    for task in export.tasks():
        if not isinstance(task, Task):
            unreadable.append(task)
            continue
        answers = read_answers(task, config=export.config)
        views = sorted((annotator_view(item) for item in complete_answers(answers)), key=lambda item: item.annotator)
        if len(views) < 2:
            continue
        clusters = cluster_regions([item.regions for item in views])
        facts.append(facts_of(task, answers, judge(answers, policy), policy.tolerance, config=export.config,
                              clusters=clusters))  # fmt: skip
    check_readable(export.path, len(facts), unreadable)
    if unreadable:
        print(f"{pluralize(len(unreadable), 'task')} could not be read: {unreadable[0]}", file=sys.stderr)
    return facts


@contextmanager
def _progress_bar(what: str) -> Iterator[Progress | None]:
    """A progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
