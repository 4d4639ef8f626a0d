"""`labelloop rotate`: replace the webhook secret; the old one stays valid until every project uses the new one."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated

from cyclopts import Parameter

from labelloop.connect import connect
from labelloop.service.errors import LabelloopError, SettingsError
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings, env_name, settings_file
from labelloop.service.studio import Studio
from labelloop.stack.environment import with_secrets, write_env
from qc_webhooks.store.projects import ProjectStore

SECRET, PREVIOUS = env_name("webhook_secret"), env_name("webhook_secret_previous")


def rotate(*, finish: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Rotate the webhook secret of every connected project without losing an event.

    The services accept both secrets as soon as settings.env has them. Run the command again if a project could not be
    reached; when all use the new secret, `labelloop rotate --finish` revokes the old one.

    ```
    labelloop rotate
    labelloop rotate --finish
    ```

    Args:
        finish: Revoke the old secret once every project uses the new one.

    Returns:
        0, or 1 if a project still uses the old secret.
    """
    settings = Settings()
    if SECRET in os.environ or PREVIOUS in os.environ:
        raise SettingsError(
            f"{SECRET} comes from the environment, which this command cannot change.",
            fix=f"Set {SECRET} to a new value and {PREVIOUS} to the current one, restart the services, "
            "run `labelloop connect PROJECT` for each project, then remove the previous one.",
        )
    engine = open_existing_database(settings)
    in_progress = bool(settings.webhook_secret_previous)
    if finish and not in_progress:
        print("No rotation is in progress: there is one secret.")
        return 0
    if not in_progress:
        old = settings.webhook_secret.get_secret_value()
        write_env(settings.home, with_secrets({SECRET: "", PREVIOUS: old}, (SECRET,)))
        settings = Settings()
        print(f"The new secret is in {settings_file(settings.home)}; the old one is still accepted.")
    projects = [row.project for row in ProjectStore(engine).all()]
    failed = _reconnect(projects, settings, print)
    if failed:
        print(f"Projects {', '.join(map(str, failed))} still use the old secret, which stays valid.")
        print("Run `labelloop rotate` again when Label Studio answers.")
        return 1
    used = "Every project uses the new secret" if projects else "No project is connected"
    if finish:
        write_env(settings.home, {PREVIOUS: ""})
        print(f"{used}; the old one is revoked.")
    else:
        print(f"{used}. `labelloop rotate --finish` revokes the old one.")
    return 0


def _reconnect(projects: Sequence[int], settings: Settings, report: Callable[[str], None]) -> list[int]:
    """Reconnect the projects; return those that failed."""
    failed = []
    studio = Studio.from_settings(settings)
    try:
        for project in projects:
            try:
                connect(project, settings, studio=studio, on_change=lambda _: None)
            except LabelloopError as error:
                report(f"  project {project}: {error}")
                failed.append(project)
            else:
                report(f"  project {project}: webhooks use the new secret")
    finally:
        studio.close()
    return failed
