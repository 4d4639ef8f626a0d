"""The note on a task: each conflict in plain words, with its place and amount, and without anybody's name."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.agreement.region_text import place_of, thing
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.verdict import Verdict

# What can be read at a glance in a cell of Label Studio's table or in a line above the image.
MOST_CONFLICTS = 3
_LONGEST_TEXT = 40
# Of a sentence about many regions.
MOST_LABELS = 10


def write_note(verdict: Verdict, policy: Policy, *, doubt: float | None = None, more: Sequence[str] = ()) -> str:
    """What an annotator or a reviewer needs to know about a task. Annotators are counted, never named.

    Args:
        verdict: What was found.
        policy: The project's policy.
        doubt: Of an agreed task that is sent to one more annotator: errors that its consensus is likely to hold.
        more: Further sentences.
    """
    return " ".join((_verdict_note(verdict, policy, doubt), *more))


def _verdict_note(verdict: Verdict, policy: Policy, doubt: float | None) -> str:
    if verdict.outcome == "waiting":
        return f"{verdict.annotators} of {policy.annotators} annotators have submitted.{_uncompared(verdict)}"
    if verdict.outcome == "not_judged":
        return f"Not judged: {' '.join(verdict.not_judged)}"
    if verdict.ground_truth is not None:
        return "Settled: one annotation is marked as the ground truth."
    if verdict.outcome == "agreed":
        more = "" if doubt is None else f" One more is asked: what they say together may be wrong ({_percent(doubt)})."
        return f"{len(verdict.majority)} of {verdict.annotators} annotators agree.{more}{_uncompared(verdict)}"
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


def _percent(errors: float) -> str:
    return f"{100 * min(errors, 1.0):.0f} %" if errors < 1 else f"{errors:.1f} errors"


def place(conflict: Conflict) -> str:
    """Where, in words: the stretch of a text, or the place on the image (see ``words.place_of``)."""
    return conflict.where or place_of(conflict.bounds, conflict.item_index)


def _one_sided(conflict: Conflict) -> str:
    return f"One has {thing(conflict.a or conflict.b, conflict.shape)} {place(conflict)}, another has not."


def _label(conflict: Conflict) -> str:
    one, other = _name(conflict.a), _name(conflict.b)
    return f"One says {one}, another says {other}: the {conflict.shape} {place(conflict)}."


def _low_overlap(conflict: Conflict) -> str:
    labels = " or ".join(dict.fromkeys(_name(labels) for labels in (conflict.a, conflict.b) if labels))
    whose = f"for {labels} " if labels else ""
    if conflict.shape == "point":
        return f"Two points {whose}{place(conflict)} lie apart."
    return f"Two {_plural(conflict.shape)} {whose}{place(conflict)} overlap only {100 * (conflict.iou or 0):.0f} %."


def _duplicate(conflict: Conflict) -> str:
    return f"One has {thing(conflict.a or conflict.b, conflict.shape)} {place(conflict)} twice."


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
    named = [f"{count} {label}" for label, count in counts.most_common(MOST_LABELS)]
    more = [f"{len(counts) - MOST_LABELS} more labels"] if len(counts) > MOST_LABELS else []
    labels = ", ".join((*named, *more))
    inner = f" ({labels})" if labels else ""
    return f"One has {conflict.count} {_plural(conflict.shape)}{inner}, another has none."


def _choice(conflict: Conflict) -> str:
    one, other = ("gives no answer" if not said else f"says {_name(said)}" for said in (conflict.a, conflict.b))
    return f"{conflict.control}: one {one}, another {other}."


def _answer(conflict: Conflict) -> str:
    one, other = ("gives no answer" if not said else f'says "{_cut(said)}"' for said in (conflict.a, conflict.b))
    return f"{conflict.control}: one {one}, another {other}."


def _not_named(conflict: Conflict) -> str:
    return f"{conflict.control}: {conflict.where}."


def _cut(said: tuple[str, ...]) -> str:
    text = " ".join(" ".join(said).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}\u2026"


def _name(labels: tuple[str, ...], *, empty: str = "no label") -> str:
    more = (f"{len(labels) - MOST_LABELS} more",) if len(labels) > MOST_LABELS else ()
    return " + ".join((*labels[:MOST_LABELS], *more)) or empty


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
    "answer": _answer,
    "not_named": _not_named,
}
