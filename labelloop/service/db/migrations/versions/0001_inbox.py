"""The inbox, its claims and the turns of periodic jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001_inbox"
down_revision: str | None = None
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "inbox_events",
        # SQLite counts by itself only on INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.Column("claim", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.UniqueConstraint("topic", "key", name="inbox_events_topic_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("inbox_events_state_due", "inbox_events", ["state", "due_at"])
    op.create_index("inbox_events_subject_state", "inbox_events", ["topic", "subject", "state"])
    op.create_index("inbox_events_claim", "inbox_events", ["claim"])
    op.create_table(
        "inbox_claims",
        sa.Column("topic", sa.Text(), primary_key=True),
        sa.Column("subject", sa.Text(), primary_key=True),
        sa.Column("token", sa.Text(), nullable=False, unique=True),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("leased_until", sa.Double(), nullable=False),
    )
    op.create_table(
        "periodic_turns",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("token", sa.Text(), nullable=False, server_default=""),
        sa.Column("worker", sa.Text(), nullable=False, server_default=""),
        sa.Column("leased_until", sa.Double(), nullable=False, server_default="0"),
        sa.Column("started_at", sa.Double(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    for table in ("periodic_turns", "inbox_claims", "inbox_events"):
        op.drop_table(table)
