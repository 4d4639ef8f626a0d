"""Learn answers of controls (Choices, Taxonomy, Rating) from frozen features: shared by heads of images and objects.

Each control has a model of its own, judged on its own: a control whose new model is no better than always the same
answer, or worse than the one that is served, keeps what it has.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from labelloop.labeling.studio.config import Control, LabelConfig
from ml_backend.detection.detections import Floats
from ml_backend.heads.base import Answer, HeadResult
from ml_backend.training.confident_learning import find_wrong_labels, find_wrong_tags
from ml_backend.training.label_model import Doubles, FittedLabels, Kind, LabelModel, fit_label_model
from ml_backend.training.thresholds import ScoredEdits, learned_thresholds

# Version of the file format.
FORMAT = 1

# Tags whose answers are learned.
CHOICES, TAXONOMY, RATING = "choices", "taxonomy", "rating"
TAGS = (CHOICES, TAXONOMY, RATING)

# Steps of a Rating without maxRating.
DEFAULT_RATING = 5

# Examples that a model is fitted on at most: a sample that keeps rare answers.
MAX_EXAMPLES = 800

# Answers that a model needs, and answers that it did not learn from that a comparison with its predecessor needs.
MIN_ANSWERS, MIN_FRESH = 4, 5

# Cost of filling in by hand, in corrections of a wrong pre-filled answer: a single answer is one click, and correcting
# one is to notice it and two; a tag is one click either way.
COST_OF_CLICK: Mapping[Kind, float] = {"single": 0.5, "multiple": 1.0, "ordinal": 0.5}

# Lowest probability that fills in an answer.
MIN_THRESHOLD = 0.4

# Standard errors that a model may be behind its predecessor, in addition to the tolerance.
CHANCE = 1.0

METRICS: Mapping[Kind, str] = {"single": "accuracy", "multiple": "macro-F1", "ordinal": "1 - MAE / range"}


@dataclass(frozen=True)
class Condition:
    """When a control is shown, as its `visibleWhen` says.

    Attributes:
        kind: `choice-selected`, `choice-unselected`, `region-selected`, or empty: always.
        control: Name of the control that is asked about.
        values: Its values, any of them; empty: any value.
        labels: Labels of a region, any of them; empty: any label.
    """

    kind: str = ""
    control: str = ""
    values: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, control: Control) -> Condition:
        """Read the condition of a control."""

        def listed(name: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in control.attributes.get(name, "").split(",") if part.strip())

        kind = control.attributes.get("visibleWhen", "").strip().lower()
        labels = listed("whenLabelValue")
        return cls(kind, control.attributes.get("whenTagName", ""), listed("whenChoiceValue"), labels)

    def holds(self, answers: Mapping[str, Answer], label: str = "") -> bool:
        """Whether the control is visible with the pre-filled answers, for a region of a label."""
        if self.labels and label not in self.labels:
            return False
        if self.kind not in {"choice-selected", "choice-unselected"} or not self.control:
            return True
        current = answers[self.control].values if self.control in answers else ()
        selected = any(value in self.values for value in current) if self.values else bool(current)
        return selected == (self.kind == "choice-selected")


@dataclass(frozen=True)
class LearnedControl:
    """A control whose answers are learned.

    Attributes:
        name: Name of the control.
        tag: Its tag in lower case.
        kind: What an answer is.
        values: Values that it offers; empty: they come from each task.
        condition: When it is shown.
        required: Whether it must be answered, so that no answer means that it was not asked.
    """

    name: str
    tag: str
    kind: Kind
    values: tuple[str, ...]
    condition: Condition = Condition()
    required: bool = False

    @classmethod
    def of(cls, control: Control, answers: Collection[tuple[str, ...]]) -> LearnedControl:
        """Describe a control; whether a taxonomy takes several paths is seen from its answers."""
        single = control.attributes.get("maxUsages") == "1" or all(len(answer) <= 1 for answer in answers)
        kind: Kind = "multiple" if control.multiple else "single"
        values = tuple(label.stored for label in control.labels)
        if control.type == TAXONOMY:
            kind = "single" if single else "multiple"
        elif control.type == RATING:
            kind, values = "ordinal", _steps(control, answers)
        required = control.attributes.get("required", "").lower() == "true"
        return cls(control.name, control.type, kind, values, Condition.of(control), required)

    @property
    def empty_means_none(self) -> bool:
        """Whether no answer means that no tag applies."""
        return self.kind == "multiple" and not self.required and not self.condition.kind


def _steps(control: Control, answers: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    stated = control.attributes.get("maxRating", "")
    highest = int(stated) if stated.isdigit() else DEFAULT_RATING
    ratings = [int(float(value)) for answer in answers for value in answer[:1] if _is_number(value)]
    return tuple(str(step) for step in range(1, max([highest, *ratings]) + 1))


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


@dataclass(frozen=True, eq=False)
class AnsweredExamples:
    """Examples of one control.

    Attributes:
        features: (n, g) float32.
        answers: The answer of each.
        tasks: The task of each.
        regions: Index of the object in its image; empty where the examples are images.
    """

    features: Floats
    answers: tuple[tuple[str, ...], ...]
    tasks: tuple[int, ...]
    regions: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.answers)

    def __getitem__(self, rows: Sequence[int]) -> AnsweredExamples:
        """Select examples by index."""
        return AnsweredExamples(
            self.features[list(rows)],
            tuple(self.answers[row] for row in rows),
            tuple(self.tasks[row] for row in rows),
            tuple(self.regions[row] for row in rows) if self.regions else (),
        )


@dataclass(frozen=True, eq=False)
class ControlModel:
    """The served model of one control.

    Attributes:
        question: The control.
        model: Its model.
        thresholds: Probability from which each value is filled in.
        value: Metric on examples that it was not fitted on.
        tasks: Tasks that it was fitted on.
    """

    question: LearnedControl
    model: LabelModel
    thresholds: Mapping[str, float]
    value: float
    tasks: frozenset[int]

    def answers(self, features: Floats) -> list[Answer]:
        """Predict the answer for each row of features (n, g)."""
        return [
            _answer(row, self.model.classes, self.model.kind, self.thresholds)
            for row in self.model.probabilities(features)
        ]


@dataclass(frozen=True, eq=False)
class AnswersHead:
    """The models of all controls of one kind of head.

    Attributes:
        controls: Model by name of the control.
        extra: Further data of the kind, JSON.
    """

    controls: Mapping[str, ControlModel]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> frozenset[int]:
        """Tasks that any of its models was fitted on."""
        return frozenset().union(*(served.tasks for served in self.controls.values()))

    def to_bytes(self) -> bytes:
        """Serialize it as .npz."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        described = []
        for index, served in enumerate(self.controls.values()):
            question, model = served.question, served.model
            condition = question.condition
            described.append(
                {
                    "name": question.name,
                    "tag": question.tag,
                    "kind": question.kind,
                    "values": question.values,
                    "required": question.required,
                    "condition": [condition.kind, condition.control, condition.values, condition.labels],
                    "classes": model.classes,
                    "error": model.error,
                    "thresholds": dict(served.thresholds),
                    "value": served.value,
                }
            )
            arrays |= {f"{index}.{name}": getattr(model, name) for name in ("mean", "scale", "weights", "bias")}
            arrays[f"{index}.tasks"] = np.array(sorted(served.tasks), np.int64)
        head = {"format": FORMAT, "controls": described, "extra": dict(self.extra)}
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> AnswersHead:
        """Restore it.

        Raises:
            ValueError: The bytes are damaged or of another format.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if head["format"] != FORMAT:
                    raise ValueError(f"its format is {head['format']}, and this release reads {FORMAT}")
                names = ("mean", "scale", "weights", "bias", "tasks")
                controls = [
                    _restored(described, {name: arrays[f"{index}.{name}"] for name in names})
                    for index, described in enumerate(head["controls"])
                ]
        except (KeyError, OSError, EOFError, TypeError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"it is damaged ({type(error).__name__})") from error
        return cls({served.question.name: served for served in controls}, head["extra"])


def _restored(described: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ControlModel:
    kind, control, values, labels = described["condition"]
    question = LearnedControl(
        described["name"],
        described["tag"],
        described["kind"],
        tuple(described["values"]),
        Condition(kind, control, tuple(values), tuple(labels)),
        described["required"],
    )
    numbers = {name: array.astype(np.float32) for name, array in arrays.items() if name != "tasks"}
    model = LabelModel(described["kind"], tuple(described["classes"]), **numbers, error=float(described["error"]))
    return ControlModel(
        question, model, described["thresholds"], described["value"], frozenset(arrays["tasks"].tolist())
    )


def questions(config: LabelConfig, *, per_region: bool) -> list[Control]:
    """The controls of a label config whose answers are learned, in its order: those about regions, or about images."""
    images = {image.name for image in config.images}
    return [
        control
        for control in config.controls.values()
        if control.type in TAGS and control.per_region == per_region and images & set(control.to_names)
    ]


@dataclass(frozen=True)
class ControlResult:
    """What came of one control.

    Attributes:
        served: The model to serve; None: none.
        candidate: Metric of the new model on examples that it was not fitted on; None: there is none.
        parent: Metric of the served model when it was fitted; None: there is none.
        changed: Whether another model is served than before.
        reason: The reason, in words.
    """

    served: ControlModel | None
    candidate: float | None
    parent: float | None
    changed: bool
    reason: str


def learn_control(
    question: LearnedControl,
    examples: AnsweredExamples,
    held_out: AnsweredExamples,
    *,
    parent: ControlModel | None,
    tolerance: float,
) -> ControlResult:
    """Fit a model of one control, and decide whether it may be served.

    Args:
        question: The control.
        examples: Examples to fit on.
        held_out: Examples for the metric only.
        parent: The model that is served now; None: there is none.
        tolerance: Accepted drop of the metric.
    """
    examples, held_out = _known(examples, question), _known(held_out, question)
    width = examples.features.shape[1] if len(examples) else -1
    parent = parent if parent is not None and _fits(parent, question, width) else None
    before = parent.value if parent is not None else None
    examples = examples[_sample(examples.answers)]
    classes = _classes(question, examples.answers)
    distinct = {value for answer in examples.answers for value in answer}
    if len(examples) < MIN_ANSWERS:
        return ControlResult(parent, None, before, False, f"{len(examples)} of {MIN_ANSWERS} answers")
    if len(distinct) < (1 if question.kind == "multiple" else 2):
        named = f"every answer is {next(iter(distinct))}" if distinct else "no tag was ever set"
        return ControlResult(parent, None, before, False, named)
    truth = _truth(examples.answers, classes)
    fitted = fit_label_model(examples.features, truth, classes=classes, kind=question.kind, groups=examples.tasks)
    if fitted.out_of_fold is None:
        return ControlResult(parent, None, before, False, f"its answers are on fewer than {MIN_ANSWERS} tasks")
    unseen = np.concatenate([fitted.out_of_fold, _of_held_out(fitted, held_out)])
    unseen_truth = np.concatenate([truth, _truth(held_out.answers, classes)])
    value = metric(unseen, unseen_truth, question.kind)
    baseline = metric(_constant(truth, len(unseen), question.kind), unseen_truth, question.kind)
    name = METRICS[question.kind]
    if value <= baseline:
        still_valid = (
            parent if parent is not None and _beats_baseline(parent, examples, question.kind, classes) else None
        )
        what = "" if still_valid is parent else ", and so is the served one, which is withdrawn"
        reason = f"{name} {value:.2f} is not above {baseline:.2f} of always the same answer{what}"
        return ControlResult(still_valid, value, before, still_valid is not parent, reason)
    thresholds = thresholds_of(unseen, unseen_truth, classes, question.kind)
    candidate = ControlModel(question, fitted.model, thresholds, value, frozenset(examples.tasks))
    if parent is not None:
        both = AnsweredExamples(
            np.concatenate([examples.features, held_out.features.reshape(-1, width)]),
            (*examples.answers, *held_out.answers),
            (*examples.tasks, *held_out.tasks),
        )
        fresh = [row for row, task in enumerate(both.tasks) if task not in parent.tasks]
        behind = _behind_parent(
            parent, unseen[fresh], unseen_truth[fresh], examples=both[fresh], classes=classes, tolerance=tolerance
        )
        if behind:
            return ControlResult(parent, value, before, False, f"{name}: {behind}")
    return ControlResult(candidate, value, before, True, f"{name} {value:.2f}, always the same answer {baseline:.2f}")


@dataclass(frozen=True)
class WrongAnswer:
    """An answer that is probably wrong.

    Attributes:
        control: Name of the control.
        example: Index of the example.
        given: The given value that is wrong; empty: one is missing.
        suggested: The value that fits better; empty: the given tag only has to go.
        confidence: In [0, 1].
        box: x_min, y_min, x_max, y_max in pixels of the image: the object that it is about; None: the image.
    """

    control: str
    example: int
    given: str
    suggested: str
    confidence: float
    box: tuple[float, float, float, float] | None = None


def find_wrong_answers(question: LearnedControl, examples: AnsweredExamples, *, least: float) -> list[WrongAnswer]:
    """List answers that models which were not fitted on the example contradict, most confident first.

    Args:
        question: The control.
        examples: Answers with their features; too few, or all equal, give nothing.
        least: Lowest confidence.
    """
    distinct = {value for answer in examples.answers for value in answer}
    if len(examples) < MIN_ANSWERS or len(distinct) < (1 if question.kind == "multiple" else 2):
        return []
    rows = _sample(examples.answers)
    sampled = _known(examples[rows], question)
    if len(sampled) < len(rows):  # answers that the control no longer offers
        rows = [row for row in rows if set(examples.answers[row]) & set(question.values)]
    classes = _classes(question, sampled.answers)
    truth = _truth(sampled.answers, classes)
    fitted = fit_label_model(sampled.features, truth, classes=classes, kind=question.kind, groups=sampled.tasks)
    if fitted.out_of_fold is None:
        return []
    if question.kind == "multiple":
        wrong = find_wrong_tags(fitted.out_of_fold, truth, least=least)
    else:
        wrong = find_wrong_labels(fitted.out_of_fold, truth.argmax(axis=1), least=least)
    return [
        WrongAnswer(
            question.name,
            rows[issue.example],
            "" if issue.given is None else classes[issue.given],
            "" if issue.suggested is None else classes[issue.suggested],
            issue.confidence,
        )
        for issue in wrong
    ]


def head_result(
    results: Mapping[str, ControlResult], *, parent: AnswersHead | None, held_out: int, extra: Mapping[str, Any] = {}
) -> HeadResult | None:
    """Combine the results of the controls of a kind into one; None where the project has no such control."""
    if not results:
        return None
    served = {name: result.served for name, result in results.items() if result.served is not None}
    gone = set(parent.controls) - set(served) if parent is not None else set()
    passed = any(result.changed for result in results.values()) or bool(gone)
    kinds = {result.served.question.kind for result in results.values() if result.served is not None}
    values = [result.candidate for result in results.values() if result.candidate is not None]
    parents = [result.parent for result in results.values() if result.parent is not None]
    reason = "; ".join(f"{name}: {result.reason}" for name, result in results.items())
    return HeadResult(
        head=AnswersHead(served, extra) if passed else None,
        metric=METRICS[next(iter(kinds))] if len(kinds) == 1 else "mean over controls",
        value=float(np.mean(values)) if values else None,
        parent=float(np.mean(parents)) if parents else None,
        passed=passed,
        reason=reason,
        judged_by=("cross-validation and held-out" if held_out else "cross-validation") if values else "nothing",
    )


def metric(probabilities: Doubles, truth: npt.NDArray[np.bool_], kind: Kind) -> float:
    """Accuracy, macro-F1 over the tags that are ever set, or 1 - MAE / range of a rating; 0 without examples."""
    if not len(truth):
        return 0.0
    if kind == "multiple":
        chosen = probabilities > 0.5
        both = (chosen & truth).sum(axis=0)
        sums = chosen.sum(axis=0) + truth.sum(axis=0)
        used = truth.any(axis=0)
        return float((2 * both[used] / np.maximum(sums[used], 1)).mean()) if used.any() else 0.0
    return float(scores(probabilities, truth, kind).mean())


def scores(probabilities: Doubles, truth: npt.NDArray[np.bool_], kind: Kind) -> Doubles:
    """How right each prediction is, (n,) in [0, 1]: exactly, by F1 of its tags, or by distance of its step."""
    if kind == "multiple":
        chosen = probabilities > 0.5
        both, sums = (chosen & truth).sum(axis=1), chosen.sum(axis=1) + truth.sum(axis=1)
        return np.where(sums > 0, 2 * both / np.maximum(sums, 1), 1.0)
    if kind == "ordinal":
        distance = np.abs(_median(probabilities) - truth.argmax(axis=1))
        return np.asarray(1 - distance / max(truth.shape[1] - 1, 1), np.float64)
    return np.asarray(truth[np.arange(len(truth)), probabilities.argmax(axis=1)], np.float64)


def thresholds_of(
    probabilities: Doubles, truth: npt.NDArray[np.bool_], classes: Sequence[str], kind: Kind
) -> dict[str, float]:
    """Probability from which each value is filled in: where it saves more clicks than its errors cost.

    The predictions on examples that the model was not fitted on are the pre-labels; the answers are the edits.
    """
    edits = dict.fromkeys(classes, ScoredEdits())
    if kind == "multiple":
        for column, name in enumerate(classes):
            right = truth[:, column]
            edits[name] = ScoredEdits(
                tuple(probabilities[right, column].tolist()), tuple(probabilities[~right, column].tolist())
            )
    else:
        best = _median(probabilities) if kind == "ordinal" else probabilities.argmax(axis=1)
        certain = probabilities[np.arange(len(best)), best]
        right = truth[np.arange(len(best)), best]
        for column, name in enumerate(classes):
            rows = best == column
            edits[name] = ScoredEdits(tuple(certain[rows & right].tolist()), tuple(certain[rows & ~right].tolist()))
    learned = learned_thresholds(edits, drawing_cost=COST_OF_CLICK[kind])
    return {name: max(threshold, MIN_THRESHOLD) for name, threshold in learned.items()}


def _answer(row: Doubles, classes: Sequence[str], kind: Kind, thresholds: Mapping[str, float]) -> Answer:
    """The answer of one row of probabilities (k,)."""
    if kind == "multiple":
        limits = np.array([thresholds[name] for name in classes])
        chosen = np.flatnonzero(row >= limits)
        least = float(row[chosen].min()) if len(chosen) else float(row.max(initial=0.0))
        doubt = float((1 - np.abs(2 * row - 1)).max(initial=0.0))
        return Answer(tuple(classes[index] for index in chosen), least, doubt, float(limits.min(initial=1.0)))
    best = int(_median(row[None])[0]) if kind == "ordinal" else int(row.argmax())
    others = np.delete(row, best)
    threshold = thresholds[classes[best]]
    doubt = float(np.clip(1 - (row[best] - others.max(initial=0.0)), 0.0, 1.0))
    return Answer((classes[best],) if row[best] >= threshold else (), float(row[best]), doubt, threshold)


def _median(probabilities: Doubles) -> npt.NDArray[np.int64]:
    """Median step of each row, which has the least expected absolute error."""
    cumulative = np.cumsum(probabilities, axis=1)
    return np.asarray(np.minimum((cumulative < 0.5).sum(axis=1), probabilities.shape[1] - 1), np.int64)


def _known(examples: AnsweredExamples, question: LearnedControl) -> AnsweredExamples:
    """Drop values that the control no longer offers; examples of single answers without a value are left out."""
    offered = set(question.values)
    answers = [tuple(value for value in answer if not offered or value in offered) for answer in examples.answers]
    rows = [row for row, answer in enumerate(answers) if answer or question.kind == "multiple"]
    selected = examples[rows]
    return AnsweredExamples(selected.features, tuple(answers[row] for row in rows), selected.tasks)


def _classes(question: LearnedControl, answers: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Values that were given, in the order of the control; all steps of a scale."""
    occurring = {value for answer in answers for value in answer}
    if question.kind == "ordinal":
        return question.values
    return tuple(value for value in (question.values or sorted(occurring)) if value in occurring)


