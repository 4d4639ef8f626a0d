"""Learning by refitting the last layer: AP50 by labelled photos, active learning against random, time of a fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from ml_backend.backbone import open_backbone
from ml_backend.datasets import read_labelled
from ml_backend.detector import embedded_model
from ml_backend.learn import learn
from ml_backend.sights import Sights
from ml_backend.simulate import Album

SHARED = Path(__file__).parents[2] / "shared"
SEEDS = 5
NANO = SHARED / "models" / "yolox_nano.onnx"

# (what, data set, model, sizes, strategies, targets by size)
CASES = (
    ("YOLOX-nano, blood cells", "bccd", str(NANO), (1, 5, 10, 20), "random", {1: 0.25, 5: 0.40, 10: 0.55, 20: 0.65}),
    ("YOLOX-nano, raccoons", "raccoon", str(NANO), (1, 5, 10, 20), "random", {1: 0.72}),
    ("embedded, raccoons", "raccoon", "default", (1, 5, 10, 20), "random", {1: 0.74, 5: 0.82, 10: 0.86, 20: 0.86}),
    ("embedded, blood cells", "bccd", "default", (5, 10, 20), "random", {5: 0.33, 10: 0.44, 20: 0.52}),
)
ACTIVE = (2, 5, 8, 10, 13)

ABLATION = """## What consent and the prototype's share are worth

On three folds of the *training* lists (blood cells; raccoons beside the test), paired draws, boxes judged as in
service but without calibration; ± is the standard error of the difference. The test photos took no part.

How sure a box is, when it is as sure as all candidates that see the object say together (`consent.py`) instead of as
sure as the surest of them, and suppression is at .4 instead of .45:

| on | photos | draws | the surest alone | together | |
|---|---|---|---|---|---|
| blood cells, YOLOX-nano | 20 | 9 | .688 | **.724** | +.036 ± .003 |
| blood cells, embedded | 5 | 6 | .463 | **.510** | +.046 ± .005 |
| raccoons, embedded | 1 | 15 | .833 | **.872** | +.039 ± .006 |
| raccoons, YOLOX-nano | 3 | 12 | .834 | **.874** | +.039 ± .009 |

The same four, against what labelloop does, in thousandths:

| instead | blood cells, nano, 20 | embedded, 5 | raccoons, embedded, 1 | nano, 3 |
|---|---|---|---|---|
| powers .35 of the scores instead of their roots | -1 | +4 | +4 | +3 |
| what all say, and nothing of a box's own score | 0 | +4 | +5 | +3 |
| those that overlap by .75 / .8 | -1 / -4 | 0 / -3 | +3 / +4 | +2 / +1 |
| candidates from .0012 / .01 on instead of .005 | 0 / 0 | - | +4 / -7 | +2 / -4 |
| suppression at .3 / .35 / .45 | -2 / 0 / -2 | - | +5 / +1 / -4 | -12 / -1 / -6 |

Worse, on blood cells with the nano at 20 photos (.688 without anything; nine draws): the mean of the scores instead
of their sum .631, the mean of their log-odds .637, half of either and half the box's own .685 to .687; soft
suppression .685 to .695; sums before suppression, which then keeps another box, .691 to .707; overlaps from .5 on
.696.

With it, the share of the prototype in the rows (blood cells with refitted boxes):

| on | photos | draws | rows a level | .3 prototype | one row | **.4 prototype** | prototype |
|---|---|---|---|---|---|---|---|
| raccoons, embedded | 5 | 12 | .882 | .896 | .912 | **.928** | .849 |
| raccoons, YOLOX-nano | 5 | 12 | .892 | **.921** | .888 | .920 | .908 |
| raccoons, embedded | 15 | 9 | .915 | .931 | .939 | **.950** | .866 |
| raccoons, YOLOX-nano | 15 | 9 | .886 | .909 | .898 | **.924** | .917 |
| blood cells, YOLOX-nano | 5 | 6 | .575 | **.579** | .562 | .555 | .353 |
| blood cells, embedded | 5 | 6 | .510 | **.524** | .501 | .514 | .307 |
| blood cells, YOLOX-nano | 20 | 6 | **.721** | .709 | .688 | .641 | .366 |
| blood cells, embedded | 20 | 6 | **.623** | .619 | .616 | .599 | .344 |

("one row": for all levels; ".4 prototype": of it and the prototype.) On a single photo, half a prototype in one row
for all levels: raccoons .855 -> .882 (embedded) and .840 -> .882 (YOLOX-nano, 21 draws each), white cells alone .461
-> .479 and .442 -> .443, platelets alone .248 -> .235 (YOLOX-nano; 12 draws each; with .3: .243).

