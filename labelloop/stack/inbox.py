"""The `labelloop inbox` commands: what waits, what was given up and why, and bringing it back."""

import time
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.db import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.inbox import Inbox
from labelloop.service.settings import Settings


class NothingChosen(LabelloopError):
    """`inbox replay` was called without saying which dead letters."""

    code = "nothing_chosen"


def counts() -> None:
    """Say how many events are in each state, and how long the oldest one has waited."""
    inbox = _inbox()
    for state, number in inbox.counts().items():
        print(f"{number:>8}  {state}")
    print(f"longest wait: {inbox.lag_s():.0f} s")


def dead(*, limit: int = 50) -> None:
    """List the events that were given up, the newest first, each with the reason.

    Args:
        limit: How many to list.
    """
    letters = _inbox().dead_letters(limit=limit)
    for letter in letters:
        event, when = letter.event, time.strftime("%Y-%m-%d %H:%M", time.localtime(letter.finished_at))
        print(f"{event.id:>6}  {when}  {event.topic} {event.subject}: {letter.reason}")
    print("To try them again: labelloop inbox replay ID..., or --all" if letters else "No event was given up.")


def replay(*ids: int, all_: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Try given-up events again, with fresh attempts.

    Args:
        ids: Their numbers, from `labelloop inbox dead`.
        all_: Every one.
    """
    if bool(ids) == all_:
        raise NothingChosen("Say which events: their numbers, or --all.", fix="labelloop inbox dead lists them.")
    number = _inbox().replay("all" if all_ else ids)
    print(f"{number} event{'s' * (number != 1)} will be tried again.")


def _inbox() -> Inbox:
    settings = Settings()
    return Inbox.from_settings(settings, open_database(settings))
