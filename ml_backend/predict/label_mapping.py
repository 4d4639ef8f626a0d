"""Map a model's classes to a project's labels: the target of each control, and a report of what does not match."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from ml_backend.predict.controls import ANSWERS, CHOICES, PARTNER, kind_of
from ml_backend.predict.protocol import BOX, OFF, ROTATED
from ml_backend.predict.shapes import SEGMENTED, SHAPES

# What a plain detector outputs.
BOXES = frozenset({"boxes"})

# Key of `SHAPES` of points.
POINT = "KeyPoint"

_NO_OPTIONS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Target:
    """A control of one image that detections are written to.

    Attributes:
        control: The control with the labels.
        shape: The control that draws the shape, for `Labels` with a `Rectangle`; None where `control` draws itself.
        to_name: Name of the image object.
        data_key: Key of the task's data, or path in it, that holds the image's URL.
        is_list: Whether the value under `data_key` is a list of URLs.
        labels: Label by class index, for the classes that have one.
        draws: Key of `SHAPES`, or `CHOICES`.
        keypoint_labels: Label by keypoint index; only for keypoints.
        source: Model output that the shape is drawn from, or `SEGMENTED`; see `ShapeRenderer`.
        rotated: Whether a rectangle is drawn as the smallest rotated box of the mask.
    """

    control: Control
    shape: Control | None
    to_name: str
    data_key: str
    is_list: bool
    labels: Mapping[int, str]
    draws: str = "Rectangle"
    keypoint_labels: Mapping[int, str] = field(default_factory=dict)
    source: str = "boxes"
    rotated: bool = False

    @property
    def is_segmented(self) -> bool:
        """Whether it needs a mask from the segmenter."""
        return self.source == SEGMENTED

    @property
    def is_filled(self) -> bool:
        """Whether the model, or a head of its version, has something for it."""
        return bool(self.labels or self.keypoint_labels or self.draws == ANSWERS)

    @property
    def draws_points(self) -> bool:
        """Whether it shows learned points."""
        return self.draws == ANSWERS and (self.control.type == "keypointlabels" or self.shape is not None)

    def threshold(self, default: float) -> float:
        """The control's own `model_score_threshold`, else the default. Lower scores are not shown."""
        return default if self.control.score_threshold is None else self.control.score_threshold

    def thresholds(
        self, default: float, *, names: Sequence[str], by_name: Mapping[str, float], class_defaults: Mapping[str, float]
    ) -> dict[int, float]:
        """Return the threshold of each class that the control shows: of the class or its label, else `threshold`.

        Args:
            default: Used where neither class nor control sets one.
            names: The model's class names.
            by_name: Thresholds by class or label; case is ignored.
            class_defaults: Replaces the default, by class.
        """
        folded = {name.strip().casefold(): threshold for name, threshold in by_name.items()}
        # Keypoints are shown for every class: the labels belong to the points.
        labels = dict.fromkeys(range(len(names)), "") if self.keypoint_labels else self.labels
        return {
            index: folded.get(names[index].casefold(), folded.get(label.casefold(), self.threshold(fallback)))
            for index, label in labels.items()
            for fallback in [class_defaults.get(names[index], default)]
        }


@dataclass(frozen=True)
class MappingReport:
    """How a model's classes match a label config.

    Attributes:
        matched: (model class, label) of each class that has a label; (keypoint, label) likewise.
        classes_without_label: Model classes that no control shows; never pre-labelled.
        labels_without_class: Labels without a model class; left to the annotators.
        no_target: Why no control can show the model's output; empty where one can.
    """

    matched: tuple[tuple[str, str], ...]
    classes_without_label: tuple[str, ...]
    labels_without_class: tuple[str, ...]
    no_target: str = ""

    def lines(self) -> list[str]:
        """Messages for the user; empty where every class has a label and every label a class."""
        if self.no_target:
            return [self.no_target]
        messages = []
        if not self.matched:
            messages.append("No class of the model has a label in this project, so nothing is pre-labelled.")
        if self.labels_without_class:
            messages.append(f"Labels that the model does not know: {', '.join(self.labels_without_class)}.")
        if self.classes_without_label:
            messages.append(f"Model classes without a label in this project: {', '.join(self.classes_without_label)}.")
        if messages:
            messages.append(
                'Where a name differs, say so in the label config: <Label value="Car" predicted_values="auto"/>.'
            )
        return messages


