"""Learning: every task of a project in our own table, with what decides its place among the open ones."""

from __future__ import annotations

import zlib

import sqlalchemy as sa
from alembic import op

revision = "0016_learn_backlog"
down_revision: str | None = "0015_workers"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None

_COLUMNS = ("mark", "live", "skipped", "turn", "chance", "prelabel")
_INDEXES = {
    "learn_looks_by_doubt": ("project", "live", "skipped", "doubt", "task", "version", "prelabel"),
    "learn_looks_by_chance": ("project", "live", "skipped", "version", "chance", "task", "prelabel"),
    "learn_looks_by_turn": ("project", "live", "skipped", "chance", "turn", "task"),
    "learn_looks_by_prelabel": ("project", "prelabel", "live", "skipped", "score", "task"),
}


def upgrade() -> None:
    for name in ("mark", "prelabel"):
        op.add_column("learn_looks", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in ("live", "skipped"):
        op.add_column("learn_looks", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("learn_looks", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("learn_looks", sa.Column("chance", sa.BigInteger()))
    op.create_table(
        "learn_mirrors",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("notes", sa.Text(), nullable=False),
    )
    looks = sa.table("learn_looks", *(sa.column(name) for name in
                     ("project", "task", "vector", "version", "score", "live", "chance", "prelabel")))  # fmt: skip
    tasks = sa.table("learn_tasks", *(sa.column(name) for name in ("project", "task", "state")))
    connection = op.get_bind()
    key = sa.tuple_(looks.c.project, looks.c.task)
    last = (-1, -1)
    while rows := connection.execute(
        sa.select(looks.c.project, looks.c.task, looks.c.vector)
        .where(key > sa.tuple_(*map(sa.literal, last)))
        .order_by(looks.c.project, looks.c.task)
        .limit(1000)
    ).all():
        mine = (looks.c.project == sa.bindparam("in_project")) & (looks.c.task == sa.bindparam("of_task"))
        given = [{"in_project": row.project, "of_task": row.task, "crc": zlib.crc32(bytes(row.vector))} for row in rows]
        connection.execute(sa.update(looks).where(mine).values(chance=sa.bindparam("crc")), given)
        last = rows[-1].project, rows[-1].task
    connection.execute(sa.update(looks).where(looks.c.score.is_not(None)).values(prelabel=looks.c.version))
    annotated = sa.exists().where(
        tasks.c.project == looks.c.project, tasks.c.task == looks.c.task, tasks.c.state != "gone"
    )
    connection.execute(sa.update(looks).where(annotated).values(live=1))
    for name, columns in _INDEXES.items():
        op.create_index(name, "learn_looks", list(columns))


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "learn_looks")
    looks = sa.table("learn_looks", sa.column("chance"))
    op.execute(sa.delete(looks).where(looks.c.chance.is_(None)))
    op.drop_table("learn_mirrors")
    for name in _COLUMNS:
        op.drop_column("learn_looks", name)
