"""The learning policy of a project: whether and when it learns, what replaces what is served, how tasks are ordered."""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from labelloop.service.errors import LabelloopError


class LearningPolicyError(LabelloopError):
    """A `learn.toml` cannot be used."""

    code: ClassVar[str] = "learning_policy"

    def __init__(self, path: Path, key: str, reason: str) -> None:
        super().__init__(
            f"{path}{f': {key}' if key else ''} {reason}.",
            fix="docs/reference/policy.md lists the keys of learn.toml with their ranges.",
        )
        self.path = path
        self.key = key
        self.reason = reason


@dataclass(frozen=True)
class LearningPolicy:
    """What learning decides by. Every field is a key of ``learn.toml``; docs/reference/policy.md lists them.

    Attributes:
        learn: Whether the project learns at all.
        first: Labelled tasks with a box before the first fit, at least 1.
        debounce_s: A fit begins when no further submit came for so long, seconds; four times so long in a burst.
        held_out: Share of the tasks that are never learned from but kept for judging, 0 to 0.5.
        tolerance: How much lower the AP50 of a candidate may be than that of what is served, on top of chance, 0 to 1.
        prelabels: Open tasks that get fresh pre-labels from each version, those that teach most first; 0: none.
        opinion: How sure the model must be that an annotation is wrong for the task to say so, 0 to 1; 1: never.
        thresholds: Whether each version brings thresholds by class, learned from what annotators leave of its boxes.
        drawing_costs: How many deletions drawing a missed box is worth, by which thresholds are chosen, 0 to 100; 0: by
            the best F1.
        queue: Whether `connect` sets the project to uncertainty sampling, so that what teaches most is served.
        keep: Learned versions of the project that stay on the store, at least 1: so far a rollback can go.
    """

    learn: bool = True
    first: int = 2
    debounce_s: float = 0.25
    held_out: float = 0.1
    tolerance: float = 0.03
    prelabels: int = 500
    thresholds: bool = True
    drawing_costs: float = 0.0
    opinion: float = 0.4
    queue: bool = True
    keep: int = 10


_RANGES: dict[str, tuple[float, float]] = {
    "first": (1, 1_000_000),
    "debounce_s": (0, 3600),
    "held_out": (0, 0.5),
    "tolerance": (0, 1),
    "drawing_costs": (0, 100),
    "opinion": (0, 1),
    "prelabels": (0, 1_000_000),
    "keep": (1, 1000),
}


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Where the policy is read from: for every project, then for this one (it wins)."""
    folder = home / "ml_backend"
    return folder / "learn.toml", folder / str(project) / "learn.toml"


def too_few(labelled: int, first: int) -> str:
    """Why a project with this many labelled tasks is not learned yet."""
    tasks = "1 task" if labelled == 1 else f"{labelled} tasks"
    return f"Nothing to learn from yet: {tasks} with boxes of {first} needed (`first` in learn.toml)."


def read_learning_policy(home: Path, project: int) -> LearningPolicy:
    """The policy of one project: the defaults, then what `policy_files` names.

    Args:
        home: The folder of labelloop's state (the setting ``home``).
        project: The project's id in Label Studio.

    Raises:
        LearningPolicyError: A file is no TOML, or a key is unknown, of the wrong type or out of its range.
    """
    policy = LearningPolicy()
    for path in policy_files(home, project):
        if path.is_file():
            policy = _laid_over(policy, path)
    return policy


def _laid_over(policy: LearningPolicy, path: Path) -> LearningPolicy:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LearningPolicyError(path, "", f"is no TOML: {error}") from error
    except OSError as error:
        raise LearningPolicyError(path, "", f"cannot be read: {error.strerror}") from error
    return replace(policy, **{key: _value(path, key, value) for key, value in table.items()})


def _value(path: Path, key: str, value: Any) -> Any:
    kinds: dict[str, type] = {field.name: type(field.default) for field in fields(LearningPolicy)}
    if key not in kinds:
        raise LearningPolicyError(path, key, f"is no such key; there are {', '.join(kinds)}")
    kind = kinds[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # bool is an int to isinstance; `first = true` must not pass
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        raise LearningPolicyError(path, key, f"must be {names[kind]}, not {value!r}")
    if key in _RANGES and isinstance(value, int | float):
        low, high = _RANGES[key]
        if not low <= value <= high:
            raise LearningPolicyError(path, key, f"is {value}, not from {low:g} to {high:g}")
    return value