def _truth(answers: Sequence[tuple[str, ...]], classes: Sequence[str]) -> npt.NDArray[np.bool_]:
    truth = np.zeros((len(answers), len(classes)), bool)
    for row, answer in enumerate(answers):
        for value in answer:
            if value in classes:
                truth[row, classes.index(value)] = True
    return truth


def _sample(answers: Sequence[tuple[str, ...]]) -> list[int]:
    """At most `MAX_EXAMPLES` rows, drawn in turn from each distinct answer, in their order."""
    if len(answers) <= MAX_EXAMPLES:
        return list(range(len(answers)))
    rank_of: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for row in np.random.default_rng(0).permutation(len(answers)).tolist():
        rank_of[answers[row]] += 1
        ranked.append((rank_of[answers[row]], row))
    return sorted(row for _, row in sorted(ranked)[:MAX_EXAMPLES])


def _of_held_out(fitted: FittedLabels, held_out: AnsweredExamples) -> Doubles:
    if not len(held_out):
        return np.zeros((0, len(fitted.model.classes)))
    return fitted.model.probabilities(held_out.features)


def _constant(truth: npt.NDArray[np.bool_], count: int, kind: Kind) -> Doubles:
    """Probabilities (count, k) of a model that always answers the same: the most frequent class, or every tag."""
    shares = truth.mean(axis=0)
    constant = np.where(shares > 0, 1.0, 0.0) if kind == "multiple" else shares / shares.sum()
    return np.tile(constant, (count, 1))


