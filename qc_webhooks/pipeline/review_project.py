"""Review projects: creates them where the policy asks, copies tasks that wait for a reviewer, imports decisions."""

import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.db.engine import begin_read, insert_if_absent
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioNotFound, StudioRefused
from qc_webhooks.artifacts.overlays import CONSENSUS, Overlay, overlay_key, overlays_of
from qc_webhooks.artifacts.review_copy import (
    ORIGIN,
    ReviewCopy,
    ReviewCopyContent,
    ReviewDecision,
    copy_data,
    decision_of,
    origin_name,
    with_note,
)
from qc_webhooks.decision.context import KEYS
from qc_webhooks.store.tables import COPIES, REVIEWS

# Identifies a review project whose id was lost between its creation and saving it.
_DESCRIPTION = "Copies of what waits for a reviewer in project {project}; labelloop keeps them."
# Seconds after which an unfinished creation of a review project counts as abandoned by a killed process.
_CREATION_TIMEOUT_S = 120.0

log = structlog.get_logger(__name__)


class ReviewStore:
    """Review project of each project, and copy of each task, in the database. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def review_of(self, project: int) -> int | None:
        """Review project of a project; None without one."""
        with begin_read(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.review).where(REVIEWS.c.project == project))

    def all(self) -> dict[int, int]:
        """Project -> its review project."""
        query = sa.select(REVIEWS.c.project, REVIEWS.c.review).where(REVIEWS.c.review.is_not(None))
        with begin_read(self.engine) as connection:
            return {int(row.project): int(row.review) for row in connection.execute(query)}

    def is_review(self, project: int) -> bool:
        """Whether a project is the review project of another."""
        with begin_read(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.project).where(REVIEWS.c.review == project)) is not None

    def origin(self, review: int, copy: int) -> tuple[int, int] | None:
        """(project, task) of the original of a task in a review project."""
        query = sa.select(COPIES.c.project, COPIES.c.task).where(COPIES.c.review == review, COPIES.c.copy == copy)
        with begin_read(self.engine) as connection:
            row = connection.execute(query).first()
        return None if row is None else (row.project, row.task)

    def copy(self, project: int, task: int) -> ReviewCopy | None:
        """Copy of a task; None without one."""
        with begin_read(self.engine) as connection:
            row = connection.execute(sa.select(COPIES).where(_is_task(project, task))).one_or_none()
        return None if row is None else ReviewCopy(row.review, row.copy, row.fingerprint, row.mark)

    def count_copies(self, project: int) -> int:
        """Number of copies of a project's tasks."""
        of_project = sa.and_(COPIES.c.project == project, COPIES.c.copy > 0)
        with begin_read(self.engine) as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(COPIES).where(of_project)) or 0)

    def save_copy(self, project: int, task: int, copy: ReviewCopy | None) -> None:
        """Replace the copy of a task; None deletes it."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(COPIES).where(_is_task(project, task)))
            if copy is not None:
                row = {
                    "review": copy.review,
                    "copy": copy.task,
                    "fingerprint": copy.fingerprint,
                    "mark": copy.content_hash,
                }
                connection.execute(sa.insert(COPIES).values(project=project, task=task, **row))

    def claim_creation(self, project: int) -> bool:
        """Claim the creation of a review project; False where it exists or another process is creating it."""
        now = time.time()
        row = {"project": project, "review": None, "prefilled": False, "made_at": now, "interface": ""}
        with self.engine.begin() as connection:
            if insert_if_absent(connection, REVIEWS, row, conflict=("project",)):
                return True
            is_abandoned = sa.and_(REVIEWS.c.review.is_(None), REVIEWS.c.made_at < now - _CREATION_TIMEOUT_S)
            abandoned = sa.and_(REVIEWS.c.project == project, is_abandoned)
            return bool(connection.execute(sa.update(REVIEWS).where(abandoned).values(made_at=now)).rowcount)

    def set_review_project(self, project: int, review: int | None) -> None:
        """Save the id of the review project; None deletes it with its copies."""
        with self.engine.begin() as connection:
            if review is None:
                connection.execute(sa.delete(REVIEWS).where(REVIEWS.c.project == project))
                connection.execute(sa.delete(COPIES).where(COPIES.c.project == project))
                return
            connection.execute(sa.update(REVIEWS).where(REVIEWS.c.project == project).values(review=review))

    def interface(self, project: int) -> str:
        """Digest of the labeling interface written to the review project; empty without one."""
        with begin_read(self.engine) as connection:
            return connection.scalar(sa.select(REVIEWS.c.interface).where(REVIEWS.c.project == project)) or ""

    def set_interface(self, project: int, interface: str) -> None:
        """Save the digest of the labeling interface written to the review project."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(REVIEWS).where(REVIEWS.c.project == project).values(interface=interface))

    def claim_prefill(self, project: int) -> bool:
        """Claim setting the label stream to prefill the consensus; True once."""
        pending = sa.and_(REVIEWS.c.project == project, sa.not_(REVIEWS.c.prefilled))
        with self.engine.begin() as connection:
            return bool(connection.execute(sa.update(REVIEWS).where(pending).values(prefilled=True)).rowcount)


