"""`labelloop qc what-if`: the past under another policy, from a project's record or by judging an export anew."""

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
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from qc_webhooks.agreement import Answers, read_answers
from qc_webhooks.cli.offline import no_prelabels, read_config, refuse_unreadable, show_progress
from qc_webhooks.decision.review_reasons import is_for_review, judge_task, lacks_predictions
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy, parse_policy, read_policy
from qc_webhooks.report.replay import MOST_ANNOTATORS, Replay, Replayed
from qc_webhooks.report.report import Export
from qc_webhooks.schedulers.project_summary import BoardStore

# What a record can be replayed with. It holds how far each two agreed; what changes that needs the shapes.
REPLAYED = frozenset({"agreement", "every_control", "annotators", "max_annotators", "review_not_judged"})
# What sends agreed tasks to a reviewer: it is judged from an export, and left out of a record.
_NEED_AN_EXPORT = ("review", "review_share", "rules", "least_model_score", "least_model_agreement",
                   "least_model_doubt")  # fmt: skip
# What has no part in a replay: how disputes are shown, how often one looks, what an annotator is told.
_NO_PART = frozenset({"adjudicate", "set_maximum_annotations", "least_gain", *_NEED_AN_EXPORT})


class NoRecord(QualityControlError):
    """There is no record of the project that could be replayed."""

    code = "no_record"
    status = 404


class NotReplayable(QualityControlError):
    """A setting differs that the record says nothing about."""

    code = "not_replayable"
    status = 422


