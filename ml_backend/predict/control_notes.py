"""Notes on the controls of a project, for connect, doctor, `/setup` and the pages.

What is not served, by `control_support`; whose features answers are learned on, and which key points are learned
poorly.
"""

import re
from collections.abc import Iterator, Sequence

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.control_support import KEY_POINTS, ControlSupport, ModelOutputs, reasons
from ml_backend.predict.controls import ANSWERS, CHOICES, kind_of
from ml_backend.predict.label_mapping import POINT

# Key points of a person in COCO, without their side.
BODY_PARTS = frozenset({"nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"})
# Labels of a control that are body parts, from which its points are those of persons.
MIN_BODY_PARTS = 4
_SIDES = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])|[^a-z]", re.IGNORECASE)

# PCK@.1 on persons of COCO, `bench/results/keypoints.md`.
PERSONS_LEARNED, PERSONS_MEAN, PERSONS_IMAGES = 0.44, 0.21, 20


def notes_of(config: LabelConfig, supported: Sequence[ControlSupport], model: ModelOutputs | None = None) -> list[str]:
    """Return why controls are not served, and `hints_of`."""
    return [*reasons(supported), *hints_of(config, supported, model)]


def hints_of(config: LabelConfig, supported: Sequence[ControlSupport], model: ModelOutputs | None = None) -> list[str]:
    """Return what users should know of controls that are served, a sentence or two each.

    Args:
        config: The project's label config.
        supported: Support of its controls: `controls_of`.
        model: Outputs of the model served to the project; None: unknown.
    """
    return [*_lent(supported, model), *_persons(config, supported, model)]


def _lent(supported: Sequence[ControlSupport], model: ModelOutputs | None) -> Iterator[str]:
    """Whose features answers about images are learned on, where the model has none."""
    answered = [
        support.control for support in supported if support.learns and kind_of(support.tag).draws in {CHOICES, ANSWERS}
    ]
    if model is not None and model.lent and answered:
        yield (
            f"{', '.join(dict.fromkeys(answered))}: learned on features of the embedded model, which runs next to the "
            f"served one, since {model.lent}."
        )


def _persons(config: LabelConfig, supported: Sequence[ControlSupport], model: ModelOutputs | None) -> Iterator[str]:
    """Which key points are learned poorly."""
    if model is not None and model.keypoint_names:
        return
    for support in supported:
        control = config.controls[support.control]
        generic = control.type == "labels" and any(
            set(shape.to_names) & set(control.to_names) for shape in config.controls_of(POINT)
        )
        if support.tag != KEY_POINTS and not generic:
            continue
        parts = [label.stored for label in control.labels if _SIDES.sub("", label.stored).casefold() in BODY_PARTS]
        if len(parts) >= MIN_BODY_PARTS:
            yield (
                f"{support.control}: points of persons in everyday photos are learned poorly: after {PERSONS_IMAGES} "
                f"images a share of {PERSONS_LEARNED:.2f} is right (PCK@.1; mean shape {PERSONS_MEAN:.2f}). Serve a "
                "pose model of your own for them, see docs/how-to/keypoints.md."
            )
