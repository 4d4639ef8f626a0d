"""Table `learn_runs`: every training run with its inputs, metrics, verdict and times."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import begin_read
from ml_backend.learning.store.tables import TRAINING_RUNS

VerdictName = Literal["published", "refused", "withdrawn", "failed", "admitted"]

# Phases of a run, the keys of `seconds`; `wait` lasts from the first event until work begins.
PHASES: Mapping[str, str] = {
    "wait": "Waiting for more submits",
    "read": "Reading Label Studio",
    "photos": "Computing image features",
    "fit": "Training, with cross-validation",
    "heads": "Learning answers, masks and points",
    "judge": "Evaluating the candidate",
    "publish": "Publishing the version",
    "follow": "Updating Label Studio",
}


# `source` of the runs that judged a fine-tuned model.
FINETUNED = "train"

# Kinds of heads in words.
TITLES: Mapping[str, str] = {
    "keypoints": "key points",
    "angles": "angles",
    "masks": "masks",
    "region_labels": "answers about objects",
    "image_labels": "answers about images",
}


class HeadMetrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """Result of one kind of head, see `ml_backend.heads`.

    Attributes:
        metric: Name of the metric.
        value: Of the candidate; None: not measured.
        parent: Of what was served before; None: not measured.
        passed: Whether the candidate is served.
        reason: The reason, in words.
        judged_by: The data that decided.
    """

    metric: str
    value: float | None = None
    parent: float | None = None
    passed: bool = False
    reason: str = ""
    judged_by: str = ""


class RunMetrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metrics of a training run.

    Attributes:
        by_class: AP50 of the candidate by class, on the images that `judged_by` names.
        parent_by_class: AP50 by class of the model it was compared with.
        photos: Number of evaluated images.
        boxes: Number of boxes on them.
        cross_validation: Cross-validated AP50 of each configuration and of their average, by name.
        choice: The average of configurations that was fitted, with its weights, in words.
        tiling: Whether boxes were learned on tiles of the images, and why, in words; empty where objects are large.
        thresholds: Lowest score of a pre-label by class, if the version has its own.
        heads: Results other than boxes, by kind of head.
        boxes_kept: Whether the version has the boxes of its parent, because only heads passed.
    """

    by_class: dict[str, float] = {}
    parent_by_class: dict[str, float] = {}
    photos: int = 0
    boxes: int = 0
    cross_validation: dict[str, float] = {}
    choice: str = ""
    tiling: str = ""
    thresholds: dict[str, float] = {}
    heads: dict[str, HeadMetrics] = {}
    boxes_kept: bool = False

    def lines(self) -> list[str]:
        """The views that boxes were learned on, where that was a choice, and the result of each head, in words."""
        lines = [f"Views: {self.tiling}."] if self.tiling else []
        for name, result in self.heads.items():
            measured = "" if result.value is None else f"{result.metric} {result.value:.3f}"
            before = "" if result.parent is None else f" (before: {result.parent:.3f})"
            verdict = "published" if result.passed else f"not published: {result.reason}"
            lines.append(
                f"{TITLES.get(name, name).capitalize()}: {f'{measured}{before}, ' if measured else ''}{verdict}."
            )
        return lines


class TrainingRun(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table `learn_runs`; see there for the fields."""

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
    metrics: RunMetrics = RunMetrics()
    seconds: Mapping[str, float] = {}


_JSON = {"classes": dict[str, int], "metrics": RunMetrics, "seconds": dict[str, float]}


class RunStore:
    """The training runs of all projects."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(self, run: TrainingRun) -> int:
        """Insert a run; returns its id."""
        values = {name: getattr(run, name) for name in run.__struct_fields__ if name != "id"}
        values |= {name: msgspec.json.encode(values[name]).decode() for name in _JSON}
        with self.engine.begin() as connection:
            return int(
                connection.execute(sa.insert(TRAINING_RUNS).values(values).returning(TRAINING_RUNS.c.id)).scalar_one()
            )

    def last(self, project: int, count: int = 10) -> list[TrainingRun]:
        """Return the last runs of a project, newest first."""
        with begin_read(self.engine) as connection:
            query = (
                sa.select(TRAINING_RUNS)
                .where(TRAINING_RUNS.c.project == project)
                .order_by(TRAINING_RUNS.c.id.desc())
                .limit(count)
            )
            return [_run(row) for row in connection.execute(query)]

    def last_finished_at(self, project: int) -> float:
        """Return the end of the last run of a project, seconds since 1970; 0 without runs."""
        with begin_read(self.engine) as connection:
            query = sa.select(sa.func.max(TRAINING_RUNS.c.finished_at)).where(TRAINING_RUNS.c.project == project)
            return float(connection.scalar(query) or 0)

    def replaced_at(self, project: int) -> dict[str, float]:
        """Return when each replaced version was last replaced, seconds since 1970."""
        with begin_read(self.engine) as connection:
            query = sa.select(TRAINING_RUNS.c.parent, sa.func.max(TRAINING_RUNS.c.finished_at)).group_by(
                TRAINING_RUNS.c.parent
            )
            done = TRAINING_RUNS.c.verdict.in_(("published", "withdrawn", "admitted"))
            return {
                str(version): float(at)
                for version, at in connection.execute(query.where(TRAINING_RUNS.c.project == project, done))
            }

    def of_version(self, project: int, version: str) -> TrainingRun | None:
        """Return the run that produced a version; None if there is none."""
        with begin_read(self.engine) as connection:
            query = sa.select(TRAINING_RUNS).where(
                TRAINING_RUNS.c.project == project, TRAINING_RUNS.c.version == version
            )
            row = connection.execute(query.order_by(TRAINING_RUNS.c.id.desc()).limit(1)).first()
        return _run(row) if row is not None else None


def _run(row: sa.Row[tuple[object, ...]]) -> TrainingRun:
    values: dict[str, Any] = {name: getattr(row, name) for name in TrainingRun.__struct_fields__}
    values |= {name: msgspec.json.decode(values[name], type=kind) for name, kind in _JSON.items()}
    return TrainingRun(**values)
