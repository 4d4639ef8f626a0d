"""Read a policy from its TOML files; errors name the file and the setting."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from labelloop.labeling.studio.config import Control, LabelConfig
from qc_webhooks.errors import PolicyError, PolicyFault
from qc_webhooks.policy.conflict_rules import BY_MEAN, ConflictPolicy, LabelConflicts
from qc_webhooks.policy.guideline_rules import Rule
from qc_webhooks.policy.values import OVERALL, ControlPolicy, Fault, Policy, ReviewRoute


def read_policy(
    home: Path, project: int, *, config: LabelConfig | None = None, defaults: Policy | None = None
) -> Policy:
    """Read the policy of a project: the defaults, then ``qc/policy.toml``, then ``qc/<project>/policy.toml``.

    Args:
        home: Folder of labelloop's state (the setting ``home``).
        project: Project id in Label Studio.
        config: The project's label config; if given, the controls and labels named in the project's own file must exist
            in it. The file for all projects may name those of other projects.
        defaults: The defaults of the project; those of a new project where omitted.

    Raises:
        PolicyError: A file is not valid TOML, or settings are unknown, of the wrong type, out of range, or name
            controls or labels that the project does not have. It lists all faults of both files.
    """
    policy, faults = defaults or Policy(), list[PolicyFault]()
    for path in policy_files(home, project):
        if path.is_file():
            own = config if path == policy_files(home, project)[1] else None
            policy, path_faults = _parsed(path, policy, own)
            faults += path_faults
    if faults:
        raise PolicyError(faults)
    return policy


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Paths of the policy files: for all projects, then for this one, which takes precedence."""
    return home / "qc" / "policy.toml", home / "qc" / str(project) / "policy.toml"


def parse_policy(path: Path, *, base: Policy | None = None, config: LabelConfig | None = None) -> Policy:
    """Read one ``policy.toml`` on top of ``base``: settings, lists of tables and tables of controls are replaced.

    Raises:
        PolicyError: See ``read_policy``.
    """
    policy, faults = _parsed(path, base or Policy(), config)
    if faults:
        raise PolicyError(faults)
    return policy


# Setting -> setting that its range depends on; it is checked only if that one is valid.
_DEPENDS = {"near_iou": "match_iou", "max_annotators": "annotators"}
# Settings that can name controls or labels.
_NAMING = ("controls", "review", "rules", "conflicts")


def _parsed(path: Path, base: Policy, config: LabelConfig | None) -> tuple[Policy, list[PolicyFault]]:
    """Return the policy with the valid settings of a file, and the faults of the others."""
    file_name = str(path)
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return base, [PolicyFault(file_name, "", f"no TOML: {error}")]
    except OSError as error:
        return base, [PolicyFault(file_name, "", f"cannot be read: {error.strerror}")]
    base_values = {field.name: getattr(base, field.name) for field in fields(Policy)}
    faults = _Faults(file_name)
    values = {}
    for name, value in table.items():
        fault_count = len(faults.found)
        read = _value(faults, name, value, base_values)
        if len(faults.found) == fault_count:
            values[name] = read
    invalid = table.keys() - values.keys()
    try:
        policy = replace(base, **values)
    except PolicyError as error:
        policy = base
        for fault in error.faults:
            if _DEPENDS.get(fault.field) not in invalid:
                faults.add(fault.field, fault.reason)
    if config is not None:
        named_settings = {name: value for name, value in values.items() if name in _NAMING}
        file_controls = table.get("controls", {})
        named_settings["controls"] = {
            name: control for name, control in named_settings.get("controls", {}).items() if name in file_controls
        }
        for field, reason in _name_faults(named_settings, config):
            faults.add(field, reason)
    return policy, faults.found


class _Faults:
    """Collects the faults of one file."""

    def __init__(self, where: str) -> None:
        self.found: list[PolicyFault] = []
        self._where = where

    def add(self, field: str, reason: str) -> None:
        self.found.append(PolicyFault(self._where, field, reason))


def _value(faults: _Faults, name: str, value: Any, base_values: Mapping[str, Any]) -> Any:
    if name not in base_values:
        return faults.add(name, f"no such setting; there are {', '.join(base_values)}")
    if name == "controls":
        if not isinstance(value, dict):
            return faults.add(name, "must be tables [controls.NAME]")
        own = {control: _table(faults, f"controls.{control}", table, ControlPolicy) for control, table in value.items()}
        return {**base_values[name], **own}
    if name == "conflicts":
        return _conflicts(faults, value, base_values[name])
    if name in _LISTS:
        if not isinstance(value, list):
            return faults.add(name, f"must be tables [[{name}]]")
        return tuple(
            _table(faults, f"{name}[{index}]", table, _LISTS[name]) for index, table in enumerate(value, start=1)
        )
    return _typed(faults, name, value, type(base_values[name]))


