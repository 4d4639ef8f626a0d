"""Planted annotation errors that the model's second opinion finds, and what else it says.

The blood cells are drawn incompletely: what was left out on purpose are a few among many. Somebody looked at twenty
photos of theirs, drawn by chance, and at each place where a head that had not learned from the photo saw an object that
nobody had drawn: `undrawn.json` holds the boxes of the objects that are there, and of those that cannot be told.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from bench import objectlab
from bench.labelled import drawn, training_photos, with_nano
from bench.train import TITLES, root_of
from labelloop.labeling.geometry.overlap import box_iou
from ml_backend.policy import LearningPolicy
from ml_backend.training.datasets import read_labelled
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import LabelIssue, cross_validated_issues, rate_issues
from ml_backend.training.simulate import FeatureSource, decodable_images

SEEDS = {"bccd": 4, "raccoon": 10}
PHOTOS = 100
ERRORS = 0.1
SHOWN = LearningPolicy().opinion
"""Confidence from which a task is told, unless its learn.toml says otherwise."""

LOOKED_AT = Path(__file__).parent / "undrawn.json"
KINDS, MISPLACED = ("missing", "class"), ("spurious", "loose")

# Bins of the calibration error, and fewest remarks of which a figure is given.
BINS, ENOUGH_REMARKS = np.linspace(0, 1, 6), 20

# Right remarks; unclear ones are left out.
RIGHT = {"planted", "undrawn"}
SAME_IOU, EMPTY_IOU = 0.5, 0.1

What = Literal["planted", "undrawn", "unclear", "wrong"]
Error = tuple[str, np.ndarray, str]
"""(kind, box, true label)."""


@dataclass(frozen=True)
class Said:
    """A remark: its kind and confidence, what it turned out to be, and whether somebody looked at its photo."""

    kind: str
    confidence: float
    what: What
    looked_at: bool


Remarks = dict[tuple[str, str], list[Said]]
"""(data set, kind) -> the remarks of all draws of which it is known whether they are right."""


def run() -> str:
    """The figures, in Markdown."""
    return with_nano(_measured)


def _measured(album: FeatureSource) -> str:
    looked = json.loads(LOOKED_AT.read_text())
    undrawn = sum(len(one["undrawn"]) for one in looked.values())
    remarks: Remarks = defaultdict(list)
    head = f"planted | recall at precision .5 | at confidence | recall / precision from {SHOWN} on"
    return "\n".join(
        [
            f"{ERRORS:.0%} of the boxes of {PHOTOS} photos are spoilt: half are left out, half get another class",
            f"(of one class: all are left out). YOLOX-nano; {SEEDS['bccd']} draws of blood cells,",
            f"{SEEDS['raccoon']} of raccoons; photos of the training lists alone.",
            "",
            f"| what | counted | {head} | CPU s for {PHOTOS} photos |",
            "|---|---|---|---|---|---|---|",
            *_blood_cells(album, looked, remarks),
            *_raccoons(album, remarks),
            *_misplaced(album, remarks),
            "",
            *_hard(album, remarks),
            *calibration(remarks),
            "",
            *objectlab.rows(_one_draw_of_each(album), levels=album.backbone.levels),
            "",
            "Boxes around nothing and loose ones are planted in draws of their own, a twentieth of each: boxes of",
            "the size of another where nothing is drawn, and boxes moved by a third of their sides.",
            "",
            f"The blood cells are drawn incompletely. On {len(looked)} photos drawn by chance somebody looked at",
            f"every place where the model missed a box: {undrawn} undrawn cells are really there",
            "(`bench/undrawn.json`), so that on these photos it is known which remarks are right. Where every",
            "other omission counts as an error of the model, what was planted are a few among many.",
        ]
    )


def calibration(remarks: Mapping[tuple[str, str], Sequence[Said]]) -> Iterator[str]:
    """The expected calibration error (https://arxiv.org/abs/1706.04599) of the percentages, in Markdown.

    Args:
        remarks: (data set, kind) -> remarks.
    """
    yield "Calibration of the percentages: mean of what is stated / share that is right (number of remarks), in fifths"
    yield f"and of all; the error is the mean distance of both over the fifths, from {ENOUGH_REMARKS} remarks on:"
    yield ""
    yield "| data | kind | below .2 | .2 to .4 | .4 to .6 | .6 to .8 | from .8 | all | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    kinds = dict.fromkeys(kind for _, kind in remarks)
    groups = {key: list(some) for key, some in remarks.items()}
    groups |= {
        ("all four", kind): [one for key, some in remarks.items() if key[1] == kind for one in some] for kind in kinds
    }
    for (data, kind), some in groups.items():
        stated = np.array([one.confidence for one in some])
        right = np.array([one.what in RIGHT for one in some], bool)
        error, bins = calibration_error(stated, right)
        cells = [
            f"{np.mean(stated[rows]):.2f} / {np.mean(right[rows]):.2f} ({len(rows)})" if len(rows) else "-"
            for rows in bins
        ]
        shown = f"{error:.3f}" if len(some) >= ENOUGH_REMARKS else "-"
        yield f"| {data} | {kind} | {' | '.join(cells)} | {shown} |"


def calibration_error(stated: np.ndarray, right: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Expected calibration error over `BINS`, and the rows of each bin and of all."""
    bin_of = np.clip(np.digitize(stated, BINS) - 1, 0, len(BINS) - 2)
    rows = [np.flatnonzero(bin_of == index) for index in range(len(BINS) - 1)]
    gaps = [len(some) * abs(np.mean(stated[some]) - np.mean(right[some])) for some in rows if len(some)]
    return float(np.sum(gaps)) / max(len(stated), 1), [*rows, np.arange(len(stated))]


def _blood_cells(
    album: FeatureSource, looked: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], remarks: Remarks
) -> Iterator[str]:
    photos, examples = training_photos(album, "bccd")
    known = [index for index, one in enumerate(photos) if Path(one.name).name in looked]
    truth = {index: looked[Path(photos[index].name).name] for index in known}
    said, planted, seconds = [], dict.fromkeys((*KINDS, "looked at"), 0), []
    for seed in range(SEEDS["bccd"]):
        others = [
            index for index in np.random.default_rng(seed).permutation(len(examples)).tolist() if index not in known
        ]
        order = [*known, *others[: PHOTOS - len(known)]]
        some, errors, took = _opinions(
            album, [examples[index] for index in order], seed, [truth.get(index) for index in order]
        )
        said += some
        seconds.append(took)
        for place, each in enumerate(errors):
            for kind, _, _ in each:
                planted[kind] += 1
                planted["looked at"] += kind == "missing" and place < len(known)
    missing = [one for one in said if one.kind == "missing"]
    known_ones = [one for one in missing if one.looked_at]
    tells = [one for one in said if one.kind == "class"]
    remarks[TITLES["bccd"], "missing"] += [one for one in known_ones if one.what != "unclear"]
    remarks[TITLES["bccd"], "class"] += tells
    right: set[str] = {"planted"}
    rows = [
        ("missing", "undrawn cells are right", known_ones, planted["looked at"], right | {"undrawn"}, {"unclear"}),
        ("missing", "undrawn cells are left out", known_ones, planted["looked at"], right, {"unclear", "undrawn"}),
        ("missing", "undrawn cells are errors of the model", missing, planted["missing"], right, set[str]()),
        ("class", "", tells, planted["class"], right, set[str]()),
    ]
    for kind, counted, some, count, good, left_out in rows:
        figures = _figures(some, count, good, left_out)
        yield f"| blood cells, {kind} | {counted} | {figures} | {np.mean(seconds):.1f} |"


