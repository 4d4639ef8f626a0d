"""Forms of the dashboard that change something: the worker applies it in Label Studio within seconds."""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from flask import Blueprint, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from qc_webhooks.dashboard.auth import check_csrf
from qc_webhooks.dashboard.project_view import ConnectedProjects
from qc_webhooks.events import recheck_event
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.send_backs import SendBackStore

# What a form did -> sentence on the page that follows.
DONE: Mapping[str, str] = {
    "sent": "Sent back. Within seconds the annotator's own tab in Label Studio shows it, with the comment.",
    "accepted": "Accepted.",
    "confirmed": "The ground truth is confirmed. The flag goes away within seconds.",
    "nothing": "There is no redone work to accept yet.",
}


def add_actions(pages: Blueprint, projects: ConnectedProjects, settings: Settings, engine: sa.Engine) -> None:
    """Add the forms: send a task back, accept redone work, confirm a ground truth, adopt the newest defaults."""
    store = SendBackStore(engine)

    def requeue(project: int, tasks: Iterable[int]) -> None:
        inbox = Inbox.from_settings(settings, engine)
        for task in tasks:
            event = recheck_event(project, task, source="dashboard")
            inbox.put(event.topic, event.subject, event.key, event.payload)

    def shown(project: int, task: int, done: str) -> ResponseReturnValue:
        requeue(project, [task])
        return redirect(url_for("dashboard.dispute", project=project, task=task, done=done))

    @pages.post("/<int:project>/disputes/<int:task>/send-back")
    def send_back(project: int, task: int) -> ResponseReturnValue:
        check_csrf(request)
        projects.view(project)
        annotator = request.form.get("annotator", "")
        store.send(project, task, int(annotator) if annotator.isdecimal() else -1, request.form.get("comment", ""))
        return shown(project, task, "sent")

    @pages.post("/<int:project>/disputes/<int:task>/accept")
    def accept(project: int, task: int) -> ResponseReturnValue:
        check_csrf(request)
        projects.view(project)
        return shown(project, task, "accepted" if store.accept(project, task) else "nothing")

    @pages.post("/<int:project>/disputes/<int:task>/confirm-truth")
    def confirm_truth(project: int, task: int) -> ResponseReturnValue:
        check_csrf(request)
        projects.view(project)
        annotation = request.form.get("annotation", "")
        if not annotation.isdecimal():
            raise NotFound(f"Task {task} has no ground truth to confirm.")
        store.confirm_truth(project, task, int(annotation))
        return shown(project, task, "confirmed")

    @pages.post("/<int:project>/what-if/adopt")
    def adopt(project: int) -> ResponseReturnValue:
        check_csrf(request)
        projects.view(project)
        ProjectStore(engine).adopt_defaults(project)
        requeue(project, DecisionStore(engine).judged_tasks(project))
        return redirect(url_for("dashboard.what_if", project=project, adopted="yes"))