def _fits(parent: ControlModel, question: LearnedControl, width: int) -> bool:
    """Whether a served model still answers the control, from features of this width."""
    offered = not question.values or set(parent.model.classes) <= set(question.values)
    return offered and parent.question.kind == question.kind and len(parent.model.mean) == width


def _aligned(parent: ControlModel, features: Floats, classes: Sequence[str]) -> Doubles:
    """The parent's probabilities in the order of other classes; classes that it does not know have 0."""
    probabilities = parent.model.probabilities(features)
    aligned = np.zeros((len(features), len(classes)))
    for column, name in enumerate(parent.model.classes):
        if name in classes:
            aligned[:, classes.index(name)] = probabilities[:, column]
    return aligned


def _beats_baseline(parent: ControlModel, examples: AnsweredExamples, kind: Kind, classes: Sequence[str]) -> bool:
    truth = _truth(examples.answers, classes)
    value = metric(_aligned(parent, examples.features, classes), truth, kind)
    return value > metric(_constant(truth, len(truth), kind), truth, kind)


def _behind_parent(
    parent: ControlModel,
    candidate: Doubles,
    truth: npt.NDArray[np.bool_],
    *,
    examples: AnsweredExamples,
    classes: Sequence[str],
    tolerance: float,
) -> str:
    """Why a candidate is worse than its parent on examples that neither learned from; empty where it is not."""
    if len(examples) < MIN_FRESH:
        return ""
    old = scores(_aligned(parent, examples.features, classes), truth, parent.question.kind)
    new = scores(candidate, truth, parent.question.kind)
    gain = new - old
    if gain.mean() >= -tolerance - CHANCE * float(gain.std()) / len(gain) ** 0.5:
        return ""
    return f"{new.mean():.2f} on {len(gain)} new answers is below {old.mean():.2f} of the served model"