def what_if(
    project: int | None = None,
    *,
    policy: Path,
    against: Path | None = None,
    source: Annotated[Path | None, Parameter(name=["--from"])] = None,
    label_config: Path | None = None,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Replay the past under another policy: how many disputes, reviews and labels there would have been.

    Annotators are replayed in the order in which they submitted: as many as the policy asks for at first, then one more
    as long as there is no majority. Where one more is asked than there was, the task counts as open; nothing is made
    up. That a further annotator is asked only where it pays (least_gain) is not replayed: every dispute asks.

    A project's record is replayed in a second, for agreement, every_control, annotators and max_annotators; what sends
    agreed tasks to a reviewer is left out of it, and named. An export is judged anew, for every setting.

    Args:
        project: The project's id in Label Studio; its record is replayed.
        policy: The policy.toml to try.
        against: The policy.toml to compare with; by default what is in force (with --from: the defaults).
        source: A JSON export of Label Studio to judge anew, in place of a project.
        label_config: The labelling interface of the export, as an XML file.
        json: Also write the comparison there ("-": to the standard output alone).
    """
    if (project is None) == (source is None):
        raise QualityControlError(
            "There is nothing to replay, or two things.", fix="Name a project, or an export with --from."
        )
    if source is not None:
        config = None if label_config is None else read_config(label_config)
        before = Policy() if against is None else parse_policy(against, config=config)
        after = parse_policy(policy, config=config)
        with show_progress(source, rounds=1) as progress:
            export = Export(source, config, progress)
            unreadable: list[MalformedTask] = []
            found, left_out = judge_anew(_readable(export, unreadable), (before, after), export)
        refuse_unreadable(source, found[0].tasks, unreadable)
        if unreadable:
            left_out.append(f"{len(unreadable)} tasks could not be read: {unreadable[0]}")
    else:
        settings = Settings()
        before = read_policy(settings.home, project or 0) if against is None else parse_policy(against)
        after = parse_policy(policy, base=before)
        replay = BoardStore(open_database(settings)).replay(project or 0)
        if replay is None:
            raise NoRecord(
                f"Project {project} has no record yet.",
                fix="Connect it and run `labelloop worker`; a record is made within a minute of the first verdict.",
            )
        found = [replayed(replay, each, compared_with=before) for each in (before, after)]
        left_out = _left_out((before, after))
    if before.least_gain != after.least_gain:
        left_out.append("least_gain: not replayed, every dispute asks one more annotator.")
    told = {"in_force": asdict(found[0]), "what_if": asdict(found[1]), "left_out": left_out}
    if json is not None and str(json) != "-":
        json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
    if str(json) == "-":
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    else:
        print("\n".join([*table(found[0], found[1]), *left_out]))


def replayed(replay: Replay, policy: Policy, *, compared_with: Policy) -> Replayed:
    """A record under a policy.

    Raises:
        NotReplayable: It differs from the other policy in what the record does not hold.
    """
    names = [item.name for item in fields(Policy)]
    differing = {name for name in names if getattr(policy, name) != getattr(compared_with, name)}
    beyond = sorted(differing - REPLAYED - _NO_PART)
    if beyond:
        raise NotReplayable(
            f"The record of a project cannot be replayed with another {', '.join(beyond)}.",
            fix="Export the project as JSON and name it with --from: an export is judged anew.",
        )
    return replay.run(
        agreement=policy.agreement,
        annotators=min(policy.annotators, MOST_ANNOTATORS),
        max_annotators=min(policy.max_annotators, MOST_ANNOTATORS),
        every_control=policy.every_control,
        review_not_judged=policy.review_not_judged,
    )


def _readable(export: Export, unreadable: list[MalformedTask]) -> Iterator[Task]:
    """The tasks of an export; those that cannot be read are noted."""
    for task in export.tasks():
        if isinstance(task, Task):
            yield task
        else:
            unreadable.append(task)


def judge_anew(tasks: Iterable[Task], policies: Sequence[Policy], export: Export) -> tuple[list[Replayed], list[str]]:
    """Tasks judged under each policy, annotator by annotator in the order of submission; and what is left out."""
    counts: list[Counter[str]] = [Counter() for _ in policies]
    agreed: list[Counter[int]] = [Counter() for _ in policies]
    truths = without_prelabel = 0
    for task in tasks:
        everybody = read_answers(task, config=export.config)
        answers = [each for each in everybody if not each.ground_truth]
        truths += len(answers) < len(everybody)
        without_prelabel += any(lacks_predictions(task, policy) for policy in policies)
        for policy, count, settled in zip(policies, counts, agreed, strict=True):
            outcome, labels, reviewed = _walk(task, answers, policy, export.config)
            count.update({"tasks": 1, outcome: 1, "labels": labels, "review": int(reviewed)})
            if outcome == "agreed":
                settled[labels] += 1
    left_out = [no_prelabels(without_prelabel)] if without_prelabel else []
    if truths:
        left_out.append(f"{truths} tasks have a ground truth: it is left out, and the others are replayed without it.")
    return [
        Replayed(
            count["tasks"], policy.annotators, dict(sorted(settled.items())), count["review"], count["open"],
            count["waiting"], count["labels"], None, count["disputed"], count["not_judged"],
        )
        for policy, count, settled in zip(policies, counts, agreed, strict=True)
    ], left_out  # fmt: skip


def table(before: Replayed, after: Replayed) -> list[str]:
    """The comparison in a few lines."""
    rows = [
        ("tasks", before.tasks, after.tasks),
        ("agreed", before.settled, after.settled),
        ("disputes", before.disputes, after.disputes),
        ("not judged", before.not_judged, after.not_judged),
        ("for a reviewer", before.review, after.review),
        ("one more asked than there was", before.open, after.open),
        ("too few annotators yet", before.waiting, after.waiting),
        ("labels", before.labels, after.labels),
    ]
    lines = [f"{'':<30} {'in force':>10} {'what if':>10} {'change':>10}"]
    for name, one, other in rows:
        change = f" {other - one:>+10,}" if one != other else ""
        lines.append(f"{name:<30} {one:>10,} {other:>10,}{change}")
    return lines


def _walk(task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None) -> tuple[str, int, bool]:
    """(what came of a task, labels that it took, whether a reviewer is to look)."""
    for count in range(policy.annotators, policy.max_annotators + 1):
        if count > len(answers) >= policy.annotators:
            return "open", count, False
        those = answers[:count]
        found = judge_task(task, those, policy, config=config)
        outcome = found.verdict.outcome
        if outcome != "disputed" or count == policy.max_annotators:
            return outcome, len(those), is_for_review(found.verdict, policy, found.reasons)
    raise AssertionError("a policy asks for at least one number of annotators")


def _left_out(policies: Sequence[Policy]) -> list[str]:
    """What of the policies a record cannot replay."""
    names = sorted({name for policy in policies for name in _NEED_AN_EXPORT if getattr(policy, name)})
    lines = []
    if names:
        lines.append(
            f"{', '.join(names)}: left out, a record does not hold what they need. Export the project as JSON and name"
            " it with --from."
        )
    if any(policy.max_annotators > MOST_ANNOTATORS for policy in policies):
        lines.append(f"max_annotators: a record holds the first {MOST_ANNOTATORS} annotators of a task.")
    return lines
