"""Review projects: made where the policy asks for one, filled with copies of what waits for a reviewer, read back."""

import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.connect_report import Change
from labelloop.service.db.engine import insert_new, reading
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio, StudioRefused
from qc_webhooks.artifacts.overlays import CONSENSUS, Overlay, mark_of, overlays_of
from qc_webhooks.artifacts.review_copy import (
    ORIGIN,
    Copy,
    Decision,
    ReviewCopyContent,
    copy_data,
    decision_of,
    origin_name,
    with_note,
)
from qc_webhooks.decision.context import KEYS
from qc_webhooks.store.tables import COPIES, REVIEWS

# How a review project is found again, should its number be lost between making it and noting it.
_DESCRIPTION = "Copies of what waits for a reviewer in project {project}; labelloop keeps them."
# Who began to make a review project and did not end within so long was killed.
_PATIENCE_S = 120.0

log = structlog.get_logger(__name__)


class ReviewStore:
    """Which project has which review project, and which task which copy. Safe from any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def review_of(self, project: int) -> int | None:
        """The review project of a project; None: there is none yet."""
        with reading(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.review).where(REVIEWS.c.project == project))

    def all(self) -> dict[int, int]:
        """Project -> its review project."""
        query = sa.select(REVIEWS.c.project, REVIEWS.c.review).where(REVIEWS.c.review.is_not(None))
        with reading(self.engine) as connection:
            return {int(row.project): int(row.review) for row in connection.execute(query)}

    def is_review(self, project: int) -> bool:
        """Whether a project is the review project of another."""
        with reading(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.project).where(REVIEWS.c.review == project)) is not None

    def origin(self, review: int, copy: int) -> tuple[int, int] | None:
        """(project, task) that a task of a review project is the copy of."""
        query = sa.select(COPIES.c.project, COPIES.c.task).where(COPIES.c.review == review, COPIES.c.copy == copy)
        with reading(self.engine) as connection:
            row = connection.execute(query).first()
        return None if row is None else (row.project, row.task)

    def copy(self, project: int, task: int) -> Copy | None:
        """The copy of a task."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(COPIES).where(_is(project, task))).one_or_none()
        return None if row is None else Copy(row.review, row.copy, row.fingerprint, row.mark)

    def copies(self, project: int) -> int:
        """How many copies of a project there are."""
        of_project = sa.and_(COPIES.c.project == project, COPIES.c.copy > 0)
        with reading(self.engine) as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(COPIES).where(of_project)) or 0)

    def keep(self, project: int, task: int, copy: Copy | None) -> None:
        """Notes the copy of a task in the place of the last one; None: it has none."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(COPIES).where(_is(project, task)))
            if copy is not None:
                row = {"review": copy.review, "copy": copy.copy, "fingerprint": copy.fingerprint, "mark": copy.mark}
                connection.execute(sa.insert(COPIES).values(project=project, task=task, **row))

    def begin(self, project: int) -> bool:
        """Takes it on to make the review project of a project; False: it is there, or somebody else is at it."""
        now = time.time()
        row = {"project": project, "review": None, "prefilled": False, "made_at": now, "interface": ""}
        with self.engine.begin() as connection:
            if insert_new(connection, REVIEWS, row, conflict=("project",)):
                return True
            killed = sa.and_(REVIEWS.c.review.is_(None), REVIEWS.c.made_at < now - _PATIENCE_S)
            left = sa.and_(REVIEWS.c.project == project, killed)
            return bool(connection.execute(sa.update(REVIEWS).where(left).values(made_at=now)).rowcount)

    def made(self, project: int, review: int | None) -> None:
        """Notes the review project that was made; None: it is gone, and its copies with it."""
        with self.engine.begin() as connection:
            if review is None:
                connection.execute(sa.delete(REVIEWS).where(REVIEWS.c.project == project))
                connection.execute(sa.delete(COPIES).where(COPIES.c.project == project))
                return
            connection.execute(sa.update(REVIEWS).where(REVIEWS.c.project == project).values(review=review))

    def interface(self, project: int) -> str:
        """A digest of the labelling interface that the review project was given last; empty: none yet."""
        with reading(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.interface).where(REVIEWS.c.project == project)) or ""

    def give(self, project: int, interface: str) -> None:
        """Notes the labelling interface that the review project was given."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(REVIEWS).where(REVIEWS.c.project == project).values(interface=interface))

    def prefill(self, project: int) -> bool:
        """Whether the label stream is to be told to fill in the consensus; True once."""
        once = sa.and_(REVIEWS.c.project == project, sa.not_(REVIEWS.c.prefilled))
        with self.engine.begin() as connection:
            return bool(connection.execute(sa.update(REVIEWS).where(once).values(prefilled=True)).rowcount)


