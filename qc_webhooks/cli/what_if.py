"""`labelloop qc what-if`: replay past tasks under another policy, from the database or from an export."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.charts import pluralize
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from qc_webhooks.agreement import Answers, read_answers
from qc_webhooks.cli.defaults import project_preview
from qc_webhooks.cli.offline import check_readable, missing_prelabels_message, read_config, show_progress
from qc_webhooks.decision.review_reasons import is_for_review, judge_task, lacks_predictions
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy, parse_policy
from qc_webhooks.report.replay import MAX_ANNOTATORS, Replay, ReplayResult
from qc_webhooks.report.report import Export
from qc_webhooks.schedulers.project_summary import SummaryStore
from qc_webhooks.store.projects import ProjectStore

# Settings that a project's stored agreements can be replayed with; the others need the shapes.
REPLAYABLE_SETTINGS = frozenset({"agreement", "every_control", "annotators", "max_annotators", "review_not_judged"})
# Settings that send agreed tasks to a reviewer; replayed from an export only.
_NEED_AN_EXPORT = ("review", "review_share", "rules", "least_model_score", "least_model_agreement",
                   "least_model_doubt")  # fmt: skip
# Settings without effect on a replay.
_WITHOUT_EFFECT = frozenset({"adjudicate", "set_maximum_annotations", "least_gain", *_NEED_AN_EXPORT})


def what_if(
    project: int | None = None,
    *,
    policy: Path | None = None,
    against: Path | None = None,
    source: Annotated[Path | None, Parameter(name=["--from"])] = None,
    label_config: Path | None = None,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Replay past tasks under another policy: the number of disputes, reviews and labels.

    Annotators are replayed in the order of submission: the policy's initial number, then one more while there is no
    majority. A task that needs one more annotator than it has counts as open; no answer is invented. least_gain is not
    replayed: every dispute asks one more annotator.

    A project is replayed in a second, for agreement, every_control, annotators and max_annotators; settings that send
    agreed tasks to a reviewer are left out and named. An export is judged again, for every setting.

    ```
    labelloop qc what-if 7 --policy new.toml
    labelloop qc what-if --from export.json --label-config config.xml --policy new.toml --against old.toml
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        policy: The policy.toml to try; omitted, with a project: the newest defaults (see `labelloop qc adopt`).
        against: The policy.toml to compare with; by default the one in force (with --from: the defaults).
        source: A JSON export of Label Studio, instead of a project.
        label_config: The labeling interface of the export, as an XML file.
        json: Also write the comparison to this file ("-": only to standard output).
    """
    if (project is None) == (source is None):
        raise QualityControlError(
            "Give either a project or an export.", fix="Name a project, or an export with --from."
        )
    if policy is None:
        if project is None:
            raise QualityControlError("Nothing to try with the export.", fix="Name a policy.toml with --policy.")
        print("\n".join(project_preview(project)))
        return
    if source is not None:
        config = None if label_config is None else read_config(label_config)
        before = Policy() if against is None else parse_policy(against, config=config)
        after = parse_policy(policy, config=config)
        with show_progress(source, rounds=1) as progress:
            export = Export(source, config, progress)
            unreadable: list[MalformedTask] = []
            results, notes = replay_export(_readable(export, unreadable), (before, after), export)
        check_readable(source, results[0].tasks, unreadable)
        if unreadable:
            notes.append(f"{pluralize(len(unreadable), 'task')} could not be read: {unreadable[0]}")
    else:
        settings = Settings()
        projects = ProjectStore(open_existing_database(settings))
        projects.require(project or 0)
        before = projects.policy(settings.home, project or 0) if against is None else parse_policy(against)
        after = parse_policy(policy, base=before)
        replay = SummaryStore(projects.engine).replay(project or 0)
        if replay is None:
            raise QualityControlError(
                f"Project {project} has nothing to replay yet.",
                fix="Run `labelloop worker`; it is ready within a minute of the first verdict.",
                code="no_record",
                status=404,
            )
        results = [replay_record(replay, policy_values, compared_with=before) for policy_values in (before, after)]
        notes = _not_replayable((before, after))
    if before.least_gain != after.least_gain:
        notes.append("least_gain: not replayed, every dispute asks one more annotator.")
    comparison = {"in_force": asdict(results[0]), "what_if": asdict(results[1]), "left_out": notes}
    if json is not None and str(json) != "-":
        json.write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    if str(json) == "-":
        sys.stdout.buffer.write(msgspec.json.encode(comparison) + b"\n")
    else:
        print("\n".join([*comparison_table(results[0], results[1]), *notes]))


