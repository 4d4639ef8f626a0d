"""CSV and JSON downloads of the dashboard: one table of row generators."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from qc_webhooks.annotators import AnnotatorProfile
from qc_webhooks.annotators.reliability import LabelReliability
from qc_webhooks.dashboard.dispute_queue import DisputeQueue, Search
from qc_webhooks.dashboard.formatting import iso
from qc_webhooks.dashboard.whatif import Scenario, replay_thresholds
from qc_webhooks.report.project_summary import ProjectSummary
from qc_webhooks.report.replay import Replay
from qc_webhooks.statistics import Estimate

Row = dict[str, Any]

# First characters that a spreadsheet reads as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class DownloadSource:
    """Data of a download."""

    queue: DisputeQueue
    search: Search
    summary: ProjectSummary
    replay: Replay | None
    scenario: Scenario


def _dispute_rows(source: DownloadSource) -> Iterator[Row]:
    for row in source.queue.iter_disputes(source.search):
        yield {
            **row,
            "judged_at": iso(row["judged_at"]),
            "people": [source.summary.name(annotator) for annotator in row["people"]],
        }


def _task_rows(source: DownloadSource) -> Iterator[Row]:
    for row in source.queue.iter_tasks():
        times = {name: iso(row[name]) for name in ("judged_at", "annotated_at")}
        yield {**row, **times, "people": [source.summary.name(annotator) for annotator in row["people"]]}


def _agreement_rows(source: DownloadSource) -> Iterator[Row]:
    for day in source.summary.days:
        yield {
            "begins": iso(day.at)[:10], "days": 7 if source.summary.weekly else 1, "tasks": day.tasks,
            "labels": day.labels, **_estimate_columns("agreement", day.agreement),
            **_estimate_columns("disputed", day.disputed),
        }  # fmt: skip


def _statistic_rows(source: DownloadSource) -> Iterator[Row]:
    for control, kinds in source.summary.statistics.items():
        for kind, values in kinds.items():
            for name, estimate in values.items():
                yield _statistic_row(control, kind, name, estimate)
    for control, alpha in source.summary.detections.items():
        for threshold, together, mean in alpha.curve:
            yield _statistic_row(control, "detection", f"alpha_detection_at_{threshold:.2f}", together)
            yield _statistic_row(control, "detection", f"alpha_detection_mean_at_{threshold:.2f}", mean)


def _statistic_row(control: str, kind: str, name: str, estimate: Estimate) -> Row:
    return {"control": control, "ratings": kind, "statistic": name, **_estimate_columns("value", estimate)}


def _annotator_rows(source: DownloadSource) -> Iterator[Row]:
    for profile in source.summary.people:
        yield _annotator_row(profile, source.summary)


def _annotator_row(profile: AnnotatorProfile, summary: ProjectSummary) -> Row:
    reliability, speed, drift = profile.reliability, profile.speed, profile.drift
    row: Row = {"annotator": profile.annotator, "name": summary.name(profile.annotator), "tasks": reliability.tasks}
    missing = Estimate.insufficient(0)
    row |= _estimate_columns("recall", reliability.regions.recall if reliability.regions else missing)
    row |= _estimate_columns("precision", reliability.regions.precision if reliability.regions else missing)
    for name in ("recall_of_found", "precision_by_others", "recall_on_truth", "precision_on_truth"):
        row |= _estimate_columns(name, getattr(reliability.regions, name) if reliability.regions else missing)
    row |= _estimate_columns("against_truth", profile.against_truth) | _estimate_columns(
        "against_decided", profile.against_decided
    )
    row["strictness"] = reliability.regions.strictness if reliability.regions else None
    for control, control_reliability in sorted({**reliability.labels, **reliability.choices}.items()):
        row |= _estimate_columns(f"accuracy_{control}", control_reliability.accuracy)
    row |= {
        "median_seconds": speed.seconds if speed else None,
        "seconds_a_region": speed.seconds_a_region if speed else None,
        "hours": speed.hours if speed else None,
        "pace": speed.pace.value if speed else None,
        "hasty": speed.hasty.value if speed else None,
        "size": profile.size.value,
        "repeats": profile.repeats.value,
        "pre_labels_untouched": profile.anchoring.untouched.value if profile.anchoring else None,
        "pre_labels_left_where_others_correct": profile.anchoring.left.value if profile.anchoring else None,
        "drift_since": iso(drift.since) if drift else "",
        "agreement_before": drift.before if drift else None,
        "agreement_after": drift.after if drift else None,
        "same_to_the_pixel_as": [summary.name(copy.other) for copy in profile.copies],
        "concerns": list(profile.concerns),
    }
    return row


def _label_rows(source: DownloadSource) -> Iterator[Row]:
    for row in source.summary.labels:
        confused = row.confused[0] if row.confused else ("", None)
        yield {
            "control": row.control, "label": row.label, "objects": row.objects,
            **_estimate_columns("agreement", row.agreement), "most_confused_with": confused[0], "share": confused[1],
        }  # fmt: skip


def _confusion_rows(source: DownloadSource) -> Iterator[Row]:
    for confusion in source.summary.confusions:
        for first_answer, row in zip(confusion.labels, confusion.pairs, strict=True):
            for second_answer, number in zip(confusion.labels, row, strict=True):
                if number:
                    yield {
                        "control": confusion.control,
                        "one_says": first_answer,
                        "another_says": second_answer,
                        "pairs": number,
                    }


def _annotator_confusion_rows(source: DownloadSource) -> Iterator[Row]:
    for profile in source.summary.people:
        rated: Mapping[str, LabelReliability] = {**profile.reliability.labels, **profile.reliability.choices}
        for control, reliability in rated.items():
            for truth, answers in reliability.confusion.items():
                for answer, number in answers.items():
                    yield {
                        "annotator": profile.annotator, "name": source.summary.name(profile.annotator),
                        "control": control, "truth": truth, "answer": answer, "expected_count": number,
                    }  # fmt: skip


def _pattern_rows(source: DownloadSource) -> Iterator[Row]:
    for pattern in source.summary.splits:
        names_by_field = {
            name: [source.summary.name(annotator) for annotator in getattr(pattern, name)]
            for name in ("first", "second", "who")
        }
        yield {
            "control": pattern.control, "answer": pattern.answers[0], "other_answer": pattern.answers[1],
            "objects": pattern.items, "reason": pattern.kind, "lean_to_the_answer": names_by_field["first"],
            "lean_to_the_other": names_by_field["second"], "due_to": names_by_field["who"], "text": pattern.text,
            "content": pattern.content, "measure": pattern.measure, "evidence": pattern.evidence,
            "advice": pattern.advice,
        }  # fmt: skip


def _savings_rows(source: DownloadSource) -> Iterator[Row]:
    savings = source.summary.savings
    for annotators in range(2, 6):
        yield {
            "fixed_annotators": annotators, "settled_tasks": savings.tasks, "labels": savings.labels,
            "labels_saved": savings.saved(annotators), "hours_saved": savings.hours(annotators),
        }  # fmt: skip


def _what_if_rows(source: DownloadSource) -> Iterator[Row]:
    if source.replay is None:
        return
    for scenario, result in replay_thresholds(source.replay, source.scenario):
        yield {
            "agreement": scenario.agreement, "annotators": scenario.annotators,
            "max_annotators": scenario.max_annotators, "every_control": scenario.every_control, "tasks": result.tasks,
            "agreed": result.agreed_tasks, "disputes": result.disputes, "to_reviewer": result.review,
            "one_more_than_recorded": result.open, "too_few_annotators": result.waiting, "labels": result.labels,
            "not_judged": result.not_judged,
        }  # fmt: skip


# File name -> its rows. Each is served as NAME.csv and NAME.json.
DOWNLOADS: Mapping[str, Callable[[DownloadSource], Iterator[Row]]] = {
    "disputes": _dispute_rows,
    "tasks": _task_rows,
    "agreement": _agreement_rows,
    "statistics": _statistic_rows,
    "annotators": _annotator_rows,
    "annotator-confusion": _annotator_confusion_rows,
    "labels": _label_rows,
    "confusion": _confusion_rows,
    "splits": _pattern_rows,
    "savings": _savings_rows,
    "what-if": _what_if_rows,
}


def as_json(rows: Iterator[Row]) -> Iterator[bytes]:
    """Stream rows as a JSON array."""
    yield b"["
    for index, row in enumerate(rows):
        yield (b",\n" if index else b"\n") + msgspec.json.encode(row)
    yield b"\n]\n"


def as_csv(rows: Iterator[Row]) -> Iterator[bytes]:
    """Stream rows as UTF-8 CSV with a header; lists are joined by semicolons. The first 200 rows define the columns.

    A cell that a spreadsheet would read as a formula gets an apostrophe: names and notes come from annotators.
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
        value = "; ".join(str(item) for item in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _estimate_columns(name: str, estimate: Estimate) -> Row:
    values = asdict(estimate)
    return {
        name: values["value"],
        f"{name}_low": values["low"],
        f"{name}_high": values["high"],
        f"{name}_n": values["n"],
    }
