"""Which controls of a project a model pre-labels and learns from, with one sentence per control.

Used by connect, `/setup`, `/predict`, pre-labelling, the dashboard, `labelloop learn` and `labelloop doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.service.errors import LabelloopError
from ml_backend.inference.detector import Detector
from ml_backend.predict.controls import ANSWERS, CHOICES, IMAGE, PARTNER, kind_of
from ml_backend.predict.label_mapping import Target, find_targets, is_about_one_image, is_readable, partner_shapes
from ml_backend.predict.protocol import OFF
from ml_backend.predict.shapes import SEGMENTED, SHAPES, SOURCES

# `draws` of controls that are learned on features of their own, also with a model that cannot be trained.
LEARNED_APART = frozenset({CHOICES, ANSWERS, "KeyPoint"})

KEY_POINTS = "KeyPointLabels"

# Labels or classes listed in a sentence.
MOST_NAMED = 6


class ControlSupport(msgspec.Struct, frozen=True):
    """Whether one control of one object is pre-labelled and learned from.

    Attributes:
        control: Name of the control.
        tag: Tag of the control.
        object: Tag of the object; empty where the label config has no such object.
        prelabels: Whether the model fills the control; None: unknown, because no model was given.
        learns: Whether models are trained from it.
        reason: Why `prelabels` or `learns` is False.
        how: What the control is filled from, in words of `SOURCES`; empty where it is not, or no model was given.
    """

    control: str
    tag: str
    object: str
    prelabels: bool | None
    learns: bool
    reason: str = ""
    how: str = ""

    @property
    def sentence(self) -> str:
        """The support in words, for messages and pages."""
        where = f"{self.control} ({self.tag} on {self.object or 'nothing'})"
        states = {
            True: f"pre-labelled {self.how}".rstrip(),
            False: "not pre-labelled",
            None: "pre-labelled where the model fits",
        }
        learned = "learned from" if self.learns else "not learned from"
        joined = "and" if self.prelabels in {None, self.learns} else "but"
        return f"{where} is {states[self.prelabels]} {joined} {learned}{f': {self.reason}' if self.reason else ''}."


class NotServed(LabelloopError):
    """No control of the project supports the requested operation."""

    code = "controls_not_served"
    status = 409

    def __init__(self, project: int, what: str, supported: Sequence[ControlSupport]) -> None:
        super().__init__(
            f"Nothing in project {project} is {what}. {' '.join(reasons(supported)) or NO_CONTROL}",
            fix="Give the labeling interface an Image with a control that is served (docs/reference/controls.md lists "
            "them), or label without.",
        )


NO_CONTROL = "The label config has no control."


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of a model that decide which controls it fills.

    Attributes:
        names: Class names, in the model's order.
        provides: Output kinds, see `ml_backend.layouts.OutputReader.provides`.
        keypoint_names: Keypoint names.
        unlearnable: Why the model cannot be fine-tuned; empty where it can.
        answers: Names of the controls that the heads of the version answer.
        lent: Why answers about images are learned on features of the embedded model; empty where they are not.
    """

    names: tuple[str, ...]
    provides: AbstractSet[str]
    keypoint_names: tuple[str, ...] = ()
    unlearnable: str = ""
    answers: frozenset[str] = frozenset()
    lent: str = ""

    @classmethod
    def of(cls, detector: Detector, *, reads_graph: bool = False) -> ModelOutputs:
        """Read the outputs of an opened detector, with its heads.

        Args:
            detector: The model.
            reads_graph: Also find out whether a model that nothing was learned on has features of images; that parses
                its file.
        """
        # Imported here: it loads onnx, which a start without a model does not need.
        from ml_backend.training.feature_export import no_image_features, not_learnable_reason
        from ml_backend.training.lent_features import LENT

        lent = detector.engine.graph.metadata.get(LENT, "")
        return cls(
            detector.names.names, detector.provides, detector.keypoint_names, not_learnable_reason(detector),
            detector.answers, lent or (no_image_features(detector) if reads_graph else ""),
        )  # fmt: skip


def controls_of(
    config: LabelConfig, model: ModelOutputs | None = None, *, options: Mapping[str, str] | None = None
) -> tuple[ControlSupport, ...]:
    """Return the support of every control of a label config, in the order of the config.

    Args:
        config: The project's label config.
        model: Outputs of the model served to the project; None: unknown.
        options: How controls are served, by name: `ProjectOptions.controls`.
    """
    options = options or {}
    targets: tuple[Target, ...] = ()
    if model is not None:
        targets = find_targets(
            config, model.names, provides=model.provides, keypoint_names=model.keypoint_names, controls=options
        )
    supports: list[ControlSupport] = []
    for control in config.controls.values():
        if _is_partner(config, control):
            continue  # reported with its Labels
        images = (config.objects.get(name) for name in control.to_names or ("",))
        supports += [
            _support(config, control, image, model=model, targets=targets, options=options) for image in images
        ]
    return tuple(supports)


def learnable(config: LabelConfig) -> bool:
    """Whether at least one control is learned from."""
    return any(support.learns for support in controls_of(config))


def why_not_learnable(project: int, config: LabelConfig | None) -> str:
    """Why no model can be trained for a project; empty where one can, or the label config is unknown."""
    if config is None or learnable(config):
        return ""
    return NotServed(project, "learned from", controls_of(config)).message


def reasons(supported: Sequence[ControlSupport]) -> list[str]:
    """The sentences of the controls that are not pre-labelled or not learned from."""
    return [support.sentence for support in supported if not support.learns or support.prelabels is False]


