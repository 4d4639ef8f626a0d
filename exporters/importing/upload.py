"""Upload images to Label Studio in batches, create tasks and add labels; a refused image does not fail the rest."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from exporters.importing.existing_tasks import ExistingTask, ExistingTasks
from exporters.importing.image_locations import LocatedImage
from exporters.importing.region_writer import TaskResults
from exporters.importing.report import LabelsAs
from exporters.model.file_names import COCO_FIELDS, IMPORT_META
from labelloop.labeling.studio.config import data_with
from labelloop.service.datasets import DatasetProblem
from labelloop.service.studio import PredictionsDropped, Studio, StudioRefused

# Key of a task's data with the split of its image in the data set.
SPLIT = "split"
# Limits of one request; Label Studio's are 100 files and 250 MB.
UPLOAD_FILES = 20
UPLOAD_BYTES = 100_000_000


class TaskUpload(msgspec.Struct):
    """An image with its results; ``url`` is set after its upload."""

    located: LocatedImage
    results: TaskResults
    url: str = ""


class TaskUploader:
    """Creates the tasks of one project.

    Args:
        studio: Label Studio.
        project: The project's id.
        key: The key of a task's data with its image.
        labels_as: Import labels as annotations or predictions.
        version: The model version of predictions.
        ground_truth: Mark annotations as ground truth.
        existing_tasks: The project's tasks; new ones are added to it.
        report: Called with each item that Label Studio refused.
    """

    def __init__(
        self,
        studio: Studio,
        project: int,
        *,
        key: str,
        labels_as: LabelsAs,
        version: str,
        ground_truth: bool,
        existing_tasks: ExistingTasks,
        report: Callable[[DatasetProblem], None],
    ) -> None:
        self._studio = studio
        self._project = project
        self._key = key
        self._labels_as = labels_as
        self._version = version
        self._ground_truth = ground_truth
        self._existing_tasks = existing_tasks
        self._report = report
        self.made = self.added = self.there = self.regions = self.in_splits = self.empty = self.unlabelled = 0
        self.metadata_not_added = 0

    def upload(self, uploads: Sequence[TaskUpload]) -> None:
        """Upload images, create their tasks and add their labels; each image must occur once."""
        new = [upload for upload in uploads if upload.located.existing_task is None]
        self._upload_in_batches([upload for upload in new if upload.located.path is not None])
        created = self._create_tasks([upload for upload in new if upload.url or upload.located.url])
        existing = [
            (upload, upload.located.existing_task) for upload in uploads if upload.located.existing_task is not None
        ]
        self.metadata_not_added += sum(bool(upload.located.image.about) for upload, _ in existing)
        self.unlabelled += sum(not upload.results.annotated for upload, _ in [*created, *existing])
        created, existing = ([pair for pair in pairs if pair[0].results.annotated] for pairs in (created, existing))
        if self._labels_as == "annotations":
            self._count([upload for upload, _ in created])
            self._annotate(existing)
        else:
            self._predict([*created, *existing])

    def _upload_in_batches(self, uploads: Sequence[TaskUpload]) -> None:
        batch: list[TaskUpload] = []
        size = 0
        for upload in uploads:
            assert upload.located.path is not None
            file_size = upload.located.path.stat().st_size
            if batch and (len(batch) == UPLOAD_FILES or size + file_size > UPLOAD_BYTES):
                self._upload(batch)
                batch, size = [], 0
            batch.append(upload)
            size += file_size
        self._upload(batch)

    def _upload(self, uploads: Sequence[TaskUpload]) -> None:
        try:
            urls = self._studio.upload_files(
                self._project, [upload.located.path for upload in uploads if upload.located.path]
            )
        except StudioRefused as refused:
            self._bisect(uploads, refused, self._upload)
            return
        for upload, url in zip(uploads, urls, strict=True):
            upload.url = url

    def _create_tasks(self, uploads: Sequence[TaskUpload]) -> list[tuple[TaskUpload, ExistingTask]]:
        """Create tasks with their annotations in the same request, so that a task is complete or missing."""
        if not uploads:
            return []
        try:
            task_ids = self._studio.import_tasks(self._project, [self._task(upload) for upload in uploads])
        except StudioRefused as refused:
            created: list[tuple[TaskUpload, ExistingTask]] = []
            self._bisect(uploads, refused, lambda half: created.extend(self._create_tasks(half)))
            return created
        created = []
        for upload, task_id in zip(uploads, task_ids, strict=True):
            url = upload.url or upload.located.url
            task = ExistingTask(task_id, url, set(), set(upload.results.ids), int(self._annotates(upload)))
            self._existing_tasks.add(task, upload.located.identity)
            created.append((upload, task))
        self.made += len(created)
        self.in_splits += sum(bool(upload.located.image.split) for upload, _ in created)
        return created

    def _annotates(self, upload: TaskUpload) -> bool:
        return self._labels_as == "annotations" and upload.results.annotated

    def _task(self, upload: TaskUpload) -> dict[str, Any]:
        image = upload.located.image
        import_meta: dict[str, Any] = {"id": upload.located.identity, "name": image.name}
        if image.about:
            import_meta[COCO_FIELDS] = image.about
        meta = {IMPORT_META: import_meta}
        data = data_with(self._key, upload.url or upload.located.url)
        if image.split and self._key != SPLIT:
            data[SPLIT] = image.split
        task: dict[str, Any] = {"data": data, "meta": meta}
        if self._annotates(upload):
            task["annotations"] = [{"result": upload.results.results, "ground_truth": self._ground_truth}]
        return task

    def _annotate(self, uploads: Sequence[tuple[TaskUpload, ExistingTask]]) -> None:
        for upload, task in uploads:
            ids = upload.results.ids
            if ids & task.regions or (not ids and task.annotations):
                self.there += 1
                continue
            try:
                self._studio.add_annotation(task.task, upload.results.results, ground_truth=self._ground_truth)
            except StudioRefused as refused:
                self._report(_refusal(upload, refused))
                continue
            task.regions |= ids
            task.annotations += 1
            self._count([upload])

    def _predict(self, uploads: Sequence[tuple[TaskUpload, ExistingTask]]) -> None:
        pending = [(upload, task) for upload, task in uploads if self._version not in task.model_versions]
        self.there += len(uploads) - len(pending)
        rows = [
            {
                "task": task.task,
                "result": upload.results.results,
                "score": upload.results.score,
                "model_version": self._version,
            }
            for upload, task in pending
        ]
        reason = "Label Studio dropped its prediction without a reason"
        try:
            self._studio.import_predictions(self._project, rows)
        except PredictionsDropped:
            tasks = self._studio.tasks(self._project, only_ids=[existing.task for _, existing in pending])
            stored = {
                task.id
                for task in tasks
                for prediction in task.predictions
                if prediction.model_version == self._version
            }
            for upload, existing in pending:
                if existing.task not in stored:
                    self._report(DatasetProblem(upload.located.image.name, reason))
            pending = [(upload, existing) for upload, existing in pending if existing.task in stored]
        for _, existing in pending:
            existing.model_versions.add(self._version)
        self._count([upload for upload, _ in pending])

    def _bisect(
        self, uploads: Sequence[TaskUpload], refused: StudioRefused, send: Callable[[Sequence[TaskUpload]], None]
    ) -> None:
        """Send a refused batch again in halves to isolate the refused image; re-raise errors not caused by an image."""
        if refused.http_status not in {400, 413, 422}:
            raise refused
        if len(uploads) == 1:
            self._report(_refusal(uploads[0], refused))
            return
        middle = len(uploads) // 2
        send(uploads[:middle])
        send(uploads[middle:])

    def _count(self, uploads: Sequence[TaskUpload]) -> None:
        self.added += len(uploads)
        self.empty += sum(not upload.results.results for upload in uploads)
        self.regions += sum(upload.results.regions for upload in uploads)


def _refusal(upload: TaskUpload, refused: StudioRefused) -> DatasetProblem:
    return DatasetProblem(
        upload.located.image.name, f"Label Studio refused it: {refused.detail or refused.http_status}"
    )
