"""Quality control: facts and drawings of tasks, what the dashboard shows of a project, refused log-ins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_qc_dashboard"
down_revision: str | None = "0004_learning"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "qc_facts",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kept_at", sa.Double(), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False, server_default=""),
        sa.Column("people", sa.Text(), nullable=False, server_default=""),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("drawing", sa.Text()),
    )
    op.create_index("qc_facts_at", "qc_facts", ["project", "at"])
    op.create_index("qc_facts_kinds", "qc_facts", ["project", "kinds", "task", "people"])
    op.create_index("qc_facts_kept", "qc_facts", ["project", "kept_at"])
    op.create_table(
        "qc_boards",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("took_s", sa.Double(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("newest", sa.Double(), nullable=False),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("replay", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "dashboard_refusals",
        sa.Column("client", sa.Text(), primary_key=True),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
    )
    op.create_index("qc_tasks_agreement", "qc_tasks", ["project", "outcome", "agreement", "task", "review"])
    op.create_index("qc_tasks_decided", "qc_tasks", ["project", "outcome", "decided_at", "task", "review"])
    op.create_index("qc_actions_created", "qc_actions", ["project", "created_at"])


def downgrade() -> None:
    op.drop_index("qc_actions_created", "qc_actions")
    op.drop_index("qc_tasks_decided", "qc_tasks")
    op.drop_index("qc_tasks_agreement", "qc_tasks")
    for table in ("dashboard_refusals", "qc_boards", "qc_facts"):
        op.drop_table(table)
