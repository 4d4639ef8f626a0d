"""The web service: Label Studio's webhooks go into the inbox and are answered at once. Nobody imports this module."""

import msgspec
import structlog
from flask import Flask, Response, request

from labelloop.service.db.engine import open_database
from labelloop.service.errors import Forbidden
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import service_checks
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web, json_body, metrics_of
from labelloop.service.web.metrics import InboxCollector
from labelloop.service.web.webhook_secret import WebhookSecrets
from qc_webhooks.dashboard import DashboardPaths, add_dashboard
from qc_webhooks.errors import WrongSecret
from qc_webhooks.events import ACTIONS, read_event
from qc_webhooks.server.metrics import QcMetricsCollector
from qc_webhooks.store.decisions import DecisionStore

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """The quality control service: ``POST /webhook``, ``/health``, ``/ready``, ``/metrics`` and ``/dashboard/``.

    A webhook is checked for our secret, read, and stored as inbox rows; it is answered with 200 as soon as they are
    durable. Label Studio waits for the answer inside the annotator's Submit, and never sends an event again.

    Args:
        settings: Read from the environment when not given.
    """
    settings = settings or Settings()
    setup_logging(settings)
    engine = open_database(settings)
    jobs = Jobs(settings, Inbox.from_settings(settings, engine))
    memory = DecisionStore(engine)
    secrets = WebhookSecrets(settings)
    # Label Studio sends no Basic auth with a webhook: the secret stands in for it, where there is one.
    open_paths = DashboardPaths("/", "/health", *(("/webhook",) if secrets.accepted() else ()))
    app = create_web("qc_webhooks", settings, ready=service_checks(settings, engine), open_paths=open_paths)
    metrics = metrics_of(app)
    metrics.watch(InboxCollector(jobs.inbox))
    metrics.watch(QcMetricsCollector(engine))
    received = metrics.counter("qc_events", "Webhook events received, by action.", ("action",))
    stored = metrics.counter("qc_hints", "Inbox rows made of webhook events, by novelty.", ("novelty",))

    @app.post("/webhook")
    def webhook() -> Response:
        try:
            secrets.check(request)
        except Forbidden as error:
            raise WrongSecret(error.message, fix=error.fix) from None
        body = json_body(request)
        hints = read_event(body, task_of=memory.known)
        # An unknown action is counted under one name: the label must not grow with what a stranger sends.
        action = body["action"] if body["action"] in ACTIONS else "unknown"
        received.labels(action).inc()
        new = [jobs.submit(hint.topic, hint.subject, hint.key, hint.payload) for hint in hints]
        stored.labels("new").inc(sum(new))
        stored.labels("known").inc(len(new) - sum(new))
        return Response(msgspec.json.encode({"events": len(new), "new": sum(new)}), content_type="application/json")

    add_dashboard(app, settings, engine)
    return app
