"""Learning: connected projects, what each task teaches, what is known of open photos, the memory of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_learning"
down_revision: str | None = "0003_qc_overlays"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "learn_projects",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("connected_at", sa.Double(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False, server_default=""),
        sa.Column("swept_at", sa.Double()),
        sa.Column("fingerprint", sa.Text(), nullable=False, server_default=""),
        sa.Column("phase", sa.Text(), nullable=False, server_default=""),
        sa.Column("phase_done", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("phase_total", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("phase_at", sa.Double()),
    )
    op.create_table(
        "learn_tasks",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seen", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("annotations", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("photos", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("boxes", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("shown", sa.Text()),
        sa.Column("shown_version", sa.Text(), nullable=False, server_default=""),
        sa.Column("annotator", sa.Integer()),
        sa.Column("lead_time", sa.Double()),
        sa.Column("drawn_at", sa.Text(), nullable=False, server_default=""),
        sa.Column("learned", sa.Text()),
        sa.Column("read_at", sa.Double(), nullable=False),
    )
    op.create_index("learn_tasks_state", "learn_tasks", ["project", "state"])
    op.create_table(
        "learn_looks",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("backbone", sa.Text(), nullable=False),
        sa.Column("photo", sa.Text(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False, server_default=""),
        sa.Column("doubt", sa.Double()),
        sa.Column("score", sa.Double()),
    )
    op.create_table(
        "learn_runs",
        # SQLite counts by itself only on INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("held_out", sa.Integer(), nullable=False),
        sa.Column("boxes", sa.Integer(), nullable=False),
        sa.Column("classes", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("base", sa.Text(), nullable=False, server_default=""),
        sa.Column("parent", sa.Text(), nullable=False, server_default=""),
        sa.Column("version", sa.Text(), nullable=False, server_default=""),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("judged_by", sa.Text(), nullable=False, server_default=""),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("ap50", sa.Double()),
        sa.Column("parent_ap50", sa.Double()),
        sa.Column("tolerance", sa.Double()),
        sa.Column("metrics", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("seconds", sa.Text(), nullable=False, server_default="{}"),
        sqlite_autoincrement=True,
    )
    op.create_index("learn_runs_project", "learn_runs", ["project", "id"])


def downgrade() -> None:
    for table in ("learn_runs", "learn_looks", "learn_tasks", "learn_projects"):
        op.drop_table(table)
