"""Learning: where the model differs from an annotator, as it was told on the task."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_learn_opinions"
down_revision: str | None = "0008_qc_truths"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "learn_opinions",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("told_at", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("learn_opinions")
