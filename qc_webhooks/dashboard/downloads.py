"""Everything of the dashboard as CSV and JSON: one table of downloads, each a stream of rows."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from qc_webhooks.annotators import AnnotatorProfile
from qc_webhooks.annotators.reliability import LabelReliability
from qc_webhooks.dashboard.dispute_queue import Queue, Search
from qc_webhooks.dashboard.formatting import iso
from qc_webhooks.dashboard.whatif import Scenario, scenarios
from qc_webhooks.report.project_summary import ProjectSummary
from qc_webhooks.report.replay import Replay
from qc_webhooks.statistics import Estimate

Row = dict[str, Any]

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Source:
    """What a download is made of."""

    queue: Queue
    search: Search
    board: ProjectSummary
    replay: Replay | None
    scenario: Scenario


def _disputes(source: Source) -> Iterator[Row]:
    for row in source.queue.all(source.search):
        yield {**row, "judged_at": iso(row["judged_at"]), "people": [source.board.name(who) for who in row["people"]]}


def _tasks(source: Source) -> Iterator[Row]:
    for row in source.queue.tasks():
        moments = {name: iso(row[name]) for name in ("judged_at", "annotated_at")}
        yield {**row, **moments, "people": [source.board.name(who) for who in row["people"]]}


def _agreement(source: Source) -> Iterator[Row]:
    for day in source.board.days:
        yield {
            "begins": iso(day.at)[:10], "days": 7 if source.board.weekly else 1, "tasks": day.tasks,
            "labels": day.labels, **_estimate("agreement", day.agreement), **_estimate("disputed", day.disputed),
        }  # fmt: skip


def _statistics(source: Source) -> Iterator[Row]:
    for control, kinds in source.board.statistics.items():
        for kind, values in kinds.items():
            for name, found in values.items():
                yield {"control": control, "ratings": kind, "statistic": name, **_estimate("value", found)}


def _annotators(source: Source) -> Iterator[Row]:
    for each in source.board.people:
        yield _annotator(each, source.board)


def _annotator(each: AnnotatorProfile, board: ProjectSummary) -> Row:
    rated, speed, drift = each.reliability, each.speed, each.drift
    row: Row = {"annotator": each.annotator, "name": board.name(each.annotator), "tasks": rated.tasks}
    lacking = Estimate.lacking(0)
    row |= _estimate("recall", rated.regions.recall if rated.regions else lacking)
    row |= _estimate("precision", rated.regions.precision if rated.regions else lacking)
    row |= _estimate("against_truth", each.against_truth) | _estimate("against_decided", each.against_decided)
    row["strictness"] = rated.regions.strictness if rated.regions else None
    for control, found in sorted({**rated.labels, **rated.choices}.items()):
        row |= _estimate(f"accuracy_{control}", found.accuracy)
    row |= {
        "median_seconds": speed.seconds if speed else None,
        "seconds_a_region": speed.seconds_a_region if speed else None,
        "hours": speed.hours if speed else None,
        "pace": speed.pace.value if speed else None,
        "hasty": speed.hasty.value if speed else None,
        "size": each.size.value,
        "repeats": each.repeats.value,
        "pre_labels_untouched": each.anchoring.untouched.value if each.anchoring else None,
        "pre_labels_left_where_others_correct": each.anchoring.left.value if each.anchoring else None,
        "drift_since": iso(drift.since) if drift else "",
        "agreement_before": drift.before if drift else None,
        "agreement_after": drift.after if drift else None,
        "same_to_the_pixel_as": [board.name(copy.other) for copy in each.copies],
        "concerns": list(each.concerns),
    }
    return row


def _labels(source: Source) -> Iterator[Row]:
    for row in source.board.labels:
        confused = row.confused[0] if row.confused else ("", None)
        yield {
            "control": row.control, "label": row.label, "objects": row.objects,
            **_estimate("agreement", row.agreement), "most_confused_with": confused[0], "share": confused[1],
        }  # fmt: skip


def _confusion(source: Source) -> Iterator[Row]:
    for confusion in source.board.confusions:
        for one, row in zip(confusion.labels, confusion.pairs, strict=True):
            for other, number in zip(confusion.labels, row, strict=True):
                if number:
                    yield {"control": confusion.control, "one_says": one, "another_says": other, "pairs": number}


def _annotator_confusion(source: Source) -> Iterator[Row]:
    for each in source.board.people:
        rated: Mapping[str, LabelReliability] = {**each.reliability.labels, **each.reliability.choices}
        for control, found in rated.items():
            for truth, answers in found.confusion.items():
                for answer, number in answers.items():
                    yield {
                        "annotator": each.annotator, "name": source.board.name(each.annotator), "control": control,
                        "truth": truth, "answer": answer, "expected_count": number,
                    }  # fmt: skip


def _splits(source: Source) -> Iterator[Row]:
    for split in source.board.splits:
        named = {name: [source.board.name(who) for who in getattr(split, name)] for name in ("first", "second", "who")}
        yield {
            "control": split.control, "answer": split.answers[0], "other_answer": split.answers[1],
            "objects": split.items, "reason": split.kind, "lean_to_the_answer": named["first"],
            "lean_to_the_other": named["second"], "due_to": named["who"], "text": split.text,
        }  # fmt: skip


def _savings(source: Source) -> Iterator[Row]:
    savings = source.board.savings
    for annotators in range(2, 6):
        yield {
            "fixed_annotators": annotators, "settled_tasks": savings.tasks, "labels": savings.labels,
            "labels_saved": savings.saved(annotators), "hours_saved": savings.hours(annotators),
        }  # fmt: skip


def _what_if(source: Source) -> Iterator[Row]:
    if source.replay is None:
        return
    for scenario, found in scenarios(source.replay, source.scenario):
        yield {
            "agreement": scenario.agreement, "annotators": scenario.annotators,
            "max_annotators": scenario.max_annotators, "every_control": scenario.every_control, "tasks": found.tasks,
            "agreed": found.settled, "disputes": found.disputes, "to_reviewer": found.review,
            "one_more_than_recorded": found.open, "too_few_annotators": found.waiting, "labels": found.labels,
            "not_judged": found.not_judged,
        }  # fmt: skip


# Name of a file -> its rows. Every one comes as NAME.csv and NAME.json.
FILES: Mapping[str, Callable[[Source], Iterator[Row]]] = {
    "disputes": _disputes,
    "tasks": _tasks,
    "agreement": _agreement,
    "statistics": _statistics,
    "annotators": _annotators,
    "annotator-confusion": _annotator_confusion,
    "labels": _labels,
    "confusion": _confusion,
    "splits": _splits,
    "savings": _savings,
    "what-if": _what_if,
}


def as_json(rows: Iterator[Row]) -> Iterator[bytes]:
    """A JSON array, a row at a time."""
    yield b"["
    for place, row in enumerate(rows):
        yield (b",\n" if place else b"\n") + msgspec.json.encode(row)
    yield b"\n]\n"


def as_csv(rows: Iterator[Row]) -> Iterator[bytes]:
    """CSV with a heading, UTF-8; lists are joined by semicolons. The columns are those of all of the first rows.

    A cell that a spreadsheet would take for a formula gets an apostrophe: names and notes come from annotators.
    """
    head: list[Row] = []
    for row in rows:
        head.append(row)
        if len(head) == 200:
            break
    columns = list(dict.fromkeys(name for row in head for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for part in (head, rows):
        for row in part:
            writer.writerow({name: _cell(value) for name, value in row.items()})
            if out.tell() > 65_536:
                yield out.getvalue().encode()
                out.seek(0)
                out.truncate()
    yield out.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(str(each) for each in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _estimate(name: str, found: Estimate) -> Row:
    told = asdict(found)
    return {name: told["value"], f"{name}_low": told["low"], f"{name}_high": told["high"], f"{name}_n": told["n"]}
