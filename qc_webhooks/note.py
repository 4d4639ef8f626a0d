"""The note on a task: each conflict in plain words, with its place and amount, and without anybody's name."""

from collections.abc import Callable, Mapping

from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.policy import Policy
from qc_webhooks.verdict import Verdict

# A cell of Label Studio's table and a line above the image hold about this much.
MOST_CONFLICTS = 8


def write_note(verdict: Verdict, policy: Policy) -> str:
    """What an annotator or a reviewer needs to know about a task. Annotators are counted, never named."""
    if verdict.outcome == "waiting":
        return f"{verdict.annotators} of {policy.annotators} annotators have submitted.{_uncompared(verdict)}"
    if verdict.ground_truth is not None:
        return "Settled: one annotation is marked as the ground truth."
    if verdict.outcome == "agreed":
        return f"{len(verdict.majority)} of {verdict.annotators} annotators agree.{_uncompared(verdict)}"
    lines = [_LINES[conflict.type](conflict) for conflict in verdict.conflicts[:MOST_CONFLICTS]]
    if len(verdict.conflicts) > MOST_CONFLICTS:
        lines.append(f"and {len(verdict.conflicts) - MOST_CONFLICTS} more")
    head = "" if verdict.annotators == 2 else f"No majority among {verdict.annotators} annotators; the closest two: "
    return f"{head}{'; '.join(lines)}.{_uncompared(verdict)}"


def _uncompared(verdict: Verdict) -> str:
    """What had no part in the verdict: a note that kept silent about it would promise too much."""
    unread = f" {len(verdict.unread)} result(s) could not be read." if verdict.unread else ""
    return unread + (f" Not compared: {', '.join(verdict.uncompared)}." if verdict.uncompared else "")


def place(conflict: Conflict) -> str:
    """Where on the image, in words of a three by three grid: "at the upper left", "in the middle", "at the bottom"."""
    if conflict.bounds is None:
        return ""
    left, top, right, bottom = conflict.bounds
    column, row = _third((left + right) / 2), _third((top + bottom) / 2)
    where = _PLACES[row][column]
    return f"{where} of image {conflict.item_index + 1}" if conflict.item_index else where


_PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


def _third(position: float) -> int:
    return min(max(int(position * 3), 0), 2)


def _missing(conflict: Conflict) -> str:
    return f"missing: {_name(conflict.a)} {place(conflict)}{_size(conflict)}, in the first annotation only"


def _extra(conflict: Conflict) -> str:
    return f"extra: {_name(conflict.b)} {place(conflict)}{_size(conflict)}, in the second annotation only"


def _label(conflict: Conflict) -> str:
    return f"label: {_name(conflict.a)} or {_name(conflict.b)} {place(conflict)}"


def _low_overlap(conflict: Conflict) -> str:
    return f"low overlap: {_name(conflict.a)} {place(conflict)}, {100 * (conflict.iou or 0):.0f} %"


def _choice(conflict: Conflict) -> str:
    return f"{conflict.control}: {_name(conflict.a, empty='no answer')} or {_name(conflict.b, empty='no answer')}"


def _name(labels: tuple[str, ...], *, empty: str = "a region without label") -> str:
    return " + ".join(labels) or empty


def _size(conflict: Conflict) -> str:
    if conflict.bounds is None:
        return ""
    left, top, right, bottom = conflict.bounds
    return f" ({100 * (right - left):.0f} x {100 * (bottom - top):.0f} % of the image)"


_LINES: Mapping[str, Callable[[Conflict], str]] = {
    "missing": _missing,
    "extra": _extra,
    "label": _label,
    "low_overlap": _low_overlap,
    "choice": _choice,
}