def _raccoons(album: FeatureSource, remarks: Remarks) -> Iterator[str]:
    _, examples = training_photos(album, "raccoon")
    said, planted, seconds = [], 0, []
    for seed in range(SEEDS["raccoon"]):
        order = [examples[index] for index in np.random.default_rng(seed).permutation(len(examples))[:PHOTOS]]
        some, errors, took = _opinions(album, order, seed, [None] * len(order))
        said += [one for one in some if one.kind == "missing"]
        planted += sum(map(len, errors))
        seconds.append(took)
    remarks[TITLES["raccoon"], "missing"] += said
    yield f"| raccoons, missing | | {_figures(said, planted, {'planted'}, set())} | {np.mean(seconds):.1f} |"


def _hard(album: FeatureSource, remarks: Remarks) -> Iterator[str]:
    """Two sets on which the model is weak: what is shown at the default, and how much of it is right."""
    rows = []
    for name in ("neu_det", "deep_pcb"):
        if root_of(name) is None:
            continue
        order = _hard_photos(album, name)
        for plant, kinds in ((spoil, KINDS), (misplace, MISPLACED)):
            said, errors, _ = _opinions(album, order, 0, [None] * len(order), plant=plant)
            planted = Counter(kind for each in errors for kind, _, _ in each)
            for kind in kinds:
                some = [one for one in said if one.kind == kind]
                remarks[TITLES[name], kind] += some
                shown = [one for one in some if one.confidence >= SHOWN]
                right = sum(one.what == "planted" for one in shown)
                rows.append(f"| {TITLES[name]}, {kind} | {planted[kind]} | {len(shown)} | {right} |")
    if rows:
        yield "On sets that the model knows badly nearly everything is withheld (planted errors alone count as right):"
        yield ""
        yield f"| what | planted | shown from {SHOWN} on | right |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""


