"""FINDING_KINDS: what a check finds, with its effect and fix; `CheckReport`: what was found."""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

# Worst examples kept of each kind.
MAX_EXAMPLES = 200
# error: training or evaluation is wrong. warning: look at it. note: worth knowing; never changes the exit status.
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class FindingKind:
    """One kind of finding.

    Attributes:
        title: What was found.
        effect: The effect on training or evaluation.
        fix: What to do.
        severity: How bad it is.
    """

    title: str
    effect: str
    fix: str
    severity: Severity = "warning"


_GROUP = (
    "`labelloop export --group-by look` keeps them in one split, or `--group-by KEY` if the tasks name the video or"
    " patient; elsewhere move them to one split"
)
FINDING_KINDS: Mapping[str, FindingKind] = {
    "twins-across-splits": FindingKind(
        "near-duplicate images in different splits",
        "the model is tested on images that it was trained on: scores are too high",
        _GROUP,
        "error",
    ),
    "scenes-across-splits": FindingKind(
        "images of the same scene in different splits, such as frames of a fixed camera",
        "the model knows the background of the test images: scores are too high for other places",
        "split by video, camera or object: `labelloop export --group-by KEY`",
    ),
    "twins": FindingKind(
        "near-duplicate images in one split",
        "they count twice, and labelling them twice is wasted",
        "keep one of each group",
    ),
    "image-unreadable": FindingKind(
        "an image that cannot be read", "training stops, or drops the image", "replace it, or drop its labels", "error"
    ),
    "image-missing": FindingKind(
        "an image whose file is not there",
        "training stops, or drops the image",
        "add it; check labels alone with --no-images",
        "error",
    ),
    "image-size": FindingKind(
        "labels for another size, rotation or image than the file",
        "all its boxes are misplaced, without an error",
        "use the image that was labelled, or scale the labels",
        "error",
    ),
    "label-unread": FindingKind(
        "labels that cannot be read", "training does not use them", "see `labelloop dataset validate`"
    ),
    "image-blank": FindingKind(
        "an image of one colour", "nothing can be learned from it", "drop it, if nothing is to be seen on it"
    ),
    "class-missing": FindingKind(
        "a class without an object in a split",
        "it is not trained, or its score is not measured",
        "label more of it, or choose other shares of the splits",
    ),
    "class-rare": FindingKind(
        "a class with fewer than 20 objects",
        "its score is mostly chance, and detectors rarely learn it",
        "label more of it, or merge it: `labelloop export --rename OLD=NEW`",
    ),
    "class-shares": FindingKind(
        "classes with other shares in one split than in another",
        "scores of the test set do not hold for the training data",
        "group less coarsely, or choose a split by hand: `--split-key`",
    ),
    "class-imbalance": FindingKind(
        "a class with less than 1/100 of the objects of the most frequent one",
        "the loss is dominated by the others",
        "label more of it, or sample its images more often",
        "note",
    ),
    "box-off-image": FindingKind(
        "a box of which more than half lies off the image",
        "it is clipped to a sliver, or dropped",
        "draw it again",
    ),
    "box-tiny": FindingKind(
        "a box under 8 pixels at the model's input, less than a cell of its finest grid",
        "detectors cannot find it: recall is limited",
        "train at a larger input or on tiles, or leave such objects out of all images",
    ),
    "box-twice": FindingKind(
        "two boxes of one class at one place",
        "one of the two can never be matched: recall is too low",
        "delete one",
    ),
    "box-two-classes": FindingKind(
        "two boxes of different classes at one place",
        "the detector is punished for either class",
        "decide on one, unless objects have several classes on purpose",
    ),
    "box-whole-image": FindingKind(
        "a box over the whole image, in a class whose boxes are usually smaller",
        "most often a slip, or a class of the whole image",
        "draw the object, or delete the box",
    ),
    "box-aspect": FindingKind(
        "a box more than 20 times as long as wide", "most often a slip of the mouse", "look at it, and draw it again"
    ),
    "box-outlier": FindingKind(
        "a box of unusual size or shape for its class",
        "a slip, or the wrong class",
        "look at the worst ones",
    ),
    "box-edge": FindingKind(
        "boxes that touch the edge of their image",
        "their objects are cut; many of them are a sign of tiles or crops",
        "nothing, if the share is expected",
        "note",
    ),
    "image-unlabelled": FindingKind(
        "an image without labels",
        "it is trained as background, or not used",
        "label it, or drop it",
        "note",
    ),
    "label-issue": FindingKind(
        "a label that the model contradicts", "the model learns the mistake", "look at it, and correct it"
    ),
}


class ShownImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image of an example: where in the data set it is, and what is drawn on it.

    Attributes:
        position: Its position in the data set.
        name: Its name.
        split: Its split.
        boxes: Boxes in pixels of the labels.
        task: Its task in Label Studio.
    """

    position: int
    name: str = ""
    split: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    task: int = 0


class DatasetFinding(msgspec.Struct, frozen=True):
    """One finding.

    Attributes:
        kind: A key of `FINDING_KINDS`.
        detail: What was found there.
        score: How bad it is within its kind; the worst come first.
        images: The images it is about: none, one or two.
    """

    kind: str
    detail: str
    score: float
    images: tuple[ShownImage, ...] = ()


class ClassRow(msgspec.Struct, frozen=True):
    """The number of objects of a class (of images, for classes of whole images), by split."""

    label: str
    objects: Mapping[str, int]


class CheckReport:
    """What was found.

    Attributes:
        counts: Number of findings by kind.
        looked_at: Numbers of what was checked, such as "images".
        classes: A row per class.
        splits: Number of images by split.
        notes: What was not checked, and why.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.looked_at: Counter[str] = Counter()
        self.classes: list[ClassRow] = []
        self.splits: Counter[str] = Counter()
        self.notes: list[str] = []
        self._worst: dict[str, list[tuple[float, int, DatasetFinding]]] = {}
        self._number = 0

    def add(self, finding: DatasetFinding, *, count: int = 1) -> None:
        """Record a finding; of each kind the worst are kept, and of equals the first."""
        self.counts[finding.kind] += count
        self._number -= 1
        worst = self._worst.setdefault(finding.kind, [])
        entry = (finding.score, self._number, finding)
        if len(worst) < MAX_EXAMPLES:
            heapq.heappush(worst, entry)
        elif entry > worst[0]:
            heapq.heapreplace(worst, entry)

    def examples(self, kind: str) -> list[DatasetFinding]:
        """Return the kept findings of a kind, the worst first."""
        return [
            finding for _, _, finding in sorted(self._worst.get(kind, ()), key=lambda entry: entry[:2], reverse=True)
        ]

    def kinds(self) -> list[str]:
        """Return the kinds that were found, in the order of `FINDING_KINDS`."""
        return [kind for kind in FINDING_KINDS if self.counts[kind]]

    def number(self, *severities: Severity) -> int:
        """Return the number of findings of some severities."""
        return sum(number for kind, number in self.counts.items() if FINDING_KINDS[kind].severity in severities)

    def rename(self, names: Mapping[int, ShownImage]) -> None:
        """Fill in the names of the images in the kept findings, by position."""
        for kind, worst in self._worst.items():
            self._worst[kind] = [(score, number, _named(finding, names)) for score, number, finding in worst]

    def positions(self) -> set[int]:
        """Return the positions of all images in the kept findings."""
        return {image.position for worst in self._worst.values() for _, _, finding in worst for image in finding.images}

    def as_json(self) -> dict[str, Any]:
        """Return the report for `--json`."""
        return {
            "looked_at": dict(self.looked_at),
            "counts": {kind: self.counts[kind] for kind in self.kinds()},
            "severity": {kind: FINDING_KINDS[kind].severity for kind in self.kinds()},
            "splits": dict(self.splits),
            "classes": self.classes,
            "notes": self.notes,
            "findings": [finding for kind in self.kinds() for finding in self.examples(kind)],
        }


def _named(finding: DatasetFinding, names: Mapping[int, ShownImage]) -> DatasetFinding:
    images = tuple(
        msgspec.structs.replace(names[image.position], boxes=image.boxes or names[image.position].boxes)
        if image.position in names
        else image
        for image in finding.images
    )
    return msgspec.structs.replace(finding, images=images)
