"""Quality control: the defaults of each project, verdicts under the new ones, send-backs, confirmed ground truths."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_qc_conflicts"
down_revision: str | None = "0016_learn_backlog"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def _task_columns() -> tuple[sa.Column[int], sa.Column[int]]:
    return (
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
    )


def upgrade() -> None:
    # Null: connected while only the mean agreement decided, which stays so until the project adopts the new default.
    op.add_column("qc_projects", sa.Column("defaults", sa.Integer()))
    op.create_table(
        "qc_previews",
        *_task_columns(),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False),
    )
    op.create_table(
        "qc_send_backs",
        *_task_columns(),
        sa.Column("annotator", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=False),
        sa.Column("redone_at", sa.Double()),
        sa.Column("accepted_at", sa.Double()),
    )
    op.create_table(
        "qc_confirmed_truths", *_task_columns(), sa.Column("annotation", sa.Integer(), nullable=False)
    )  # fmt: skip


def downgrade() -> None:
    for table in ("qc_confirmed_truths", "qc_send_backs", "qc_previews"):
        op.drop_table(table)
    op.drop_column("qc_projects", "defaults")
