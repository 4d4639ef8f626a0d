"""Quality control: connected projects, the annotation-to-task map, each task's state, the log of writes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_qc"
down_revision: str | None = "0001_inbox"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "qc_projects",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("connected_at", sa.Double(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False, server_default=""),
        sa.Column("settled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("polled_at", sa.Double()),
        sa.Column("swept_at", sa.Double()),
    )
    op.create_table(
        "qc_annotations",
        sa.Column("annotation", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Text(), nullable=False),
    )
    op.create_index("qc_annotations_task", "qc_annotations", ["project", "task"])
    op.create_table(
        "qc_tasks",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("born", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("agreement", sa.Double()),
        sa.Column("annotators", sa.Integer(), nullable=False),
        sa.Column("review", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("keys", sa.Text()),
        sa.Column("asked_overlap", sa.Integer()),
        sa.Column("asked_at", sa.Integer()),
        sa.Column("found_overlap", sa.Integer()),
        sa.Column("decided_at", sa.Double(), nullable=False),
    )
    op.create_index("qc_tasks_outcome", "qc_tasks", ["project", "outcome"])
    op.create_table(
        "qc_actions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("qc_actions_task", "qc_actions", ["project", "task"])


def downgrade() -> None:
    for table in ("qc_actions", "qc_tasks", "qc_annotations", "qc_projects"):
        op.drop_table(table)
