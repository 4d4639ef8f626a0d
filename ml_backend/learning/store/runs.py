"""Owns the memory of runs: every fit that came to a verdict, with what it learned from, its figures and its times."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import reading
from ml_backend.learning.store.tables import RUNS

VerdictName = Literal["published", "refused", "withdrawn", "failed", "admitted"]

PHASES: Mapping[str, str] = {
    "wait": "Waiting for the burst to end",
    "read": "Reading Label Studio",
    "photos": "Looking at photos",
    "fit": "Fitting, with cross-validation",
    "judge": "Judging the candidate",
    "publish": "Publishing the version",
    "follow": "Telling Label Studio",
}
"""The phases of a run, which `seconds` counts by name; `wait` is from the first event until work begins."""


class Metrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run measured.

    Attributes:
        by_class: AP50 of the candidate by class; on the photos that `judged_by` names.
        parent_by_class: The same of what it was compared with.
        photos: Photos that it was judged on; `boxes` on them.
        cross_validation: AP50 of each way to fit, by name, on labelled photos that took no part in the fit.
        choice: The way that won.
        thresholds: From which score on a class is shown, where the version brings that.
    """

    by_class: dict[str, float] = {}
    parent_by_class: dict[str, float] = {}
    photos: int = 0
    boxes: int = 0
    cross_validation: dict[str, float] = {}
    choice: str = ""
    thresholds: dict[str, float] = {}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table `learn_runs`, which says what each field is."""

    project: int
    asked_at: float
    started_at: float
    finished_at: float
    source: str
    tasks: int
    held_out: int
    boxes: int
    verdict: VerdictName
    id: int = 0
    classes: Mapping[str, int] = {}
    base: str = ""
    parent: str = ""
    version: str = ""
    judged_by: str = ""
    reason: str = ""
    ap50: float | None = None
    parent_ap50: float | None = None
    tolerance: float | None = None
    metrics: Metrics = Metrics()
    seconds: Mapping[str, float] = {}


_JSON = {"classes": dict[str, int], "metrics": Metrics, "seconds": dict[str, float]}


class Runs:
    """The runs of every project."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(self, run: Run) -> int:
        """Keeps a run; returns its id."""
        values = {name: getattr(run, name) for name in run.__struct_fields__ if name != "id"}
        values |= {name: msgspec.json.encode(values[name]).decode() for name in _JSON}
        with self.engine.begin() as connection:
            return int(connection.execute(sa.insert(RUNS).values(values).returning(RUNS.c.id)).scalar_one())

    def last(self, project: int, count: int = 10) -> list[Run]:
        """The last runs of a project, the newest first."""
        with reading(self.engine) as connection:
            query = sa.select(RUNS).where(RUNS.c.project == project).order_by(RUNS.c.id.desc()).limit(count)
            return [_run(row) for row in connection.execute(query)]

    def newest(self, project: int) -> float:
        """When the last run of a project ended, seconds since 1970; 0 where there was none."""
        with reading(self.engine) as connection:
            query = sa.select(sa.func.max(RUNS.c.finished_at)).where(RUNS.c.project == project)
            return float(connection.scalar(query) or 0)

    def replaced(self, project: int) -> dict[str, float]:
        """When each version that a run replaced was replaced last, seconds since 1970."""
        with reading(self.engine) as connection:
            query = sa.select(RUNS.c.parent, sa.func.max(RUNS.c.finished_at)).group_by(RUNS.c.parent)
            done = RUNS.c.verdict.in_(("published", "withdrawn", "admitted"))
            return {str(one): float(at) for one, at in connection.execute(query.where(RUNS.c.project == project, done))}

    def of_version(self, project: int, version: str) -> Run | None:
        """The run that made a version."""
        with reading(self.engine) as connection:
            query = sa.select(RUNS).where(RUNS.c.project == project, RUNS.c.version == version)
            row = connection.execute(query.order_by(RUNS.c.id.desc()).limit(1)).first()
        return _run(row) if row is not None else None


def _run(row: sa.Row[tuple[object, ...]]) -> Run:
    values: dict[str, Any] = {name: getattr(row, name) for name in Run.__struct_fields__}
    values |= {name: msgspec.json.decode(values[name], type=kind) for name, kind in _JSON.items()}
    return Run(**values)
