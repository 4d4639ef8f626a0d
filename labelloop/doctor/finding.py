"""What one look at one part found: a level, what it is in plain words, and the fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from labelloop.doctor.context import Context

Level = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: ``ok``; ``warning`` (works, but not as well or as safely as it should); ``problem`` (something does not
            work); ``skipped`` (could not be asked, since something it needs is missing or broken).
        what: what was found, in plain words, naming the item.
        fix: what to do about it; empty where there is nothing to do.
    """

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """One row of the table of checks.

    Attributes:
        run: looks at one part and says what it found. It may raise: that costs this check alone.
        needs: names of checks that must not be a problem before this one makes sense.
        project: whether the check looks at a project, and so is left out when none was named.
    """

    run: Callable[[Context], Finding]
    needs: tuple[str, ...] = ()
    project: bool = False


def ok(what: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what)


def warning(what: str, fix: str) -> Finding:
    """It works, but not as it should."""
    return Finding("warning", what, fix)


def problem(what: str, fix: str) -> Finding:
    """Something does not work."""
    return Finding("problem", what, fix)


def skipped(what: str, fix: str = "") -> Finding:
    """It could not be asked."""
    return Finding("skipped", what, fix)
