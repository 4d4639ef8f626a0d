"""Owns `Change`: one line of what connecting a project did, or found right already."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One thing that a project connected to labelloop has.

    Attributes:
        what: The thing in plain words, e.g. ``"ML backend base-1f2e3d4c5b6a at http://localhost:9090"``.
        done: True: this run made or repaired it. False: it was right already, and nothing was written.
        choice: Nothing was written because it is for a person to choose; ``what`` says how.
        note: Nothing was to be written: ``what`` says what the project does not get, and why.
    """

    what: str
    done: bool
    choice: bool = False
    note: bool = False
