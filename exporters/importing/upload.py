"""Batches of photos on their way into Label Studio: uploaded, made into tasks, labelled. One bad photo costs itself."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from exporters.importing.existing_tasks import ExistingTasks, Known
from exporters.importing.image_locations import Located
from exporters.importing.region_writer import Placed
from exporters.importing.report import As
from exporters.model.originals import ABOUT, META
from labelloop.service.datasets import Problem
from labelloop.service.studio import PredictionsDropped, Studio, StudioRefused

SPLIT = "split"
"""The key of a task's data that says which split of the data set its photo was in."""
UPLOAD_FILES = 20
UPLOAD_BYTES = 100_000_000
"""Of one request, at most; Label Studio's own limits are 100 files and 250 MB."""


class Parcel(msgspec.Struct):
    """A photo with what it becomes; ``url`` is filled in once it is uploaded."""

    located: Located
    placed: Placed
    url: str = ""


class Sender:
    """Writes into one project.

    Args:
        studio: Label Studio.
        project: The project's number.
        key: The key of a task's data that holds its photo.
        labels_as: What labels become.
        version: The model version of predictions.
        ground_truth: Whether annotations are marked as ground truth.
        board: The project's tasks; new ones are told to it.
        tell: Called with what Label Studio refused.
    """

    def __init__(
        self,
        studio: Studio,
        project: int,
        *,
        key: str,
        labels_as: As,
        version: str,
        ground_truth: bool,
        board: ExistingTasks,
        tell: Callable[[Problem], None],
    ) -> None:
        self._studio = studio
        self._project = project
        self._key = key
        self._as = labels_as
        self._version = version
        self._truth = ground_truth
        self._board = board
        self._tell = tell
        self.made = self.added = self.there = self.regions = self.in_splits = self.empty = self.unlabelled = 0
        self.unsaid = 0

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Sends photos, each of which is there once."""
        new = [each for each in parcels if each.located.known is None]
        self._uploaded([each for each in new if each.located.path is not None])
        made = self._make([each for each in new if each.url or each.located.url])
        old = [(each, each.located.known) for each in parcels if each.located.known is not None]
        self.unsaid += sum(bool(each.located.photo.about) for each, _ in old)
        self.unlabelled += sum(not each.placed.annotated for each, _ in [*made, *old])
        made, old = ([pair for pair in pairs if pair[0].placed.annotated] for pairs in (made, old))
        if self._as == "annotations":
            self._count([each for each, _ in made])
            self._annotate(old)
        else:
            self._predict([*made, *old])

    def _uploaded(self, parcels: Sequence[Parcel]) -> None:
        batch: list[Parcel] = []
        size = 0
        for each in parcels:
            assert each.located.path is not None
            bytes_ = each.located.path.stat().st_size
            if batch and (len(batch) == UPLOAD_FILES or size + bytes_ > UPLOAD_BYTES):
                self._upload(batch)
                batch, size = [], 0
            batch.append(each)
            size += bytes_
        self._upload(batch)

    def _upload(self, parcels: Sequence[Parcel]) -> None:
        try:
            urls = self._studio.upload_files(
                self._project, [each.located.path for each in parcels if each.located.path]
            )
        except StudioRefused as refused:
            self._halved(parcels, refused, self._upload)
            return
        for each, url in zip(parcels, urls, strict=True):
            each.url = url

    def _make(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, Known]]:
        """Makes tasks, annotated in the same request: a task is there whole or not at all."""
        if not parcels:
            return []
        try:
            numbers = self._studio.import_tasks(self._project, [self._task(each) for each in parcels])
        except StudioRefused as refused:
            made: list[tuple[Parcel, Known]] = []
            self._halved(parcels, refused, lambda half: made.extend(self._make(half)))
            return made
        made = []
        for each, number in zip(parcels, numbers, strict=True):
            url = each.url or each.located.url
            known = Known(number, url, set(), set(each.placed.ids), int(self._annotates(each)))
            self._board.remember(known, each.located.identity)
            made.append((each, known))
        self.made += len(made)
        self.in_splits += sum(bool(each.located.photo.split) for each, _ in made)
        return made

    def _annotates(self, each: Parcel) -> bool:
        return self._as == "annotations" and each.placed.annotated

    def _task(self, each: Parcel) -> dict[str, Any]:
        photo = each.located.photo
        kept: dict[str, Any] = {"id": each.located.identity, "name": photo.name}
        if photo.about:
            kept[ABOUT] = photo.about
        meta = {META: kept}
        data = {self._key: each.url or each.located.url}
        if photo.split and self._key != SPLIT:
            data[SPLIT] = photo.split
        task: dict[str, Any] = {"data": data, "meta": meta}
        if self._annotates(each):
            task["annotations"] = [{"result": each.placed.results, "ground_truth": self._truth}]
        return task

    def _annotate(self, parcels: Sequence[tuple[Parcel, Known]]) -> None:
        for each, known in parcels:
            ids = each.placed.ids
            if ids & known.regions or (not ids and known.annotations):
                self.there += 1
                continue
            try:
                self._studio.add_annotation(known.task, each.placed.results, ground_truth=self._truth)
            except StudioRefused as refused:
                self._tell(_refusal(each, refused))
                continue
            known.regions |= ids
            known.annotations += 1
            self._count([each])

    def _predict(self, parcels: Sequence[tuple[Parcel, Known]]) -> None:
        wanted = [(each, known) for each, known in parcels if self._version not in known.versions]
        self.there += len(parcels) - len(wanted)
        rows = [
            {
                "task": known.task,
                "result": each.placed.results,
                "score": each.placed.score,
                "model_version": self._version,
            }
            for each, known in wanted
        ]
        refusal = "Label Studio kept no prediction of it and named no reason"
        try:
            self._studio.import_predictions(self._project, rows)
        except PredictionsDropped:
            tasks = self._studio.tasks(self._project, only_ids=[known.task for _, known in wanted])
            kept = {task.id for task in tasks for each in task.predictions if each.model_version == self._version}
            for each, known in wanted:
                if known.task not in kept:
                    self._tell(Problem(each.located.photo.name, refusal))
            wanted = [(each, known) for each, known in wanted if known.task in kept]
        for _, known in wanted:
            known.versions.add(self._version)
        self._count([each for each, _ in wanted])

    def _halved(
        self, parcels: Sequence[Parcel], refused: StudioRefused, again: Callable[[Sequence[Parcel]], None]
    ) -> None:
        """Finds the one that is refused: a batch is sent again in halves. Raises what is not about a photo."""
        if refused.answer not in {400, 413, 422}:
            raise refused
        if len(parcels) == 1:
            self._tell(_refusal(parcels[0], refused))
            return
        middle = len(parcels) // 2
        again(parcels[:middle])
        again(parcels[middle:])

    def _count(self, parcels: Sequence[Parcel]) -> None:
        self.added += len(parcels)
        self.empty += sum(not each.placed.results for each in parcels)
        self.regions += sum(each.placed.regions for each in parcels)


def _refusal(each: Parcel, refused: StudioRefused) -> Problem:
    return Problem(each.located.photo.name, f"Label Studio refused it: {refused.detail or refused.answer}")
