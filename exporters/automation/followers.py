"""The handlers of what follows from a published version: whoever asked is told, the policy's command is run."""

from collections.abc import Mapping, Sequence

from exporters.automation.events import THEN, WEBHOOK
from exporters.automation.then import CommandFailed, run_post_export_command
from exporters.automation.webhook import WebhookForbidden, send
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, Reject
from labelloop.service.settings import Settings


def followers(settings: Settings) -> Mapping[str, Handler]:
    """The handlers of what follows from a published version."""

    def webhook(_subject: str, events: Sequence[Event]) -> None:
        for event in events:
            try:
                send(settings, event.payload["to"], event.payload["body"])
            except WebhookForbidden as error:
                raise Reject(str(error)) from error

    def then(_subject: str, events: Sequence[Event]) -> None:
        for event in events:
            try:
                run_post_export_command(event.payload["command"], event.payload["told"])
            except CommandFailed as error:  # a training that failed is not begun again by itself
                raise Reject(f"{error} `labelloop inbox replay` repeats it.") from error

    return {WEBHOOK: webhook, THEN: then}
