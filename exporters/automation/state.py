"""The table of automatic exports: one row per project and data set, with the state at the last export."""

from datetime import UTC, datetime

import sqlalchemy as sa

from exporters.automation.triggers import LastExport, ProjectSnapshot
from labelloop.service.db.engine import begin_read, insert_if_absent

WATCHES = sa.Table(
    "export_watches",
    sa.MetaData(),
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("place", sa.Text, primary_key=True),  # the policy's `to`; empty: the project's data set in the store
    sa.Column("accepted", sa.Integer),
    sa.Column("newest", sa.Text),
    sa.Column("exported_at", sa.Double),  # seconds since 1970
    sa.Column("version", sa.Text),  # empty: none yet
    sa.Column("outcome", sa.Text),  # of the last export, in words
)


class ExportStateTable:
    """Read and write access to the table.

    Args:
        engine: The migrated database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def last_export(self, project: int, data_set: str, now: ProjectSnapshot) -> LastExport:
        """The last automatic export of a project; on the first call a row without accepted tasks is added."""
        with begin_read(self._engine) as connection:
            row = connection.execute(sa.select(WATCHES).where(_matches(project, data_set))).first()
        if row is None:
            values = {
                "project": project,
                "place": data_set,
                "accepted": 0,
                "newest": "",
                "exported_at": now.at.timestamp(),
                "version": "",
                "outcome": "",
            }
            with self._engine.begin() as connection:
                insert_if_absent(connection, WATCHES, values, conflict=("project", "place"))
            return LastExport(0, "", now.at)
        at = datetime.fromtimestamp(row.exported_at, UTC).astimezone(now.at.tzinfo)
        return LastExport(row.accepted, row.newest, at, row.version)

    def record_export(self, project: int, data_set: str, now: ProjectSnapshot, *, version: str, outcome: str) -> None:
        """Store the state at an export, also of one that published nothing: the next is due by the same rules."""
        values = {
            "accepted": now.accepted,
            "newest": now.newest,
            "exported_at": now.at.timestamp(),
            "version": version,
            "outcome": outcome,
        }
        with self._engine.begin() as connection:
            connection.execute(sa.update(WATCHES).where(_matches(project, data_set)).values(values))


def _matches(project: int, data_set: str) -> sa.ColumnElement[bool]:
    return (WATCHES.c.project == project) & (WATCHES.c.place == data_set)
