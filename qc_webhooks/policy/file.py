"""Reads a policy from its TOML files; everything wrong in them is said with file and setting."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from qc_webhooks.errors import PolicyError
from qc_webhooks.policy.values import ControlPolicy, Policy, ReviewRoute
from qc_webhooks.rules import Rule


def read_policy(home: Path, project: int) -> Policy:
    """The policy of one project: the defaults, then ``qc/policy.toml``, then ``qc/<project>/policy.toml``.

    Args:
        home: The folder of labelloop's state (the setting ``home``).
        project: The project's id in Label Studio.

    Raises:
        PolicyError: A file is no TOML, or a setting is unknown, of the wrong type or out of its range.
    """
    policy = Policy()
    for path in policy_files(home, project):
        if path.is_file():
            policy = parse_policy(path, base=policy)
    return policy


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Where the policy is read from: for every project, then for this one (it wins)."""
    return home / "qc" / "policy.toml", home / "qc" / str(project) / "policy.toml"


def parse_policy(path: Path, *, base: Policy | None = None) -> Policy:
    """One ``policy.toml`` laid over ``base``: a setting, a list of tables or the table of one control replaces it.

    Raises:
        PolicyError: See ``read_policy``.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(path, "", f"no TOML: {error}") from error
    except OSError as error:
        raise PolicyError(path, "", f"cannot be read: {error.strerror}") from error
    base = base or Policy()
    known = {field.name: getattr(base, field.name) for field in fields(Policy)}
    values = {name: _value(path, name, value, known) for name, value in table.items()}
    try:
        return replace(base, **values)
    except PolicyError as error:
        raise PolicyError(path, error.field, error.reason) from None


def _value(path: Path, name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise PolicyError(path, name, f"no such setting; there are {', '.join(known)}")
    if name == "controls":
        if not isinstance(value, dict):
            raise PolicyError(path, name, "must be tables [controls.NAME]")
        own = {control: _table(path, f"controls.{control}", each, ControlPolicy) for control, each in value.items()}
        return {**known[name], **own}
    if name in _LISTS:
        if not isinstance(value, list):
            raise PolicyError(path, name, f"must be tables [[{name}]]")
        return tuple(_table(path, f"{name}[{place}]", each, _LISTS[name]) for place, each in enumerate(value, start=1))
    return _typed(path, name, value, type(known[name]))


# Settings that are lists of tables -> what one table is.
_LISTS: Mapping[str, Callable[..., Any]] = {"review": ReviewRoute, "rules": Rule}

# Keys of the tables whose default does not tell their type.
_KEYS: Mapping[str, type] = {"agreement": float, "value": float, "rule": str}


def _table(path: Path, name: str, table: Any, kind: Callable[..., Any]) -> Any:
    if not isinstance(table, dict):
        raise PolicyError(path, name, f"must be a table, not {table!r}")
    known = {each.name: each.default for each in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise PolicyError(path, f"{name}.{key}", f"no such key; there are {', '.join(known)}")
        values[key] = _typed(path, f"{name}.{key}", value, _KEYS.get(key, type(known[key])))
    if kind is Rule and "rule" not in values:
        raise PolicyError(path, f"{name}.rule", "is missing")
    return kind(**values)


def _typed(path: Path, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and type(value) is list and all(type(each) is str for each in value):
        return tuple(value)
    if type(value) is not kind:  # bool is an int to isinstance; `annotators = true` must not pass
        raise PolicyError(path, name, f"must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of texts",
}