class ReviewProjects:
    """Copies tasks into the review projects of one Label Studio, and reads the reviewers' decisions.

    Args:
        studio: Label Studio.
        store: Stored copies.
        base: Path of Label Studio in a browser, empty or ``/path``.
    """

    def __init__(self, studio: Studio, store: ReviewStore, *, base: str = "") -> None:
        self._studio, self.store, self._base = studio, store, base

    def decision(self, copy: ReviewCopy | None) -> ReviewDecision | None:
        """Decision submitted to a copy; None without one, or where the copy is deleted."""
        source = None if copy is None or not copy.task else self._copy_json(copy)
        return None if source is None else decision_of(read_task(source))

    def write_copy(self, project: int, task: Task, content: ReviewCopyContent, fingerprint: str) -> None:
        """Create or update the copy of a task. Idempotent.

        Raises:
            StudioError: Label Studio cannot be reached, or refuses.
        """
        review, number = self.store.review_of(project), task.id or 0
        if review is None:
            return
        data = copy_data(task, project, content, own_keys=KEYS, base=self._base)
        existing = self.store.copy(project, number)
        copy_json = self._copy_json(existing) if existing and existing.task else None
        copy_json = copy_json or self._find_unsaved(review, origin_name(project, number))
        if copy_json is None:
            (copy_id,) = self._studio.import_tasks(review, [{"data": data}])
            copy_json = {"id": copy_id, "data": data}
        elif copy_json["data"] != data:
            self._studio.update_task(copy_json["id"], data=data, resolved=True)
        write_overlays(self._studio, read_task(copy_json), content.overlays)
        self.store.save_copy(
            project, number, ReviewCopy(review, int(copy_json["id"]), fingerprint, content.content_hash)
        )
        if any(overlay.version == CONSENSUS for overlay in content.overlays) and self.store.claim_prefill(project):
            # After the first prediction, because Label Studio accepts no model version without one.
            self._studio.update_project(review, model_version=CONSENSUS)

    def delete_copy(self, project: int, task: int) -> None:
        """Delete the copy of a task, if it exists."""
        existing = self.store.copy(project, task)
        if existing and existing.task:
            remove_task(self._studio, existing.task)
        self.store.save_copy(project, task, None)

    def import_decision(self, task: int, decision: ReviewDecision) -> None:
        """Add a reviewer's decision to the original task, under the reviewer's name. Idempotent."""
        unique = uuid.uuid5(uuid.NAMESPACE_URL, f"labelloop:{task}:{decision.annotation}:{decision.content_hash}")
        try:
            self._studio.add_annotation(
                task,
                [dict(result) for result in decision.results],
                lead_time=decision.lead_time,
                completed_by=decision.annotator,
                unique_id=str(unique),
            )
        except StudioRefused as error:
            if error.http_status != 409:  # exists already: an earlier response was lost
                raise

    def _copy_json(self, copy: ReviewCopy) -> dict[str, Any] | None:
        try:
            return self._studio.task_json(copy.review, copy.task)
        except StudioNotFound:  # the project is deleted
            return None

    def _find_unsaved(self, review: int, origin: str) -> dict[str, Any] | None:
        """A copy that exists in Label Studio but was not saved."""
        filter_item = {"filter": f"filter:tasks:data.{ORIGIN}", "operator": "equal", "type": "String", "value": origin}
        match = next(self._studio.tasks(review, filters={"conjunction": "and", "items": [filter_item]}), None)
        return None if match is None else self._studio.task_json(review, match.id or 0)


