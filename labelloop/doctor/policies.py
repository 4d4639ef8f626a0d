"""Checks of the served model and of a project's policies: quality control, automatic exports."""

import shutil
from collections.abc import Iterable

import httpx

from exporters.automation.policy import ExportPolicyError, read_export_policy
from exporters.automation.policy import policy_files as export_policy_files
from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, warning
from labelloop.service.errors import BadRequest
from ml_backend.checksums import verify_file
from ml_backend.inference.detector import embedded_model
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_notes import hints_of
from ml_backend.predict.control_support import NO_CONTROL, ModelOutputs, controls_of, reasons
from ml_backend.predict.label_mapping import mapping_report
from ml_backend.server.readiness import require_served_files
from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import policy_files as qc_policy_files
from qc_webhooks.policy import read_policy
from qc_webhooks.schedulers.overlap import count_low_overlap, describe_low_overlap

MAX_LISTED_NAMES = 8
_RENAME = 'If only the name differs, map it in the labeling interface: <Label value="Car" predicted_values="auto"/>. '
_SERVE = "Otherwise serve a model with these classes: LABELLOOP_MODEL."
_DRAW = "Otherwise draw them: the model learns them from the submits (docs/how-to/learn.md)."
_NO_TARGET = "Give the labeling interface an Image with RectangleLabels (or Labels with a Rectangle)."


def served_model(context: DoctorContext) -> Finding:
    """Can the active version be loaded, and does the ML backend serve it?"""
    detector = context.detector()
    served = _served_version(context)
    if served not in {"", detector.version}:
        return problem(
            f"The ML backend answers with {served}, and {detector.version} is active.",
            f"See {context.settings.ml_url}/ready and the backend's log for the reason. A replaced model file is "
            "served after a restart; a version of the store is retried automatically.",
        )
    return ok(f"{detector.version}: {len(detector.names.names)} classes, layout {detector.layout}")


def model_files(context: DoctorContext) -> Finding:
    """Do the files of the active versions match their checksums?"""
    require_served_files(context.settings)
    return ok("the files of the active versions match their checksums")


def smart_model(context: DoctorContext) -> Finding:
    """Are the files of the smart tools complete?"""
    settings = context.settings
    configured = [file.expanduser() for file in (settings.smart_encoder, settings.smart_decoder) if file is not None]
    files = configured or [embedded_model().with_name("outline.onnx")]
    for file in files:
        if not file.is_file():
            return problem(
                f"The smart tools' file {file} is missing.",
                "Set LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER to the two files of one export, or neither.",
            )
        verify_file(file)
    return ok(", ".join(file.name for file in files))


def labels(context: DoctorContext) -> Finding:
    """Which labels of the project match no class of the model, and which classes match no label?"""
    detector = context.detector()
    report = mapping_report(
        context.label_config(), detector.names.names, provides=detector.provides, keypoint_names=detector.keypoint_names
    )
    policy = read_learning_policy(context.settings.home, context.project_id or 0)
    learns = policy.learn and not ModelOutputs.of(detector).unlearnable
    fix = f"{_RENAME}{_DRAW if learns else _SERVE}"
    if not report.matched:
        supported = controls_of(context.label_config())
        if supported and all(support.prelabels is False for support in supported):  # the check `controls` says why
            return ok("no model fills a control of the project; quality control and exports serve it")
        if report.no_target and (names := [support.control for support in supported if support.learns]):
            return ok(f"no control takes what the model gives by itself; {_listed(names)}: filled once learned")
        classes = f" The model's classes: {_listed(report.classes_without_label)}."
        what = " ".join(report.lines()[:1]) + classes
        if report.no_target:
            return problem(what, _NO_TARGET)
        return warning(what, fix) if learns else problem(what, fix)
    coverage = (
        f"{len(report.matched)} of {len(report.matched) + len(report.classes_without_label)} classes have a label"
    )
    if report.labels_without_class:
        return warning(
            f"The model has no class for {_listed(report.labels_without_class)}: annotators draw those. ({coverage})",
            fix,
        )
    return ok(coverage)


def controls(context: DoctorContext) -> Finding:
    """Which controls of the project are not pre-labelled, or not learned from?"""
    try:
        options = context.options()
    except BadRequest as error:
        return problem(f"The ML backend refuses the project: {error.message}", error.fix)
    config, outputs = context.label_config(), ModelOutputs.of(context.detector(), reads_graph=True)
    supported = controls_of(config, outputs, options=options.controls)
    unsupported, hints = reasons(supported), hints_of(config, supported, outputs)
    if not supported:
        return warning(NO_CONTROL, _NO_TARGET)
    if unsupported:
        return warning(
            " ".join([*unsupported, *hints]),
            "Annotators label these without pre-labels, see docs/reference/controls.md.",
        )
    served = f"{', '.join(support.control for support in supported)}: pre-labelled and learned from"
    return ok(". ".join([served, *hints]))


def qc_policy(context: DoctorContext) -> Finding:
    """Is the policy of quality control valid, and does it name controls and labels of the project?"""
    number = int(context.project()["id"])
    try:
        policy = read_policy(context.settings.home, number, config=context.label_config())
    except PolicyError as error:
        return problem(f"Quality control judges nothing: {error.message}", error.fix)
    if policy.ground_truth_share and not context.project().get("ground_truth_number"):
        return warning(
            "ground_truth_share needs tasks with a ground truth, and the project has none.",
            "See docs/how-to/ground-truth.md to make some.",
        )
    if (tasks := count_low_overlap(context.studio, context.project(), policy)) and not policy.raise_overlap:
        return warning(
            f"{describe_low_overlap(tasks, policy)}.",
            f"Set raise_overlap = true in {qc_policy_files(context.settings.home, number)[1]}, or raise their overlap.",
        )
    return ok("the policy of quality control is valid")


def export_policy(context: DoctorContext) -> Finding:
    """Is the policy of automatic exports valid, is a trigger set, and does its command exist?"""
    number = int(context.project()["id"])
    home = context.settings.home
    file = export_policy_files(home, number)[1]
    if not file.is_file():
        return ok("the project has no automatic exports")
    try:
        policy = read_export_policy(home, number)
    except ExportPolicyError as error:
        return problem(f"No automatic export runs: {error.message}", error.fix)
    if policy.then and shutil.which(policy.then[0]) is None:
        return problem(
            f"{file}: then starts {policy.then[0]!r}, which does not exist or is not executable.",
            "Give the absolute path of the program, and make it executable (chmod +x).",
        )
    if not policy.is_automatic:
        return warning(
            f"{file} sets no trigger, so no export starts.",
            "Set every_tasks, every_hours, at or when_done in it.",
        )
    return ok("the policy of automatic exports is valid")


def _served_version(context: DoctorContext) -> str:
    """The version that the ML backend serves to the project; empty if it does not say."""
    project = "" if context.project_id is None else f"&project={context.project_id}"
    try:
        body = context.get(f"{context.settings.ml_url}/versions?stored=no{project}", auth=True).json()
        return str(body["versions"][0])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError):
        return ""


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_LISTED_NAMES} more" if len(listed) > MAX_LISTED_NAMES else ""
    return ", ".join(listed[:MAX_LISTED_NAMES]) + more
