"""How each watched project stood at its last automatic export: a row in the database, a project and data set."""

from datetime import UTC, datetime

import sqlalchemy as sa

from exporters.automation.triggers import Last, Now
from labelloop.service.db.engine import insert_new, reading

WATCHES = sa.Table(
    "export_watches",
    sa.MetaData(),
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("place", sa.Text, primary_key=True),  # the address in the policy; empty: the project's place in the store
    sa.Column("accepted", sa.Integer),
    sa.Column("newest", sa.Text),
    sa.Column("exported_at", sa.Double),  # seconds since 1970
    sa.Column("version", sa.Text),  # empty: none yet
    sa.Column("outcome", sa.Text),  # what became of the last export, in words
)


class Memory:
    """The rows, over one engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def last(self, project: int, place: str, now: Now) -> Last:
        """How the project stood at its last automatic export; watched for the first time: nothing is accepted yet."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(WATCHES).where(_of(project, place))).first()
        if row is None:
            fresh = {"accepted": 0, "newest": "", "exported_at": now.at.timestamp(), "version": "", "outcome": ""}
            with self._engine.begin() as connection:
                row_of = {"project": project, "place": place, **fresh}
                insert_new(connection, WATCHES, row_of, conflict=("project", "place"))
            return Last(0, "", now.at)
        at = datetime.fromtimestamp(row.exported_at, UTC).astimezone(now.at.tzinfo)
        return Last(row.accepted, row.newest, at, row.version)

    def exported(self, project: int, place: str, now: Now, *, version: str, outcome: str) -> None:
        """Keep how the project stood at an export, which may have failed: then it is due again by the same rule."""
        values = {
            "accepted": now.accepted,
            "newest": now.newest,
            "exported_at": now.at.timestamp(),
            "version": version,
            "outcome": outcome,
        }
        with self._engine.begin() as connection:
            connection.execute(sa.update(WATCHES).where(_of(project, place)).values(values))


def _of(project: int, place: str) -> sa.ColumnElement[bool]:
    return (WATCHES.c.project == project) & (WATCHES.c.place == place)