def _support(
    config: LabelConfig,
    control: Control,
    image: ObjectTag | None,
    *,
    model: ModelOutputs | None,
    targets: Sequence[Target],
    options: Mapping[str, str],
) -> ControlSupport:
    tag, object_tag = kind_of(control.tag).tag, image.tag if image else ""
    unreadable = _unreadable(config, control, image)
    if unreadable or image is None:
        return ControlSupport(control.name, tag, object_tag, prelabels=False, learns=False, reason=unreadable)
    drawn = _drawn_by(config, control, image)
    learns = any(kind_of(name).learns for name in drawn)
    own_targets = [target for target in targets if target.control.name == control.name and target.to_name == image.name]
    how, why = "", ""
    filled: bool | None = None
    if options.get(control.name) == OFF:
        filled, why = False, "it is switched off in the extra params"
    elif model is not None:
        filling = [target for target in own_targets if target.labels or target.keypoint_labels]
        filled = bool(filling)
        how = " and ".join(dict.fromkeys(_how(target) for target in filling))
        if control.name in model.answers:
            learned = f"from {'points' if KEY_POINTS in drawn else 'answers'} learned in this project"
            filled, how = True, f"{how} and {learned}" if how and drawn != (KEY_POINTS,) else learned
        why = "" if filled else _not_filled(control, drawn, model, has_target=bool(own_targets))
    if not learns:
        why = f"{why}; " * bool(why) + kind_of(drawn[0]).reason
    elif model is not None and model.unlearnable and (control.per_region or not _learned_apart(drawn)):
        learns, why = False, f"{why}; " * bool(why) + f"the model cannot be learned on: {model.unlearnable}"
    return ControlSupport(control.name, tag, object_tag, prelabels=filled, learns=learns, reason=why, how=how)


def _how(target: Target) -> str:
    """What a control is filled from, in words."""
    if target.draws == CHOICES:
        return SOURCES["classes"]
    how = SOURCES["keypoints" if target.keypoint_labels else target.source]
    return f"as the smallest rotated box {how}" if target.rotated else how


def _unreadable(config: LabelConfig, control: Control, image: ObjectTag | None) -> str:
    """Why no model of any kind can fill the control; empty where one can."""
    kind = kind_of(control.tag)
    if image is None:
        return f"the label config has no object {', '.join(control.to_names) or 'for it'} that shows task data"
    if image.tag.lower() != IMAGE.lower():
        return f"it is on {image.tag}, and only images are read"
    if not is_readable(image):
        return f"the image's value {image.value} is inside a Repeater, which is not read"
    if not kind.draws:
        return kind.reason
    if kind.draws == PARTNER and not partner_shapes(config, image):
        return "the image has no Rectangle, Ellipse, Polygon, Brush or KeyPoint for its labels"
    if kind.draws in {CHOICES, ANSWERS} and not control.per_region and not is_about_one_image(control, image):
        return "it asks about several images at once"
    return ""


def _drawn_by(config: LabelConfig, control: Control, image: ObjectTag) -> tuple[str, ...]:
    """The tags that draw a control: its own, or the shapes that draw its labels."""
    if kind_of(control.tag).draws != PARTNER:
        return (control.tag,)
    return tuple(f"{name}Labels" for name in partner_shapes(config, image))


def _learned_apart(drawn: Sequence[str]) -> bool:
    """Whether a control is learned from, in any of its shapes, also where boxes cannot be trained."""
    return any(kind_of(tag).draws in LEARNED_APART for tag in drawn)


def _not_filled(control: Control, drawn: Sequence[str], model: ModelOutputs, *, has_target: bool) -> str:
    """Why this model does not fill a control that another model could fill."""
    draws = kind_of(control.tag).draws
    if draws == ANSWERS or (draws == CHOICES and (control.per_region or "classes" not in model.provides)):
        return "no answer is learned yet"
    if tuple(drawn) == (KEY_POINTS,) and not model.keypoint_names:
        return (
            "no point is learned yet: points of three objects or images teach them, and the learning page has the "
            "figures of points that were refused"
        )
    needs: set[str] = set()
    for draws in (kind_of(tag).draws for tag in drawn):
        sources = {"classes"} if draws == CHOICES else SHAPES[draws].sources
        needs |= {"boxes" if source == SEGMENTED else source for source in sources}
    if not needs & model.provides:
        gives, wanted = _outputs(model.provides, "and"), _outputs(needs, "or")
        return f"the model gives {gives}, and it needs {wanted}"
    if not control.labels:
        return "its labels come from each task, so no class is known to mean them"
    if not has_target:
        return "another control of the image shows the same labels"
    return (
        f"none of its labels ({_listed([label.stored for label in control.labels])}) is a class of the model "
        f"({_listed(model.names)}); where only the name differs, write predicted_values into the label"
    )


_IN_WORDS = {"classes": "the class of a whole image", "turned": "turned boxes", "semantic": "classes of pixels"}


def _outputs(kinds: AbstractSet[str], joint: str) -> str:
    """Model outputs in words."""
    return f" {joint} ".join(_IN_WORDS.get(kind, kind) for kind in sorted(kinds))


def _is_partner(config: LabelConfig, control: Control) -> bool:
    """Whether the control is a shape without labels that draws the Labels of one of its images."""
    images = [config.objects[name] for name in control.to_names if name in config.objects]
    drawn = any(name.lower() == control.type for name in SHAPES)
    return drawn and any(partner.type == "labels" and set(partner.to_names) & set(control.to_names)
                         for partner in config.controls.values()) and bool(images)  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
