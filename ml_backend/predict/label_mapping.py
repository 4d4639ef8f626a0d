"""Owns how a model's classes meet a project's labels: what each control gets, and what finds no partner."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from ml_backend.predict.controls import CHOICES, PARTNER, kind_of
from ml_backend.predict.shapes import SHAPES

BOXES = frozenset({"boxes"})
"""What a plain detector gives."""


@dataclass(frozen=True)
class Target:
    """A control that what is seen on one image goes to.

    Attributes:
        control: The control with the labels.
        shape: Its partner that draws the shape, for `Labels` with a `Rectangle`; None where the control draws itself.
        to_name: The image object.
        data_key: The key of the task's data that holds the image's address; a list of them where `is_list`.
        labels: Label of each model class that has one, by the class's index.
        draws: Key of `SHAPES`, or `CHOICES`.
        points: Label of each of the model's keypoints that has one, by its number; only for keypoints.
    """

    control: Control
    shape: Control | None
    to_name: str
    data_key: str
    is_list: bool
    labels: Mapping[int, str]
    draws: str = "Rectangle"
    points: Mapping[int, str] = field(default_factory=dict)

    def threshold(self, default: float) -> float:
        """Scores below it are not shown: the control's own `model_score_threshold`, else the default."""
        return default if self.control.score_threshold is None else self.control.score_threshold

    def thresholds(
        self, default: float, *, names: Sequence[str], by_name: Mapping[str, float], usual: Mapping[str, float]
    ) -> dict[int, float]:
        """The threshold of each class that the control shows: that of the class or its label, else `threshold`.

        Args:
            default: Where neither class nor control says one.
            names: The model's class names.
            by_name: Thresholds by class or label, in any case.
            usual: What takes the place of the default, by class.
        """
        folded = {name.strip().casefold(): threshold for name, threshold in by_name.items()}
        # Points are shown for every class: it is they that have labels.
        labels = dict.fromkeys(range(len(names)), "") if self.points else self.labels
        return {
            index: folded.get(names[index].casefold(), folded.get(label.casefold(), self.threshold(fallback)))
            for index, label in labels.items()
            for fallback in [usual.get(names[index], default)]
        }


@dataclass(frozen=True)
class MappingReport:
    """How a model's classes and a label configuration fit together.

    Attributes:
        matched: (model class, label) of each class that has a label; (keypoint, label) likewise.
        classes_without_label: Model classes that no control shows; never pre-labelled.
        labels_without_class: Labels that the model does not know; left to the annotators.
        no_target: Why no control can take boxes at all; empty where one can.
    """

    matched: tuple[tuple[str, str], ...]
    classes_without_label: tuple[str, ...]
    labels_without_class: tuple[str, ...]
    no_target: str = ""

    def lines(self) -> list[str]:
        """What a user should know, in plain words; empty where every class has a label and every label a class."""
        if self.no_target:
            return [self.no_target]
        said = []
        if not self.matched:
            said.append("No class of the model has a label in this project, so nothing is pre-labelled.")
        if self.labels_without_class:
            said.append(f"Labels that the model does not know: {', '.join(self.labels_without_class)}.")
        if self.classes_without_label:
            said.append(f"Model classes without a label in this project: {', '.join(self.classes_without_label)}.")
        if said:
            said.append(
                'Where a name differs, say so in the label config: <Label value="Car" predicted_values="auto"/>.'
            )
        return said


def find_targets(
    config: LabelConfig, names: Sequence[str], *, gives: AbstractSet[str] = BOXES, points: Sequence[str] = ()
) -> tuple[Target, ...]:
    """Every control of a label configuration that a model with these class names can fill.

    Args:
        config: The project's label configuration.
        names: The model's class names, in its order.
        gives: What the model gives: see `ml_backend.layouts.Reader.gives`.
        points: Names of its keypoints.
    """
    images = {image.name: image for image in config.images if is_readable(image)}
    targets = []
    for control in config.controls.values():
        for to_name in control.to_names:
            if to_name in images:
                found = _target(config, control, images[to_name], names, gives=gives, points=points)
                targets += [found] if found else []
    return _without_repeats(targets, gives)


