"""Prometheus metrics: one registry per app, aggregated over all gunicorn workers."""

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
MULTIPROCESS_FOLDER_ENV = "PROMETHEUS_MULTIPROC_DIR"
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0)


class ServiceMetrics:
    """The metrics of one app. Names get the prefix `labelloop_`.

    Under gunicorn each worker writes its own files into the folder `PROMETHEUS_MULTIPROC_DIR`, and any worker reports
    the sum. Collectors (`register`) read shared state, such as the inbox, and are collected once.
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
        """Create a counter."""
        return Counter(f"labelloop_{name}", help_, labels, registry=self.registry)

    def histogram(
        self, name: str, help_: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """Create a histogram; the default buckets are for seconds."""
        return Histogram(f"labelloop_{name}", help_, labels, registry=self.registry, buckets=buckets)

    def gauge(self, name: str, help_: str, labels: Sequence[str] = ()) -> Gauge:
        """Create a gauge, summed over the running workers."""
        return Gauge(f"labelloop_{name}", help_, labels, registry=self.registry, multiprocess_mode="livesum")

    def register(self, collector: Collector) -> None:
        """Collect from `collector` whenever the metrics are read."""
        self._collectors.register(collector)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text exposition format."""
        registry = self.registry
        if os.environ.get(MULTIPROCESS_FOLDER_ENV):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(self._collectors)


class InboxCollector(Collector):
    """The inbox as gauges: events by state, and the waiting time of the oldest due event."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering does not read the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read the current counts."""
        events = GaugeMetricFamily("labelloop_inbox_events", "Events in the inbox, by state.", labels=["state"])
        for state, count in self._inbox.counts().items():
            events.add_metric([state], count)
        yield events
        yield GaugeMetricFamily("labelloop_inbox_lag_seconds", "Wait of the oldest due event.", self._inbox.lag_s())


def share_metrics(folder: Path) -> None:
    """Make this process and its forks write their metrics into `folder`, which is emptied first."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)
    os.environ[MULTIPROCESS_FOLDER_ENV] = str(folder)
    # prometheus-client chooses the value class at import; choose again now that the folder is set.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def mark_process_dead(pid: int) -> None:
    """Drop the gauges of a worker that ended; its counters stay."""
    if os.environ.get(MULTIPROCESS_FOLDER_ENV):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