def find_targets(
    config: LabelConfig,
    names: Sequence[str],
    *,
    provides: AbstractSet[str] = BOXES,
    keypoint_names: Sequence[str] = (),
    controls: Mapping[str, str] = _NO_OPTIONS,
    answers: AbstractSet[str] = frozenset(),
) -> tuple[Target, ...]:
    """Return every control of a label config that a model can fill.

    Args:
        config: The project's label config.
        names: The model's class names, in its order.
        provides: Output kinds of the model, see `ml_backend.layouts.OutputReader.provides`.
        keypoint_names: Names of its keypoints.
        controls: How controls are served, by name: `ProjectOptions.controls`.
        answers: Names of the controls that the version's heads answer, see `Detector.answers`.
    """
    images = {image.name: image for image in config.images if is_readable(image)}
    targets = []
    for control in config.controls.values():
        served_as = controls.get(control.name, "")
        for to_name in control.to_names if served_as != OFF else ():
            if to_name in images and control.name in answers:
                image = images[to_name]
                # Learned points of `Labels` are drawn by a KeyPoint; its other shapes are served as before.
                shape = partner_shapes(config, image).get(POINT) if kind_of(control.tag).draws == PARTNER else None
                targets.append(Target(control, shape, image.name, image.value, image.is_list, {}, draws=ANSWERS))
                if shape is not None:
                    drawn = _target(config, control, image, names, provides=provides, served_as=served_as)
                    targets += [drawn] if drawn is not None and drawn.draws != POINT else []
            elif to_name in images:
                target = _target(config, control, images[to_name], names, provides=provides, served_as=served_as)
                targets += [_with_keypoint_labels(target, keypoint_names)] if target else []
    return _without_duplicate_labels(targets)


def mapping_report(
    config: LabelConfig,
    names: Sequence[str],
    *,
    provides: AbstractSet[str] = BOXES,
    keypoint_names: Sequence[str] = (),
    controls: Mapping[str, str] = _NO_OPTIONS,
) -> MappingReport:
    """Report matched and unmatched classes and labels; arguments as in `find_targets`."""
    targets = find_targets(config, names, provides=provides, keypoint_names=keypoint_names, controls=controls)
    if not targets:
        tags = ", ".join(_tags(provides))
        what = "the class of an image" if "classes" in provides else "boxes"
        why = "no image" if not config.images else f"no control for {what} ({tags}) on an image"
        return MappingReport((), tuple(names), (), f"The label config has {why}, so nothing is pre-labelled.")
    matched = {names[index]: label for target in targets for index, label in target.labels.items()}
    by_point = {keypoint_names[number]: label for target in targets for number, label in target.keypoint_labels.items()}
    matched_labels = {
        label for target in targets for label in (*target.labels.values(), *target.keypoint_labels.values())
    }
    labels = [label.stored for target in targets for label in target.control.labels]
    return MappingReport(
        matched=(*matched.items(), *by_point.items()),
        classes_without_label=() if by_point else tuple(name for name in names if name not in matched),
        labels_without_class=tuple(dict.fromkeys(label for label in labels if label not in matched_labels)),
    )


def unknown_thresholds(targets: Sequence[Target], names: Sequence[str], by_name: Mapping[str, float]) -> list[str]:
    """Return the names in a project's thresholds that are neither a model class nor a label."""
    known_names = {name.casefold() for name in names}
    known_names |= {label.stored.casefold() for target in targets for label in target.control.labels}
    return [name for name in by_name if name.strip().casefold() not in known_names]


def with_segmenter(provides: AbstractSet[str]) -> AbstractSet[str]:
    """The outputs of a model with those that the segmenter adds: masks from boxes, where it has no masks."""
    return provides | {SEGMENTED} if "boxes" in provides and "masks" not in provides else provides


def _tags(provides: AbstractSet[str]) -> list[str]:
    """The tags that a model can fill, as spelled in a label config."""
    if "classes" in provides:
        return [CHOICES]
    drawn = [name for name in SHAPES if with_segmenter(provides) & SHAPES[name].sources]
    return [f"{name}Labels" for name in drawn] + [f"Labels with {name}" for name in drawn[:1]]


