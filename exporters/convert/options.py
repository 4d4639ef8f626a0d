"""The options of an export that determine the conversion of tasks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from exporters.convert.annotation_policy import Policy
from exporters.model.splits import SplitPolicy
from labelloop.labeling.studio.config import LabelConfig

if TYPE_CHECKING:  # statistics that only a consensus needs
    from labelloop.labeling.consensus.consensus import AnnotatorModel


class ConversionOptions(msgspec.Struct, frozen=True):
    """How tasks are converted.

    Attributes:
        policy: Selects the annotations of a task.
        split: Assigns images to splits.
        disputed: What to do with disputed tasks: one of `annotation_policy.DISPUTED`.
        config: The label config, if there is one.
        config_labels: The labels that it defines.
        crowd: The reliability of the annotators, for a consensus.
        renamed: Label -> the class that it counts as.
        sized: Whether a format uses the sizes of images.
        sizeless: Whether a format takes images of unknown size.
        images: Whether there is a format of images.
        tasks: Whether there is a format of tasks: it holds tasks without images too.
    """

    policy: Policy
    split: SplitPolicy
    disputed: str
    config: LabelConfig | None
    config_labels: frozenset[str]
    crowd: "AnnotatorModel | None" = None
    renamed: Mapping[str, str] = {}
    sized: bool = True
    sizeless: bool = False
    images: bool = True
    tasks: bool = False

    def takes_unsized(self, *, is_answered: bool) -> bool:
        """Whether an image of unknown size is taken; ``is_answered``: it has an answer, which needs no size."""
        return self.sizeless and (is_answered or not self.sized)


def image_class_control(config: LabelConfig | None) -> str:
    """Return the control of the image's class: the config's first task-level Choices; empty if there is none."""
    controls = config.controls_of("Choices") if config else ()
    return next((control.name for control in controls if not control.per_region), "")
