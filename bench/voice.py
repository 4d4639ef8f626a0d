"""A model as one more voice of the consensus: F1 against the truth with and without it, by number of annotators.

Simulated annotators draw the boxes of blood cells and raccoons with the errors of the real workers of half A: each has
the recall, the false boxes and the drawing offsets of one worker, and each object the difficulty of one object there.
The model is the product's own learning on frozen features, cross-fitted: it learns from the annotators' consensus
(never the truth) of the other folds, and predicts this one. The photos of half A itself are not public, only their
boxes: a model cannot be run on them.
"""

import collections
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bench.qc import DATA, drawn, load_boxes
from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.consensus.consensus import AnnotatorView, collect_evidence, consensus, fit_annotator_model
from labelloop.labeling.consensus.model_voice import VoiceRegions, fit_voice_model
from labelloop.labeling.consensus.voiced import heard_task
from labelloop.labeling.geometry.overlap import box_iou, match
from labelloop.labeling.geometry.shapes import Rectangle

ANNOTATORS = (1, 2, 3, 5)
FOLDS, SEEDS = 3, 3
# Lowest score of a prediction that is heard.
FLOOR = 0.05
SETS = ("bccd", "raccoon")
# Fewest boxes of a worker of half A whose errors are copied.
_FEWEST_BOXES = 20


@dataclass(frozen=True)
class Worker:
    """Errors of a real worker.

    Attributes:
        recall: Share of the gold boxes found.
        false_boxes: False boxes per image.
        offsets: Offsets of the four edges of found boxes, in sides, (n, 4).
    """

    recall: float
    false_boxes: float
    offsets: np.ndarray


def real_errors():
    """The workers of half A, and how often each of its objects was found."""
    items, gold = load_boxes()
    found, total, false, images = (collections.Counter() for _ in range(4))
    offsets, rates = collections.defaultdict(list), []
    for item, workers in items.items():
        hits = np.zeros(len(gold[item]))
        for who, regions in workers.items():
            boxes = np.array([region.geometry.bounds for region in regions]).reshape(-1, 4)
            pairs = match(box_iou(boxes, gold[item]), threshold=0.2)
            images[who] += 1
            total[who] += len(gold[item])
            found[who] += len(pairs)
            false[who] += len(boxes) - len(pairs)
            for box, truth in pairs:
                hits[truth] += 1
                sides = np.tile(gold[item][truth][2:] - gold[item][truth][:2], 2)
                offsets[who].append((boxes[box] - gold[item][truth]) / np.maximum(sides, 1))
        rates += ((hits + 0.5) / (len(workers) + 1)).tolist()
    workers = [Worker((found[who] + 1) / (total[who] + 2), false[who] / images[who], np.array(offsets[who]))
               for who in images if total[who] >= _FEWEST_BOXES and offsets[who]]  # fmt: skip
    return workers, np.array(rates)


def simulate(images, rng, count, workers, rates):
    """Image name -> one view per annotator."""
    names = sorted({label for image in images for label in image.labels})
    mean = float(np.mean([worker.recall for worker in workers]))
    crew = [workers[index] for index in rng.choice(len(workers), 3 * count)]
    views = {}
    for image in images:
        difficulty = _logit(rng.choice(rates, len(image.boxes)))
        size = np.max(np.array(image.boxes).reshape(-1, 4), axis=0)[2:] if image.boxes else np.array([400.0, 400.0])
        views[image.name] = []
        for who in rng.choice(len(crew), count, replace=False).tolist():
            worker, regions = crew[who], []
            likely = 1 / (1 + np.exp(-(difficulty + _logit(worker.recall) - _logit(mean))))
            for box, label, chance in zip(image.boxes, image.labels, likely, strict=True):
                if rng.random() >= chance:
                    continue
                answer = label if rng.random() < 0.97 else rng.choice(names)
                regions.append(_box(np.array(box), worker, rng, str(answer)))
            for _ in range(rng.poisson(worker.false_boxes)):
                sides = np.ptp(np.array(image.boxes[rng.integers(len(image.boxes))]).reshape(2, 2), axis=0)
                corner = rng.uniform(0, np.maximum(size - sides, 1))
                regions.append(_box(np.concatenate((corner, corner + sides)), worker, rng, str(rng.choice(names))))
            views[image.name].append(AnnotatorView(who + 1, tuple(regions)))
    return views


def _box(box, worker, rng, label):
    sides = np.tile(box[2:] - box[:2], 2)
    left, top, right, bottom = (box + worker.offsets[rng.integers(len(worker.offsets))] * sides).tolist()
    return drawn(Rectangle(left, top, max(right - left, 1.0), max(bottom - top, 1.0)), label)


def _logit(share):
    share = np.clip(share, 0.02, 0.98)
    return np.log(share / (1 - share))


