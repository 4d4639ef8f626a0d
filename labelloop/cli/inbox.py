"""The `labelloop inbox` commands: count events, and list, replay or discard dead ones."""

import time
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings

_BATCH = 1000


class NoEventsSelected(LabelloopError):
    """`inbox replay` or `inbox discard` was called without the numbers of existing dead letters."""

    code = "nothing_chosen"


def counts() -> None:
    """Show the number of events in each state, and how long the oldest one has waited."""
    inbox = _inbox()
    for state, number in inbox.counts().items():
        print(f"{number:>8}  {state}")
    print(f"longest wait: {inbox.lag_s():.0f} s")


def dead(*, limit: Annotated[int, Parameter(validator=Number(gte=1))] = 50) -> None:
    """List dead letters (events that failed for good), newest first, with the reason.

    Args:
        limit: Number to list.
    """
    letters = _inbox().dead_letters(limit=limit)
    for letter in letters:
        event, when = letter.event, time.strftime("%Y-%m-%d %H:%M", time.localtime(letter.finished_at))
        print(f"{event.id:>6}  {when}  {event.topic} {event.subject}: {letter.reason}")
    if not letters:
        print("No dead letters.")
        return
    print("To retry them: labelloop inbox replay ID..., or --all")
    print("To delete them: labelloop inbox discard ID..., or --all")


def replay(*ids: int, all_: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Retry dead letters, with a new count of attempts.

    ```
    labelloop inbox replay 7 8
    labelloop inbox replay --all
    ```

    Args:
        ids: Numbers of events, from `labelloop inbox dead`.
        all_: All dead letters.
    """
    if bool(ids) == all_:
        raise NoEventsSelected("Name the events by number, or pass --all.", fix="`labelloop inbox dead` lists them.")
    inbox = _inbox()
    _require_dead(inbox, ids)
    number = inbox.replay("all" if all_ else ids)
    print(f"{number} event{'s' * (number != 1)} will be retried.")


def discard(*ids: int, all_: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Delete dead letters permanently, and print each.

    ```
    labelloop inbox discard 7 8
    ```

    Args:
        ids: Numbers of events, from `labelloop inbox dead`.
        all_: All dead letters.
    """
    if bool(ids) == all_:
        raise NoEventsSelected("Name the events by number, or pass --all.", fix="`labelloop inbox dead` lists them.")
    inbox, discarded = _inbox(), 0
    _require_dead(inbox, ids)
    while letters := inbox.dead_letters(limit=_BATCH, ids=ids or None):
        for letter in letters:
            event = letter.event
            print(f"{event.id:>6}  {event.topic} {event.subject} ({event.key}): {letter.reason}")
        discarded += inbox.discard([letter.event.id for letter in letters])
    print(f"{discarded} event{'s were' if discarded != 1 else ' was'} discarded.")


def _require_dead(inbox: Inbox, ids: Sequence[int]) -> None:
    """Raise `NoEventsSelected` if a number is that of no dead letter."""
    existing = {letter.event.id for letter in inbox.dead_letters(limit=max(1, len(ids)), ids=ids)}
    if missing := sorted(set(ids) - existing):
        raise NoEventsSelected(
            f"No dead letter has the number {', '.join(map(str, missing))}; nothing was changed.",
            fix="`labelloop inbox dead` lists them.",
        )


def _inbox() -> Inbox:
    settings = Settings()
    return Inbox.from_settings(settings, open_existing_database(settings))
