"""Pre-labels that a simulated annotator corrects, against boxes drawn from scratch: by order and by what counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from bench.annotator import GOOD_IOU, Order, Photo, annotate
from bench.labelled import training_photos, with_nano
from ml_backend.learning.report.prelabel_edits import PrelabelEdits
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.simulate import FeatureSource

SEEDS = 3
PHOTOS = 100
BOUNDS = (0, 1, 5, 10, 20, 50, PHOTOS)
COSTS = (0.0, 1.0, 2.0, 3.0, 5.0)
"""What drawing a box is said to cost, in deletions; 0: the best F1 is sought."""

FIXED = 0.5
ORDERS: dict[Order, str] = {"chance": "in random order", "queue": "in the order of the queue"}


def run() -> str:
    """The figures, in Markdown."""
    return with_nano(_measured)


def _measured(album: FeatureSource) -> str:
    _, cells = training_photos(album, "bccd")
    lines = [
        f"One annotator corrects the pre-labels of {PHOTOS} photos of blood cells; means of {SEEDS} seeds; photos",
        "of the training list alone; YOLOX-nano, learning as in service. A pre-label is accepted where it covers",
        f"its object by {GOOD_IOU}, moved where it does by half. Many red cells of this set were never drawn:",
        "pre-labels on them count as deleted.",
    ]
    for order, words in ORDERS.items():
        lines += ["", f"## {PHOTOS} photos {words}", "", *_told(cells, album.backbone, order)]
    return "\n".join(lines)


def _told(examples: Sequence[Example], backbone: FrozenBackbone, order: Order) -> Iterator[str]:
    sessions = [
        list(annotate(examples, backbone, photos=PHOTOS, seed=seed, order=order, costs=COSTS)) for seed in range(SEEDS)
    ]
    yield "| photos | objects a photo | accepted | moved | relabelled | added | deleted | edits | edits an object |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for low, high in pairwise(BOUNDS):
        some = [one for session in sessions for one in session[low:high]]
        edits = _sum(some, 0.0)
        shares = (
            edits.submitted,
            edits.accepted,
            edits.moved,
            edits.relabelled,
            edits.added,
            edits.deleted,
            edits.total,
        )
        each = " | ".join(f"{share / len(some):.1f}" for share in shares)
        yield f"| {low + 1} to {high} | {each} | {edits.total / edits.submitted:.2f} |"
    everything = [one for session in sessions for one in session]
    yield ""
    yield (
        "| shown from | edits | moved | drawn | deleted | "
        + " | ".join(f"cost at {cost:g}" for cost in COSTS[1:])
        + " |"
    )
    yield "|---|---|---|---|---|" + "---|" * len(COSTS[1:])
    ways: list[tuple[str, PrelabelEdits]] = [
        ("the best F1" if not cost else f"`drawing_costs = {cost:g}`", _sum(everything, cost)) for cost in COSTS
    ]
    ways.append((f"{FIXED}, fixed", sum((one.edits(FIXED) for one in everything), PrelabelEdits())))
    ways.append(("nothing shown", sum((one.edits(2.0) for one in everything), PrelabelEdits())))
    for name, edits in ways:
        counts = (edits.total, edits.moved + edits.relabelled, edits.added, edits.deleted)
        bills = (edits.deleted + cost * edits.added for cost in COSTS[1:])
        yield f"| {name} | " + " | ".join(f"{value / SEEDS:.0f}" for value in (*counts, *bills)) + " |"
    yield ""
    yield (
        "Sums over the photos of one session. Cost: deletions, and boxes drawn where each counts as so many deletions; "
        "boxes that\nare moved are left out."
    )


def _sum(photos: Sequence[Photo], cost: float) -> PrelabelEdits:
    return sum((one.edits(one.cuts[cost]) for one in photos), PrelabelEdits())
