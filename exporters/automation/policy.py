"""The export policy of a project: what is exported to where, when again, who is told and what is started."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exporters.errors import ExportError
from exporters.formats import DEFAULT_FORMATS
from exporters.splits import DEFAULT_SPLIT

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


class ExportPolicyError(ExportError):
    """An ``export.toml``, or an option of the command line (``where`` is empty), cannot be used."""

    code = "export_policy"
    status = 400

    def __init__(self, where: str, key: str, reason: str) -> None:
        self.key = key
        if not where:
            option = f"--{key.replace('_', '-')}"
            super().__init__(f"{option} {reason}.", fix="`labelloop export --help` says what each option takes.")
            return
        super().__init__(
            f"{where}{f': {key}' if key else ''} {reason}.",
            fix="docs/reference/policy.md lists the keys of export.toml with their ranges.",
        )


@dataclass(frozen=True)
class ExportPolicy:
    """What automatic exports go by. Every field is a key of ``export.toml``; docs/reference/policy.md lists them.

    Attributes:
        to: Where the data set lives; empty: the store, under the project's name.
        format: The formats, by commas.
        annotation: Whose annotation counts.
        split: Shares of the splits.
        split_key: The key of the tasks' data that says the split of an image; where it does not, the shares decide.
        group_by: The key of the tasks' data whose value keeps images together in one split.
        disputed: Disputed tasks: in, out or apart.
        max_errors: The share of regions that may fail before a version is not published.
        copy_images: Whether photos are copied into the data set.
        every_tasks: A new version after so many newly accepted tasks; 0: never for that.
        every_hours: A new version so many hours after the last, if anything changed; 0: never for that.
        at: A new version every day at this time of the machine, such as 02:30, if anything changed; empty: never.
        when_done: A new version when the last task is accepted.
        webhook: An address that is told of each published version.
        then: A command that is run for each published version: the program and its arguments, no shell.
    """

    to: str = ""
    format: str = ",".join(DEFAULT_FORMATS)
    annotation: str = "latest"
    split: str = DEFAULT_SPLIT
    split_key: str = ""
    group_by: str = ""
    disputed: str = "out"
    max_errors: float = 0.01
    copy_images: bool = False
    every_tasks: int = 0
    every_hours: float = 0.0
    at: str = ""
    when_done: bool = False
    webhook: str = ""
    then: tuple[str, ...] = ()

    @property
    def triggered(self) -> bool:
        """Whether anything starts an export by itself."""
        return bool(self.every_tasks or self.every_hours or self.at or self.when_done)

    def checked(self, where: str = "") -> "ExportPolicy":
        """This policy, if it can be used.

        Raises:
            ExportPolicyError: A value is out of its range; ``where`` names the file, empty for the command line.
        """
        parts = urlsplit(self.webhook)
        wrong = (
            ("max_errors", not 0 <= self.max_errors <= 1, "must be from 0 to 1"),
            ("every_tasks", self.every_tasks < 0, "must be 0 or more"),
            ("every_hours", not 0 <= self.every_hours < 1e5, "must be 0 or more"),
            ("at", bool(self.at) and not _TIME.fullmatch(self.at), "must be a time of day such as 02:30"),
            (
                "webhook",
                bool(self.webhook) and (parts.scheme not in {"http", "https"} or not parts.hostname),
                "must be an http:// or https:// address",
            ),
        )
        for key, failed, reason in wrong:
            if failed:
                raise ExportPolicyError(where, key, reason)
        return self


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """Where the policy is read from: what holds for every project, then this one's, which wins and switches it on."""
    folder = home / "exporters"
    return folder / "export.toml", folder / str(project) / "export.toml"


def read_export_policy(home: Path, project: int) -> ExportPolicy:
    """The policy of one project: the defaults, then what `policy_files` names.

    Raises:
        ExportPolicyError: A file is no TOML, or a key is unknown, of the wrong type or out of its range.
    """
    policy = ExportPolicy()
    for path in policy_files(home, project):
        if path.is_file():
            policy = _laid_over(policy, path)
    return policy


def watched_projects(home: Path) -> list[int]:
    """The projects that have an ``export.toml`` of their own."""
    found = (home / "exporters").glob("*/export.toml")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdecimal())


def _laid_over(policy: ExportPolicy, path: Path) -> ExportPolicy:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExportPolicyError(str(path), "", f"is no TOML: {error}") from error
    except OSError as error:
        raise ExportPolicyError(str(path), "", f"cannot be read: {error.strerror}") from error
    if set(table) - {"export"} or not isinstance(table.get("export", {}), dict):
        raise ExportPolicyError(str(path), "", "holds something else than the table [export]")
    values = {key: _value(str(path), key, value) for key, value in table.get("export", {}).items()}
    return replace(policy, **values).checked(str(path))


def _value(where: str, key: str, value: Any) -> Any:
    defaults: Mapping[str, Any] = {field.name: field.default for field in fields(ExportPolicy)}
    if key not in defaults:
        raise ExportPolicyError(where, key, f"is no such key; there are {', '.join(defaults)}")
    kind = type(defaults[key])
    if kind is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # bool is an int to isinstance; `every_tasks = true` must not pass
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of words"}
        raise ExportPolicyError(where, key, f"must be {names[kind]}, not {value!r}")
    return value
