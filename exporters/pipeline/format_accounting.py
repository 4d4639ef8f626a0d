"""The bills of a block's tasks: what became of each in the data set, and then in each format."""

from collections import Counter
from collections.abc import Iterable, Sequence

from exporters.columnar.block import Block
from exporters.formats.base import ATTRIBUTES, FLAGS, IMAGE_FIELDS, NOTES, EncodedBlock, Format
from exporters.model.accounting import Loss, TaskAccount, TaskAccountTable, task_account
from exporters.model.records import Object
from exporters.pipeline.converter import ConvertedTask, Counted, TaskOutcomeKey
from labelloop.labeling.studio.region_attributes import CROWD


class FormatAccountant:
    """Takes what each format made of a block.

    Most tasks are usual and nothing is said of them, so what a format made of one follows from its pattern.
    """

    def __init__(self, block: Block, rows: Sequence[ConvertedTask]) -> None:
        self._block = block
        self._rows = rows
        self._formats: list[Format] = []
        self._usual = dict(zip(block.columnar, range(len(block.columnar)), strict=True))
        self._notes: dict[int, list[tuple[str, ...]]] = {}  # of images: lines of the bill that a format adds
        self._refused: dict[tuple[int, str], dict[int, str]] = {}  # of an image and a format: objects, with the reason

    def add(self, each: Format, encoded: EncodedBlock) -> None:
        """Take what a format said.

        A region none of whose objects it holds is a loss of the task; where it holds some, the others are counted.
        """
        self._formats.append(each)
        for place, held_not, reason in encoded.refused:
            self._refused.setdefault((place, each.name), {})[held_not.id] = reason
        held = self._held(each.name, {place for place, *_ in encoded.refused})
        listed: set[tuple[int, int]] = set()
        for place, held_not, reason in encoded.refused:
            notes = self._notes.setdefault(place, [])
            if (place, held_not.number) in held:
                notes.append(("format", each.name, "converted", f"label of a region left out: {reason}"))
                continue
            if (place, held_not.number) in listed:
                continue
            listed.add((place, held_not.number))
            notes.append(("format", each.name, "dropped", reason))
            self._rows[self._block.tasks[place]].losses.append(
                Loss(
                    "region",
                    reason,
                    self._block.images[place].task,
                    held_not.annotation,
                    held_not.region,
                    format=each.name,
                )
            )
        for place, change, times in encoded.converted:
            self._notes.setdefault(place, []).extend([("format", each.name, "converted", change)] * times)

    def account_numbers(
        self, bills: TaskAccountTable, numbers: dict[TaskOutcomeKey, int], known: dict[TaskOutcomeKey, TaskAccount]
    ) -> list[int]:
        """The number of each task's bill.

        Args:
            bills: gives the numbers.
            numbers: keeps those of patterns.
            known: keeps the bills of patterns, for other ``bills`` too.
        """
        noted = {self._block.tasks[place] for place in self._notes}
        places: dict[int, list[int]] | None = None
        found: list[int] = []
        for task, row in enumerate(self._rows):
            pattern = None if task in noted else row.pattern
            number = numbers.get(pattern) if pattern else None
            if number is None:
                bill = known.get(pattern) if pattern else None
                if bill is None:
                    places = self._places() if places is None else places
                    bill = task_account(self._counted(row, places.get(task, [])))
                number = bills.number(bill)
                if pattern:
                    numbers[pattern], known[pattern] = number, bill
            found.append(number)
        return found

    def _held(self, name: str, places: Iterable[int]) -> set[tuple[int, int]]:
        """The regions of these images of which a format holds an object: (place of the image, number)."""
        return {
            (place, one.number)
            for place in places
            if place in self._block.items
            for one in self._block.items[place].objects
            if one.id not in self._refused[place, name]
        }

    def _places(self) -> dict[int, list[int]]:
        """The images of each task that has any."""
        places: dict[int, list[int]] = {}
        for place, owner in enumerate(self._block.tasks):
            places.setdefault(owner, []).append(place)
        return places

    def _counted(self, row: ConvertedTask, places: Sequence[int]) -> Counted:
        block = self._block
        counted = row.pattern.counted() if row.pattern else row.counted
        assert counted is not None
        for place in places:
            counted["images", block.images[place].split] += 1
            counted.update(self._notes.get(place, ()))
            item = block.items.get(place)
            unsaid = _unsaid(item.objects if item else (), about=place in block.coco_fields)
            for each in self._formats:
                for (thing, what), number in unsaid.items():
                    if what not in each.supported_metadata:
                        line = f"{thing} whose {what} the format has no place for"
                        counted["format", each.name, "converted", line] += number
                refused = self._refused.get((place, each.name), {})
                if place in self._usual:
                    objects = regions = self._objects(self._usual[place]) - len(refused)
                    for kind, change in enumerate(each.implicit_conversions):
                        if change:
                            counted["format", each.name, "converted", change] += self._of_kind(self._usual[place], kind)
                else:
                    written = [one for one in block.items[place].objects if one.id not in refused]
                    objects = sum(one.box is not None for one in written)  # a key point is part of an object
                    regions = len({one.number for one in written})
                counted["format", each.name, "objects"] += objects
                counted["format", each.name, "regions"] += regions
        return counted

    def _objects(self, image: int) -> int:
        assert self._block.columns is not None
        return self._block.columns.first[image + 1] - self._block.columns.first[image]

    def _of_kind(self, image: int, kind: int) -> int:
        columns = self._block.columns
        assert columns is not None
        return int((columns.clipped.kinds[columns.first[image] : columns.first[image + 1]] == kind).sum())


def _unsaid(objects: Sequence[Object], *, about: bool) -> Counter[tuple[str, str]]:
    """How many things have more than labels and shapes: (things, what they have)."""
    found: Counter[tuple[str, str]] = Counter({("images", IMAGE_FIELDS): int(about)})
    seen: set[int] = set()
    for each in objects:
        said = each.remarks
        if each.number in seen or each.box is None or not (said or each.attributes):
            continue  # what is said of a key point is its visibility
        seen.add(each.number)
        found["regions", FLAGS] += bool(said.flags - {CROWD} or said.pose)
        found["regions", ATTRIBUTES] += bool(said.attributes or each.attributes)
        found["regions", NOTES] += bool(said.fields or said.meta)
    return +found
