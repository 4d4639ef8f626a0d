"""One input problem: how to make it, and what a command must do about it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Outcome = Literal["refused", "skipped and counted", "converted", "read"]
"""``refused``: nothing is written. ``skipped and counted``: the rest is written. ``converted``: written in another
form. ``read``: nothing is lost."""


def nothing(_folder: Path) -> None:
    """No further check."""


class Case(NamedTuple):
    """One input problem.

    Attributes:
        problem: What is wrong with the input, in a few words. Cases with equal entries are one item of the page.
        outcome: What happens.
        make: ``make(folder)`` writes the input into an empty folder and returns the words after `labelloop`.
        says: Words that the output (stdout and stderr, white space joined) must contain. The first is on the page.
        status: The exit status.
        after: ``after(folder)`` asserts what is left: published or not, triggered or not.
        note: More about what happens, for the page.
    """

    problem: str
    outcome: Outcome
    make: Callable[[Path], Sequence[str]]
    says: tuple[str, ...]
    status: int
    after: Callable[[Path], object] = nothing
    note: str = ""

    @property
    def entry(self) -> str:
        """The case as a list item of the page."""
        outcome = f"{self.outcome} ({self.note})" if self.note else self.outcome
        message = f' Message: "{self.says[0]}".'.replace("<", "&lt;") if self.says else ""
        return f"- {self.problem}: *{outcome}*.{message} Exit status {self.status}."