By `learn` as in service, with all it chooses, before the prototype's share and with it: raccoons, embedded, 2 / 5 /
10 photos .877 / .870 / .901 -> .909 / .920 / .926; YOLOX-nano, 1 / 2 / 5 .850 / .854 / .894 -> .886 / .886 / .927;
blood cells, YOLOX-nano, 5 / 10 .546 / .633 -> .552 / .637; embedded, 5 .500 -> .513 (6 to 12 draws). Two raccoons do
not tell how to learn: where cross-validation chose by chance, AP50 was .73 to .76 instead of .9; hence the margin
grows as boxes get few.

What did not pay, at 20 photos of blood cells with the YOLOX-nano (.711, six draws): the mean of the features around
each cell beside its own .719 ± .006 for two and a half times the fit, their maximum .714, features of the levels next
to it .698, the mean of the features over each candidate's own box .693, products of the sixteen main components .718
± .004 for twice the fit. Penalty three times smaller or larger .707 / .708 (.715 without), positives from an overlap
of .5 or .7 on .716 / .714, negatives below .3 / .4 / .6 .712 / .716 / .705, twice the hard negatives .717, three
times the easy ones .716. Boxes taught by candidates from .65 on instead of .55 gained .006 ± .004 on one model and
lost .005 ± .008 at five photos. On all 137 photos of a fold the same head reached .707 where 20 gave .688 (before
consent): what is left is in the features and in cells that nobody drew, not in more labels.

## What each part was worth before that

Measured once, while the settings were chosen, with the YOLOX-nano on three folds of the *training* list of the blood
cells; the test photos took no part. Mean AP50, one draw a fold; differences below .01 are chance.

| change, one on top of the other | 5 photos | 10 | 20 |
|---|---|---|---|
| one row for all levels, boxes moved by all candidates that cover an object by .4 | .495 | .584 | .644 |
| only those that cover it by .55 teach how boxes move | .538 | .599 | .666 |
| a candidate counts by the mean of its overlap before and after it is moved, the better the more | .550 | .609 | .682 |
| a row of its own for each level of the head | .571 | .613 | .700 |

Then, with cross-validation and calibration as in service, six draws (two a fold):

| change | 20 photos of blood cells, YOLOX-nano | 5 / 15 raccoons, embedded |
|---|---|---|
| of the boxes on an object the surest is shown | .653 | .804 / .874 |
| the mean of all that overlap it by half, each as heavy as it is sure | .666 | .815 / .885 |

The same on boxes that were not refitted, on one fold: raccoons with the embedded model .672 -> .701 (one photo, seven
draws) and .927 -> .949 (eight photos, five draws), with the YOLOX-nano .774 -> .767 (one photo, seven draws). As a
choice of cross-validation it did worse (.656) than always. With an overlap of a third it is no better; a suppression at
.35, .4 or .5 with it gained on some folds and lost on others.

Not worth it, at 20 photos: rows of levels that lean on one that they share (.646 against .654), one row for all levels
(.624), the prototype as what rows lean on (.647), a second class on the same candidate (+.005, and two labels on one
object). Where AP50 is lost: if an overlap of .3 counted as right it would be .685 instead of .643, so most of it is
recognition, of platelets above all (.52; red cells .70, white cells .71).

One photo of a raccoon, 36 draws on three folds, boxes as they are:

| trainer | embedded | YOLOX-nano |
|---|---|---|
| a row a level | .781 ± .084 | .788 ± .108 |
| **one row for all levels** | .812 ± .103 | .771 ± .122 |
| prototype | .732 ± .065 | .866 ± .056 |

A seed fails where the raccoon is small on its one photo: most of the others fill theirs, and features of one size tell
little of another. Where it covers about half of the photo or more AP50 is .82 to .95, where a quarter or less .46 to
.74; not to tell the trainer how large boxes are makes it worse (.828 -> .758, five draws).

Copies of labelled photos as further examples, always in the fold of their photo, on the same folds, paired draws:

