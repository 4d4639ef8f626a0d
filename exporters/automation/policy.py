"""The export policy of a project (``export.toml``): what to export, where to, when, and which notifications follow."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from exporters.convert.annotation_policy import DISPUTED
from exporters.convert.annotation_policy import parse_policy as parse_annotation_policy
from exporters.errors import BadOption, ExportError
from exporters.model.class_map import CATEGORY_IDS, parse_renames
from exporters.model.splits import DEFAULT_SPLIT, SplitPolicy
from exporters.tasks.table import format_names
from labelloop.service.store.addresses import BUCKET_SCHEMES

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")

# The fields that say when to export and what follows, and those that `ExportPolicy.options` passes in another form.
_NOT_OF_A_RUN = frozenset({"every_tasks", "every_hours", "at", "when_done", "webhook", "then", "format", "to"})


class ExportPolicyFault(NamedTuple):
    """An invalid key of the policy.

    Attributes:
        key: The key, or "it" for the file as a whole.
        reason: What is wrong; continues the sentence that starts with the key.
        fix: What to do about it.
    """

    key: str
    reason: str
    fix: str = ""


class ExportPolicyError(ExportError):
    """An ``export.toml``, or the options of the command line, are invalid; the message names every fault.

    Args:
        where: The file; empty for the command line.
        faults: What is wrong.
    """

    code = "export_policy"
    status = 400

    def __init__(self, where: str, faults: Sequence[ExportPolicyFault]) -> None:
        self.faults = tuple(faults)
        reasons = [f"{_location(where, fault.key)} {fault.reason}" for fault in faults]
        fixes = dict.fromkeys(fault.fix for fault in faults if fault.fix)
        reference = "docs/reference/export-policy.md lists the keys of export.toml." if where else ""
        super().__init__(f"{'. '.join(reasons)}.", fix=" ".join(filter(None, (*fixes, reference))))


@dataclass(frozen=True)
class ExportPolicy:
    """The settings of a project's exports. Every field is a key of ``export.toml``: docs/reference/export-policy.md.

    Attributes:
        to: The address of the data set; empty: the store, under the project's name.
        format: The formats, separated by commas; empty: coco,voc,yolo-detect, or tasks-jsonl if nothing is drawn.
        annotation: Which annotation of a task is exported.
        split: Shares of the splits.
        split_key: The key of the task data that holds an image's split; without a value the shares decide.
        group_by: The key of the task data whose value groups images into one split; `folder`; `look`.
        disputed: Whether disputed tasks are in the data set, out of it, or apart in a split of their own.
        rename: Labels exported as another class, each as OLD=NEW.
        category_ids: The ids of COCO's categories: classes (those of the class map) or original.
        max_errors: The largest share of failed regions, 0 to 1, with which a version is published.
        allow_shrink: Whether to publish a version that is far smaller than the published one.
        copy_images: Whether to copy the images into the data set.
        archives: Whether to write the plain files of each version (`versions/vNNNNNN/`).
        latest: Whether to make `latest/` equal to each published version.
        every_tasks: Export after this number of newly accepted tasks; 0: off.
        every_hours: Export this number of hours after the last export, if anything changed; 0: off.
        at: Export every day at this local time, such as 02:30, if anything changed; empty: off.
        when_done: Export when the last task is accepted.
        webhook: The URL that receives a POST for each published version; empty: none.
        then: The command to run for each published version: the program and its arguments, without a shell.
    """

    to: str = ""
    format: str = ""
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
    archives: bool = True
    latest: bool = True
    every_tasks: int = 0
    every_hours: float = 0.0
    at: str = ""
    when_done: bool = False
    webhook: str = ""
    then: tuple[str, ...] = ()

    @property
    def is_automatic(self) -> bool:
        """Whether any trigger is on."""
        return bool(self.every_tasks or self.every_hours or self.at or self.when_done)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `exporters.pipeline.export.export` that the policy sets."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_OF_A_RUN}
        return values | {"formats": format_names(self.format), "to": self.to or None}

    def validated(self) -> "ExportPolicy":
        """This policy of the command line, if it is valid.

        Raises:
            ExportPolicyError: A value is invalid.
        """
        if faults := list(self._faults()):
            raise ExportPolicyError("", faults)
        return self

    def _faults(self) -> Iterator[ExportPolicyFault]:
        parsers: Mapping[str, Callable[[], object]] = {
            "format": lambda: format_names(self.format),
            "annotation": lambda: parse_annotation_policy(self.annotation),
            "split": lambda: SplitPolicy.parse(self.split),
            "rename": lambda: parse_renames(self.rename),
        }
        for key, parse in parsers.items():
            try:
                parse()
            except BadOption as error:
                yield ExportPolicyFault(key, f"is {error.value!r}, which is not understood", error.fix)
        hook = urlsplit(self.webhook)
        scheme, _, location = self.to.partition("://")
        checks = (
            (
                "to",
                "://" in self.to and (scheme not in {"file", *BUCKET_SCHEMES} or not location),
                "file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX",
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
        for key, failed, expected in checks:
            if failed:
                value = "" if key == "webhook" else f", not {getattr(self, key)!r}"  # an address may hold a secret
                yield ExportPolicyFault(key, f"must be {expected}{value}")


def policy_files(home: Path, project: int) -> tuple[Path, Path]:
    """The two files of a policy: that of all projects, then the project's own, which wins and turns exports on."""
    folder = home / "exporters"
    return folder / "export.toml", folder / str(project) / "export.toml"


