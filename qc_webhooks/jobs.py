"""Wire the inbox: one handler per topic, and the periodic jobs. Top layer: no other module imports it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event, Inbox
from labelloop.service.jobs.jobs import Handler, PeriodicJob, Reject
from labelloop.service.jobs.lanes import require_own_process
from labelloop.service.jobs.repeated_failures import RepeatedFailures
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.web.webhook_secret import WebhookSecrets
from qc_webhooks.events import PROJECT, TASK, overlay_event, recheck_event, review_copy_event
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.reconcile import Reconciler
from qc_webhooks.pipeline.review_project import ReviewStore, browser_path, ensure_review_project
from qc_webhooks.schedulers.annotator_model import AnnotatorModelScheduler
from qc_webhooks.schedulers.defaults_preview import queue_previews
from qc_webhooks.schedulers.ground_truth import GroundTruthScheduler
from qc_webhooks.schedulers.overlap import OverlapScheduler
from qc_webhooks.schedulers.project_summary import SummaryScheduler
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.previews import PreviewStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.studio.data_manager_tabs import ensure_tabs
from qc_webhooks.studio.send_backs import show_send_backs
from qc_webhooks.studio.webhook import ensure_webhook

# Seconds between checks of our Data Manager tabs, which "Drop All Tabs" in Label Studio's settings removes.
TABS_EVERY_S = 60.0
# Minimum seconds between updates of the annotators' reliability model.
CROWD_EVERY_S = 30.0
# Minimum seconds between selections of ground-truth tasks to serve.
TRUTHS_EVERY_S = 3.0
# Minimum seconds between updates of the dashboard's summaries.
BOARD_EVERY_S = 15.0

# A task that takes longer to judge, in seconds of one core, is judged in a process of its own.
LONG_S = 3.0
# Seconds of one core for a region, and for a corner of an outline.
REGION_S, CORNER_S = 0.0003, 0.00013


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """Return the handlers of quality control's topics, for ``Jobs``.

    Args:
        settings: For the policy folder and the inbox's backoff.
        studio: Label Studio client.
        engine: The migrated database.
    """
    checker = Checker(
        studio, DecisionStore(engine), settings.home, base=browser_path(settings), on_read=_leave_if_dense
    )
    reviews, inbox = checker.reviews.store, Inbox.from_settings(settings, engine)
    reconciler = _reconciler(settings, studio, engine)
    projects = ProjectStore(engine)

    def task(subject: str, events: Sequence[Event]) -> None:
        del events  # only hints: the task is read from Label Studio, whatever their content and order
        project, _, id_ = subject.partition(":")
        if reviews.is_review(int(project)):
            # A reviewer's submission belongs to the original task, which is checked by an event of its own.
            origin = reviews.origin(int(project), int(id_))
            if origin is not None:
                event = recheck_event(*origin, source="review")
                inbox.put(event.topic, event.subject, event.key, event.payload)
            return
        try:
            checked = checker.check(int(project), int(id_))
        except LabelingError as error:
            raise Reject(str(error)) from error  # retrying the same JSON would fail again
        if any(action.route == "send_back" for action in checked.actions):
            show_send_backs(studio, engine, int(project))

    def project(subject: str, events: Sequence[Event]) -> None:
        del events
        for id_ in [item.project for item in projects.all()] if subject == "*" else [int(subject)]:
            reconciler.sweep(id_)

    return {TASK: task, PROJECT: project}


def periodic_jobs(settings: Settings, studio: Studio, engine: Engine) -> list[PeriodicJob]:
    """Return the periodic jobs: the poller, and updates of reviews, tabs, annotator model, ground truths, dashboard."""
    reconciler = _reconciler(settings, studio, engine)
    projects, memory, inbox = ProjectStore(engine), DecisionStore(engine), Inbox.from_settings(settings, engine)
    policy, reviews = partial(projects.policy, settings.home), ReviewStore(engine)
    overlap, secrets = OverlapScheduler(studio, inbox, policy), WebhookSecrets(settings)
    tab_failures, review_failures = RepeatedFailures("tabs_failed"), RepeatedFailures("reviews_failed")

    def review_project(project: int) -> None:
        try:
            ensure_review_project(studio, project, settings, reviews)
        finally:  # whatever failed, waiting tasks are copied
            requeue_without_copy(memory, reviews, inbox, project)
        if (review := reviews.review_of(project)) is not None:
            ensure_webhook(
                studio, review, secrets.settings()
            )  # last: if Label Studio rejects it, the poller still works

    def tabs() -> None:
        for connected in projects.all():
            try:
                overlap.raise_overlaps(connected.project)
                ensure_tabs(studio, connected.project)
                requeue_without_overlays(studio, memory, inbox, connected.project)
                queue_previews(PreviewStore(engine), inbox, connected, policy(connected.project))
                show_send_backs(studio, engine, connected.project)
                if policy(connected.project).review_project:
                    review_project(connected.project)
            except (LabelloopError, LabelingError) as error:
                tab_failures.failed(connected.project, str(error))
            else:
                tab_failures.succeeded(connected.project)

    def submitted() -> None:
        for project, review in reviews.all().items():
            try:
                requeue_submitted(studio, reviews, inbox, review)
            except LabelloopError as error:
                review_failures.failed(project, str(error))
            else:
                review_failures.succeeded(project)

    crowd = AnnotatorModelScheduler(engine, inbox, policy)
    return [
        PeriodicJob("qc.poll", settings.poll_seconds, reconciler.run),
        PeriodicJob("qc.reviews", settings.poll_seconds, submitted),
        PeriodicJob("qc.tabs", TABS_EVERY_S, tabs),
        PeriodicJob("qc.crowd", CROWD_EVERY_S, crowd.run),
        PeriodicJob("qc.truths", TRUTHS_EVERY_S, GroundTruthScheduler(engine, studio, inbox, policy).run),
        PeriodicJob("qc.board", BOARD_EVERY_S, SummaryScheduler(engine, studio).run),
    ]


def estimated_seconds(task: Mapping[str, Any]) -> float:
    """Estimated seconds of one core to judge a task, from its annotations as Label Studio sends them.

    A rough estimate that separates tasks of milliseconds from those of many seconds. `REGION_S` and `CORNER_S` come
    from runs of 300 to 20,000 boxes and outlines of 2 to 20 annotators that are not recorded. It is 0.6 to 1.3 times
    the worker's seconds, those of its start included, of the tasks in `bench/results/bounds.md` that took 5 s or more.
    """
    annotations = [
        results
        for annotation in task.get("annotations") or ()
        if isinstance(annotation, Mapping) and isinstance(results := annotation.get("result"), list)
    ]
    regions = sum(map(len, annotations))
    corners = sum(
        len(part)
        for results in annotations
        for result in results
        if isinstance(result, Mapping) and isinstance(value := result.get("value"), Mapping)
        for part in value.values()
        if isinstance(part, list) and part and isinstance(part[0], list | dict)
    )
    return REGION_S * regions * (1 + len(annotations) / 6) + CORNER_S * corners


def _leave_if_dense(task: Mapping[str, Any]) -> None:
    if estimated_seconds(task) > LONG_S:
        require_own_process()


def requeue_without_overlays(studio: Studio, memory: DecisionStore, inbox: Inbox, project: int) -> int:
    """Check disputes again whose overlays waited for a model version, once the project has one."""
    waiting = memory.reviews_without_overlays(project)
    if not waiting or not studio.project(project).get("model_version"):
        return 0
    events = [overlay_event(project, task, fingerprint, source="poll") for task, fingerprint in waiting.items()]
    return sum(inbox.put(event.topic, event.subject, event.key, event.payload) for event in events)


def requeue_without_copy(memory: DecisionStore, reviews: ReviewStore, inbox: Inbox, project: int) -> int:
    """Check tasks again that waited for a reviewer before there was a review project."""
    review = reviews.review_of(project)
    if review is None:
        return 0
    events = [
        review_copy_event(project, task, state, review, source="poll")
        for task, state in memory.reviews_without_copy(project).items()
    ]
    return sum(inbox.put(event.topic, event.subject, event.key, event.payload) for event in events)


def requeue_submitted(studio: Studio, reviews: ReviewStore, inbox: Inbox, review: int) -> int:
    """Find submissions in a review project that no webhook reported; a copy is removed once it is decided."""
    done = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    requeued = 0
    for task in studio.stamps(review, filters={"conjunction": "and", "items": [done]}):
        origin = reviews.origin(review, task.id)
        if origin is not None:
            event = recheck_event(*origin, source="poll")
            requeued += inbox.put(event.topic, event.subject, event.key, event.payload)
    return requeued


def _reconciler(settings: Settings, studio: Studio, engine: Engine) -> Reconciler:
    # Directly into the inbox: these jobs run inside the worker, which reads it within a second.
    inbox = Inbox.from_settings(settings, engine)
    return Reconciler(studio, DecisionStore(engine), ProjectStore(engine), inbox)