| copies | on | photos | draws | without | with |
|---|---|---|---|---|---|
| close-ups in which a small object fills four fifths, mirrored too | raccoons, embedded | 1 | 36 | .804 | .830 |
| the same, of these the six draws that have such an object | raccoons, embedded | 1 | 6 | .703 | .859 |
| the same | raccoons, YOLOX-nano | 1 | 24 | .802 | .801 |
| the same, draws that have such an object | raccoons, embedded | 2 | 11 | .731 | .789 |
| the same | raccoons, embedded | 5 | 9 | .842 | .851 |
| the same | white cells alone, YOLOX-nano | 1 / 3 | 12 | .187 / .475 | .109 / .258 |
| the same | white cells alone, embedded | 1 / 3 | 12 | .223 / .341 | .107 / .243 |
| the same | platelets alone, YOLOX-nano | 1 / 3 | 12 | .121 / .318 | .084 / .265 |
| mirrored, nothing else | blood cells, YOLOX-nano | 10 | 9 | .636 | .650 |
| the same | blood cells, YOLOX-nano | 20 | 18 | .692 | .693 |
| the same | raccoons, embedded | 1 | 12 | .762 | .773 |
| the same | raccoons, embedded | 3 / 10 | 12 | .818 / .885 | .828 / .879 |

So close-ups are what one small raccoon needs, and what ruins a project whose photos are taken from one distance: white
cells lose half. One photo does not tell which of the two it belongs to, so nothing is copied (from two photos on,
cross-validation might tell: not tried). A photo shrunk into a
larger one taught nothing that its mirror image did not (.782 against .773, twelve draws). Mirrored copies gain about as
much as chance does, for a second run of the backbone on each photo and a quarter more time for the fit.

Alone, against the first row with two draws a fold (.471 / .556 / .607): no mining but one round .453 / .481 / .469;
one candidate an object instead of all that cover it .417 / .465 / .532; penalty ten times larger .449 / .526 / .573,
three times smaller .460 / .541 / .603; suppression at .35 or .55 instead of .45 .470 / .557 / .609, .465 / .544 / .597.

### What makes a set of labelled photos good

The AP50 of 360 sets of 6 to 13 photos (the same folds, a fit and a verdict each; half of the sets rich in platelets)
was explained by what was drawn in them, class by class:

- It grows with the logarithm of the objects of the class: .114 (standard error .009) x ln(1 + platelets), .053 (.003) x
  ln(1 + red cells). The number of photos beside that tells nothing (-.009 +- .015 for platelets).
- Objects that the photo's edge cuts teach less. What explains best is to count such a one as 1/4 (platelets, white
  cells) or not at all (red cells): R2 .342 instead of .308 for white cells, of which .28 are cut, .415 / .409 for
  platelets, .558 / .547 for red cells. So each counts .3.
- Objects that look like many others teach more (mean cosine to all of their class, t = 6.2 / 3.8 / 5.7 for platelets /
  red / white cells), and so does what is near to every object there is; but see below.

A head of 5 / 8 / 12 photos knows where platelets are (rank correlation of expected and true number .50 / .55 / .60), of
red cells little (.09 / .10 / .08), of white cells nothing (.09 / .10 / .13): there is one on every photo, and where it
expects two it errs. So what it expects counts by how much the number of a class differs from photo to photo (variance /
mean over the labelled photos, shrunk to 1 by one photo).

Better guesses of the number were looked for and not found (platelets, 5 / 8 photos): linear discriminants with the
covariance of all photos .49 / .50, the mean of the halves' heads and the whole .45 / .51, both together .52 / .53.

### Which of them to choose

From the second photo on, one at a time, on the three folds, paired with two draws by chance; +- is the standard error
of the difference:

| how the next photo is chosen | trajectories | 8 photos | 10 | 13 | boxes at 10 |
|---|---|---|---|---|---|
| by chance | 40 | .585 | .614 | .650 | 137 |
| expected objects, by how much a class varies | 14 | +.034 +- .017 | +.023 +- .009 | +.013 +- .013 | 139 |
| **the same, cut ones count .3 (what labelloop does)** | 16 | +.040 +- .013 | +.038 +- .009 | +.032 +- .008 | 137 |

By what the labelled sets of 12 trajectories are worth in the formula above (with the nearness of objects in it; much
less noise than AP50 itself), at 10 photos, against chance:

| how the next photo is chosen | gain | standard error | trajectories |
|---|---|---|---|
| expected objects as before, from the 1st / 2nd / 3rd photo on | +.007 / +.014 / -.003 | .009 / .006 / .007 | 12 |
| by how much a class varies, from the 2nd | +.028 | .004 | 5 |
| expected numbers, mean and spread as drawn, from the 2nd / 5th | +.024 / +.021 | .005 / .004 | 12 / 6 |
| what brings likely objects nearest to a labelled one, from the 2nd / 5th | +.014 / +.019 | .007 / .005 | 6 |
| the same, root of the scores / all objects of a photo summed | +.026 / +.028 | .004 / .007 | 12 / 6 |
| nearness and number together | +.024 | .005 | 6 |

