"""What a project's controls get from a model and teach it, control by control, in one sentence each.

Connecting, `/setup`, `/predict`, pre-labelling, the pages, `labelloop learn` and `labelloop doctor` all say these.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.service.errors import LabelloopError
from ml_backend.inference.detector import Detector
from ml_backend.predict.controls import CHOICES, IMAGE, PARTNER, kind_of
from ml_backend.predict.label_mapping import Target, find_targets, is_readable, partner_shapes, whole_task
from ml_backend.predict.shapes import SHAPES

MOST_NAMED = 6
"""Labels or classes that a sentence lists."""


class ControlSupport(msgspec.Struct, frozen=True):
    """What one control of one object gets and teaches.

    Attributes:
        control: Its name.
        tag: Of the control, and of its `object`; empty where the label config has no such object.
        prelabels: Whether the model fills it; None: it depends on the model, which is not known here.
        learns: Whether versions are learned from it.
        reason: Why not, where one of them is False.
    """

    control: str
    tag: str
    object: str
    prelabels: bool | None
    learns: bool
    reason: str = ""

    @property
    def sentence(self) -> str:
        """All of it in words."""
        where = f"{self.control} ({self.tag} on {self.object or 'nothing'})"
        said = {True: "pre-labelled", False: "not pre-labelled", None: "pre-labelled where the model fits"}
        learned = "learned from" if self.learns else "not learned from"
        joined = "and" if self.prelabels in {None, self.learns} else "but"
        return f"{where} is {said[self.prelabels]} {joined} {learned}{f': {self.reason}' if self.reason else ''}."


class NotServed(LabelloopError):
    """A project has no control that what was asked for could be done for."""

    code: ClassVar[str] = "controls_not_served"
    status: ClassVar[int] = 409

    def __init__(self, project: int, what: str, supported: Sequence[ControlSupport]) -> None:
        super().__init__(
            f"Nothing in project {project} is {what}. {' '.join(reasons(supported)) or NO_CONTROL}",
            fix="Give the labeling interface an Image with RectangleLabels (docs/reference/controls.md lists what is "
            "served), or label without.",
        )


NO_CONTROL = "The label config has no control."


@dataclass(frozen=True)
class ModelOutputs:
    """What decides which controls a model fills.

    Attributes:
        names: Its class names, in its order.
        gives: See `ml_backend.layouts.Reader.gives`.
        points: Names of its keypoints.
        unlearnable: Why nothing can be learned on it; empty where something can.
    """

    names: tuple[str, ...]
    gives: AbstractSet[str]
    points: tuple[str, ...] = ()
    unlearnable: str = ""

    @classmethod
    def of(cls, detector: Detector) -> ModelOutputs:
        """Of an opened model."""
        from ml_backend.training.feature_export import (
            unlearnable,  # it loads onnx, which a start without a model need not wait for
        )

        return cls(detector.names.names, detector.gives, detector.points, unlearnable(detector))


def controls_of(config: LabelConfig, model: ModelOutputs | None = None) -> tuple[ControlSupport, ...]:
    """What each control of a label config gets and teaches, in the order of the config.

    Args:
        config: The project's label config.
        model: What is served to it; None: not known here.
    """
    targets = find_targets(config, model.names, gives=model.gives, points=model.points) if model else ()
    found: list[ControlSupport] = []
    for control in config.controls.values():
        if _is_partner(config, control):
            continue  # its Labels say it
        shown = (config.objects.get(name) for name in control.to_names or ("",))
        found += [_support(config, control, one, model, targets) for one in shown]
    return tuple(found)


def learnable(config: LabelConfig) -> bool:
    """Whether versions can be learned from some control."""
    return any(one.learns for one in controls_of(config))


def unlearned(project: int, config: LabelConfig | None) -> str:
    """Why no version of a project can be learned; empty where one can, or the label config is not known."""
    if config is None or learnable(config):
        return ""
    return NotServed(project, "learned from", controls_of(config)).message


def reasons(supported: Sequence[ControlSupport]) -> list[str]:
    """The sentences of controls that are not pre-labelled, or not learned from."""
    return [one.sentence for one in supported if not one.learns or one.prelabels is False]


def _support(
    config: LabelConfig,
    control: Control,
    shown: ObjectTag | None,
    model: ModelOutputs | None,
    targets: Sequence[Target],
) -> ControlSupport:
    tag, seen = kind_of(control.tag).tag, shown.tag if shown else ""
    unreadable = _unreadable(config, control, shown)
    if unreadable or shown is None:
        return ControlSupport(control.name, tag, seen, prelabels=False, learns=False, reason=unreadable)
    drawn = _drawn_by(config, control, shown)
    learns = any(kind_of(name).learns for name in drawn)
    mine = [one for one in targets if one.control.name == control.name and one.to_name == shown.name]
    if model is None:
        filled, why = None, ""
    else:
        filled = any(one.labels or one.points for one in mine)
        why = "" if filled else _not_filled(control, drawn, model, shown=bool(mine))
    if not learns:
        why = f"{why}; " * bool(why) + kind_of(drawn[0]).reason
    elif model is not None and model.unlearnable:
        learns, why = False, f"{why}; " * bool(why) + f"the model cannot be learned on: {model.unlearnable}"
    return ControlSupport(control.name, tag, seen, prelabels=filled, learns=learns, reason=why)


def _unreadable(config: LabelConfig, control: Control, shown: ObjectTag | None) -> str:
    """Why no model of any kind could fill it; empty where one could."""
    kind = kind_of(control.tag)
    if shown is None:
        return f"the label config has no object {', '.join(control.to_names) or 'for it'} that shows task data"
    if shown.tag.lower() != IMAGE.lower():
        return f"it is on {shown.tag}, and only images are read"
    if not is_readable(shown):
        return f"the image's value {shown.value} is not a plain key of the task's data"
    if not kind.draws:
        return kind.reason
    if kind.draws == PARTNER and not partner_shapes(config, shown):
        return "the image has no Rectangle, Ellipse, Polygon, Brush or KeyPoint for its labels"
    if kind.draws == CHOICES and not whole_task(control, shown):
        return "it asks about a region" if control.per_region else "it asks about several images at once"
    return ""


def _drawn_by(config: LabelConfig, control: Control, shown: ObjectTag) -> tuple[str, ...]:
    """The tags of the table that say what a control is: its own, or those of the shapes that draw its labels."""
    if kind_of(control.tag).draws != PARTNER:
        return (control.tag,)
    return tuple(f"{name}Labels" for name in partner_shapes(config, shown))


def _not_filled(control: Control, drawn: Sequence[str], model: ModelOutputs, *, shown: bool) -> str:
    """Why a model does not fill a control that another could fill."""
    needs: set[str] = set()
    for draws in (kind_of(tag).draws for tag in drawn):
        needs |= {"classes"} if draws == CHOICES else SHAPES[draws].native | SHAPES[draws].derived
    if not needs & model.gives:
        gives, wanted = _outputs(model.gives, "and"), _outputs(needs, "or")
        return f"the model gives {gives}, and it needs {wanted}"
    if not control.labels:
        return "its labels come from each task, so no class is known to mean them"
    if not shown:
        return "another control of the image shows the same labels as boxes"
    return (
        f"none of its labels ({_listed([label.stored for label in control.labels])}) is a class of the model "
        f"({_listed(model.names)}); where only the name differs, write predicted_values into the label"
    )


_IN_WORDS = {"classes": "the class of a whole image", "turned": "turned boxes"}


def _outputs(kinds: AbstractSet[str], joint: str) -> str:
    """What models give, in words."""
    return f" {joint} ".join(_IN_WORDS.get(one, one) for one in sorted(kinds))


def _is_partner(config: LabelConfig, control: Control) -> bool:
    """Whether a shape without labels is what Labels of one of its images are drawn with."""
    images = [config.objects[name] for name in control.to_names if name in config.objects]
    drawn = any(name.lower() == control.type for name in SHAPES)
    return drawn and any(one.type == "labels" and set(one.to_names) & set(control.to_names)
                         for one in config.controls.values()) and bool(images)  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
