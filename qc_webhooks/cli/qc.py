"""What `labelloop qc` runs: serve the webhook, tell how a project stands, judge its tasks again."""

from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from cyclopts import Parameter
from cyclopts.validators import Number

from labelloop.service.db.engine import open_database, reading
from labelloop.service.disk import keep_private
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import require_home
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.web.gunicorn import require_key, run_gunicorn
from qc_webhooks.errors import NotConnected
from qc_webhooks.events import recheck_hint
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import ReviewStore, browser_path
from qc_webhooks.pipeline.undo import Undo, describe
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.schedulers.ground_truth import TruthStore
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import Connected, ProjectStore
from qc_webhooks.store.tables import ACTIONS, TASKS
from qc_webhooks.verdict.verdict import OUTCOMES


@dataclass(frozen=True)
class Status:
    """How a project stands.

    Attributes:
        connected: How far the poller is.
        policy: What verdicts are drawn by.
        outcomes: Verdict -> number of tasks.
        to_review: Disputes that wait for a reviewer.
        without_overlays: Those of them that are not shown to the reviewer as predictions yet.
        writes: Route -> number of writes to tasks.
        truths: Tasks whose ground truth is known.
        served: Those of them that are served now, to measure annotators by.
        review: The review project; None: there is none.
        copies: What waits in it.
    """

    connected: Connected
    policy: Policy
    outcomes: dict[str, int]
    to_review: int
    without_overlays: int
    writes: dict[str, int]
    truths: int = 0
    served: int = 0
    review: int | None = None
    copies: int = 0


def serve(*, host: str = "127.0.0.1", port: int = 9091, workers: int | None = None, threads: int | None = None) -> None:
    """Serve the webhook until stopped. The verdicts are made by `labelloop worker`.

    Args:
        host: Address to listen on; 0.0.0.0 for every one of this machine.
        port: Port to listen on.
        workers: Processes; by default the setting web_workers.
        threads: Threads of each; by default the setting web_threads.
    """
    settings = Settings()
    require_key(
        host,
        closed=bool(settings.webhook_secret or settings.basic_auth_user),
        service="Quality control",
        keys="LABELLOOP_WEBHOOK_SECRET (and run `labelloop connect PROJECT` again)",
    )
    require_home(settings)
    keep_private(settings.home)
    setup_logging(settings)
    open_database(settings).dispose()  # what is wrong with it is said once and here, not by each process
    run_gunicorn(
        "qc_webhooks.server.app:create_app", bind=f"{host}:{port}", settings=settings, workers=workers, threads=threads
    )


def status(project: int) -> None:
    """Show how quality control of a project stands: verdicts, disputes to review, writes, the last poll.

    Args:
        project: The project's id in Label Studio.
    """
    settings = Settings()
    found = project_status(project, settings, open_database(settings))
    for outcome in OUTCOMES:
        print(f"{outcome.replace('_', ' '):<10} {found.outcomes.get(outcome, 0)}")
    print(f"{'to review':<10} {found.to_review}")
    if found.without_overlays:
        print(
            f"           {found.without_overlays} of them without overlays, which are written once the project has a"
            " model version (Settings > Annotation > Prelabeling in Label Studio)"
        )
    if found.review is not None:
        base = settings.label_studio_public_url or settings.label_studio_url
        print(
            f"           {found.copies} of them in the review project: {base}/projects/{found.review}/data?labeling=1"
        )
    if found.policy.ground_truth_share:
        lacking = "" if found.truths else "; none: see docs/how-to/ground-truth.md for how to make some"
        print(f"{'truths':<10} {found.truths} tasks with a ground truth, {found.served} served now{lacking}")
    for route, count in sorted(found.writes.items()):
        print(f"written    {count} x {route}")
    print(f"compared   up to {found.connected.cursor or 'nothing yet'}")


def recheck(project: int) -> None:
    """Judge every task of a project again, for instance after a change of its policy.

    Args:
        project: The project's id in Label Studio.
    """
    settings = Settings()
    setup_logging(settings)
    count = recheck_project(project, settings, Studio.from_settings(settings), open_database(settings))
    print(f"{count} tasks will be judged again.")


def undo(
    project: int, *, task: int | None = None, last: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
) -> None:
    """Take back what quality control wrote: qc_* keys, overlap, overlays and ground truth, the newest write first.

    What somebody changed since is left alone, and why is said. What is taken back is not written again until an
    annotation or the policy changes.

    Args:
        project: The project's id in Label Studio.
        task: Only what was written to this task.
        last: Only so many writes; without it all of them.
    """
    settings = Settings()
    setup_logging(settings)
    engine, studio = open_database(settings), Studio.from_settings(settings)
    memory = DecisionStore(engine)
    undoing = Undo(
        studio,
        memory,
        Checker(studio, memory, settings.home, base=browser_path(settings)),
        Inbox.from_settings(settings, engine),
    )
    undone = left = 0
    for outcome in undoing.run(project, task=task, last=last):
        print(describe(outcome))
        undone, left = undone + (not outcome.left), left + outcome.left
    print(f"{undone} taken back, {left} left alone." if undone or left else "There is nothing to undo.")


def project_status(project: int, settings: Settings, engine: sa.Engine) -> Status:
    """How a project stands, from the database.

    Raises:
        NotConnected: Quality control does not know the project.
    """
    connected = ProjectStore(engine).get(project)
    if connected is None:
        raise NotConnected(project)
    with reading(engine) as connection:
        of_project = TASKS.c.project == project
        outcomes = connection.execute(
            sa.select(TASKS.c.outcome, sa.func.count()).where(of_project).group_by(TASKS.c.outcome)
        ).all()
        review = connection.scalar(sa.select(sa.func.count()).select_from(TASKS).where(of_project, TASKS.c.review))
        writes = connection.execute(
            sa.select(ACTIONS.c.route, sa.func.count())
            .where(ACTIONS.c.project == project, ACTIONS.c.state == "done")
            .group_by(ACTIONS.c.route)
        ).all()
    return Status(
        connected,
        read_policy(settings.home, project),
        {str(outcome): int(count) for outcome, count in outcomes},
        int(review or 0),
        len(DecisionStore(engine).without_overlays(project)),
        {str(route): int(count) for route, count in writes},
        len(truths := TruthStore(engine).rows(project)),
        sum(row.ours and row.wanted is not None and row.wanted > row.annotators for row in truths.values()),
        (reviews := ReviewStore(engine)).review_of(project),
        reviews.copies(project),
    )


def recheck_project(project: int, settings: Settings, studio: Studio, engine: sa.Engine) -> int:
    """Puts every task of a project that is annotated, or was, into the inbox. Returns how many.

    Raises:
        NotFound: No such project.
    """
    inbox = Inbox.from_settings(settings, engine)
    annotated = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    found = studio.tasks(project, filters={"conjunction": "and", "items": [annotated]})
    tasks = {task.id for task in found if task.id is not None} | DecisionStore(engine).tasks(project)
    for task in sorted(tasks):
        hint = recheck_hint(project, task, source="recheck")
        inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    return len(tasks)
