"""Whether the controls and labels that a policy names are the project's."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from labelloop.labeling.studio.config import Control, LabelConfig
from qc_webhooks.policy.values import OVERALL, Fault

# Links between regions come from no control of their own.
_WITHOUT_A_CONTROL = frozenset({"relation"})


def name_faults(settings: Mapping[str, Any], config: LabelConfig) -> Iterator[Fault]:
    """Every name that the project does not have, with the nearest that it has.

    Args:
        settings: ``controls``, ``review`` and ``rules`` of a ``Policy``, each where it is set.
        config: The project's label config.
    """
    controls = {*config.controls, *config.objects, *_WITHOUT_A_CONTROL}
    labels = {label.stored for control in config.controls.values() for label in control.labels}
    for name in settings.get("controls", {}):
        yield from _control_fault(f"controls.{name}", name, config, controls)
    for place, route in enumerate(settings.get("review", ()), start=1):
        if route.dimension != OVERALL:
            yield from _control_fault(f"review[{place}].dimension", route.dimension, config, controls)
    for place, rule in enumerate(settings.get("rules", ()), start=1):
        if rule.control:
            yield from _control_fault(f"rules[{place}].control", rule.control, config, controls)
        if not any(map(_has_labels_of_the_task, config.controls.values())):
            for label in (*rule.labels, *rule.others):
                if label not in labels:
                    yield f"rules[{place}].labels", _unknown(label, labels)


def _control_fault(field: str, name: str, config: LabelConfig, known: Iterable[str]) -> Iterator[Fault]:
    if name not in set(known) and config.control(name) is None:
        yield field, _unknown(name, known)


def _has_labels_of_the_task(control: Control) -> bool:
    """Whether the labels of a control come with each task, or from elsewhere."""
    return control.attributes.get("value", "").startswith("$") or "apiUrl" in control.attributes


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, sorted(known), n=1)
    return f"names {name!r}{f' ({near[0]!r}?)' if near else ''}, which the project does not have"