def _target(
    config: LabelConfig,
    control: Control,
    image: ObjectTag,
    names: Sequence[str],
    *,
    provides: AbstractSet[str],
    served_as: str,
) -> Target | None:
    """The target of one control and image; None where the model cannot fill it. Tags are case-insensitive."""
    labels = {index: label for index, name in enumerate(names) if (label := control.label_for(name)) is not None}
    target = Target(control, None, image.name, image.value, image.is_list, labels)
    draws = kind_of(control.tag).draws
    if draws == CHOICES:
        return replace(target, draws=CHOICES) if "classes" in provides and is_about_one_image(control, image) else None
    partners = partner_shapes(config, image).items() if draws == PARTNER else ((draws, None),)
    outputs = provides & {"boxes", "turned"} if served_as == BOX else with_segmenter(provides)
    drawn = [
        replace(target, shape=shape, draws=tag, source=source)
        for tag, shape in partners
        if tag in SHAPES and (source := SHAPES[tag].source(outputs))
    ]
    if not drawn:
        return None
    best = min(drawn, key=_rank)
    if served_as == ROTATED and best.draws == "Rectangle":
        source = next(source for source in ("turned", "masks", SEGMENTED) if source in outputs)
        return replace(best, source=source, rotated=True)
    return best


def is_readable(image: ObjectTag) -> bool:
    """Whether the image's value is a key of the task's data, or a path such as `photo.url`; not inside a Repeater."""
    return "{" not in image.value


def is_about_one_image(control: Control, image: ObjectTag) -> bool:
    """Whether choices describe one image: not several objects; in a task with several images, only with `perItem`."""
    return (
        not control.per_region
        and len(control.to_names) == 1
        and (not image.is_list or control.attributes.get("perItem", "").lower() == "true")
    )


def partner_shapes(config: LabelConfig, image: ObjectTag) -> dict[str, Control]:
    """The shape controls that draw the Labels of an image, by key of `SHAPES`, in the order of the config."""
    keys = {name.lower(): name for name in SHAPES}
    drawn = (partner for partner in config.controls.values() if partner.type in keys and image.name in partner.to_names)
    partners: dict[str, Control] = {}
    for partner in drawn:
        partners.setdefault(keys[partner.type], partner)
    return partners


def _with_keypoint_labels(target: Target, keypoint_names: Sequence[str]) -> Target:
    """Add keypoint labels: matched by name, ignoring underscores, or by the number in a label's `model_index`."""
    if target.draws != POINT or not keypoint_names:
        return target
    point_labels = {}
    for number, name in enumerate(keypoint_names):
        label = target.control.label_for(name) or target.control.label_for(name.replace("_", " "))
        numbered = [
            label_tag.stored
            for label_tag in target.control.labels
            if label_tag.attributes.get("model_index") == str(number)
        ]
        if numbered or label:
            point_labels[number] = numbered[0] if numbered else label or ""
    return replace(target, keypoint_labels=point_labels)


def _rank(target: Target) -> int:
    """Order of preference among the controls that can show a class: 0 without loss, 2 a mere point, 3 a prompt."""
    attributes = {name.lower(): value.lower() for name, value in target.control.attributes.items()}
    if attributes.get("smartonly") == "true":
        return 3  # it draws prompts of smart tools only
    if target.draws in {ANSWERS, CHOICES, "Rectangle"} or target.keypoint_labels:
        return 0
    if target.source in SHAPES[target.draws].native:
        return 0
    return 2 if target.draws == POINT else 1


def _without_duplicate_labels(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Drop classes of derived shapes that another control of the image already shows.

    Label configs of smart tools repeat their labels in KeyPointLabels, which serve as click prompts. Among controls of
    the same rank, the first one of the label config shows the class.
    """
    unique: list[Target] = []
    for number, target in enumerate(targets):
        rank = _rank(target)
        if rank and target.draws not in {CHOICES, ANSWERS}:
            taken_classes = {
                index
                for position, other in enumerate(targets)
                if other.to_name == target.to_name
                and (_rank(other), position) < (rank, number)
                and other.draws != CHOICES
                for index in other.labels
            }
            remaining = {index: label for index, label in target.labels.items() if index not in taken_classes}
            if not remaining and target.labels:
                continue
            target = replace(target, labels=remaining)  # noqa: PLW2901 - the same target with fewer classes
        unique.append(target)
    return tuple(unique)