def mapping_report(
    config: LabelConfig, names: Sequence[str], *, gives: AbstractSet[str] = BOXES, points: Sequence[str] = ()
) -> MappingReport:
    """Which classes and labels meet, and which do not; the arguments are those of `find_targets`."""
    targets = find_targets(config, names, gives=gives, points=points)
    if not targets:
        tags = ", ".join(_tags(gives))
        what = "the class of a photo" if "classes" in gives else "boxes"
        why = "no image" if not config.images else f"no control for {what} ({tags}) on an image"
        return MappingReport((), tuple(names), (), f"The label config has {why}, so nothing is pre-labelled.")
    matched = {names[index]: label for target in targets for index, label in target.labels.items()}
    by_point = {points[number]: label for target in targets for number, label in target.points.items()}
    known = {label for target in targets for label in (*target.labels.values(), *target.points.values())}
    labels = [label.stored for target in targets for label in target.control.labels]
    return MappingReport(
        matched=(*matched.items(), *by_point.items()),
        classes_without_label=() if by_point else tuple(name for name in names if name not in matched),
        labels_without_class=tuple(dict.fromkeys(label for label in labels if label not in known)),
    )


def unknown_thresholds(targets: Sequence[Target], names: Sequence[str], by_name: Mapping[str, float]) -> list[str]:
    """The names in a project's thresholds that are neither a class of the model nor a label of the project."""
    known = {name.casefold() for name in names}
    known |= {label.stored.casefold() for target in targets for label in target.control.labels}
    return [name for name in by_name if name.strip().casefold() not in known]


def _tags(gives: AbstractSet[str]) -> list[str]:
    """The tags that a model can fill, as a user writes them."""
    if "classes" in gives:
        return [CHOICES]
    drawn = [name for name in SHAPES if gives & _from(name)]
    return [f"{name}Labels" for name in drawn] + [f"Labels with {name}" for name in drawn[:1]]


def _target(
    config: LabelConfig,
    control: Control,
    image: ObjectTag,
    names: Sequence[str],
    *,
    gives: AbstractSet[str],
    points: Sequence[str],
) -> Target | None:
    """Tags are the same in any case."""
    labels = {index: label for index, name in enumerate(names) if (label := control.label_for(name)) is not None}
    target = Target(control, None, image.name, image.value, image.is_list, labels)
    draws, shape = kind_of(control.tag).draws, None
    if draws == CHOICES:
        return replace(target, draws=CHOICES) if "classes" in gives and whole_task(control, image) else None
    if draws == PARTNER:
        drawn = (one for one in partner_shapes(config, image).items() if gives & _from(one[0]))
        draws, shape = next(drawn, ("", None))
    if draws not in SHAPES or not gives & _from(draws):
        return None
    return _with_points(replace(target, shape=shape, draws=draws), points)


def is_readable(image: ObjectTag) -> bool:
    """Whether the image's value is a key of the task's data, not a place inside a value as in a Repeater."""
    return not any(sign in image.value for sign in "{[")


def whole_task(control: Control, image: ObjectTag) -> bool:
    """Whether choices are about one image: of a task of several, only where they are asked item by item."""
    return not control.per_region and (not image.is_list or control.attributes.get("perItem", "").lower() == "true")


def partner_shapes(config: LabelConfig, image: ObjectTag) -> dict[str, Control]:
    """The shape controls that draw the Labels of an image, by key of `SHAPES`, in the order of the config."""
    keys = {name.lower(): name for name in SHAPES}
    drawn = (one for one in config.controls.values() if one.type in keys and image.name in one.to_names)
    found: dict[str, Control] = {}
    for one in drawn:
        found.setdefault(keys[one.type], one)
    return found


def _from(draws: str) -> AbstractSet[str]:
    """What a model may give for a shape."""
    return SHAPES[draws].native | SHAPES[draws].derived


def _with_points(target: Target, points: Sequence[str]) -> Target:
    """With the labels of keypoints: by name, underscores or not, or by the number in a label's `model_index`."""
    if target.draws != "KeyPoint" or not points:
        return target
    found = {}
    for number, name in enumerate(points):
        label = target.control.label_for(name) or target.control.label_for(name.replace("_", " "))
        numbered = [one.stored for one in target.control.labels if one.attributes.get("model_index") == str(number)]
        if numbered or label:
            found[number] = numbered[0] if numbered else label or ""
    return replace(target, points=found)


def _without_repeats(targets: Sequence[Target], gives: AbstractSet[str]) -> tuple[Target, ...]:
    """A shape drawn at a loss is for classes that no other control of the image shows.

    The label configs of smart tools repeat their labels in KeyPointLabels, which are there to click with.
    """

    def derived(target: Target) -> bool:
        if target.draws == "KeyPoint" and target.points:
            return False
        return target.draws != CHOICES and not gives & SHAPES[target.draws].native

    kept = []
    for target in targets:
        if derived(target):
            others = [one for one in targets if one.to_name == target.to_name and not derived(one)]
            shown = {index for one in others for index in one.labels}
            left = {index: label for index, label in target.labels.items() if index not in shown}
            if not left and target.labels:
                continue
            target = replace(target, labels=left)  # noqa: PLW2901 - the same target, of fewer classes
        kept.append(target)
    return tuple(kept)
