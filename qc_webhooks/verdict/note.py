"""The note on a task: each conflict in one sentence with position and amount, without naming annotators."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.agreement.region_text import position_text, region_name
from qc_webhooks.agreement.span_text import cut, one_line
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.verdict import TaskVerdict

# Conflicts that fit in a cell of Label Studio's table or in a line above the image.
MOST_CONFLICTS = 3
# Labels listed in a sentence about many regions.
MOST_LABELS = 10

# Type of conflict -> display name.
CONFLICT_NAMES: Mapping[str, str] = {
    "missing": "missed object",
    "extra": "extra object",
    "label": "different label",
    "low_overlap": "low overlap",
    "duplicate": "duplicate region",
    "merged": "objects merged",
    "split": "object split",
    "attribute": "different attribute",
    "empty": "empty annotation",
    "choice": "different answer",
    "answer": "different text or number",
    "not_named": "too many to list",
    "ground_truth": "ground truth in doubt",
}


def write_note(
    verdict: TaskVerdict, policy: Policy, *, expected_errors: float | None = None, more: Sequence[str] = ()
) -> str:
    """Write what an annotator or a reviewer needs to know about a task. Annotators are counted, never named.

    Args:
        verdict: Verdict on the task.
        policy: The project's policy.
        expected_errors: Expected errors of the consensus, for an agreed task that is sent to one more annotator.
        more: Further sentences.
    """
    return " ".join((_verdict_note(verdict, policy, expected_errors), *more))


def _verdict_note(verdict: TaskVerdict, policy: Policy, expected_errors: float | None) -> str:
    if verdict.outcome == "waiting":
        return f"{verdict.annotators} of {policy.annotators} annotators have submitted.{_uncompared(verdict)}"
    if verdict.outcome == "not_judged":
        return f"Not judged: {' '.join(verdict.not_judged)}"
    if verdict.ground_truth is not None:
        return "Resolved: one annotation is marked as ground truth."
    if verdict.outcome == "agreed":
        more = (
            ""
            if expected_errors is None
            else f" One more annotator is requested: the consensus may be wrong ({_percent(expected_errors)})."
        )
        agreeing = f"{len(verdict.majority)} of {verdict.annotators} annotators agree."
        return f"{agreeing}{_settled(verdict)}{more}{_uncompared(verdict)}"
    lines = [describe(conflict) for conflict in verdict.conflicts[:MOST_CONFLICTS]]
    if len(verdict.conflicts) > MOST_CONFLICTS:
        lines.append(f"And {len(verdict.conflicts) - MOST_CONFLICTS} more.")
    many = "Objects are in doubt" if verdict.disputed_objects else "No majority"
    head = "" if verdict.annotators == 2 else f"{many} among {verdict.annotators} annotators. The closest two: "
    return f"{head}{' '.join(lines)}{_uncompared(verdict)}"


def describe(conflict: Conflict) -> str:
    """Describe one conflict in one sentence."""
    return " ".join(_LINES[conflict.type](conflict).split())


def describe_against_truth(conflict: Conflict, kind: str) -> str:
    """Describe one conflict of a ground truth, with the annotators (``crowd``) or with another one (``truths``)."""
    truth, others, verb = (
        ("the ground truth", "the annotators", "do") if kind == "crowd" else ("the first", "the second", "does")
    )
    place = conflict_position(conflict)
    if conflict.type == "missing":
        text = f"{truth} has {region_name(conflict.a, conflict.shape)} {place}, {others} {verb} not."
    elif conflict.type == "extra":
        has = "have" if kind == "crowd" else "has"
        text = f"{others} {has} {region_name(conflict.b, conflict.shape)} {place}, {truth} does not."
    elif conflict.type == "label":
        say = "say" if kind == "crowd" else "says"
        text = f"{truth} says {_name(conflict.a)}, {others} {say} {_name(conflict.b)}: the {conflict.shape} {place}."
    else:
        text = describe(conflict)
    return " ".join(f"{text[0].upper()}{text[1:]}".split())


def _settled(verdict: TaskVerdict) -> str:
    if not verdict.settled:
        return ""
    return f" The majority settles {verdict.settled} difference{'s' if verdict.settled > 1 else ''}."


def _uncompared(verdict: TaskVerdict) -> str:
    """What the verdict does not cover: unreadable and uncompared answers."""
    results = f"{len(verdict.unread)} result{'s' if len(verdict.unread) > 1 else ''}"
    unread = f" {results} could not be read." if verdict.unread else ""
    return unread + (f" Not compared: {', '.join(verdict.uncompared)}." if verdict.uncompared else "")


def _percent(errors: float) -> str:
    return f"{100 * min(errors, 1.0):.0f} %" if errors < 1 else f"{errors:.1f} errors"


def conflict_position(conflict: Conflict) -> str:
    """Where, in words: the place of a span (see ``span_text``), or the position on the image (see ``region_text``)."""
    return conflict.where or position_text(conflict.bounds, conflict.item_index)


def _one_sided(conflict: Conflict) -> str:
    region = region_name(conflict.a or conflict.b, conflict.shape)
    return f"One annotator has {region} {conflict_position(conflict)}, another does not."


def _label(conflict: Conflict) -> str:
    first, second = _name(conflict.a), _name(conflict.b)
    return f"One annotator says {first}, another says {second}: the {conflict.shape} {conflict_position(conflict)}."


def _low_overlap(conflict: Conflict) -> str:
    labels = " or ".join(dict.fromkeys(_name(labels) for labels in (conflict.a, conflict.b) if labels))
    label_text = f"for {labels} " if labels else ""
    if conflict.shape == "point":
        return f"Two points {label_text}{conflict_position(conflict)} lie apart."
    subject = f"Two {_plural(conflict.shape)} {label_text}{conflict_position(conflict)}"
    return f"{subject} overlap only {100 * (conflict.iou or 0):.0f} %."


def _duplicate(conflict: Conflict) -> str:
    region = region_name(conflict.a or conflict.b, conflict.shape)
    return f"One annotator has {region} {conflict_position(conflict)} twice."


def _grouped(conflict: Conflict) -> str:
    labels = _name(tuple(dict.fromkeys((*conflict.a, *conflict.b))), empty="")
    shapes = _plural(conflict.shape)
    label_text = f" for {labels}" if labels else ""
    region = f"a single {conflict.shape}{label_text} {conflict_position(conflict)}"
    return f"One annotator has {region} where another has {conflict.count} {shapes}."


def _attribute(conflict: Conflict) -> str:
    said = _said(conflict, ", ")
    return f"{conflict.control} of the {conflict.shape} {conflict_position(conflict)}: one {said}."


def _empty(conflict: Conflict) -> str:
    counts = Counter(conflict.a or conflict.b)
    label_counts = [f"{count} {label}" for label, count in counts.most_common(MOST_LABELS)]
    more = [f"{len(counts) - MOST_LABELS} more labels"] if len(counts) > MOST_LABELS else []
    labels = ", ".join((*label_counts, *more))
    inner = f" ({labels})" if labels else ""
    return f"One annotator has {conflict.count} {_plural(conflict.shape)}{inner}, another has none."


def _choice(conflict: Conflict) -> str:
    first, second = (
        "gives no answer" if not values else f"says {_name(values)}" for values in (conflict.a, conflict.b)
    )
    return f"{conflict.control}: one {first}, another {second}."


def _answer(conflict: Conflict) -> str:
    return f"{conflict.control}: one {_said(conflict, ' ')}."


def _said(conflict: Conflict, separator: str) -> str:
    """What both wrote, from shortly before the first difference: `says "a car", another says "a cart"`."""
    first, second = (one_line(separator.join(values)) for values in (conflict.a, conflict.b))
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    said = (f'says "{cut(text, start)}"' if text else "gives no answer" for text in (first, second))
    return ", another ".join(said)


def _not_named(conflict: Conflict) -> str:
    return f"{conflict.control}: {conflict.where}."


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
