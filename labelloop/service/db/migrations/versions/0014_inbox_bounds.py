"""The inbox: how often a worker ended while it held an event, and indexes that keep a long inbox as fast as a short."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_inbox_bounds"
down_revision: str | None = "0012_learn_config"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None

# Unclaimed: left where a takeover found more events than one claim takes.
_ORPHANS = """
UPDATE inbox_events SET state = 'pending', claim = NULL WHERE state = 'claimed'
AND NOT EXISTS (SELECT 1 FROM inbox_claims WHERE inbox_claims.token = inbox_events.claim)
"""


def upgrade() -> None:
    op.add_column("inbox_events", sa.Column("kills", sa.Integer(), nullable=False, server_default="0"))
    op.execute(_ORPHANS)
    op.drop_index("inbox_events_state_due", "inbox_events")
    # Holds all that the search for due subjects reads.
    op.create_index("inbox_events_due", "inbox_events", ["state", "due_at", "topic", "subject"])
    op.create_index("inbox_events_finished", "inbox_events", ["state", "finished_at"])
    _partial("inbox_events_open", ["created_at"], "finished_at IS NULL")
    _partial("inbox_events_kills", ["topic", "subject"], "kills > 1")


def downgrade() -> None:
    for index in ("kills", "open", "finished", "due"):
        op.drop_index(f"inbox_events_{index}", "inbox_events")
    op.create_index("inbox_events_state_due", "inbox_events", ["state", "due_at"])
    op.drop_column("inbox_events", "kills")


def _partial(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "inbox_events", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
