"""The finding of one check (level, description, fix), and the row of the table of checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from labelloop.doctor.context import DoctorContext

Level = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``ok``; ``warning`` (it works, but not as well or as safely as it should); ``problem`` (something does
            not work); ``skipped`` (not checked, because something that it needs is missing or broken).
        what: The state of the checked item, which it names.
        fix: What to do about it; empty if nothing is to do.
    """

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorCheck:
    """One row of the table of checks.

    Attributes:
        run: Checks one part. An exception becomes a finding of this check alone.
        needs: Names of checks; if one of them is a problem or skipped, this check is skipped.
        project: Whether the check needs a project; it is left out if none was named.
    """

    run: Callable[[DoctorContext], Finding]
    needs: tuple[str, ...] = ()
    project: bool = False


def ok(what: str) -> Finding:
    """A finding that needs no action."""
    return Finding("ok", what)


def warning(what: str, fix: str) -> Finding:
    """A finding on something that works, but not as it should."""
    return Finding("warning", what, fix)


def problem(what: str, fix: str) -> Finding:
    """A finding on something that does not work."""
    return Finding("problem", what, fix)


def skipped(what: str, fix: str = "") -> Finding:
    """A finding of a check that could not run."""
    return Finding("skipped", what, fix)
