"""`labelloop qc send-back`: send a task back to its annotator with a comment, or accept the redone work."""

from typing import Annotated, Any

from cyclopts import Parameter

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.errors import QualityControlError
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import browser_path
from qc_webhooks.pipeline.undo import locked_task
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.send_backs import SendBackStore, user_names
from qc_webhooks.studio.send_backs import show_send_backs


def send_back(
    task: int, *, comment: str = "", annotator: str = "", accept: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Send a task back to its annotator, who finds it in a tab of the Data Manager with your comment.

    The annotation stays. The annotator changes it and presses Update; the task is then "redone" and waits for you in
    "QC: to review". `labelloop qc undo PROJECT --task TASK --last 2` takes the last step back.

    ```
    labelloop qc send-back 42 --annotator ben@example.com --comment "The car at the right is missing."
    labelloop qc send-back 42 --accept
    ```

    Args:
        task: The task's id in Label Studio.
        comment: What to correct, in a sentence.
        annotator: Email or user id; may be omitted where the task has one annotator.
        accept: Accept the redone work instead.
    """
    settings = Settings()
    setup_logging(settings.replace(log_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING"))
    engine, studio = open_existing_database(settings), Studio.from_settings(settings)
    decisions, store = DecisionStore(engine), SendBackStore(engine)
    project = store.project_of(task)
    checker = Checker(studio, decisions, settings.home, base=browser_path(settings))
    with locked_task(Inbox.from_settings(settings, engine), project, task):
        if accept:
            checker.check(project, task)  # the annotator may have changed it a second ago
            if not store.accept(project, task):
                raise QualityControlError(
                    f"Task {task} has no redone work to accept.",
                    fix="Wait until its annotator presses Update; the column qc_sent_back then says `redone`.",
                    code="not_redone",
                    status=409,
                )
        else:
            checker.check(project, task)  # the stored versions are those in Label Studio
            author = _author(task, annotator, store.authors(project, task), studio.users())
            store.send(project, task, author, comment)
        checker.check(project, task)
    tabs = show_send_backs(studio, engine, project)
    if accept:
        print(f"Task {task} is accepted.")
        return
    name = next((item.name for item in checker.send_backs(project, task) if item.annotator == author), str(author))
    base = settings.label_studio_public_url or settings.label_studio_url
    where = f": {base}/projects/{project}/data?tab={tabs[name]}" if name in tabs else ""
    print(f"Task {task} is sent back to {name}. They find it in the tab `Sent back: {name}`{where}")


def _author(task: int, wanted: str, authors: dict[int, str], users: list[dict[str, Any]]) -> int:
    """User id of the annotator to send the task to.

    Raises:
        QualityControlError: No annotator, or more than one, is meant.
    """
    names = user_names(users)
    if wanted:
        meant = [id_ for id_ in authors if wanted.casefold() in {str(id_), names.get(id_, "").casefold()}]
    else:
        meant = list(authors)
    if len(meant) != 1:
        named = ", ".join(f"{names.get(id_, 'user')} ({id_})" for id_ in sorted(authors)) or "none yet"
        reason = f"{wanted} has no annotation of task {task}" if wanted else f"Task {task} has {len(authors)} authors"
        raise QualityControlError(
            f"{reason}.",
            fix=f"Name one of its annotators with --annotator: {named}.",
            code="which_annotator",
            status=400,
        )
    return meant[0]
