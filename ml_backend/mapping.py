"""Owns how a model's classes meet a project's labels: what each control gets, and what finds no partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labelloop.labeling.config import Control, LabelConfig

BOX_CONTROLS: Mapping[str, str] = {"RectangleLabels": "", "Labels": "Rectangle"}
"""Controls that a box fills -> the shape tag that must stand beside it; empty where the control draws itself."""


@dataclass(frozen=True)
class Target:
    """A control that boxes of one image go to.

    Attributes:
        control: The control with the labels.
        shape: Its partner that draws the box, for `Labels` with a `Rectangle`; None for `RectangleLabels`.
        to_name: The image object.
        data_key: The key of the task's data that holds the image's address; a list of them where `is_list`.
        labels: Label of each model class that has one, by the class's index.
    """

    control: Control
    shape: Control | None
    to_name: str
    data_key: str
    is_list: bool
    labels: Mapping[int, str]

    def threshold(self, default: float) -> float:
        """Scores below it are not shown: the control's own `model_score_threshold`, else the default."""
        return default if self.control.score_threshold is None else self.control.score_threshold


@dataclass(frozen=True)
class MappingReport:
    """How a model's classes and a label configuration fit together.

    Attributes:
        matched: (model class, label) of each class that has a label.
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


def find_targets(config: LabelConfig, names: Sequence[str]) -> tuple[Target, ...]:
    """Every control of a label configuration that a box model with these class names can fill."""
    images = {image.name: image for image in config.images}
    targets = []
    for control in config.controls_of(*BOX_CONTROLS):
        labels = {index: label for index, name in enumerate(names) if (label := control.label_for(name)) is not None}
        for to_name in control.to_names:
            shape = _partner(config, control, to_name)
            if to_name not in images or (shape is None and _shape_tag(control)):
                continue
            image = images[to_name]
            targets.append(Target(control, shape, to_name, image.value, image.is_list, labels))
    return tuple(targets)


def mapping_report(config: LabelConfig, names: Sequence[str]) -> MappingReport:
    """Which classes and labels meet, and which do not.

    Args:
        config: The project's label configuration.
        names: The model's class names, in its order.
    """
    targets = find_targets(config, names)
    if not targets:
        tags = ", ".join(f"{tag} with {shape}" if shape else tag for tag, shape in BOX_CONTROLS.items())
        why = "no image" if not config.images else f"no control for boxes ({tags}) on an image"
        return MappingReport((), tuple(names), (), f"The label config has {why}, so nothing is pre-labelled.")
    matched = {names[index]: label for target in targets for index, label in target.labels.items()}
    known = {label for target in targets for label in target.labels.values()}
    labels = [label.stored for target in targets for label in target.control.labels]
    return MappingReport(
        matched=tuple(matched.items()),
        classes_without_label=tuple(name for name in names if name not in matched),
        labels_without_class=tuple(dict.fromkeys(label for label in labels if label not in known)),
    )


def _shape_tag(control: Control) -> str:
    """Tags are the same in any case."""
    return next(shape for tag, shape in BOX_CONTROLS.items() if tag.lower() == control.type)


def _partner(config: LabelConfig, control: Control, to_name: str) -> Control | None:
    tag = _shape_tag(control)
    shapes = config.controls_of(tag) if tag else ()
    return next((shape for shape in shapes if to_name in shape.to_names), None)
