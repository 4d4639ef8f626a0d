"""The heartbeats of workers, by which services and `doctor` know that one is alive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_workers"
down_revision: str | None = "0014_inbox_bounds"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("worker", sa.Text(), primary_key=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("workers")
