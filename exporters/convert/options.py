"""What decides about the tasks of an export, read once: its options."""

from collections.abc import Mapping

import msgspec

from exporters.convert.annotation_policy import Policy
from exporters.model.splits import Split
from labelloop.labeling.consensus.consensus import AnnotatorModel
from labelloop.labeling.studio.config import LabelConfig


class Rules(msgspec.Struct, frozen=True):
    """Whose annotation counts, which split an image is in, what a label may be.

    ``sizeless``: one of the formats needs no image size.

    ``disputed`` is one of ``choose.DISPUTED``; ``crowd`` is what the consensus weighs the annotators by. ``renamed``
    maps labels to the classes that they count as.
    """

    policy: Policy
    split: Split
    disputed: str
    config: LabelConfig | None
    config_labels: frozenset[str]
    crowd: AnnotatorModel | None = None
    renamed: Mapping[str, str] = {}
    sizeless: bool = False


def question(config: LabelConfig | None) -> str:
    """The control that asks for the class of an image: the config's first that asks about the whole task; or none."""
    asked = config.controls_of("Choices") if config else ()
    return next((each.name for each in asked if not each.per_region), "")