class Album:
    """Features of the images of a data set, and the learning on them."""

    def __init__(self, name, model, folder):
        from ml_backend.inference.detector import embedded_model
        from ml_backend.training.backbone import open_backbone
        from ml_backend.training.datasets import read_labelled
        from ml_backend.training.feature_cache import FeatureCache
        from ml_backend.training.simulate import FeatureSource, decodable_images

        path = embedded_model() if model == "default" else DATA.parent / "models" / model
        self.backbone = open_backbone(path, folder=folder, threads=1)
        self.source = FeatureSource(self.backbone, FeatureCache(folder / "features", max_bytes=2**33))
        root = DATA / name
        images = [one for one in read_labelled(root / "images", root / "annotations_voc").images if one.boxes]
        self.images, _ = decodable_images(self.source, images, lambda *_: None)

    def predictions(self, labels, rng):
        """Image name -> regions of a model that learned from the labels of the other folds.

        Args:
            labels: Image name -> regions to learn from.
            rng: Draws the folds.
        """
        from ml_backend.training.examples import Example
        from ml_backend.training.model_selection import select_and_fit

        fold = rng.permutation(len(self.images)) % FOLDS
        result = {}
        for index in range(FOLDS):
            examples = []
            for image in (one for one, part in zip(self.images, fold, strict=True) if part != index):
                regions = labels[image.name]
                boxes = np.array([region.geometry.bounds for region in regions], np.float32).reshape(-1, 4)
                names = tuple(region.labels[0] for region in regions)
                examples.append(Example(self.source.extract(image), boxes, names))
            head = select_and_fit(examples, levels=self.backbone.levels).head
            for image in (one for one, part in zip(self.images, fold, strict=True) if part == index):
                found = head.detect(self.source.extract(image), floor=FLOOR)
                result[image.name] = [
                    msgspec.structs.replace(
                        drawn(Rectangle(*corners[:2], corners[2] - corners[0], corners[3] - corners[1]),
                              head.names[int(name)]),
                        score=float(score),
                    )
                    for corners, score, name in zip(found.boxes.tolist(), found.scores, found.classes, strict=True)
                ]  # fmt: skip
        return result


def f1(images, regions_of, least=0.5):
    """Micro-F1 against the truth at an IoU, labels equal."""
    hits = count = truths = 0
    for image in images:
        regions = regions_of(image)
        for label in set(image.labels) | {region.labels[0] for region in regions}:
            mine = np.array([one.geometry.bounds for one in regions if one.labels[0] == label]).reshape(-1, 4)
            theirs = np.array([box for box, name in zip(image.boxes, image.labels, strict=True) if name == label])
            hits += len(match(box_iou(mine, theirs.reshape(-1, 4)), threshold=least))
            count, truths = count + len(mine), truths + len(theirs)
    return 2 * hits / (count + truths)


def ablation(album, count, seed, workers, rates):
    """F1 of one annotator, of the consensus without and with the voice, and of the model alone at its best score."""
    rng = np.random.default_rng(seed)
    views = {name: sorted(each, key=lambda view: view.annotator)
             for name, each in simulate(album.images, rng, count, workers, rates).items()}  # fmt: skip
    clusters = {name: cluster_regions([view.regions for view in each]) for name, each in views.items()}
    model = fit_annotator_model(collect_evidence(each) for each in views.values())
    plain = {name: consensus(each, model, clusters=clusters[name]) for name, each in views.items()}
    labels = {name: [one.region for one in agreed.regions] for name, agreed in plain.items()}
    if count == 1:  # the only annotation of a task is taken whole
        labels = {name: list(each[0].regions) for name, each in views.items()}
    predictions = album.predictions(labels, rng)
    voices = {name: VoiceRegions.heard("learned", regions) for name, regions in predictions.items()}
    heard = [heard_task(views[name], clusters[name], voices[name]) for name in views]
    voice = fit_voice_model(heard, model.detection, model.labels)
    with_voice = msgspec.structs.replace(model, voice=voice)
    voiced = {name: consensus(each, with_voice, clusters=clusters[name], voice=voices[name])
              for name, each in views.items()}  # fmt: skip
    return {
        "single": f1(album.images, lambda image: views[image.name][0].regions),
        "without": f1(album.images, lambda image: labels[image.name]),
        "with": f1(album.images, lambda image: [one.region for one in voiced[image.name].regions]),
        "with, marked": f1(
            album.images, lambda image: [one.region for one in voiced[image.name].regions if one.sources]
        ),
        "model": max(
            f1(album.images, lambda image: [one for one in voices[image.name].regions if one.score >= least])  # noqa: B023
            for least in (0.2, 0.3, 0.4, 0.5, 0.6)
        ),
        "voice": None if voice is None else (voice.recall(), voice.false_regions, voice.slope),
    }


def measure(model="yolox_nano.onnx", seeds=SEEDS, sets=SETS):
    """One row per data set and number of annotators."""
    workers, rates = real_errors()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("LABELLOOP_VOICE_FEATURES", temporary))
        for name in sets:
            album = Album(name, model, folder / f"{name}-{model}")
            for count in ANNOTATORS:
                started = time.process_time()
                runs = [ablation(album, count, seed, workers, rates) for seed in range(seeds)]
                row = {"set": name, "annotators": count, "seconds": time.process_time() - started} | {
                    key: [run[key] for run in runs] for key in runs[0]
                }
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def run():
    """The figures, in Markdown."""
    if not DATA.is_dir():
        return "Not measured: the data sets are not on this machine."
    return "\n".join(table(measure()))


def table(rows):
    """Means over the seeds."""
    yield (f"Micro-F1 at IoU 0.5 with the right label, against the truth; means of {SEEDS} seeds. Annotators with the")
    yield "errors of the workers of half A; YOLOX-nano's features, a head learned from the annotators' consensus of"
    yield f"the other {FOLDS - 1} of {FOLDS} folds. Code: `bench/voice.py`."
    yield ""
    yield (
        "| photos | annotators a task | one annotator | consensus | with the voice | gain | only objects that an"
        " annotator marked | the model alone, best threshold |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        single, without, heard, marked, alone = (
            float(np.mean(row[key])) for key in ("single", "without", "with", "with, marked", "model")
        )
        yield (
            f"| {row['set']} | {row['annotators']} | {single:.3f} | {without:.3f} | **{heard:.3f}** "
            f"| {heard - without:+.3f} | {marked:.3f} | {alone:.3f} |"
        )


if __name__ == "__main__":
    measure(*sys.argv[1:2])