def _conflicts(faults: _Faults, table: Any, base: ConflictPolicy) -> ConflictPolicy | None:
    """The table ``[conflicts]`` on top of ``base``; tables of labels are added or replaced.

    A table turns the rule on in a project that keeps the behaviour of before, unless it sets ``decide_by``.
    """
    if not isinstance(table, dict):
        faults.add("conflicts", "must be a table [conflicts]")
        return None
    plain = {key: value for key, value in table.items() if key != "labels"}
    read = _table(faults, "conflicts", plain, ConflictPolicy)
    label_tables = table.get("labels", {})
    if not isinstance(label_tables, dict):
        faults.add("conflicts.labels", "must be tables [conflicts.labels.NAME]")
        return None
    labels = {
        label: _table(faults, f"conflicts.labels.{label}", settings, LabelConflicts)
        for label, settings in label_tables.items()
    }
    if read is None or None in labels.values():
        return None
    if base == BY_MEAN:
        base = ConflictPolicy()
    return replace(base, **{key: getattr(read, key) for key in plain}, labels={**base.labels, **labels})


# Type of one table, for settings that are lists of tables.
_LISTS: Mapping[str, Callable[..., Any]] = {"review": ReviewRoute, "rules": Rule}

# Types of table keys whose default value does not show the type.
_KEYS: Mapping[str, type] = {
    "agreement": float, "value": float, "rule": str, "dispute": tuple, "min_size": float, "min_image_share": float,
}  # fmt: skip


def _table(faults: _Faults, name: str, table: Any, kind: Callable[..., Any]) -> Any:
    if not isinstance(table, dict):
        return faults.add(name, f"must be a table, not {table!r}")
    defaults = {key_field.name: key_field.default for key_field in fields(kind)}  # type: ignore[arg-type]
    fault_count = len(faults.found)
    values = {}
    for key, value in table.items():
        if key not in defaults:
            faults.add(f"{name}.{key}", f"no such key; there are {', '.join(defaults)}")
        else:
            values[key] = _typed(faults, f"{name}.{key}", value, _KEYS.get(key, type(defaults[key])))
    if kind is Rule and "rule" not in table:
        faults.add(f"{name}.rule", "is missing")
    return kind(**values) if len(faults.found) == fault_count else None


def _typed(faults: _Faults, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and type(value) is list and all(type(item) is str for item in value):
        return tuple(value)
    if type(value) is not kind:  # bool is an int to isinstance; `annotators = true` must not pass
        return faults.add(name, f"must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of texts",
}


# Names that need no control: relations between regions.
_WITHOUT_A_CONTROL = frozenset({"relation"})


def _name_faults(settings: Mapping[str, Any], config: LabelConfig) -> Iterator[Fault]:
    """Yield a fault for every control or label that the project does not have, with the closest match.

    Args:
        settings: The settings of ``_NAMING`` of a ``Policy``, as far as they are set.
        config: The project's label config.
    """
    controls = {*config.controls, *config.objects, *_WITHOUT_A_CONTROL}
    labels = {label.stored for control in config.controls.values() for label in control.labels}
    has_fixed_labels = not any(map(_has_labels_of_the_task, config.controls.values()))
    for label in settings["conflicts"].labels if has_fixed_labels and "conflicts" in settings else ():
        if label not in labels:
            yield f"conflicts.labels.{label}", _unknown(label, labels)
    for name in settings.get("controls", {}):
        yield from _control_fault(f"controls.{name}", name, config, controls)
    for index, route in enumerate(settings.get("review", ()), start=1):
        if route.dimension != OVERALL:
            yield from _control_fault(f"review[{index}].dimension", route.dimension, config, controls)
    for index, rule in enumerate(settings.get("rules", ()), start=1):
        if rule.control:
            yield from _control_fault(f"rules[{index}].control", rule.control, config, controls)
        if has_fixed_labels:
            for label in (*rule.labels, *rule.others):
                if label not in labels:
                    yield f"rules[{index}].labels", _unknown(label, labels)


def _control_fault(field: str, name: str, config: LabelConfig, known_names: Iterable[str]) -> Iterator[Fault]:
    if name not in set(known_names) and config.control(name) is None:
        yield field, _unknown(name, known_names)


def _has_labels_of_the_task(control: Control) -> bool:
    """Whether the labels of a control come from the task's data or a URL."""
    return control.attributes.get("value", "").startswith("$") or "apiUrl" in control.attributes


def _unknown(name: str, known_names: Iterable[str]) -> str:
    near = get_close_matches(name, sorted(known_names), n=1)
    return f"names {name!r}{f' ({near[0]!r}?)' if near else ''}, which the project does not have"
