"""The `labelloop inbox` commands: what waits, what was given up and why, trying it again, deleting it."""

import time
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings

_AT_ONCE = 1000


class NothingChosen(LabelloopError):
    """`inbox replay` or `inbox discard` was called without naming dead letters that are there."""

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
    if not letters:
        print("No event was given up.")
        return
    print("To try them again: labelloop inbox replay ID..., or --all")
    print("To delete them: labelloop inbox discard ID..., or --all")


def replay(*ids: int, all_: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Try given-up events again, with fresh attempts.

    Args:
        ids: Their numbers, from `labelloop inbox dead`.
        all_: Every one.
    """
    if bool(ids) == all_:
        raise NothingChosen("Say which events: their numbers, or --all.", fix="`labelloop inbox dead` lists them.")
    number = _inbox().replay("all" if all_ else ids)
    print(f"{number} event{'s' * (number != 1)} will be tried again.")


def discard(*ids: int, all_: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Delete given-up events for good, saying what each was.

    Args:
        ids: Their numbers, from `labelloop inbox dead`.
        all_: Every one.
    """
    if bool(ids) == all_:
        raise NothingChosen("Say which events: their numbers, or --all.", fix="`labelloop inbox dead` lists them.")
    inbox, discarded = _inbox(), 0
    known = {letter.event.id for letter in inbox.dead_letters(limit=max(1, len(ids)), ids=ids)}
    if missing := sorted(set(ids) - known):
        raise NothingChosen(
            f"No given-up event has the number {', '.join(map(str, missing))}; nothing was discarded.",
            fix="`labelloop inbox dead` lists those that there are.",
        )
    while letters := inbox.dead_letters(limit=_AT_ONCE, ids=ids or None):
        for letter in letters:
            event = letter.event
            print(f"{event.id:>6}  {event.topic} {event.subject} ({event.key}): {letter.reason}")
        discarded += inbox.discard([letter.event.id for letter in letters])
    print(f"{discarded} event{'s were' if discarded != 1 else ' was'} discarded.")


def _inbox() -> Inbox:
    settings = Settings()
    return Inbox.from_settings(settings, open_database(settings))
