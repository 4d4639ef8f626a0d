"""Prometheus metrics: one registry an app, added up over all gunicorn workers when there are several."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from labelloop.service.jobs.inbox import Inbox

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0)


class Metrics:
    """The metrics of one app. Names get the prefix `labelloop_`.

    Under gunicorn each worker writes its own files in the folder that `PROMETHEUS_MULTIPROC_DIR` names and any worker
    answers for all of them. Collectors (`watch`) read a shared truth, such as the inbox, and are asked once.
    """

    def __init__(self, app: str) -> None:
        self.registry = CollectorRegistry()
        self._collectors = CollectorRegistry()
        self.requests = self.counter("http_requests", "Requests answered.", ("app", "method", "endpoint", "status"))
        self.latency = self.histogram(
            "http_request_seconds", "Time to answer.", ("app", "method", "endpoint", "status")
        )
        self.app = app

    def counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows."""
        return Counter(f"labelloop_{name}", help_, labels, registry=self.registry)

    def histogram(
        self, name: str, help_: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """A distribution, by default of seconds."""
        return Histogram(f"labelloop_{name}", help_, labels, registry=self.registry, buckets=buckets)

    def gauge(self, name: str, help_: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that rises and falls; living workers are added up, ended ones leave the sum."""
        return Gauge(f"labelloop_{name}", help_, labels, registry=self.registry, multiprocess_mode="livesum")

    def watch(self, collector: Collector) -> None:
        """Ask `collector` whenever the metrics are read."""
        self._collectors.register(collector)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        registry = self.registry
        if os.environ.get(FOLDER):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(self._collectors)


class InboxCollector(Collector):
    """The inbox as gauges: events by state, and how long the oldest due one has waited."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read the counts now."""
        events = GaugeMetricFamily("labelloop_inbox_events", "Events in the inbox, by state.", labels=["state"])
        for state, count in self._inbox.counts().items():
            events.add_metric([state], count)
        yield events
        yield GaugeMetricFamily("labelloop_inbox_lag_seconds", "Wait of the oldest due event.", self._inbox.lag_s())


def share_metrics(folder: Path) -> None:
    """Let this process and those it forks write their metrics into `folder`, emptied first."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)
    os.environ[FOLDER] = str(folder)
    # prometheus-client decides at import; decide again now that the folder is known.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def forget_process(pid: int) -> None:
    """Drop the living gauges of a worker that ended; what it counted stays counted."""
    if os.environ.get(FOLDER):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