So nearness in the embedding is no better than counting, and needs the features of every photo: counting it is.

One class alone, from the second photo on (two draws each): platelets at 5 / 8 / 10 photos .507 / .565 / .571 where most
are expected, .334 / .379 / .446 by chance, .304 / .310 / .309 where fewest are. So one class is
no reason for chance.

Raccoons, of which a photo shows about one, were harmed by asking for most (embedded, four draws on the test photos:
.836 / .842 / .931 at 3 / 5 / 10 photos, .924 / .927 / .922 by chance): that asks for what is like the labelled ones. So
chance decides where no class was seen to vary by .7: with 9 of 10 sets of raccoons, with one in six of two photos of
blood cells and one in twenty of eight. Six draws as it is: .877 / .889 / .934, and .929 / .924 / .925 by chance; the
third photo was drawn by chance in all of both, so that is what luck does.

### Before, from five photos on, three at a time

Active learning, the same folds, four draws each (12 trajectories), two photos drawn by chance first, three chosen at a
time; AP50 at 5 / 8 / 10 / 13 photos (boxes at 13):

| how the next photos are chosen | 5 | 8 | 10 | 13 | boxes |
|---|---|---|---|---|---|
| by chance | .506 | .577 | .609 | .629 | 179 |
| k-center over the photos' embeddings | .448 | .525 | .558 | .586 | 181 |
| facility location over them (typical first) | .507 | .563 | .584 | .626 | 181 |
| by what the head expects, all scores summed | .479 | .539 | .552 | .596 | 177 |
| the same among six times as many photos drawn by chance | .481 | .552 | .587 | .617 | 180 |
| by the true number of objects (no one can know it) | .529 | .630 | .635 | .652 | 232 |

After five photos by chance (paired, 12 trajectories; 8 / 10 / 13 photos):

| how the next photos are chosen | 8 | 10 | 13 | boxes |
|---|---|---|---|---|
| by chance | .567 | .593 | .613 | 175 |
| sure objects of seldom drawn classes | .573 | .609 | .634 | 179 |
| the same, classes drawn most not counted at all | .588 | .600 | .612 | 176 |
| by the true number of objects | .595 | .641 | .665 | 218 |

What the next six photos are worth (the sum over classes of ln(1 + objects / (1 + drawn)), chance = 1; mean of six
draws, after 5 / 8 photos), and the rank correlation of guess and truth:

| guess | worth | correlation |
|---|---|---|
| true number of objects | 1.88 / 1.90 | 1 |
| sure scores from .5 on | 1.22 / 1.20 | .14 / .15 |
| from .3 on | 1.14 / 1.37 | .26 / .33 |
| from .2 on | 1.17 / 1.43 | .36 / .39 |
| from .1 on | 1.20 / 1.30 | .36 / .39 |
| all scores | 1.17 / 1.23 | .31 / .32 |
| objects that the backbone itself sees | .80 / .83 | -.19 / -.18 |

So a head of five photos sees a quarter of what there is to gain. Of platelets it guesses the number with a correlation
of .44, of red cells, which lie over each other, with .12.