class ReviewDesk:
    """Copies tasks into the review projects of one Label Studio, and reads what was submitted there.

    Args:
        studio: Label Studio.
        store: What was copied.
        base: The path under which a browser finds Label Studio, empty or ``/path``.
    """

    def __init__(self, studio: Studio, store: ReviewStore, *, base: str = "") -> None:
        self._studio, self.store, self._base = studio, store, base

    def decision(self, copy: Copy | None) -> Decision | None:
        """What a reviewer submitted to a copy; None: nothing, or the copy is gone."""
        source = None if copy is None or not copy.copy else self._copy_json(copy)
        return None if source is None else decision_of(read_task(source))

    def lay(self, project: int, task: Task, sheet: ReviewCopyContent, fingerprint: str) -> None:
        """Makes the copy of a task as the sheet wants it. Doing it twice makes one copy.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses.
        """
        review, number = self.store.review_of(project), task.id or 0
        if review is None:
            return
        data = copy_data(task, project, sheet, ours=KEYS, base=self._base)
        held = self.store.copy(project, number)
        source = self._copy_json(held) if held and held.copy else None
        source = source or self._found(review, origin_name(project, number))
        if source is None:
            (copy,) = self._studio.import_tasks(review, [{"data": data}])
            source = {"id": copy, "data": data}
        elif source["data"] != data:
            self._studio.update_task(source["id"], data=data, resolved=True)
        lay_overlays(self._studio, read_task(source), sheet.overlays)
        self.store.keep(project, number, Copy(review, int(source["id"]), fingerprint, sheet.mark))
        if any(each.version == CONSENSUS for each in sheet.overlays) and self.store.prefill(project):
            # Now, because Label Studio takes no version of which there is no prediction.
            self._studio.update_project(review, model_version=CONSENSUS)

    def clear(self, project: int, task: int) -> None:
        """Removes the copy of a task; one that is gone already is no error."""
        held = self.store.copy(project, task)
        if held and held.copy:
            remove_task(self._studio, held.copy)
        self.store.keep(project, task, None)

    def bring(self, task: int, decision: Decision) -> None:
        """Adds what a reviewer submitted to the original task, under the reviewer's name; twice adds one."""
        unique = uuid.uuid5(uuid.NAMESPACE_URL, f"labelloop:{task}:{decision.annotation}:{decision.mark}")
        try:
            self._studio.add_annotation(
                task,
                [dict(result) for result in decision.results],
                lead_time=decision.lead_time,
                completed_by=decision.annotator,
                unique_id=str(unique),
            )
        except StudioRefused as error:
            if error.answer != 409:  # it is there: an answer was lost on its way
                raise

    def _copy_json(self, copy: Copy) -> dict[str, Any] | None:
        try:
            return self._studio.task_json(copy.review, copy.copy)
        except NotFound:  # the whole project is gone
            return None

    def _found(self, review: int, origin: str) -> dict[str, Any] | None:
        """A copy that was made and not noted any more."""
        ours = {"filter": f"filter:tasks:data.{ORIGIN}", "operator": "equal", "type": "String", "value": origin}
        found = next(self._studio.tasks(review, filters={"conjunction": "and", "items": [ours]}), None)
        return None if found is None else self._studio.task_json(review, found.id or 0)


def lay_overlays(studio: Studio, task: Task, wanted: Sequence[Overlay]) -> None:
    """Makes a task hold these overlays. Tabs stand in the order of writing: what is right so far stays."""
    held, right = overlays_of(task), 0
    while right < min(len(held), len(wanted)) and mark_of(held[right]) == wanted[right].mark:
        right += 1
    for prediction in reversed(held[right:]):
        remove_prediction(studio, prediction.id or 0)
    for each in wanted[right:]:
        studio.add_prediction(task.id or 0, [dict(result) for result in each.result], each.score, each.version)


def remove_prediction(studio: Studio, prediction: int) -> None:
    """Removes a prediction; one that is gone already is no error."""
    try:
        studio.delete_prediction(prediction)
    except NotFound:
        log.info("overlay_gone_already", prediction=prediction)


def remove_task(studio: Studio, task: int) -> None:
    """Removes a task; one that is gone already is no error."""
    try:
        studio.delete_task(task)
    except NotFound:
        log.info("copy_gone_already", task=task)


def browser_path(settings: Settings) -> str:
    """The path under which a browser finds Label Studio, empty where it is the root."""
    return urlsplit(settings.label_studio_public_url or settings.label_studio_url).path.rstrip("/")


def ensure_review_project(studio: Studio, project: int, settings: Settings, store: ReviewStore) -> Change | None:
    """Makes the review project of a project, or has it follow the labelling interface. Doing it twice changes nothing.

    Returns:
        None: somebody else is making it.

    Raises:
        StudioError: Label Studio cannot be asked, or refuses.
        LabelingError: The project's labelling interface has no place for the note.
    """
    source = studio.project(project)
    interface, review = with_note(str(source["label_config"])), store.review_of(project)
    found = None
    if review is not None:
        try:
            found = studio.project(review)
        except NotFound:
            store.made(project, None)  # somebody deleted it; it is made anew
    done = False
    if found is None:
        if not store.begin(project):
            return None
        mark = _DESCRIPTION.format(project=project)
        found = next((each for each in studio.projects() if each.get("description") == mark), None)
        fields = {name: source[name] for name in ("task_data_login", "task_data_password") if source.get(name)}
        found = found or studio.create_project(
            title=f"{str(source.get('title') or '')[:40]}: review",
            description=mark,
            label_config=interface,
            maximum_annotations=1,
            sampling="Sequential sampling",
            show_collab_predictions=True,
            **fields,
        )
        store.made(project, int(found["id"]))
        log.info("review_project_made", project=project, review=found["id"])
        done = True
    number = int(found["id"])
    digest = hashlib.sha256(interface.encode()).hexdigest()
    if store.interface(project) != digest:  # what people made of it since is theirs
        if found.get("label_config") != interface:
            studio.update_project(number, label_config=interface)
            done = True
        store.give(project, digest)
    base = settings.label_studio_public_url or settings.label_studio_url
    return Change(f"review project {base}/projects/{number}/data", done=done)


def _is(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(COPIES.c.project == project, COPIES.c.task == task)
