"""Learning: fine-tunings as jobs with a lease, and the trainers that ask for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019_learn_train_jobs"
down_revision: str | None = "0018_label_issues_withheld"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "learn_train_jobs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("project", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("labelled", sa.Integer, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("minutes", sa.Double, nullable=False),
        sa.Column("cores", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("leased_until", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("classes", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("learn_train_jobs_project", "learn_train_jobs", ["project", "id"])
    op.create_table(
        "learn_trainers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("learn_trainers")
    op.drop_index("learn_train_jobs_project", "learn_train_jobs")
    op.drop_table("learn_train_jobs")
