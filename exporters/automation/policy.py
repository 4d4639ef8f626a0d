"""The export policy of a project: what is exported to where, when again, who is told and what is started."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from exporters.convert.annotation_policy import DISPUTED
from exporters.convert.annotation_policy import policy as chosen
from exporters.errors import BadOption, ExportError
from exporters.formats import DEFAULT_FORMATS, format_names
from exporters.model.class_map import CATEGORY_IDS, renames
from exporters.model.splits import DEFAULT_SPLIT, Split

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


class Fault(NamedTuple):
    """A key of the policy that cannot be used: why, and what would be right."""

    key: str
    reason: str
    fix: str = ""


class ExportPolicyError(ExportError):
    """An ``export.toml``, or options of the command line (``where`` is empty), cannot be used; every fault is named."""

    code = "export_policy"
    status = 400

    def __init__(self, where: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        told = [f"{_said(where, each.key)} {each.reason}" for each in faults]
        fixes = dict.fromkeys(each.fix for each in faults if each.fix)
        told_of = "docs/reference/policy.md lists the keys of export.toml." if where else ""
        super().__init__(f"{'. '.join(told)}.", fix=" ".join(filter(None, (*fixes, told_of))))


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
        rename: Labels that count as another class, each as OLD=NEW.
        category_ids: What numbers COCO's categories have: classes (those of the class map) or original.
        max_errors: The share of regions that may fail before a version is not published.
        allow_shrink: Whether a version is published that is far smaller than the published one.
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
    rename: tuple[str, ...] = ()
    category_ids: str = CATEGORY_IDS[0]
    max_errors: float = 0.01
    allow_shrink: bool = False
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
            ExportPolicyError: Values cannot be used; ``where`` names the file, empty for the command line.
        """
        if faults := list(self._faults()):
            raise ExportPolicyError(where, faults)
        return self

    def _faults(self) -> Iterator[Fault]:
        parsers: Mapping[str, Callable[[], object]] = {
            "format": lambda: format_names(self.format),
            "annotation": lambda: chosen(self.annotation),
            "split": lambda: Split.parse(self.split),
            "rename": lambda: renames(self.rename),
        }
        for key, parse in parsers.items():
            try:
                parse()
            except BadOption as error:
                yield Fault(key, f"is {error.value!r}, which is not understood", error.fix)
        hook = urlsplit(self.webhook)
        scheme, _, place = self.to.partition("://")
        wrong = (
            (
                "to",
                "://" in self.to and (scheme not in {"file", "s3"} or not place),
                "file:///DIR or s3://BUCKET/PREFIX",
            ),
            ("disputed", self.disputed not in DISPUTED, ", ".join(DISPUTED)),
            ("category_ids", self.category_ids not in CATEGORY_IDS, ", ".join(CATEGORY_IDS)),
            ("max_errors", not 0 <= self.max_errors <= 1, "a share from 0 to 1"),
            ("every_tasks", self.every_tasks < 0, "a number of tasks, 0 for never"),
            ("every_hours", not 0 <= self.every_hours < 1e5, "hours, 0 for never"),
            ("at", bool(self.at) and not _TIME.fullmatch(self.at), "a time of day such as 02:30"),
            (
                "webhook",
                bool(self.webhook) and (hook.scheme not in {"http", "https"} or not hook.hostname),
                "an http:// or https:// address",
            ),
            ("then", self.then != () and not self.then[0].strip(), "the program, then its arguments"),
        )
        for key, failed, right in wrong:
            if failed:
                shown = "" if key == "webhook" else f", not {getattr(self, key)!r}"  # an address may hold a secret
                yield Fault(key, f"must be {right}{shown}")


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


def _said(where: str, key: str) -> str:
    return f"{where}: {key}" if where else f"--{key.replace('_', '-')}"


def _laid_over(policy: ExportPolicy, path: Path) -> ExportPolicy:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExportPolicyError(str(path), [Fault("it", f"is no TOML: {error}")]) from error
    except OSError as error:
        raise ExportPolicyError(str(path), [Fault("it", f"cannot be read: {error.strerror}")]) from error
    faults = [Fault(key, "is no part of it", "Put all keys below [export].") for key in table if key != "export"]
    given = table.get("export", {})
    if not isinstance(given, dict):
        faults, given = [Fault("export", "must be a table", "Write [export] in a line of its own.")], {}
    values: dict[str, Any] = {}
    for key, value in given.items():
        found = _value(key, value)
        if isinstance(found, Fault):
            faults.append(found)
        else:
            values[key] = found
    faults += replace(policy, **values)._faults()  # noqa: SLF001 - all of them at once
    if faults:
        raise ExportPolicyError(str(path), faults)
    return replace(policy, **values)


def _value(key: str, value: Any) -> Any:
    """The value as the field takes it, or what is wrong with it."""
    defaults: Mapping[str, Any] = {field.name: field.default for field in fields(ExportPolicy)}
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1)
        return Fault(key, "is no such key", f"Did you mean {near[0]}?" if near else f"There are {', '.join(defaults)}.")
    kind = type(defaults[key])
    if kind is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # bool is an int to isinstance; `every_tasks = true` must not pass
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of words"}
        return Fault(key, f"must be {names[kind]}, not {value!r}")
    return value
