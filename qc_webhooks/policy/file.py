"""Reads a policy from its TOML files; everything wrong in them is said with file and setting."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from labelloop.labeling.studio.config import LabelConfig
from qc_webhooks.errors import PolicyError, PolicyFault
from qc_webhooks.policy.guideline_rules import Rule
from qc_webhooks.policy.unknown_names import name_faults
from qc_webhooks.policy.values import ControlPolicy, Policy, ReviewRoute


def read_policy(home: Path, project: int, *, config: LabelConfig | None = None) -> Policy:
    """The policy of one project: the defaults, then ``qc/policy.toml``, then ``qc/<project>/policy.toml``.

    Args:
        home: The folder of labelloop's state (the setting ``home``).
        project: The project's id in Label Studio.
        config: The project's label config; given, the project's own file may name nothing that it does not have. The
            file for every project may: another project has it.

    Raises:
        PolicyError: A file is no TOML, or settings are unknown, of the wrong type, out of their range, or name what
            the project does not have. Every fault of both files is in it.
    """
    policy, faults = Policy(), list[PolicyFault]()
    for path in policy_files(home, project):
        if path.is_file():
            own = config if path == policy_files(home, project)[1] else None
            policy, found = _parsed(path, policy, own)
            faults += found
    if faults:
        raise PolicyError(faults)
    return policy


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Where the policy is read from: for every project, then for this one (it wins)."""
    return home / "qc" / "policy.toml", home / "qc" / str(project) / "policy.toml"


def parse_policy(path: Path, *, base: Policy | None = None, config: LabelConfig | None = None) -> Policy:
    """One ``policy.toml`` laid over ``base``: a setting, a list of tables or the table of one control replaces it.

    Raises:
        PolicyError: See ``read_policy``.
    """
    policy, faults = _parsed(path, base or Policy(), config)
    if faults:
        raise PolicyError(faults)
    return policy


# A range that depends on another setting is looked at only where that one could be read.
_DEPENDS = {"near_iou": "match_iou", "max_annotators": "annotators"}


def _parsed(path: Path, base: Policy, config: LabelConfig | None) -> tuple[Policy, list[PolicyFault]]:
    """The policy with what a file sets rightly, and everything that it does not."""
    where = str(path)
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return base, [PolicyFault(where, "", f"no TOML: {error}")]
    except OSError as error:
        return base, [PolicyFault(where, "", f"cannot be read: {error.strerror}")]
    known = {field.name: getattr(base, field.name) for field in fields(Policy)}
    faults = _Faults(where)
    values = {}
    for name, value in table.items():
        before = len(faults.found)
        read = _value(faults, name, value, known)
        if len(faults.found) == before:
            values[name] = read
    unread = table.keys() - values.keys()
    try:
        policy = replace(base, **values)
    except PolicyError as error:
        policy = base
        for fault in error.faults:
            if _DEPENDS.get(fault.field) not in unread:
                faults.add(fault.field, fault.reason)
    if config is not None:
        named = {name: value for name, value in values.items() if name in {"controls", "review", "rules"}}
        own = table.get("controls", {})
        named["controls"] = {name: each for name, each in named.get("controls", {}).items() if name in own}
        for field, reason in name_faults(named, config):
            faults.add(field, reason)
    return policy, faults.found


class _Faults:
    """What is wrong with one file, gathered."""

    def __init__(self, where: str) -> None:
        self.found: list[PolicyFault] = []
        self._where = where

    def add(self, field: str, reason: str) -> None:
        self.found.append(PolicyFault(self._where, field, reason))


def _value(faults: _Faults, name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if name not in known:
        return faults.add(name, f"no such setting; there are {', '.join(known)}")
    if name == "controls":
        if not isinstance(value, dict):
            return faults.add(name, "must be tables [controls.NAME]")
        own = {control: _table(faults, f"controls.{control}", each, ControlPolicy) for control, each in value.items()}
        return {**known[name], **own}
    if name in _LISTS:
        if not isinstance(value, list):
            return faults.add(name, f"must be tables [[{name}]]")
        return tuple(
            _table(faults, f"{name}[{place}]", each, _LISTS[name]) for place, each in enumerate(value, start=1)
        )
    return _typed(faults, name, value, type(known[name]))


# Settings that are lists of tables -> what one table is.
_LISTS: Mapping[str, Callable[..., Any]] = {"review": ReviewRoute, "rules": Rule}

# Keys of the tables whose default does not tell their type.
_KEYS: Mapping[str, type] = {"agreement": float, "value": float, "rule": str}


def _table(faults: _Faults, name: str, table: Any, kind: Callable[..., Any]) -> Any:
    if not isinstance(table, dict):
        return faults.add(name, f"must be a table, not {table!r}")
    known = {each.name: each.default for each in fields(kind)}  # type: ignore[arg-type]
    before = len(faults.found)
    values = {}
    for key, value in table.items():
        if key not in known:
            faults.add(f"{name}.{key}", f"no such key; there are {', '.join(known)}")
        else:
            values[key] = _typed(faults, f"{name}.{key}", value, _KEYS.get(key, type(known[key])))
    if kind is Rule and "rule" not in table:
        faults.add(f"{name}.rule", "is missing")
    return kind(**values) if len(faults.found) == before else None


def _typed(faults: _Faults, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and type(value) is list and all(type(each) is str for each in value):
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
