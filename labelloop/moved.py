"""Takes a project's connections along when our services have moved to other addresses."""

from collections.abc import Sequence

from labelloop.service.connect_report import Change
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.studio.connect import basic_auth, same_address


def follow_addresses(studio: Studio, project: int, settings: Settings) -> Sequence[Change]:
    """Moves the ML backend and the webhooks that were made for us under another address to the one of now.

    Ours are the webhooks that carry our secret, and an ML backend whose webhook does. Without a secret nobody can
    tell, and nothing is moved.

    Args:
        studio: Label Studio.
        project: The project's id.
        settings: The addresses of now, the secret, and Basic auth.

    Returns:
        One line for each address that was left; none where all is where it should be.
    """
    secrets = {
        secret.get_secret_value() for secret in (settings.webhook_secret, settings.webhook_secret_previous) if secret
    }
    homes = [f"{url.rstrip('/')}/webhook" for url in (settings.ml_url, settings.qc_url)]
    hooks = [hook for hook in studio.webhooks(project) if (hook["headers"] or {}).get(SECRET_HEADER) in secrets]
    strays = [hook for hook in hooks if not any(same_address(hook["url"], home) for home in homes)]
    if not strays:
        return []
    changes = []
    rows = studio.ml_backends(project)
    there = any(same_address(row["url"], settings.ml_url) for row in rows)
    for hook in strays:
        row = next((row for row in rows if same_address(f"{row['url'].rstrip('/')}/webhook", hook["url"])), None)
        if row is None:
            what = "webhook"  # quality control's, or one that a removed backend left behind: its part makes it anew
        elif there:
            studio.delete_ml_backend(row["id"])
            what = "ML backend"
        else:
            studio.update_ml_backend(row["id"], url=settings.ml_url, basic_auth=basic_auth(settings))
            there, what = True, "ML backend"
        studio.delete_webhook(hook["id"])
        changes.append(Change(f"{what} no longer at {hook['url'].removesuffix('/webhook')}", done=True))
    return changes