def read_export_policy(home: Path, project: int) -> ExportPolicy:
    """The policy of one project: the defaults, overridden by the two `policy_files`.

    Raises:
        ExportPolicyError: A file is not valid TOML, or a key is unknown, of the wrong type or out of range.
    """
    policy = ExportPolicy()
    for path in policy_files(home, project):
        if path.is_file():
            policy = _overridden(policy, path)
    return policy


def watched_projects(home: Path) -> list[int]:
    """The projects that have an ``export.toml`` of their own."""
    paths = (home / "exporters").glob("*/export.toml")
    return sorted(int(path.parent.name) for path in paths if path.parent.name.isdecimal())


def _location(where: str, key: str) -> str:
    return f"{where}: {key}" if where else f"--{key.replace('_', '-')}"


def _overridden(policy: ExportPolicy, path: Path) -> ExportPolicy:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExportPolicyError(str(path), [ExportPolicyFault("it", f"is not valid TOML: {error}")]) from error
    except OSError as error:
        raise ExportPolicyError(str(path), [ExportPolicyFault("it", f"cannot be read: {error.strerror}")]) from error
    faults = [
        ExportPolicyFault(key, "must be inside the table [export]", "Put all keys below [export].")
        for key in table
        if key != "export"
    ]
    options = table.get("export", {})
    if not isinstance(options, dict):
        faults, options = [ExportPolicyFault("export", "must be a table", "Write [export] on a line of its own.")], {}
    values: dict[str, Any] = {}
    for key, value in options.items():
        parsed = _parse_value(key, value)
        if isinstance(parsed, ExportPolicyFault):
            faults.append(parsed)
        else:
            values[key] = parsed
    faults += replace(policy, **values)._faults()  # noqa: SLF001 - reports all faults at once
    if faults:
        raise ExportPolicyError(str(path), faults)
    return replace(policy, **values)


def _parse_value(key: str, value: Any) -> Any:
    """The value with the type of its field, or a fault."""
    defaults: Mapping[str, Any] = {field.name: field.default for field in fields(ExportPolicy)}
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1)
        return ExportPolicyFault(
            key, "is not a known key", f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(defaults)}."
        )
    kind = type(defaults[key])
    if kind is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # bool is an int to isinstance; `every_tasks = true` must not pass
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of words"}
        return ExportPolicyFault(key, f"must be {names[kind]}, not {value!r}")
    return value
