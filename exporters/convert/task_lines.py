"""Make the lines of a task for the formats of tasks: its data with each selected annotation in the flat form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from exporters.convert.annotation_policy import CONSENSUS, AnnotationSelection
from exporters.convert.options import ConversionOptions
from exporters.convert.task_images import task_images
from exporters.model.file_names import public_url
from exporters.model.splits import DISPUTED_SPLIT
from exporters.tasks.flat import FlatAnnotation, PlainAnswers, flatten
from exporters.tasks.line import TaskLine, flat_json, split_qc, without_signatures
from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import MAX_SYNTHETIC_ID, Annotation, ModelPrediction, Task

# ``model_version`` of the prediction with which quality control shows its consensus to a reviewer.
QC_CONSENSUS = "QC consensus"
# Key of a task's ``meta`` where `labelloop qc consensus` says how it formed the annotation.
CONSENSUS_META = "consensus"
FORMED = "consensus of quality control"
NOT_FORMED = "latest (quality control formed no consensus of the task)"
# An annotation in the flat form, who made it, and the consensus.
_Chosen = tuple[FlatAnnotation, Mapping[str, Any], Mapping[str, Any] | None]
_encode = msgspec.json.Encoder(order="deterministic").encode


class TaskLineBuilder:
    """Makes the lines of tasks.

    Args:
        rules: The options of the export.
    """

    def __init__(self, rules: ConversionOptions) -> None:
        self._rules = rules
        self._plain = PlainAnswers(rules.config)

    def lines(self, task: Task, number: int, selection: AnnotationSelection, split: str) -> list[TaskLine]:
        """Return the lines of a task: one, or one for each annotation if all were selected.

        Args:
            task: The task.
            number: Its id in the data set.
            selection: The selected annotations.
            split: Its split.
        """
        try:
            (data, stated), signed = without_signatures([task.data, task.meta or {}])
        except RecursionError:
            data, stated, signed = task.data, task.meta or {}, 0
        own, qc = split_qc(data)
        meta = {key: value for key, value in stated.items() if key != CONSENSUS_META}
        return [
            TaskLine(
                task=number,
                split=split,
                data=own,
                meta=meta,
                flat=flat,
                annotation=annotation,
                consensus=consensus,
                qc=qc,
                signed=signed,
            )
            for flat, annotation, consensus in self._annotations(task, selection)
        ]

    def rule(self, task: Task, selection: AnnotationSelection) -> str:
        """Return the rule under which the accounts count the annotation of a task."""
        if selection.rule != CONSENSUS:
            return selection.rule
        return FORMED if _formed_consensus(task) is not None else NOT_FORMED

    def _annotations(self, task: Task, selection: AnnotationSelection) -> list[_Chosen]:
        """Return the selected annotations; for a consensus that of quality control, else the latest annotation."""
        formed = _formed_consensus(task)
        if selection.rule != CONSENSUS:
            consensus = self._consensus(task, formed)
            return [(self._flat(one), annotation_json(one, selection.rule), consensus) for one in selection.chosen]
        if formed is None:
            latest = max(selection.chosen, key=lambda one: (one.updated_at or one.created_at, one.id or 0))
            return [(self._flat(latest), annotation_json(latest, NOT_FORMED), None)]
        made = {
            "id": None,
            "by": None,
            "annotators": [annotation.completed_by for annotation in selection.chosen],
            "rule": FORMED,
            "created_at": formed.created_at,
        }
        return [(self._flat(formed), made, _prediction_json(formed))]

    def _consensus(self, task: Task, formed: ModelPrediction | None) -> Mapping[str, Any] | None:
        if formed is not None:
            return _prediction_json(formed) | flat_json(self._flat(formed))
        stated = (task.meta or {}).get(CONSENSUS_META)
        return {"formed_by": "labelloop qc consensus", **stated} if isinstance(stated, dict) else None

    def _flat(self, source: Annotation | ModelPrediction) -> FlatAnnotation:
        results = [result.raw for result in source.results]
        try:
            return flatten(results, self._plain)
        except RecursionError:  # values nested hundreds of levels deep: kept as they are
            return FlatAnnotation(other=results)


def annotation_json(annotation: Annotation, rule: str) -> dict[str, Any]:
    """Return who made an annotation, when, and why it was selected."""
    is_real = annotation.id is not None and annotation.id >= MAX_SYNTHETIC_ID
    made = {
        "id": annotation.id if is_real else None,
        "by": annotation.completed_by,
        "rule": rule,
        "ground_truth": annotation.ground_truth,
        "created_at": annotation.created_at,
        "updated_at": annotation.updated_at,
        "lead_time": annotation.lead_time,
    }
    return made | ({} if annotation.parent_prediction is None else {"parent_prediction": annotation.parent_prediction})


def content_identity(task: Task, config: LabelConfig | None) -> str:
    """Return what decides the split of a task: the address of its first image, or else what is shown of its data.

    Tasks that show the same content are in one split.
    """
    if images := task_images(task, config):
        return images[0].url
    return f"task {content_text(task.data, config)}"


def content_text(data: Mapping[str, Any], config: LabelConfig | None) -> str:
    """Return the shown part of a task's data as one text; without a label config, or values for it, all of it."""
    keys = dict.fromkeys(tag.value for tag in config.objects.values()) if config else {}
    values = {key: data_value(data, key) for key in keys}
    shown = {key: value for key, value in values.items() if value is not None or key in data} or {
        key: value for key, value in data.items() if not key.startswith("qc_")
    }
    if len(shown) == 1 and isinstance(value := next(iter(shown.values())), str):
        return public_url(value) if value.startswith(("http://", "https://")) and " " not in value else value
    try:
        return _encode(without_signatures(shown)[0]).decode()
    except RecursionError:
        return repr(list(shown))


def line_split(task: Task, rules: ConversionOptions, *, disputed: bool) -> tuple[str, str]:
    """Return (split, identity) of a task by its own data; see `content_identity`."""
    identity = content_identity(task, rules.config)
    if disputed:
        return DISPUTED_SPLIT, identity
    group = rules.split.group(identity if identity and not identity.startswith("task ") else "", task.data)
    return rules.split.explicit_split(task.data) or rules.split.assign(identity, group), identity


def malformed_results(annotations: Iterable[Annotation]) -> Sequence[tuple[Annotation, str, str]]:
    """Return the items of annotations that are no results: (annotation, field, reason)."""
    return [(annotation, item.field, item.reason) for annotation in annotations for item in annotation.malformed]


def _formed_consensus(task: Task) -> ModelPrediction | None:
    """Return the newest consensus of quality control that is as new as the annotations; None without one."""
    formed = [prediction for prediction in task.predictions if prediction.model_version == QC_CONSENSUS]
    newest = max(formed, key=lambda prediction: (prediction.created_at, prediction.id or 0), default=None)
    if newest is None:
        return None
    times = [annotation.updated_at or annotation.created_at for annotation in latest_annotations(task.annotations)]
    return newest if newest.created_at >= max(times, default="") else None


def _prediction_json(formed: ModelPrediction) -> dict[str, Any]:
    return {
        "formed_by": "quality control",
        "prediction": formed.id,
        "created_at": formed.created_at,
        "probability": formed.score,
    }
