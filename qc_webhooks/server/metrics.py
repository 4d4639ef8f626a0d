"""The figures of quality control for Prometheus, read from the database: every worker's verdicts and writes in one."""

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from labelloop.service.db.engine import reading
from qc_webhooks.store.tables import ACTIONS, PROJECTS, TASKS


class QcMetricsCollector(Collector):
    """Tasks by verdict, writes by route, and how long ago each project was polled."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Count now."""
        with reading(self._engine) as connection:
            outcomes = connection.execute(
                sa.select(TASKS.c.project, TASKS.c.outcome, sa.func.count()).group_by(TASKS.c.project, TASKS.c.outcome)
            ).all()
            review = connection.execute(
                sa.select(TASKS.c.project, sa.func.count()).where(TASKS.c.review).group_by(TASKS.c.project)
            ).all()
            routes = connection.execute(
                sa.select(ACTIONS.c.route, ACTIONS.c.state, sa.func.count()).group_by(ACTIONS.c.route, ACTIONS.c.state)
            ).all()
            polled = connection.execute(sa.select(PROJECTS.c.project, PROJECTS.c.polled_at)).all()
        tasks = GaugeMetricFamily("labelloop_qc_tasks", "Tasks by verdict.", labels=["project", "outcome"])
        for project, outcome, count in outcomes:
            tasks.add_metric([str(project), outcome], count)
        yield tasks
        waiting = GaugeMetricFamily("labelloop_qc_tasks_to_review", "Disputes at the maximum.", labels=["project"])
        for project, count in review:
            waiting.add_metric([str(project)], count)
        yield waiting
        writes = CounterMetricFamily("labelloop_qc_routes", "Writes to tasks, by route.", labels=["route", "state"])
        for route, state, count in routes:
            writes.add_metric([route, state], count)
        yield writes
        polls = GaugeMetricFamily("labelloop_qc_polled_timestamp_seconds", "Time of the last poll.", labels=["project"])
        for project, polled_at in polled:
            polls.add_metric([str(project)], polled_at or 0.0)
        yield polls
