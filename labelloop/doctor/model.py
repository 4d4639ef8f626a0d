"""Checks of the detector: does its file load, and do its classes and the project's labels know each other?"""

from collections.abc import Iterable

import httpx

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, warning
from ml_backend.checksums import check_file
from ml_backend.inference.detector import embedded_model
from ml_backend.predict.control_support import NO_CONTROL, ModelOutputs, controls_of, reasons
from ml_backend.predict.label_mapping import mapping_report
from ml_backend.server.readiness import require_served_files

MOST_NAMED = 8
_RENAME = (
    'Where only the name differs, say so in the labeling interface: <Label value="Car" predicted_values="auto"/>. '
    "For other things, serve a model that knows them: LABELLOOP_MODEL."
)
_NO_TARGET = "Give the labeling interface an Image with RectangleLabels (or Labels with a Rectangle)."


def model(context: Context) -> Finding:
    """Can the active version be served, and does the ML backend serve it?"""
    detector = context.detector()
    answered = _answered(context)
    if answered not in {"", detector.version}:
        return problem(
            f"The ML backend answers with {answered}, and {detector.version} is active.",
            f"{context.settings.ml_url}/ready and its log say why. A model file that was replaced is served after a "
            "restart; a version of the store is tried again by itself.",
        )
    return ok(f"{detector.version}: {len(detector.names.names)} classes, layout {detector.layout}")


def model_files(context: Context) -> Finding:
    """Are the files of the active versions those that were added?"""
    require_served_files(context.settings)
    return ok("the files of the active versions are those that were added")


def smart_model(context: Context) -> Finding:
    """Are the files of the smart tools there, and whole?"""
    settings = context.settings
    given = [one.expanduser() for one in (settings.smart_encoder, settings.smart_decoder) if one is not None]
    wanted = given or [embedded_model().with_name("outline.onnx")]
    for file in wanted:
        if not file.is_file():
            return problem(
                f"The smart tools' file {file} is missing.",
                "Set LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER to the two files of one export, or neither.",
            )
        check_file(file)
    return ok(", ".join(file.name for file in wanted))


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


def _answered(context: Context) -> str:
    """The version that the ML backend serves to the project; empty where it does not say."""
    asked = "" if context.project_id is None else f"&project={context.project_id}"
    try:
        answer = context.get(f"{context.settings.ml_url}/versions?stored=no{asked}", auth=True).json()
        return str(answer["versions"][0])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError):
        return ""


def controls(context: Context) -> Finding:
    """Which controls of the project are not pre-labelled, or not learned from?"""
    supported = controls_of(context.label_config(), ModelOutputs.of(context.detector()))
    said = reasons(supported)
    if not supported:
        return warning(NO_CONTROL, _NO_TARGET)
    if said:
        return warning(" ".join(said), "People label these without help. docs/reference/controls.md has the table.")
    return ok(f"{', '.join(one.control for one in supported)}: pre-labelled and learned from")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