Entropy with k-center inside the batch (what labelloop did before) lost to chance at each size (.480 / .545 / .584 /
.618, three trajectories): both ask for what is unlike the rest, which the head will hardly meet again."""


def run() -> str:
    """The figures, in Markdown."""
    if not NANO.is_file():
        return "Not measured: the data sets are not on this machine."
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows = []
        for what, data, model, sizes, strategies, targets in CASES:
            for size, runs in _by(_simulate(home, data, model, sizes, strategies)).items():
                rows.append(_row(what, size[1], runs, targets))
        active = _by(_simulate(home, "bccd", str(NANO), ACTIVE, "random,active"))
    return "\n".join(
        [
            f"Means of {SEEDS} seeds by `labelloop learn simulate`, each on two thirds of the photos beside the test.",
            "Test photos: `val.txt` of the blood cells; every fourth raccoon, by name. AP50 by pycocotools.",
            f"Load average when it ended: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "",
            "| what | photos labelled | boxes | AP50 | over seeds | at least | fit, s on the clock |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Active learning against random order: YOLOX-nano, blood cells",
            "",
            "| photos | random | boxes | active | boxes |",
            "|---|---|---|---|---|",
            *(_pair(active, size) for size in ACTIVE),
            "",
            "Both begin with the same photos; the first two are drawn by chance.",
            "",
            _saved(active),
            "",
            "## Time of a fit",
            "",
            *_times(),
            "",
            ABLATION,
        ]
    )


def _simulate(home: Path, data: str, model: str, sizes, strategies: str, seeds: int = SEEDS) -> list[dict]:
    root = SHARED / "data" / data
    listed = root / "val.txt"
    if not listed.is_file():
        listed = home / f"{data}.txt"
        stems = sorted(photo.stem for photo in (root / "images").iterdir())
        listed.write_text("\n".join(stems[::4]))
    out = home / "out.json"
    words = [sys.executable, "-m", "labelloop.cli", "learn", "simulate", "--images", str(root / "images")]
    words += ["--annotations", str(root / "annotations_voc"), "--test-list", str(listed), "--model", model]
    words += ["--labelled", ",".join(map(str, sizes)), "--strategy", strategies, "--seeds", str(seeds)]
    subprocess.run([*words, "--json", str(out)], check=True, env=os.environ | {"LABELLOOP_HOME": str(home)})
    return json.loads(out.read_text())["runs"]


def _times() -> list[str]:
    """CPU seconds of a fit with its cross-validation and calibration, one thread: the machine's load matters little."""
    rows = ["| model | photos labelled | CPU s, median of three |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        root = SHARED / "data" / "bccd"
        for name, path in (("YOLOX-nano", NANO), ("embedded", embedded_model())):
            backbone = open_backbone(path, folder=Path(folder), threads=1)
            album = Album(backbone, Sights(Path(folder) / "sights", max_bytes=2**32))
            photos = read_labelled(root / "images", root / "annotations_voc").photos[:100]
            examples = [album.example(photo) for photo in photos]
            for size in (20, 100):
                spent = []
                for _ in range(3):
                    started = time.process_time()
                    learn(examples[:size], levels=backbone.levels)
                    spent.append(time.process_time() - started)
                rows.append(f"| {name} | {size} | {sorted(spent)[1]:.1f} |")
    return rows


def _by(runs: list[dict]) -> dict[tuple[str, int], list[dict]]:
    found = defaultdict(list)
    for one in runs:
        found[one["strategy"], one["labelled"]].append(one)
    return found


def _mean(runs: list[dict], key: str) -> float:
    return float(np.mean([one[key] for one in runs]))


def _row(what: str, size: int, runs: list[dict], targets: dict[int, float]) -> str:
    spread = np.std([one["ap50"] for one in runs])
    target = f"{targets[size]:.2f}" if size in targets else "-"
    return (
        f"| {what} | {size} | {_mean(runs, 'boxes'):.0f} | **{_mean(runs, 'ap50'):.3f}** | ± {spread:.3f} | {target} "
        f"| {_mean(runs, 'seconds'):.1f} |"
    )


def _pair(runs, size: int) -> str:
    cells = [
        f"{_mean(runs[way, size], 'ap50'):.3f} | {_mean(runs[way, size], 'boxes'):.0f}" for way in ("random", "active")
    ]
    return f"| {size} | {' | '.join(cells)} |"


def _saved(runs) -> str:
    """Photos and boxes that active learning needs for random's AP50 at the last size, between sizes by a line."""
    goal = _mean(runs["random", ACTIVE[-1]], "ap50")
    curve = [_mean(runs["active", size], "ap50") for size in ACTIVE]
    reached = next((index for index, value in enumerate(curve) if value >= goal), None)
    if reached is None:
        return f"Active learning does not reach random's {goal:.3f} at {ACTIVE[-1]} photos within as many."
    before = max(reached - 1, 0)
    share = 1.0 if reached == before else (goal - curve[before]) / (curve[reached] - curve[before])
    photos = ACTIVE[before] + share * (ACTIVE[reached] - ACTIVE[before])
    boxes = [_mean(runs["active", ACTIVE[index]], "boxes") for index in (before, reached)]
    drawn = boxes[0] + share * (boxes[1] - boxes[0])
    usual = _mean(runs["random", ACTIVE[-1]], "boxes")
    return (
        f"Random's AP50 at {ACTIVE[-1]} photos is {goal:.3f}; active learning is there with {photos:.1f} photos "
        f"({1 - photos / ACTIVE[-1]:.0%} fewer) and {drawn:.0f} boxes ({1 - drawn / usual:.0%} fewer)."
    )