def _hard_photos(album: FeatureSource, name: str) -> list[Example]:
    """Photos of a hard set that no bench judges AP50 on, drawn by chance."""
    root = root_of(name)
    assert root is not None
    labelled = read_labelled(root / "images", root / "annotations_voc")
    held = labelled.listed(root / "val.txt")[0]
    good, _ = decodable_images(album, [one for one in labelled.images if one.name not in held], lambda *_: None)
    return [album.example(good[index]) for index in np.random.default_rng(0).permutation(len(good))[:PHOTOS]]


def _one_draw_of_each(album: FeatureSource) -> dict[str, Callable[[], tuple[objectlab.Spoilt, objectlab.Spoilt]]]:
    """Data set -> a draw with left-out and wrongly named boxes, and the same one with misplaced boxes."""

    def draw(name: str) -> tuple[objectlab.Spoilt, objectlab.Spoilt]:
        easy = name in SEEDS
        some = drawn(training_photos(album, name)[1], 0, PHOTOS) if easy else _hard_photos(album, name)
        return spoil(some, 0), misplace(some, 0)

    return {TITLES[name]: partial(draw, name) for name in TITLES if root_of(name) is not None}


def _misplaced(album: FeatureSource, remarks: Remarks) -> Iterator[str]:
    """Two draws of blood cells with boxes around nothing, and loose ones."""
    _, examples = training_photos(album, "bccd")
    said, planted, seconds = [], dict.fromkeys(MISPLACED, 0), []
    for seed in range(SEEDS["bccd"] // 2):
        order = [examples[index] for index in np.random.default_rng(seed).permutation(len(examples))[:PHOTOS]]
        some, errors, took = _opinions(album, order, seed, [None] * len(order), plant=misplace)
        said += some
        seconds.append(took)
        for kind, _, _ in (error for each in errors for error in each):
            planted[kind] += 1
    for kind in MISPLACED:
        some = [one for one in said if one.kind == kind]
        remarks[TITLES["bccd"], kind] += some
        figures = _figures(some, planted[kind], {"planted"}, set())
        yield f"| blood cells, {kind} | | {figures} | {np.mean(seconds):.1f} |"


def misplace(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[list[Error]]]:
    """Examples with boxes around nothing and with loose ones, and those of each; of a loose one, where it was."""
    rng = np.random.default_rng(seed)
    made, errors = [], []
    for one in examples:
        boxes, labels, some = [box.copy() for box in one.drawn], list(one.labels), []
        size = np.array([one.candidates.fit.width, one.candidates.fit.height])
        for index, label in enumerate(one.labels):
            chance, sides = rng.uniform() / ERRORS, one.drawn[index, 2:] - one.drawn[index, :2]
            if chance < 0.5:
                corner = rng.uniform(0, np.maximum(size - sides, 1))
                box = np.concatenate([corner, corner + sides]).astype(np.float32)
                if box_iou(box[None], one.drawn).max() < EMPTY_IOU:
                    boxes.append(box)
                    labels.append(label)
                    some.append(("spurious", box, label))
            elif chance < 1:
                boxes[index][[0, 2]] += sides[0] * rng.choice([-1, 1]) / 3
                some.append(("loose", one.drawn[index], label))
        made.append(replace(one, drawn=np.array(boxes, np.float32).reshape(-1, 4), labels=tuple(labels)))
        errors.append(some)
    return made, errors


def _opinions(
    album: FeatureSource,
    order: Sequence[Example],
    seed: int,
    looked: Sequence[Mapping[str, Sequence[Sequence[float]]] | None],
    *,
    plant: Callable[[Sequence[Example], int], tuple[list[Example], list[list[Error]]]] | None = None,
) -> tuple[list[Said], list[list[Error]], float]:
    spoilt, errors = (plant or spoil)(order, seed)
    started, said = time.process_time(), []
    checks = dict(cross_validated_issues(spoilt, levels=album.backbone.levels))
    rated, _ = rate_issues(list(checks.values()))
    for index, remarks in zip(checks, rated, strict=True):
        said += _judged(remarks, errors[index], looked[index])
    return said, errors, time.process_time() - started


def spoil(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[list[Error]]]:
    """Examples with planted errors, and those of each."""
    rng = np.random.default_rng(seed)
    classes = sorted({label for one in examples for label in one.labels})
    made, errors = [], []
    for one in examples:
        kept, labels, some = [], [], []
        for index, label in enumerate(one.labels):
            chance = rng.uniform() / ERRORS
            if chance < 0.5 or (chance < 1 and len(classes) == 1):
                some.append(("missing", one.drawn[index], label))
                continue
            if chance < 1:
                some.append(("class", one.drawn[index], label))
            others = [name for name in classes if name != label]
            kept.append(index)
            labels.append(str(rng.choice(others)) if chance < 1 else label)
        made.append(replace(one, drawn=one.drawn[kept], labels=tuple(labels)))
        errors.append(some)
    return made, errors


def _judged(
    remarks: Sequence[LabelIssue], errors: Sequence[Error], looked: Mapping[str, Sequence[Sequence[float]]] | None
) -> Iterator[Said]:
    """What each remark turns out to be, the surest first: an error is found once, an undrawn object too."""
    left, undrawn = list(errors), list((looked or {}).get("undrawn", ()))
    for one in remarks:
        hit = next((error for error in left if _names(one, error)), None)
        there = next((box for box in undrawn if one.kind == "missing" and _same(one, np.array(box))), None)
        what: What = "wrong"
        if hit is not None:
            what, left = "planted", [error for error in left if error is not hit]
        elif there is not None:
            what = "undrawn"
            undrawn.remove(there)
        elif any(_same(one, np.array(box)) for box in (looked or {}).get("unclear", ())):
            what = "unclear"
        yield Said(one.kind, one.confidence, what, looked is not None)


def _names(remark: LabelIssue, error: Error) -> bool:
    """Whether a remark is about a planted error, and right about what is there."""
    kind, box, label = error
    return remark.kind == kind and remark.label == label and _same(remark, box)


def _same(remark: LabelIssue, box: np.ndarray) -> bool:
    return bool(box_iou(np.array([remark.box], np.float32), box.astype(np.float32)[None])[0, 0] >= SAME_IOU)


def _figures(said: Sequence[Said], planted: int, right: set[str], left_out: set[str]) -> str:
    """Planted; the most of it that is found where half of the remarks are right, and where; at the default."""
    ordered = sorted((one for one in said if one.what not in left_out), key=lambda one: -one.confidence)
    good = np.cumsum([one.what in right for one in ordered])
    found = np.cumsum([one.what == "planted" for one in ordered])
    enough = np.flatnonzero(good >= 0.5 * np.arange(1, len(good) + 1))
    recall, confidence = (found[enough[-1]] / planted, ordered[enough[-1]].confidence) if len(enough) else (0.0, 1.0)
    told = sum(one.confidence >= SHOWN for one in ordered)
    usual = f"{found[told - 1] / planted:.2f} / {good[told - 1] / told:.2f}" if told else "0 / -"
    return f"{planted} | **{recall:.2f}** | {confidence:.2f} | {usual}"
