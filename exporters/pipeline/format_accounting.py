"""Account for the tasks of a block: the outcome of each in the data set and in each format."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from exporters.columnar.block import Block
from exporters.convert.tally import Counted
from exporters.formats.base import ATTRIBUTES, FLAGS, IMAGE_FIELDS, NOTES, EncodedBlock, Format
from exporters.model.accounting import Loss, TaskAccount, TaskAccountTable, task_account
from exporters.model.records import Object
from exporters.pipeline.converter import ConvertedTask, TaskOutcomeKey
from exporters.tasks.formats.base import EncodedLine
from exporters.tasks.line import TaskLine
from labelloop.labeling.studio.region_attributes import CROWD


class FormatAccountant:
    """Collects the results of each format for a block.

    Most tasks are common tasks without remarks, so their result in a format follows from their pattern.
    """

    def __init__(self, block: Block, rows: Sequence[ConvertedTask]) -> None:
        self._block = block
        self._rows = rows
        self._formats: list[Format] = []
        self._columnar = dict(zip(block.columnar, range(len(block.columnar)), strict=True))
        self._kinds: list[list[int]] = []  # of the rows of each columnar image: see `Columns.kind_counts`
        self._notes: dict[int, list[tuple[str, ...]]] = {}  # image index -> account lines of formats
        self._losses: dict[int, list[Loss]] = {}  # task index -> what formats leave out
        self._line_counts: dict[int, Counted] = {}  # task index -> counts of the formats of tasks
        self._refused: dict[tuple[int, str], dict[int, str]] = {}  # (image index, format) -> object id -> reason

    def add(self, fmt: Format, encoded: EncodedBlock) -> None:
        """Add the result of a format.

        A region without any object in the format is a loss of the task; objects of other regions that were refused are
        counted.
        """
        self._formats.append(fmt)
        for index, rejected, reason in encoded.refused:
            self._refused.setdefault((index, fmt.name), {})[rejected.id] = reason
        kept_regions = self._kept_regions(fmt.name, {index for index, *_ in encoded.refused})
        recorded: set[tuple[int, int]] = set()
        for index, rejected, reason in encoded.refused:
            notes = self._notes.setdefault(index, [])
            if (index, rejected.number) in kept_regions:
                notes.append(("format", fmt.name, "converted", f"label of a region left out: {reason}"))
                continue
            if (index, rejected.number) in recorded:
                continue
            recorded.add((index, rejected.number))
            notes.append(("format", fmt.name, "dropped", reason))
            self._losses.setdefault(self._block.tasks[index], []).append(
                Loss(
                    "region",
                    reason,
                    self._block.images[index].task,
                    rejected.annotation,
                    rejected.region,
                    format=fmt.name,
                )
            )
        for index, change, times in encoded.converted:
            self._notes.setdefault(index, []).extend([("format", fmt.name, "converted", change)] * times)

    def count_lines(self, task: int, lines: Sequence[TaskLine]) -> None:
        """Count the lines of a task."""
        self._line_counts.setdefault(task, Counter()).update(("lines", line.split) for line in lines)

    def add_lines(self, name: str, task: int, lines: Sequence[TaskLine], encoded: Sequence[EncodedLine]) -> None:
        """Add the result of a format of tasks for the lines of a task."""
        counts = self._line_counts.setdefault(task, Counter())
        written = [one for one in encoded if one.record is not None]
        if written:
            counts["format", name, "tasks"] += 1
        else:
            counts["format", name, "dropped", encoded[0].dropped] += 1
        for line, one in zip(lines, encoded, strict=True):
            counts["format", name, "objects"] += one.entries
            for note, number in one.notes.items():
                counts["format", name, "converted", note] += number
            for region, reason in one.losses:
                counts["format", name, "converted", f"left out: {reason}"] += 1
                self._losses.setdefault(task, []).append(
                    Loss("region", reason, line.task, line.annotation.get("id"), region, format=name)
                )

    def losses(self, task: int) -> Sequence[Loss]:
        """Return what is left out of a task: of the data set, then of each format."""
        return (*self._rows[task].losses, *self._losses.get(task, ()))

    def account_numbers(
        self,
        table: TaskAccountTable,
        numbers: dict[TaskOutcomeKey, int],
        account_cache: dict[TaskOutcomeKey, TaskAccount],
    ) -> list[int]:
        """Return the account number of each task.

        Args:
            table: numbers the accounts.
            numbers: cache of the numbers of patterns in ``table``.
            account_cache: cache of the accounts of patterns, shared by tables.
        """
        noted_tasks = {self._block.tasks[index] for index in self._notes}
        images_by_task: dict[int, list[int]] | None = None
        result: list[int] = []
        for task, row in enumerate(self._rows):
            pattern = None if task in noted_tasks or task in self._line_counts else row.pattern
            number = numbers.get(pattern) if pattern else None
            if number is None:
                account = account_cache.get(pattern) if pattern else None
                if account is None:
                    images_by_task = self._images_by_task() if images_by_task is None else images_by_task
                    counted = self._counted(row, images_by_task.get(task, []))
                    counted.update(self._line_counts.get(task, ()))
                    account = task_account(counted)
                number = table.number(account)
                if pattern:
                    numbers[pattern], account_cache[pattern] = number, account
            result.append(number)
        return result

    def _kept_regions(self, name: str, indices: Iterable[int]) -> set[tuple[int, int]]:
        """Return the regions of which a format has an object: (image index, region number)."""
        return {
            (index, number)
            for index in indices
            for object_id, number in self._regions(index)
            if object_id not in self._refused[index, name]
        }

    def _regions(self, index: int) -> list[tuple[int, int]]:
        """Return the id and the region number of each object of an image; none if each region has one object."""
        if index in self._block.items:
            return [(obj.id, obj.number) for obj in self._block.items[index].objects]
        columns, image = self._block.columns, self._columnar[index]
        assert columns is not None
        if columns.regions is None:
            return []
        rows = range(columns.first[image], columns.first[image + 1])
        return [(int(columns.ids[row]), columns.number(row)) for row in rows]

    def _images_by_task(self) -> dict[int, list[int]]:
        """Return the image indices of each task that has images."""
        images_by_task: dict[int, list[int]] = {}
        for index, owner in enumerate(self._block.tasks):
            images_by_task.setdefault(owner, []).append(index)
        return images_by_task

    def _counted(self, row: ConvertedTask, indices: Sequence[int]) -> Counted:
        block = self._block
        counted = row.pattern.counted() if row.pattern else row.counted
        assert counted is not None
        for index in indices:
            counted["images", block.images[index].split] += 1
            counted.update(self._notes.get(index, ()))
            item = block.items.get(index)
            metadata = (
                _metadata_counts(item.objects, about=index in block.coco_fields)
                if item
                else self._columnar_metadata(index)
            )
            for fmt in self._formats:
                for (thing, what), number in metadata.items():
                    if what not in fmt.supported_metadata:
                        line = f"{thing} whose {what} the format has no place for"
                        counted["format", fmt.name, "converted", line] += number
                refused = self._refused.get((index, fmt.name), {})
                if index in self._columnar:
                    objects, regions = self._count_objects(index, refused)
                    kinds = self._kind_counts()[self._columnar[index]]
                    for change, number in zip(fmt.implicit_conversions, kinds, strict=False):
                        if change:
                            counted["format", fmt.name, "converted", change] += number
                else:
                    written = [obj for obj in block.items[index].objects if obj.id not in refused]
                    objects = sum(obj.box is not None for obj in written)  # key points are parts of objects
                    regions = len({obj.number for obj in written})
                counted["format", fmt.name, "objects"] += objects
                counted["format", fmt.name, "regions"] += regions
        return counted

    def _count_objects(self, index: int, refused: Mapping[int, str]) -> tuple[int, int]:
        """Return the numbers of objects and of regions of a columnar image that were not refused."""
        columns, image = self._block.columns, self._columnar[index]
        assert columns is not None
        objects = columns.first[image + 1] - columns.first[image]
        first, last = columns.points.first[image : image + 2] if columns.points else (0, 0)
        ids = columns.points.ids[first:last].tolist() if columns.points and refused else ()
        points = sum(number in refused for number in ids)
        objects -= len(refused) - points
        regions = len({number for obj, number in self._regions(index) if obj not in refused}) or objects
        return objects, regions + last - first - points

    def _columnar_metadata(self, index: int) -> Counter[tuple[str, str]]:
        """Like `_metadata_counts`, of a columnar image."""
        columns, image = self._block.columns, self._columnar[index]
        assert columns is not None
        counts: Counter[tuple[str, str]] = Counter({("images", IMAGE_FIELDS): int(index in self._block.coco_fields)})
        rows = range(columns.first[image], columns.first[image + 1]) if columns.metadata.notes else ()
        for row in rows:
            notes = columns.metadata.notes[row]
            if notes is not None and columns.number(row) == columns.ids[row]:
                for what, number in zip((FLAGS, ATTRIBUTES, NOTES), notes.counts, strict=True):
                    counts["regions", what] += number
        return +counts

    def _kind_counts(self) -> list[list[int]]:
        columns = self._block.columns
        assert columns is not None
        self._kinds = self._kinds or columns.kind_counts()
        return self._kinds


def _metadata_counts(objects: Sequence[Object], *, about: bool) -> Counter[tuple[str, str]]:
    """Count the images and regions with metadata beyond labels and shapes: (kind, metadata)."""
    counts: Counter[tuple[str, str]] = Counter({("images", IMAGE_FIELDS): int(about)})
    regions: set[int] = set()
    for obj in objects:
        remarks = obj.remarks
        if obj.number in regions or obj.box is None or not (remarks or obj.attributes):
            continue  # attributes of a key point are its visibility
        regions.add(obj.number)
        counts["regions", FLAGS] += bool(remarks.flags - {CROWD} or remarks.pose)
        counts["regions", ATTRIBUTES] += bool(remarks.attributes or obj.attributes)
        counts["regions", NOTES] += bool(remarks.fields or remarks.meta)
    return +counts
