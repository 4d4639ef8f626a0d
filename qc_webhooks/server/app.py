"""Flask app of quality control: stores webhook events in the inbox, and serves the dashboard and the metrics."""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa
import structlog
from flask import Flask, Response, request
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from labelloop.service.db.engine import begin_read, open_database
from labelloop.service.errors import Forbidden
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import service_checks
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web_app, metrics_of
from labelloop.service.web.metrics import InboxCollector
from labelloop.service.web.request_body import json_body
from labelloop.service.web.webhook_secret import WebhookSecrets
from qc_webhooks.dashboard import DashboardPaths, add_dashboard
from qc_webhooks.errors import QualityControlError
from qc_webhooks.events import ACTIONS, read_event
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.tables import ACTIONS as ACTIONS_TABLE
from qc_webhooks.store.tables import PROJECTS, TASKS

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Create the quality control service: ``POST /webhook``, ``/health``, ``/ready``, ``/metrics``, ``/dashboard/``.

    A webhook is checked for the secret, read, stored as inbox rows, and answered with 200 as soon as they are durable.
    Label Studio waits for the answer inside the annotator's Submit, and never resends an event.

    Args:
        settings: Settings; None reads them from the environment.
    """
    settings = settings or Settings()
    setup_logging(settings)
    engine = open_database(settings)
    jobs = Jobs(settings, Inbox.from_settings(settings, engine))
    decisions = DecisionStore(engine)
    secrets = WebhookSecrets(settings)
    # Label Studio sends no Basic auth with a webhook: the secret replaces it where one is set.
    open_paths = DashboardPaths("/", "/health", *(("/webhook",) if secrets.accepted() else ()))
    app = create_web_app("qc_webhooks", settings, ready=service_checks(settings, engine), open_paths=open_paths)
    metrics = metrics_of(app)
    metrics.register(InboxCollector(jobs.inbox))
    metrics.register(QcMetricsCollector(engine))
    received = metrics.counter("qc_events", "Webhook events received, by action.", ("action",))
    stored = metrics.counter("qc_hints", "Inbox rows made of webhook events, by novelty.", ("novelty",))

    @app.post("/webhook")
    def webhook() -> Response:
        try:
            secrets.check(request)
        except Forbidden as error:
            raise QualityControlError(error.message, fix=error.fix, code="wrong_secret", status=401) from None
        body = json_body(request)
        hints = read_event(body, task_of=decisions.locate_annotations)
        # Unknown actions share one label value, so that a client cannot create metrics without bound.
        action = body["action"] if body["action"] in ACTIONS else "unknown"
        received.labels(action).inc()
        new = [jobs.submit(hint.topic, hint.subject, hint.key, hint.payload) for hint in hints]
        stored.labels("new").inc(sum(new))
        stored.labels("known").inc(len(new) - sum(new))
        return Response(msgspec.json.encode({"events": len(new), "new": sum(new)}), content_type="application/json")

    add_dashboard(app, settings, engine)
    return app


class QcMetricsCollector(Collector):
    """Prometheus metrics over all workers: tasks by verdict, writes by route, last poll by project."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Describe nothing: registering must not read the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read the current counts."""
        with begin_read(self._engine) as connection:
            outcomes = connection.execute(
                sa.select(TASKS.c.project, TASKS.c.outcome, sa.func.count()).group_by(TASKS.c.project, TASKS.c.outcome)
            ).all()
            review = connection.execute(
                sa.select(TASKS.c.project, sa.func.count()).where(TASKS.c.review).group_by(TASKS.c.project)
            ).all()
            routes = connection.execute(
                sa.select(ACTIONS_TABLE.c.route, ACTIONS_TABLE.c.state, sa.func.count()).group_by(
                    ACTIONS_TABLE.c.route, ACTIONS_TABLE.c.state
                )
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
