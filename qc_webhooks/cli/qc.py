"""`labelloop qc`: serve the webhook, show a project's status, recheck its tasks, undo writes."""

from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from cyclopts import Parameter
from cyclopts.validators import Number

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.charts import pluralize
from labelloop.service.db.engine import begin_read, open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import open_existing_database, require_home
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.service.system import restrict_to_owner
from labelloop.service.web.gunicorn import require_authentication, run_gunicorn
from qc_webhooks.events import recheck_event
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import ReviewStore, browser_path
from qc_webhooks.pipeline.undo import Undo, describe
from qc_webhooks.policy import Policy
from qc_webhooks.schedulers.ground_truth import GroundTruthStore
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import NEWEST_DEFAULTS, ConnectedProject, ProjectStore
from qc_webhooks.store.tables import ACTIONS, TASKS
from qc_webhooks.verdict.verdict import OUTCOMES


@dataclass(frozen=True)
class Status:
    """Status of a project.

    Attributes:
        connected: The poller's position.
        policy: The policy in force.
        outcomes: Verdict -> number of tasks.
        to_review: Tasks that wait for a reviewer.
        without_overlays: Those of them without overlays (predictions that show the dispute).
        writes: Route -> number of writes to tasks.
        truths: Tasks with a ground truth.
        served: Those of them that are served now to measure annotators.
        review: The review project; None without one.
        copies: Tasks that wait in it.
    """

    connected: ConnectedProject
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
    """Serve the webhook and the dashboard until stopped. `labelloop worker` makes the verdicts.

    Args:
        host: Address to listen on; 0.0.0.0 for all addresses of this machine.
        port: Port to listen on.
        workers: Number of processes; by default the setting web_workers.
        threads: Threads per process; by default the setting web_threads.
    """
    settings = Settings()
    require_authentication(
        host,
        authenticated=bool(settings.webhook_secret or settings.basic_auth_user),
        service="Quality control",
        settings_names="LABELLOOP_WEBHOOK_SECRET (and run `labelloop connect PROJECT` again)",
    )
    require_home(settings)
    restrict_to_owner(settings.home)
    setup_logging(settings)
    open_database(settings).dispose()  # reports a database error once, not in each process
    run_gunicorn(
        "qc_webhooks.server.app:create_app", bind=f"{host}:{port}", settings=settings, workers=workers, threads=threads
    )


def status(project: int) -> None:
    """Show the status of a project: verdicts, tasks to review, writes, the last poll.

    ```
    labelloop qc status 7
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
    """
    settings = Settings()
    summary = project_status(project, settings, open_existing_database(settings))
    for outcome in OUTCOMES:
        print(f"{outcome.replace('_', ' '):<10} {summary.outcomes.get(outcome, 0)}")
    print(f"{'to review':<10} {summary.to_review}")
    if summary.without_overlays:
        print(
            f"           {summary.without_overlays} of them without overlays, which are written once the project has a"
            " model version (Settings > Annotation > Prelabeling in Label Studio)"
        )
    if summary.review is not None:
        base = settings.label_studio_public_url or settings.label_studio_url
        print(
            f"           {summary.copies} of them in the review project:"
            f" {base}/projects/{summary.review}/data?labeling=1"
        )
    if summary.policy.ground_truth_share:
        lacking = "" if summary.truths else "; none: see docs/how-to/ground-truth.md"
        truths = pluralize(summary.truths, "task")
        print(f"{'truths':<10} {truths} with a ground truth, {summary.served} served now{lacking}")
    if summary.connected.defaults < NEWEST_DEFAULTS and not summary.policy.conflicts.by_objects:
        print(f"{'defaults':<10} of an earlier version: see `labelloop qc what-if {project}`")
    for route, count in sorted(summary.writes.items()):
        print(f"written    {count} x {route}")
    newest = summary.connected.cursor[:19].replace("T", " ")
    print(f"{'compared':<10} {f'tasks changed up to {newest} UTC' if newest else 'no task yet'}")


def recheck(project: int) -> None:
    """Judge every task of a project again, for example after a change of its policy.

    ```
    labelloop qc recheck 7
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
    """
    settings = Settings()
    setup_logging(settings)
    count = recheck_project(project, settings, Studio.from_settings(settings), open_existing_database(settings))
    print(f"{pluralize(count, 'task')} will be judged again.")


def undo(
    project: int, *, task: int | None = None, last: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
) -> None:
    """Undo quality control's writes: qc_* keys, overlap, overlays, review copy and ground truth, newest first.

    Values that were changed since are skipped, with the reason. An undone write is not repeated until an annotation or
    the policy changes.

    ```
    labelloop qc undo 7 --task 42
    labelloop qc undo 7 --last 3
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        task: Undo only writes to this task.
        last: Number of newest writes; by default all.
    """
    settings = Settings()
    setup_logging(settings)
    engine = open_existing_database(settings)
    ProjectStore(engine).require(project)
    studio, decisions = Studio.from_settings(settings), DecisionStore(engine)
    undoing = Undo(
        studio,
        decisions,
        Checker(studio, decisions, settings.home, base=browser_path(settings)),
        Inbox.from_settings(settings, engine),
    )
    undone = skipped = 0
    for outcome in undoing.run(project, task=task, last=last):
        print(describe(outcome))
        undone, skipped = undone + (not outcome.left), skipped + outcome.left
    print(f"{undone} undone, {skipped} skipped." if undone or skipped else "There is nothing to undo.")


def project_status(project: int, settings: Settings, engine: sa.Engine) -> Status:
    """Read the status of a project from the database.

    Raises:
        QualityControlError: The project is not connected.
    """
    connected = ProjectStore(engine).require(project)
    with begin_read(engine) as connection:
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
        ProjectStore(engine).policy(settings.home, project),
        {str(outcome): int(count) for outcome, count in outcomes},
        int(review or 0),
        len(DecisionStore(engine).reviews_without_overlays(project)),
        {str(route): int(count) for route, count in writes},
        len(truths := GroundTruthStore(engine).rows(project)),
        sum(row.ours and row.wanted is not None and row.wanted > row.annotators for row in truths.values()),
        (reviews := ReviewStore(engine)).review_of(project),
        reviews.count_copies(project),
    )


def recheck_project(project: int, settings: Settings, studio: Studio, engine: sa.Engine) -> int:
    """Submit all tasks of a project that have or had annotations. Returns their number.

    Raises:
        PolicyError: The policy is invalid, so no task would be judged.
        StudioNotFound: No such project.
        MalformedConfig: Its label config cannot be read.
    """
    config = LabelConfig.parse(str(studio.project(project)["label_config"]))
    ProjectStore(engine).policy(settings.home, project, config=config)
    inbox = Inbox.from_settings(settings, engine)
    annotated = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    annotated_tasks = studio.tasks(project, filters={"conjunction": "and", "items": [annotated]})
    tasks = {task.id for task in annotated_tasks if task.id is not None} | DecisionStore(engine).judged_tasks(project)
    for task in sorted(tasks):
        hint = recheck_event(project, task, source="recheck")
        inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    return len(tasks)
