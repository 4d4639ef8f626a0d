"""Checks of the detector: does its file load, and do its classes and the project's labels know each other?"""

from __future__ import annotations

from collections.abc import Iterable

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok

MOST_NAMED = 8


def model(context: Context) -> Finding:
    """Can the model file be served?"""
    detector = context.detector()
    return ok(f"{detector.version}: {len(detector.names.names)} classes, layout {detector.layout}")


def labels(context: Context) -> Finding:
    """Which labels of the project can no class of the model become, and which classes become no label?"""
    from ml_backend.mapping import mapping_report

    report = mapping_report(context.label_config(), context.detector().names.names)
    raise NotImplementedError(report)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
