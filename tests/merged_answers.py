"""What the consensus of simulated annotators (`simulated_answers`) must be: the truth, or one answer that is named."""

from collections.abc import Callable, Mapping
from typing import Any

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.labeling.studio.values import ANSWERS, codec_for_value, parse_answer, parse_labels
from qc_webhooks.agreement import read_answers
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.merged_annotation import Merged, merge
from qc_webhooks.verdict.verdict import judge
from tests.simulated_answers import SIDE, Simulated

# Result types without a merge: one annotator's are carried, and the consensus says so.
CARRIED = {"chatmessage", "videorectangle", "ocrlabels", "relation"}
# The least IoU of a merged shape with the true one; annotators differ from it by up to half a percent of the image.
LEAST_IOU = 0.9


def merged(task_json: Mapping[str, Any], xml: str) -> Merged:
    """The consensus of a task, as Label Studio exports it."""
    config = LabelConfig.parse(xml)
    task = read_task(task_json)
    answers = read_answers(task, config=config)
    assert not [line for annotator in answers for line in annotator.unread]
    return merge(task, answers, lambda: judge(answers, Policy()).comparisons, config=config)


def problems(simulated: Simulated, outcome: Merged, xml: str) -> list[str]:
    """What is wrong with a consensus: a control that is lost, merged wrongly, or carried without a sentence."""
    found = []
    carried = {line["control"]: line["reason"] for line in outcome.carried if "control" in line}
    by_control: dict[str, list[dict[str, Any]]] = {}
    for result in outcome.results:
        by_control.setdefault(result.get("from_name", ""), []).append(dict(result))
    for control, truth in simulated.truth.items():
        results = by_control.get(control, [])
        depends = any(one["type"] in CARRIED for one in truth) or _is_about_carried(control, xml, simulated)
        if control in carried:
            if not depends:
                found.append(f"{control}: carried: {carried[control]}")
            elif not (results and carried[control]):
                found.append(f"{control}: carried, but not there or without a reason")
        elif depends:
            found.append(f"{control}: neither merged nor carried")
        elif len(results) != len(truth):
            found.append(f"{control}: {len(results)} results, expected {len(truth)}")
        else:
            found += [f"{control}: no result is like {true}" for true in truth if not any(map(_like(true), results))]
    return found


def _is_about_carried(control: str, xml: str, simulated: Simulated) -> bool:
    """Whether a control describes, or names, a region of a control without a merge."""
    config = LabelConfig.parse(xml)
    own = config.controls.get(control)
    types = {result["type"] for truth in simulated.truth.values() for result in truth
             if own is not None and result["to_name"] in own.to_names}  # fmt: skip
    return own is not None and (own.per_region or own.tag == "Labels") and bool(types & CARRIED)


def _answers(value: Mapping[str, Any], kind: str) -> list[str]:
    return sorted(map(str, parse_answer(value, kind)))


def _like(true: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    kind, value = true["type"], true["value"]
    codec = codec_for_value(value)

    def alike(result: Mapping[str, Any]) -> bool:
        found = result["value"]
        if result["type"] != kind or result.get("item_index") != true.get("item_index"):
            return False
        if result["to_name"] != true["to_name"]:
            return False
        if kind in ANSWERS and _answers(found, kind) != _answers(value, kind):
            return False
        if kind in {"pairwise", "ranker"}:
            return found == value
        if kind.endswith("labels") and parse_labels(found, kind) != parse_labels(value, kind):
            return False
        if codec is not None and codec.key not in found:
            return False
        if codec is not None:
            if codec.geometry is KeyPoint:
                return max(abs(found[axis] - value[axis]) for axis in ("x", "y")) < 1
            return iou(*(codec.read(one, SIDE, SIDE) for one in (found, value))) > LEAST_IOU
        if "ranges" in value:
            return abs(found["ranges"][0]["end"] - value["ranges"][0]["end"]) <= 1
        ends = [(found[end], value[end]) for end in ("start", "end", "startOffset", "endOffset") if end in value]
        return all(a == b if isinstance(b, str) else abs(a - b) < 0.6 for a, b in ends)

    return alike
