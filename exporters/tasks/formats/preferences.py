"""preference-jsonl: pairs of responses of which people preferred one, for DPO and reward models.

Each line has ``prompt``, ``chosen`` and ``rejected``, as TRL's preference type:
https://huggingface.co/docs/trl/dataset_formats#preference
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any, ClassVar

import msgspec

from exporters.formats.base import FormatContext
from exporters.tasks.flat import Json
from exporters.tasks.formats.base import EncodedLine, LineFormat
from exporters.tasks.line import TaskLine
from labelloop.labeling.studio.config import Control, LabelConfig, data_value

NO_CONFIG = "which responses are compared is not known without a label config"
NO_PREFERENCE = "no preference in it"
NO_PROMPT = "pairs without a prompt: the label config shows no text with the responses"
TIES = "comparisons in which neither response is preferred, left out"
NO_RESPONSE = "comparisons with a response that the task's data does not have, left out"
MANY = "rankings of more than 10,000 pairs, of which the others are left out"
LOST_ITEM = "ranked items that the task's data does not have, left out"
_PROMPT_TAGS = frozenset({"text", "hypertext", "paragraphs", "chat"})
_PROMPT_KEYS = ("prompt", "question", "instruction", "query", "input", "context")
# Fields of a ranked item with its content.
_CONTENT = ("body", "text", "content", "html", "value", "title")
_encode = msgspec.json.Encoder().encode

# Pairs of one answer: a ranking of n items has n (n - 1) / 2, each with two whole responses.
MAX_PAIRS = 10_000

# (chosen, rejected, further fields)
Pair = tuple[Any, Any, Json]


class PreferenceJsonl(LineFormat):
    """Pairs from ``Pairwise``, ``Ranker`` (each item with each one below it) and ``Choices`` that name a response."""

    name: ClassVar[str] = "preference-jsonl"
    needs: ClassVar[str] = "it needs Pairwise, Ranker, or Choices that name responses, and the label config has none"

    @classmethod
    def fits(cls, context: FormatContext) -> bool:
        """See `TaskFormat.fits`."""
        return context.config is None or any(
            _pairs_of(control, context.config) for control in _controls(context.config)
        )

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """See `TaskFormat.encode_line`."""
        config = self.context.config
        if config is None:
            return EncodedLine(None, dropped=NO_CONFIG)
        notes: dict[str, int] = {NO_PROMPT: 0, TIES: 0, NO_RESPONSE: 0, LOST_ITEM: 0, MANY: 0}
        rows: list[Json] = []
        for control in _controls(config):
            pairs_of = _pairs_of(control, config)
            if pairs_of is None or control.name not in line.flat.answers:
                continue
            compared = _compared(control, config)
            prompt = _prompt(line.data, config, compared)
            pairs = iter(pairs_of(control, config, line, notes))
            for chosen, rejected, more in islice(pairs, MAX_PAIRS):
                if chosen in (None, "") or rejected in (None, ""):
                    notes[NO_RESPONSE] += 1
                    continue
                notes[NO_PROMPT] += prompt is None
                made = {"task": line.task, "annotation": line.annotation.get("id"), "by": line.annotation.get("by")}
                pair = {"prompt": "" if prompt is None else prompt, "chosen": chosen, "rejected": rejected}
                rows.append({**pair, **made, "control": control.name, **more})
            notes[MANY] += next(pairs, None) is not None
        if not rows:
            return EncodedLine(None, dropped=NO_PREFERENCE, notes=notes)
        return EncodedLine(_encode(rows), len(rows), notes=notes)


def _controls(config: LabelConfig) -> tuple[Control, ...]:
    return config.controls_of("Pairwise", "Ranker", "Choices")


def _pairs_of(control: Control, config: LabelConfig) -> Any:
    """Return the function that makes the pairs of a control; None if it states no preference."""
    if control.type == "pairwise":
        return _pairwise if len(control.to_names) == 2 else None
    if control.type == "ranker":
        return _ranked
    return _picked if len(_named_keys(control, config)) > 1 else None


def _pairwise(control: Control, config: LabelConfig, line: TaskLine, notes: dict[str, int]) -> Iterator[Pair]:
    left, right = (data_value(line.data, config.data_key(name) or name) for name in control.to_names)
    selected = line.flat.answers[control.name]
    if selected in ("left", control.attributes.get("leftClass", "left")):
        yield left, right, {}
    elif selected in ("right", control.attributes.get("rightClass", "right")):
        yield right, left, {}
    else:
        notes[TIES] += 1


def _ranked(control: Control, config: LabelConfig, line: TaskLine, notes: dict[str, int]) -> Iterator[Pair]:
    """Yield each item with each item below it. Items of one bucket are equal; ``_`` holds those not ranked."""
    answer = line.flat.answers[control.name]
    if isinstance(answer, list):
        ranks = [[item] for item in answer]
    elif isinstance(answer, dict):
        ranks = [items for bucket, items in answer.items() if bucket != "_" and isinstance(items, list)]
    else:
        ranks = []
    source = data_value(line.data, config.data_key(control.to_names[0]) or "") if control.to_names else None
    items = {str(item.get("id")): item for item in source or () if isinstance(item, dict)}
    known = [[str(item) for item in rank if str(item) in items] for rank in ranks]
    notes[LOST_ITEM] += sum(map(len, ranks)) - sum(map(len, known))
    for (above, better), (below, worse) in combinations(enumerate(known, start=1), 2):
        for chosen in better:
            for rejected in worse:
                ranked = {"chosen_id": chosen, "rejected_id": rejected, "chosen_rank": above, "rejected_rank": below}
                yield _content(items[chosen]), _content(items[rejected]), ranked


def _picked(control: Control, config: LabelConfig, line: TaskLine, notes: dict[str, int]) -> Iterator[Pair]:
    """Yield the response that a choice names with each of the others."""
    keys = _named_keys(control, config)
    answer = line.flat.answers[control.name]
    picked = [answer] if isinstance(answer, str) else answer
    if not isinstance(picked, list) or len(picked) != 1 or picked[0] not in keys:
        notes[TIES] += 1
        return
    for name, key in keys.items():
        if name != picked[0]:
            yield data_value(line.data, keys[picked[0]]), data_value(line.data, key), {}


def _named_keys(control: Control, config: LabelConfig) -> Mapping[str, str]:
    """Return choice -> data key, for choices that are all names of object tags or of their data keys."""
    keys = {tag.value: tag.value for tag in config.objects.values()}
    keys |= {tag.name: tag.value for tag in config.objects.values()}
    found = {label.stored: keys.get(label.stored, keys.get(label.value, "")) for label in control.labels}
    return found if all(found.values()) and len(set(found.values())) == len(found) else {}


def _compared(control: Control, config: LabelConfig) -> frozenset[str]:
    if control.type == "choices":
        return frozenset(_named_keys(control, config).values())
    return frozenset(config.data_key(name) or name for name in control.to_names)


def _prompt(data: Mapping[str, Any], config: LabelConfig, compared: frozenset[str]) -> Any:
    """Return what is shown with the responses: the value of a key such as ``prompt``, else all texts."""
    tags = [tag for tag in config.objects.values() if tag.tag.lower() in _PROMPT_TAGS and tag.value not in compared]
    shown = {tag.value: value for tag in tags if (value := data_value(data, tag.value)) not in (None, "", [])}
    named = next((key for wanted in _PROMPT_KEYS for key in shown if key.lower() == wanted), None)
    if named is not None or len(shown) == 1:
        return shown[named if named is not None else next(iter(shown))]
    texts: Sequence[str] = [value for value in shown.values() if isinstance(value, str)]
    return "\n\n".join(texts) or None


def _content(item: Mapping[str, Any]) -> Any:
    return next((item[field] for field in _CONTENT if item.get(field) not in (None, "")), item)
