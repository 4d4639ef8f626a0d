"""Shows annotators in Label Studio which tasks were sent back to them."""

import sqlalchemy as sa

from labelloop.service.studio import Studio
from qc_webhooks.store.send_backs import SendBackStore, user_names
from qc_webhooks.studio.data_manager_tabs import PERSONAL, ensure_personal_tabs


def show_send_backs(studio: Studio, engine: sa.Engine, project: int) -> dict[str, int]:
    """Create, keep or delete the tab of each annotator with tasks to redo. Returns name -> id of the tab.

    Raises:
        StudioError: Label Studio cannot be reached, or refuses.
    """
    waiting = SendBackStore(engine).waiting(project)
    if not waiting and not any(
        str(view.get("data", {}).get("title", "")).startswith(PERSONAL) for view in studio.views(project)
    ):
        return {}
    names = user_names(studio.users()) if waiting else {}
    return ensure_personal_tabs(studio, project, [names.get(item, f"user {item}") for item in waiting])
