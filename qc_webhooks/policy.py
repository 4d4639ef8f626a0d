"""The policy of a project: when annotators agree, how many are asked, what quality control may change."""

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from qc_webhooks.errors import PolicyError


@dataclass(frozen=True)
class Policy:
    """What quality control decides by. Every field is a setting of ``policy.toml``; the docstring is its help.

    Attributes:
        agreement: Two annotators agree on a task when their agreement reaches this, 0 to 1.
        every_control: Whether each control must reach ``agreement``, not only the mean over the controls.
        match_iou: Two regions are the same object when their shapes overlap at least this much (IoU), above 0 to 1.
        near_iou: Regions that are no match but overlap at least this much are named "low overlap" instead of
            "missing" and "extra", above 0 and below ``match_iou``.
        annotators: How many annotators a verdict needs, at least 2.
        max_annotators: Up to how many annotators a dispute is sent to, at least ``annotators``.
        set_maximum_annotations: Whether ``connect`` raises the project's ``maximum_annotations`` to ``annotators``.
            It multiplies the work of every task; without it, agreement is measured where two submit. Label Studio
            then gives every task with an overlap above 1 the new number.
        adjudicate: Whether a dispute that waits for a reviewer gets overlays: one prediction a stance and a proposed
            consensus, which the reviewer accepts or corrects. Every user of the project sees them.
    """

    agreement: float = 0.7
    every_control: bool = True
    match_iou: float = 0.5
    near_iou: float = 0.1
    annotators: int = 2
    max_annotators: int = 3
    set_maximum_annotations: bool = False
    adjudicate: bool = True

    def __post_init__(self) -> None:
        _check(self, "policy")


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
    """One ``policy.toml`` laid over ``base``.

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
    values = {name: _typed(path, name, value, known) for name, value in table.items()}
    try:
        return replace(base, **values)
    except PolicyError as error:
        raise PolicyError(path, error.field, error.reason) from None


def describe_policy() -> list[tuple[str, Any, str]]:
    """Every setting with its default and what it means, for the docs and the command line."""
    text = (Policy.__doc__ or "").split("Attributes:")[1]
    helps: dict[str, str] = {}
    name = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        head, colon, rest = line.partition(": ")
        if colon and head in asdict(Policy()):
            name, helps[head] = head, rest
        else:
            helps[name] += f" {line}"
    return [(field.name, field.default, helps[field.name]) for field in fields(Policy)]


def _typed(path: Path, name: str, value: Any, known: dict[str, Any]) -> Any:
    if name not in known:
        raise PolicyError(path, name, f"no such setting; there are {', '.join(known)}")
    kind = type(known[name])
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # bool is an int to isinstance; `annotators = true` must not pass
        raise PolicyError(path, name, f"must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {float: "a number", int: "a whole number", bool: "true or false"}


def _check(policy: Policy, where: str) -> None:
    rules = (
        ("agreement", 0 < policy.agreement <= 1, "must be above 0 and at most 1"),
        ("match_iou", 0 < policy.match_iou <= 1, "must be above 0 and at most 1"),
        (
            "near_iou",
            0 < policy.near_iou <= policy.match_iou,
            f"must be above 0 and at most match_iou ({policy.match_iou})",
        ),
        ("annotators", policy.annotators >= 2, "must be at least 2: one annotator has nobody to disagree with"),
        (
            "max_annotators",
            policy.max_annotators >= policy.annotators,
            f"must be at least annotators ({policy.annotators})",
        ),
    )
    for name, right, reason in rules:
        if not right:
            raise PolicyError(where, name, f"{reason}, not {getattr(policy, name)!r}")
