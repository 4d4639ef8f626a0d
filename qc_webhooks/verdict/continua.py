"""The spans of a task as continua: each text, recording or part of one, with what each annotator marked on it."""

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.labeling.studio.task import Task
from qc_webhooks.agreement.answers import Answers, Span, complete_answers
from qc_webhooks.verdict.dispute_card import SPANS, are_mergeable

# Whole units per second of a recording, or per unit of a series; characters are whole.
_STEPS = 100


class Continuum(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A text, a recording or a part of one, with what each annotator marked.

    Attributes:
        control: The control.
        length: Length in characters, or hundredths of a second or of another unit.
        units: (annotator, label, start, end) of each span.
    """

    control: str
    length: int
    units: tuple[tuple[int, str, int, int], ...]


def continua_of(task: Task, answers: Sequence[Answers], config: LabelConfig | None) -> tuple[Continuum, ...]:
    """The continua on which at least one annotator marked a span.

    The length is that of the text in the task's data, where the label config names it; otherwise the end of the last
    span, so that what no annotator marked after it is not seen. A time series begins with its first span.

    Args:
        task: The task.
        answers: One entry per annotator; that of a ground truth and incomplete ones are left out.
        config: The label config.
    """
    spans: dict[tuple[str, str, str], list[tuple[int, Span]]] = defaultdict(list)
    for submission in complete_answers(answers):
        if submission.ground_truth:
            continue
        for (control, kind), values in submission.controls.items():
            if kind == SPANS and are_mergeable(values):
                for span in values:
                    spans[control, span.to_name, span.scope].append((submission.annotator, span))
    continua = []
    for (control, to_name, scope), drawn in sorted(spans.items()):
        is_whole = all(edge == int(edge) for _, span in drawn for edge in span.extent)
        step = 1 if is_whole else _STEPS
        is_series = any(span.unit in {"number", "time"} for _, span in drawn)
        origin = min(span.extent[0] for _, span in drawn) if is_series else 0.0
        units = tuple(
            (annotator, " + ".join(sorted(span.labels)), round((start - origin) * step), round((end - origin) * step))
            for annotator, span in drawn
            for start, end in [span.extent]
        )
        length = max(end for *_, end in units)
        if not scope and step == 1:
            length = max(length, _text_length(task, config, to_name))
        continua.append(Continuum(control, length, units))
    return tuple(continua)


def _text_length(task: Task, config: LabelConfig | None, to_name: str) -> int:
    """Length of a text in the task's data; 0 if unknown, as for one behind a URL."""
    tag = config.objects.get(to_name) if config else None
    if tag is None or tag.tag.lower() != "text":
        return 0
    value = data_value(task.data, tag.value)
    return len(value) if isinstance(value, str) and "://" not in value[:12] else 0
