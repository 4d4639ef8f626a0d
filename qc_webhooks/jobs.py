"""The work behind the inbox: one handler a topic, and what runs now and then. Nobody below imports this module."""

from collections.abc import Mapping, Sequence
from functools import partial

import structlog
from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event, Inbox
from labelloop.service.jobs.jobs import Handler, Periodic, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.events import PROJECT, TASK, copy_hint, overlay_hint, recheck_hint
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.reconcile import Reconciler
from qc_webhooks.pipeline.review_project import ReviewStore, browser_path, ensure_review_project
from qc_webhooks.policy import read_policy
from qc_webhooks.schedulers.annotator_model import AnnotatorModelScheduler
from qc_webhooks.schedulers.ground_truth import GroundTruthScheduler
from qc_webhooks.schedulers.overlap import OverlapKeeper
from qc_webhooks.schedulers.project_summary import SummaryScheduler
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.studio.data_manager_tabs import ensure_tabs
from qc_webhooks.studio.webhook import ensure_webhook

# "Drop All Tabs" in Label Studio's settings takes ours along; this is how long they may be missing.
TABS_EVERY_S = 60.0
# How soon what annotators said changes who is believed, at the earliest.
CROWD_EVERY_S = 30.0
# How soon who is to be measured is served a task with a ground truth, at the earliest.
TRUTHS_EVERY_S = 3.0
# How soon the dashboard's figures follow the verdicts, at the earliest.
BOARD_EVERY_S = 15.0

log = structlog.get_logger(__name__)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """The handlers of quality control's topics, for ``Jobs``.

    Args:
        settings: Names the folder of the policies and the inbox's backoff.
        studio: Label Studio.
        engine: The migrated database.
    """
    checker = Checker(studio, DecisionStore(engine), settings.home, base=browser_path(settings))
    reviews, inbox = checker.desk.store, Inbox.from_settings(settings, engine)
    reconciler = _reconciler(settings, studio, engine)
    projects = ProjectStore(engine)

    def task(subject: str, events: Sequence[Event]) -> None:
        del events  # hints: the task is read from Label Studio, whatever they say and in whatever order they came
        project, _, id_ = subject.partition(":")
        if reviews.is_review(int(project)):
            # What a reviewer submitted there belongs to the task that it is the copy of, which has its own turn.
            origin = reviews.origin(int(project), int(id_))
            if origin is not None:
                hint = recheck_hint(*origin, source="review")
                inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
            return
        try:
            checker.check(int(project), int(id_))
        except LabelingError as error:
            raise Reject(str(error)) from error  # reading the same JSON again would fail again

    def project(subject: str, events: Sequence[Event]) -> None:
        del events
        for id_ in [item.project for item in projects.all()] if subject == "*" else [int(subject)]:
            reconciler.sweep(id_)

    return {TASK: task, PROJECT: project}


def periodics(settings: Settings, studio: Studio, engine: Engine) -> list[Periodic]:
    """What runs now and then: the poller every ``poll_seconds``; a look at tabs, overlays and overlaps every minute."""
    reconciler = _reconciler(settings, studio, engine)
    projects, memory, inbox = ProjectStore(engine), DecisionStore(engine), Inbox.from_settings(settings, engine)
    policy, reviews = partial(read_policy, settings.home), ReviewStore(engine)
    overlap = OverlapKeeper(studio, inbox, policy)

    def review_project(project: int) -> None:
        try:
            ensure_review_project(studio, project, settings, reviews)
        finally:  # whatever it is that is refused, what waits is copied
            recall_uncopied(memory, reviews, inbox, project)
        if (review := reviews.review_of(project)) is not None:
            ensure_webhook(studio, review, settings)  # last: where it is refused, the poller carries on

    def tabs() -> None:
        for connected in projects.all():
            try:
                overlap.look(connected.project)
                ensure_tabs(studio, connected.project)
                recall_withheld(studio, memory, inbox, connected.project)
                if policy(connected.project).review_project:
                    review_project(connected.project)
            except (LabelloopError, LabelingError) as error:
                log.warning("tabs_failed", project=connected.project, reason=str(error))

    def submitted() -> None:
        for project, review in reviews.all().items():
            try:
                recall_submitted(studio, reviews, inbox, review)
            except LabelloopError as error:
                log.warning("reviews_failed", project=project, review=review, reason=str(error))

    crowd = AnnotatorModelScheduler(engine, inbox, policy)
    return [
        Periodic("qc.poll", settings.poll_seconds, reconciler.run),
        Periodic("qc.reviews", settings.poll_seconds, submitted),
        Periodic("qc.tabs", TABS_EVERY_S, tabs),
        Periodic("qc.crowd", CROWD_EVERY_S, crowd.run),
        Periodic("qc.truths", TRUTHS_EVERY_S, GroundTruthScheduler(engine, studio, inbox, policy).run),
        Periodic("qc.board", BOARD_EVERY_S, SummaryScheduler(engine, studio).run),
    ]


def recall_withheld(studio: Studio, memory: DecisionStore, inbox: Inbox, project: int) -> int:
    """Judges disputes again whose overlays had to wait for a model version, once the project has one."""
    waiting = memory.without_overlays(project)
    if not waiting or not studio.project(project).get("model_version"):
        return 0
    hints = [overlay_hint(project, task, fingerprint, source="poll") for task, fingerprint in waiting.items()]
    return sum(inbox.put(hint.topic, hint.subject, hint.key, hint.payload) for hint in hints)


def recall_uncopied(memory: DecisionStore, reviews: ReviewStore, inbox: Inbox, project: int) -> int:
    """Judges again what waits for a reviewer and was judged before there was a review project."""
    review = reviews.review_of(project)
    if review is None:
        return 0
    hints = [copy_hint(project, task, state, review, source="poll") for task, state in memory.uncopied(project).items()]
    return sum(inbox.put(hint.topic, hint.subject, hint.key, hint.payload) for hint in hints)


def recall_submitted(studio: Studio, reviews: ReviewStore, inbox: Inbox, review: int) -> int:
    """Finds what was submitted in a review project and no webhook told: a copy that is decided is removed at once."""
    done = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    told = 0
    for task in studio.stamps(review, filters={"conjunction": "and", "items": [done]}):
        origin = reviews.origin(review, task.id)
        if origin is not None:
            hint = recheck_hint(*origin, source="poll")
            told += inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    return told


def _reconciler(settings: Settings, studio: Studio, engine: Engine) -> Reconciler:
    # Straight into the inbox: these run inside the worker, whose own sweep picks them up within a second.
    inbox = Inbox.from_settings(settings, engine)
    return Reconciler(studio, DecisionStore(engine), ProjectStore(engine), inbox)