def write_overlays(studio: Studio, task: Task, wanted: Sequence[Overlay]) -> None:
    """Write the overlays of a task. Tabs keep the order of writing: the matching prefix stays."""
    existing, matching = overlays_of(task), 0
    while matching < min(len(existing), len(wanted)) and overlay_key(existing[matching]) == wanted[matching].key:
        matching += 1
    for prediction in reversed(existing[matching:]):
        remove_prediction(studio, prediction.id or 0)
    for overlay in wanted[matching:]:
        studio.add_prediction(task.id or 0, [dict(result) for result in overlay.result], overlay.score, overlay.version)


def remove_prediction(studio: Studio, prediction: int) -> None:
    """Delete a prediction, if it exists."""
    try:
        studio.delete_prediction(prediction)
    except StudioNotFound:
        log.info("overlay_gone_already", prediction=prediction)


def remove_task(studio: Studio, task: int) -> None:
    """Delete a task, if it exists."""
    try:
        studio.delete_task(task)
    except StudioNotFound:
        log.info("copy_gone_already", task=task)


def browser_path(settings: Settings) -> str:
    """Path of Label Studio in a browser; empty for the root."""
    return urlsplit(settings.label_studio_public_url or settings.label_studio_url).path.rstrip("/")


def ensure_review_project(
    studio: Studio, project: int, settings: Settings, store: ReviewStore
) -> ConnectionChange | None:
    """Create the review project of a project, or update its labeling interface. Idempotent.

    Returns:
        The change; None where another process is creating the project.

    Raises:
        StudioError: Label Studio cannot be reached, or refuses.
        LabelingError: The project's labeling interface has no place for the note.
    """
    source = studio.project(project)
    interface, review = with_note(str(source["label_config"])), store.review_of(project)
    review_fields = None
    if review is not None:
        try:
            review_fields = studio.project(review)
        except StudioNotFound:
            store.set_review_project(project, None)  # deleted by a person; create it again
    done = False
    if review_fields is None:
        if not store.claim_creation(project):
            return None
        mark = _DESCRIPTION.format(project=project)
        review_fields = next(
            (candidate for candidate in studio.projects() if candidate.get("description") == mark), None
        )
        fields = {name: source[name] for name in ("task_data_login", "task_data_password") if source.get(name)}
        review_fields = review_fields or studio.create_project(
            title=f"{str(source.get('title') or '')[:40]}: review",
            description=mark,
            label_config=interface,
            maximum_annotations=1,
            sampling="Sequential sampling",
            show_collab_predictions=True,
            **fields,
        )
        store.set_review_project(project, int(review_fields["id"]))
        log.info("review_project_made", project=project, review=review_fields["id"])
        done = True
    number = int(review_fields["id"])
    digest = hashlib.sha256(interface.encode()).hexdigest()
    if store.interface(project) != digest:  # later changes by people stay
        if review_fields.get("label_config") != interface:
            studio.update_project(number, label_config=interface)
            done = True
        store.set_interface(project, digest)
    base = settings.label_studio_public_url or settings.label_studio_url
    return ConnectionChange(f"review project {base}/projects/{number}/data", done=done)


def _is_task(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(COPIES.c.project == project, COPIES.c.task == task)
