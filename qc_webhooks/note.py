"""The note on a task: each conflict in plain words, with its place and amount, and without anybody's name."""

from collections import Counter
from collections.abc import Callable, Mapping

from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.policy import Policy
from qc_webhooks.verdict import Verdict

# What can be read at a glance in a cell of Label Studio's table or in a line above the image.
MOST_CONFLICTS = 3


def write_note(verdict: Verdict, policy: Policy) -> str:
    """What an annotator or a reviewer needs to know about a task. Annotators are counted, never named."""
    if verdict.outcome == "waiting":
        return f"{verdict.annotators} of {policy.annotators} annotators have submitted.{_uncompared(verdict)}"
    if verdict.ground_truth is not None:
        return "Settled: one annotation is marked as the ground truth."
    if verdict.outcome == "agreed":
        return f"{len(verdict.majority)} of {verdict.annotators} annotators agree.{_uncompared(verdict)}"
    lines = [describe(conflict) for conflict in verdict.conflicts[:MOST_CONFLICTS]]
    if len(verdict.conflicts) > MOST_CONFLICTS:
        lines.append(f"And {len(verdict.conflicts) - MOST_CONFLICTS} more.")
    head = "" if verdict.annotators == 2 else f"No majority among {verdict.annotators} annotators. The closest two: "
    return f"{head}{' '.join(lines)}{_uncompared(verdict)}"


def describe(conflict: Conflict) -> str:
    """One conflict as one sentence."""
    return " ".join(_LINES[conflict.type](conflict).split())


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


def _one_sided(conflict: Conflict) -> str:
    return f"One has {_thing(conflict.a or conflict.b, conflict.shape)} {place(conflict)}, another has not."


def _label(conflict: Conflict) -> str:
    one, other = _name(conflict.a), _name(conflict.b)
    return f"One says {one}, another says {other}: the {conflict.shape} {place(conflict)}."


def _low_overlap(conflict: Conflict) -> str:
    labels = " or ".join(dict.fromkeys(_name(labels) for labels in (conflict.a, conflict.b) if labels))
    whose = f"for {labels} " if labels else ""
    return f"Two {_plural(conflict.shape)} {whose}{place(conflict)} overlap only {100 * (conflict.iou or 0):.0f} %."


def _duplicate(conflict: Conflict) -> str:
    return f"One has {_thing(conflict.a or conflict.b, conflict.shape)} {place(conflict)} twice."


def _grouped(conflict: Conflict) -> str:
    labels = _name(tuple(dict.fromkeys((*conflict.a, *conflict.b))), empty="")
    shapes = _plural(conflict.shape)
    whose = f" for {labels}" if labels else ""
    return f"One has a single {conflict.shape}{whose} {place(conflict)} where another has {conflict.count} {shapes}."


def _attribute(conflict: Conflict) -> str:
    said = f"one says {_name(conflict.a, empty='nothing')}, another says {_name(conflict.b, empty='nothing')}"
    return f"{conflict.control} of the {conflict.shape} {place(conflict)}: {said}."


def _empty(conflict: Conflict) -> str:
    counts = Counter(conflict.a or conflict.b)
    labels = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    inner = f" ({labels})" if labels else ""
    return f"One has {conflict.count} {_plural(conflict.shape)}{inner}, another has none."


def _choice(conflict: Conflict) -> str:
    one, other = ("gives no answer" if not said else f"says {_name(said)}" for said in (conflict.a, conflict.b))
    return f"{conflict.control}: one {one}, another {other}."


def _name(labels: tuple[str, ...], *, empty: str = "no label") -> str:
    return " + ".join(labels) or empty


def _thing(labels: tuple[str, ...], shape: str) -> str:
    name = " + ".join(labels) or f"{shape} without a label"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("x") else f"{shape}s"


_LINES: Mapping[str, Callable[[Conflict], str]] = {
    "missing": _one_sided,
    "extra": _one_sided,
    "label": _label,
    "low_overlap": _low_overlap,
    "duplicate": _duplicate,
    "merged": _grouped,
    "split": _grouped,
    "attribute": _attribute,
    "empty": _empty,
    "choice": _choice,
}
