"""Checks of the detector: does its file load, and do its classes and the project's labels know each other?"""

from __future__ import annotations

from collections.abc import Iterable

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, warning
from ml_backend.mapping import mapping_report
from ml_backend.readiness import require_served_files

MOST_NAMED = 8
_RENAME = (
    'Where only the name differs, say so in the labeling interface: <Label value="Car" predicted_values="auto"/>. '
    "For other things, serve a model that knows them: LABELLOOP_MODEL."
)
_NO_TARGET = "Give the labeling interface an Image with RectangleLabels (or Labels with a Rectangle)."


def model(context: Context) -> Finding:
    """Can the model file be served?"""
    detector = context.detector()
    return ok(f"{detector.version}: {len(detector.names.names)} classes, layout {detector.layout}")


def model_files(context: Context) -> Finding:
    """Are the files of the active versions those that were added?"""
    require_served_files(context.settings)
    return ok("the files of the active versions are those that were added")


def labels(context: Context) -> Finding:
    """Which labels of the project can no class of the model become, and which classes become no label?"""
    detector = context.detector()
    report = mapping_report(context.label_config(), detector.names.names, gives=detector.gives, points=detector.points)
    if not report.matched:
        classes = f" The model's classes: {_some(report.classes_without_label)}."
        return problem(" ".join(report.lines()[:1]) + classes, _NO_TARGET if report.no_target else _RENAME)
    met = f"{len(report.matched)} of {len(report.matched) + len(report.classes_without_label)} classes have a label"
    if report.labels_without_class:
        return warning(
            f"The model does not know {_some(report.labels_without_class)}: people draw those. ({met})", _RENAME
        )
    return ok(met)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
