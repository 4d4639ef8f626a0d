"""The `labelloop doctor` command: run the checks, print a list or JSON, exit with status 1 on a problem."""

import contextlib
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from labelloop.service.settings import Settings

if TYPE_CHECKING:
    from labelloop.doctor.finding import Level
    from labelloop.doctor.run import DoctorReport

_MARKS: "dict[Level, tuple[str, str]]" = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "bold red"),
    "skipped": ("skipped", "dim"),
}


def doctor(project: int | None = None, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Check every part of the loop and report what is wrong, with the fix.

    The exit status is 1 if a problem is found; warnings leave it 0.

    ```
    labelloop doctor
    labelloop doctor 7
    ```

    Args:
        project: Number of a Label Studio project, as in its address (/projects/NUMBER/), to check as well: its ML
            backend, webhooks, tabs and sampling.
        json: Print the findings as one JSON object instead of a list.
    """
    from labelloop.doctor import CHECKS, DoctorContext, diagnose  # all programs: not for the help
    from labelloop.service.logging import setup_logging

    settings = Settings()
    # Standard output is for the findings alone; a logged retry would only repeat a finding.
    setup_logging(settings.replace(log_level="DEBUG" if settings.log_level == "DEBUG" else "ERROR"))
    with contextlib.closing(DoctorContext(settings, project)) as context:
        diagnosis = diagnose(context, CHECKS)
    if json:
        print(as_json(diagnosis))
    else:
        print_diagnosis(diagnosis, Console(highlight=False))
        if project is None:
            print("\nTo check a project as well: labelloop doctor PROJECT")
    if not diagnosis.healthy:
        raise SystemExit(1)


def print_diagnosis(diagnosis: "DoctorReport", console: Console) -> None:
    """Print each finding with its fix, then the skipped checks, then a summary."""
    checked = {name: finding for name, finding in diagnosis.findings.items() if finding.level != "skipped"}
    width = max(map(len, checked), default=0)
    for name, finding in checked.items():
        word, style = _MARKS[finding.level]
        head = Text.assemble((f"{word:<8}", style), f" {name:<{width}}  ")
        _indented(console, head, finding.what)
        if finding.fix:
            _indented(console, Text(" " * (len(head) - 2) + "→ ", style), finding.fix)
    for reason, names in _skipped(diagnosis).items():
        _indented(console, Text("skipped  ", "dim"), f"{', '.join(names)}: {reason}")
    console.print(_summary(diagnosis))


def _skipped(diagnosis: "DoctorReport") -> dict[str, list[str]]:
    """The names of the skipped checks, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, finding in diagnosis.findings.items():
        if finding.level == "skipped":
            by_reason.setdefault(finding.what, []).append(name)
    return by_reason


def as_json(diagnosis: "DoctorReport") -> str:
    """The findings as JSON: ``{"healthy": bool, "findings": {name: {"level", "what", "fix"}}}``."""
    body = {"healthy": diagnosis.healthy, "findings": diagnosis.findings}
    return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()


def _indented(console: Console, head: Text, body: str) -> None:
    """Print a text in a column at the right of `head`; a longer path stays in one piece, to be copied."""
    width = max(30, console.width - len(head))
    for number, line in enumerate(wrap(body, width, break_long_words=False, break_on_hyphens=False)):
        console.print((head if number == 0 else Text(" " * len(head))) + Text(line), soft_wrap=True)


def _summary(diagnosis: "DoctorReport") -> Text:
    counts = {level: sum(f.level == level for f in diagnosis.findings.values()) for level in _MARKS}
    problems, warnings = counts["problem"], counts["warning"]
    if not problems and not warnings:
        return Text("No problems found.", "green")
    parts = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((problems, "problem"), (warnings, "warning")) if n]
    return Text(" and ".join(parts) + ".", "bold red" if problems else "yellow")
