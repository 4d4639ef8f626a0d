"""`labelloop rotate`: a new webhook secret, beside the old one until every project's webhooks carry it."""

import os
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from labelloop.connect import connect
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError, SettingsError
from labelloop.service.settings import Settings, env_name, settings_file
from labelloop.service.studio import Studio
from labelloop.stack.environment import with_secrets, write_env
from qc_webhooks.store.projects import ProjectStore

SECRET, PREVIOUS = env_name("webhook_secret"), env_name("webhook_secret_previous")


def rotate(*, finish: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Give the webhooks of every connected project a new secret; no event is lost on the way.

    The services accept both secrets as soon as settings.env holds them. Run it again where a project could not be
    reached; when all carry the new secret, `labelloop rotate --finish` ends the old one.

    ```
    labelloop rotate
    labelloop rotate --finish
    ```

    Args:
        finish: End the old secret, once every project carries the new one.

    Returns:
        0, or 1 where a project still carries the old secret.
    """
    settings = Settings()
    if SECRET in os.environ or PREVIOUS in os.environ:
        raise SettingsError(
            f"{SECRET} comes from the environment, which this command cannot change.",
            fix=f"Set {SECRET} to a new value and {PREVIOUS} to the one of now, start the services again, "
            "run `labelloop connect PROJECT` for each project, then remove the previous one.",
        )
    under_way = bool(settings.webhook_secret_previous)
    if finish and not under_way:
        print("No rotation is under way: there is one secret.")
        return 0
    if not under_way:
        old = settings.webhook_secret.get_secret_value()
        write_env(settings.home, with_secrets({SECRET: "", PREVIOUS: old}, (SECRET,)))
        settings = Settings()
        print(f"A new secret is in {settings_file(settings.home)}; the old one is accepted too.")
    left = _reconnect(settings, print)
    if left:
        print(f"Projects {', '.join(map(str, left))} still carry the old secret, which stays valid.")
        print("Run `labelloop rotate` again when Label Studio answers.")
        return 1
    if finish:
        write_env(settings.home, {PREVIOUS: ""})
        print("Every project carries the new secret; the old one has ended.")
    else:
        print("Every project carries the new secret. `labelloop rotate --finish` ends the old one.")
    return 0


def _reconnect(settings: Settings, say: Callable[[str], None]) -> list[int]:
    """Connect every project again; gives those that could not be."""
    left = []
    studio = Studio.from_settings(settings)
    try:
        for row in ProjectStore(open_database(settings)).all():
            try:
                connect(row.project, settings, studio=studio, tell=lambda _: None)
            except LabelloopError as error:
                say(f"  project {row.project}: {error}")
                left.append(row.project)
            else:
                say(f"  project {row.project}: webhooks carry the new secret")
    finally:
        studio.close()
    return left
