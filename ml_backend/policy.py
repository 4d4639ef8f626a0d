"""Read the learning policy of a project (`learn.toml`): when to train, when to publish, how to order tasks."""

import re
import tomllib
from dataclasses import dataclass, fields, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from labelloop.service.errors import LabelloopError


class LearningPolicyError(LabelloopError):
    """A `learn.toml` cannot be used."""

    code = "learning_policy"

    def __init__(self, path: Path, key: str, reason: str) -> None:
        super().__init__(
            f"{path}{f': {key}' if key else ''} {reason}.",
            fix="docs/reference/learning-policy.md lists the keys of learn.toml with their ranges.",
        )
        self.path = path
        self.key = key
        self.reason = reason


@dataclass(frozen=True)
class FinetunePolicy:
    """When the worker or a trainer fine-tunes by itself. Every field is a key of the table ``[train]``.

    Attributes:
        on: `auto` (where torch is installed, or a trainer asks for work), `on` or `off`.
        labels: New labelled tasks since the last fine-tuning, at least 4.
        hours: Hours in which it may start, such as "22:00-06:00"; empty: always.
        time_zone: Time zone of `hours`, such as "Europe/Berlin"; empty: that of the machine.
        minutes: Budget of one fine-tuning, 1 to 1440.
        cores: Most CPU cores that it uses on the worker, 1 to 256.
        memory_gb: Most memory that it uses on the worker, in GiB, 1 to 1024.
        where: `worker`, `trainer` (`labelloop trainer` on another machine) or `anywhere`.
    """

    on: str = "auto"
    labels: int = 30
    hours: str = ""
    time_zone: str = ""
    minutes: float = 10.0
    cores: int = 1
    memory_gb: float = 4.0
    where: str = "anywhere"

    def opens_in(self, now: datetime) -> timedelta:
        """Time until it may start; 0 within `hours`.

        Args:
            now: The time, with its zone.
        """
        if not self.hours:
            return timedelta()
        local = now.astimezone(ZoneInfo(self.time_zone) if self.time_zone else None)
        start, end = (time.fromisoformat(part.strip()) for part in self.hours.split("-"))
        clock = local.time().replace(tzinfo=None)
        if start <= clock < end if start < end else (clock >= start or clock < end):
            return timedelta()
        at = local.replace(hour=start.hour, minute=start.minute, second=0, microsecond=0)
        return (at if at > local else at + timedelta(days=1)) - local


@dataclass(frozen=True)
class LearningPolicy:
    """The settings of learning. Every field is a key of ``learn.toml``; see docs/reference/learning-policy.md.

    Attributes:
        learn: Whether the project learns at all.
        first: Labelled tasks with a box that the first training run needs, at least 1.
        debounce_s: Seconds without a new submit before training starts; four times as long in a burst.
        held_out: Share of the tasks held out for evaluation and never trained on, 0 to 0.5.
        tolerance: Largest accepted drop in AP50 against the served version, added to the standard error, 0 to 1.
        prelabels: Open tasks pre-labelled by each version, most informative first; 0: none.
        opinion: Lowest confidence of a label error that is noted on the task, 0 to 1; 1: never.
        thresholds: Whether each version has thresholds per class, learned from the annotators' edits.
        drawing_costs: Cost of drawing a missed box, in deletions, for choosing thresholds, 0 to 100; 0: maximise F1.
        queue: Whether `connect` sets the project to uncertainty sampling.
        keep: Learned versions of the project to keep on the store, at least 1; a rollback reaches this far.
        train: When it is fine-tuned by itself.
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
    train: FinetunePolicy = FinetunePolicy()


_RANGES: dict[str, tuple[float, float]] = {
    "first": (1, 1_000_000),
    "debounce_s": (0, 3600),
    "held_out": (0, 0.5),
    "tolerance": (0, 1),
    "drawing_costs": (0, 100),
    "opinion": (0, 1),
    "prelabels": (0, 1_000_000),
    "keep": (1, 1000),
    "train.labels": (4, 1_000_000),
    "train.minutes": (1, 1440),
    "train.cores": (1, 256),
    "train.memory_gb": (1, 1024),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "train.on": ("auto", "on", "off"),
    "train.where": ("anywhere", "worker", "trainer"),
}

_HOURS = re.compile(r"\s*([01]\d|2[0-3]):[0-5]\d\s*-\s*([01]\d|2[0-3]):[0-5]\d\s*")


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Return the policy files: for every project, then for this project (takes precedence)."""
    folder = home / "ml_backend"
    return folder / "learn.toml", folder / str(project) / "learn.toml"


def too_few_labelled(labelled: int, first: int) -> str:
    """Return the message for a project with fewer than `first` labelled tasks."""
    tasks = "1 task" if labelled == 1 else f"{labelled} tasks"
    return f"Nothing to learn from yet: {tasks} with annotations, {first} needed (`first` in learn.toml)."


def read_learning_policy(home: Path, project: int) -> LearningPolicy:
    """Return the policy of one project: the defaults, overridden by `policy_files`.

    Args:
        home: labelloop's data folder (the setting ``home``).
        project: The project's id in Label Studio.

    Raises:
        LearningPolicyError: A file is not valid TOML, or a key is unknown, has the wrong type or is out of range.
    """
    policy = LearningPolicy()
    for path in policy_files(home, project):
        if path.is_file():
            policy = _merged(policy, path)
    return policy


def _merged(policy: LearningPolicy, path: Path) -> LearningPolicy:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LearningPolicyError(path, "", f"is not valid TOML: {error}") from error
    except OSError as error:
        raise LearningPolicyError(path, "", f"cannot be read: {error.strerror}") from error
    train = table.pop("train", {})
    if not isinstance(train, dict):
        raise LearningPolicyError(path, "train", "must be a table: [train]")
    tuned = replace(policy.train, **{key: _value(path, f"train.{key}", value) for key, value in train.items()})
    return replace(policy, train=tuned, **{key: _value(path, key, value) for key, value in table.items()})


def _types() -> dict[str, type]:
    types: dict[str, type] = {field.name: type(field.default) for field in fields(LearningPolicy)}
    del types["train"]
    return types | {f"train.{field.name}": type(field.default) for field in fields(FinetunePolicy)}


def _value(path: Path, key: str, value: Any) -> Any:
    types = _types()
    if key not in types:
        table = key.startswith("train.")
        accepted = [name.removeprefix("train.") for name in types if name.startswith("train.") == table]
        accepted += [] if table else ["[train]"]
        raise LearningPolicyError(path, key, f"is not a known key. Known keys: {', '.join(accepted)}")
    kind = types[key]
    if kind is float and type(value) is int:
        value = float(value)
    if key == "train.on" and isinstance(value, bool):
        value = "on" if value else "off"
    if type(value) is not kind:  # bool is an int to isinstance; `first = true` must not pass
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
        raise LearningPolicyError(path, key, f"must be {names[kind]}, not {value!r}")
    if key in _RANGES and isinstance(value, int | float):
        low, high = _RANGES[key]
        if not low <= value <= high:
            raise LearningPolicyError(path, key, f"is {value}; it must be between {low:g} and {high:g}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise LearningPolicyError(path, key, f"is {value!r}; it must be one of: {', '.join(_CHOICES[key])}")
    if key == "train.hours" and value and not _HOURS.fullmatch(value):
        raise LearningPolicyError(path, key, f'is {value!r}; it must be hours such as "22:00-06:00"')
    if key == "train.time_zone" and value:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise LearningPolicyError(
                path, key, f'is {value!r}, no time zone; give one such as "Europe/Berlin"'
            ) from None
    return value
