"""One line of the report that `labelloop connect` prints (`ConnectionChange`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionChange:
    """One item that connecting a project checked or changed.

    Attributes:
        what: The item, e.g. ``"ML backend base-1f2e3d4c5b6a at http://localhost:9090"``.
        done: True: this run created or repaired it. False: it was already correct; nothing was written.
        choice: Nothing was written because the user must decide; ``what`` says how.
        note: Nothing to write: ``what`` says what the project does not get, and why.
    """

    what: str
    done: bool
    choice: bool = False
    note: bool = False
