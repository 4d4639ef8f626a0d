"""Automatic exports: how a project stood at the last one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_exports"
down_revision: str | None = "0006_qc_crowds"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "export_watches",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("place", sa.Text(), primary_key=True),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("newest", sa.Text(), nullable=False),
        sa.Column("exported_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False, server_default=""),
        sa.Column("outcome", sa.Text(), nullable=False, server_default=""),
    )


def downgrade() -> None:
    op.drop_table("export_watches")