def replay_record(replay: Replay, policy: Policy, *, compared_with: Policy) -> ReplayResult:
    """Replay a project under a policy.

    Raises:
        QualityControlError: A setting that needs an export differs from the other policy.
    """
    names = [item.name for item in fields(Policy)]
    differing = {name for name in names if getattr(policy, name) != getattr(compared_with, name)}
    beyond = sorted(differing - REPLAYABLE_SETTINGS - _WITHOUT_EFFECT)
    if beyond:
        raise QualityControlError(
            f"A project cannot be replayed with another {', '.join(beyond)}.",
            fix="Export the project as JSON and pass it with --from: an export is judged again.",
            code="not_replayable",
            status=422,
        )
    return replay.run(
        agreement=policy.agreement,
        annotators=min(policy.annotators, MAX_ANNOTATORS),
        max_annotators=min(policy.max_annotators, MAX_ANNOTATORS),
        every_control=policy.every_control,
        review_not_judged=policy.review_not_judged,
    )


def _readable(export: Export, unreadable: list[MalformedTask]) -> Iterator[Task]:
    """Yield the readable tasks of an export; collect the errors of the others in ``unreadable``."""
    for task in export.tasks():
        if isinstance(task, Task):
            yield task
        else:
            unreadable.append(task)


def replay_export(
    tasks: Iterable[Task], policies: Sequence[Policy], export: Export
) -> tuple[list[ReplayResult], list[str]]:
    """Judge tasks under each policy, adding annotators in the order of submission.

    Returns:
        One result per policy, and notes about what is left out.
    """
    counts: list[Counter[str]] = [Counter() for _ in policies]
    agreed: list[Counter[int]] = [Counter() for _ in policies]
    truths = without_prelabel = 0
    for task in tasks:
        all_answers = read_answers(task, config=export.config)
        answers = [answer for answer in all_answers if not answer.ground_truth]
        truths += len(answers) < len(all_answers)
        without_prelabel += any(lacks_predictions(task, policy) for policy in policies)
        for policy, count, agreed_by_labels in zip(policies, counts, agreed, strict=True):
            outcome, labels, reviewed = _judge_in_order(task, answers, policy, export.config)
            count.update({"tasks": 1, outcome: 1, "labels": labels, "review": int(reviewed)})
            if outcome == "agreed":
                agreed_by_labels[labels] += 1
    notes = [missing_prelabels_message(without_prelabel)] if without_prelabel else []
    if truths:
        verb = "task has" if truths == 1 else "tasks have"
        notes.append(
            f"{truths:,} {verb} a ground truth: it is left out, and the other annotations are replayed without it."
        )
    return [
        ReplayResult(
            count["tasks"], policy.annotators, dict(sorted(agreed_by_labels.items())), count["review"], count["open"],
            count["waiting"], count["labels"], None, count["disputed"], count["not_judged"],
        )
        for policy, count, agreed_by_labels in zip(policies, counts, agreed, strict=True)
    ], notes  # fmt: skip


def comparison_table(before: ReplayResult, after: ReplayResult) -> list[str]:
    """Comparison of two replays in a few lines."""
    rows = [
        ("tasks", before.tasks, after.tasks),
        ("agreed", before.agreed_tasks, after.agreed_tasks),
        ("disputes", before.disputes, after.disputes),
        ("not judged", before.not_judged, after.not_judged),
        ("for a reviewer", before.review, after.review),
        ("one annotator missing", before.open, after.open),
        ("too few annotators yet", before.waiting, after.waiting),
        ("labels", before.labels, after.labels),
    ]
    lines = [f"{'':<30} {'in force':>10} {'what if':>10} {'change':>10}"]
    for name, before_value, after_value in rows:
        change = f" {after_value - before_value:>+10,}" if before_value != after_value else ""
        lines.append(f"{name:<30} {before_value:>10,} {after_value:>10,}{change}")
    return lines


def _judge_in_order(
    task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None
) -> tuple[str, int, bool]:
    """(outcome of a task, labels needed, whether a reviewer decides)."""
    for count in range(policy.annotators, policy.max_annotators + 1):
        if count > len(answers) >= policy.annotators:
            return "open", count, False
        submitted = answers[:count]
        judged = judge_task(task, submitted, policy, config=config)
        outcome = judged.verdict.outcome
        if outcome != "disputed" or count == policy.max_annotators:
            return outcome, len(submitted), is_for_review(judged.verdict, policy, judged.reasons)
    raise AssertionError("a policy asks for at least one number of annotators")


def _not_replayable(policies: Sequence[Policy]) -> list[str]:
    """Notes about settings of the policies that a replay of a project leaves out."""
    names = sorted({name for policy in policies for name in _NEED_AN_EXPORT if getattr(policy, name)})
    lines = []
    if names:
        lines.append(
            f"{', '.join(names)}: left out, they need an export. Export the project as JSON and pass it with --from."
        )
    if any(policy.max_annotators > MAX_ANNOTATORS for policy in policies):
        lines.append(f"max_annotators: only the first {MAX_ANNOTATORS} annotators of a task are replayed.")
    return lines
