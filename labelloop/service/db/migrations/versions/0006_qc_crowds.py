"""Quality control: what is known of each project's annotators, and each task's own time when it was judged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_qc_crowds"
down_revision: str | None = "0005_qc_dashboard"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "qc_crowds",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("took_s", sa.Double(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("newest", sa.Double(), nullable=False),
        sa.Column("crowd", sa.Text(), nullable=False),
    )
    op.add_column("qc_tasks", sa.Column("stamp", sa.Text()))


def downgrade() -> None:
    op.drop_column("qc_tasks", "stamp")
    op.drop_table("qc_crowds")
