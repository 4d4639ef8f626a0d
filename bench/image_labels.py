"""Labels of whole images: accuracy by labels against scikit-learn, active learning against random, planted errors.

The data sets are those of `bench/sources.toml`, read out of git mirrors in the folder LABELLOOP_MIRRORS, each at
`<owner>+<name>/repo`. Features are those of the embedded model. They are cached below LABELLOOP_HOME (5 minutes the
first time). cleanlab is compared where it is installed (`pip install cleanlab`, not needed otherwise).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import tarfile
import time
import tomllib
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.parts import Parts
from labelloop.service.media import load_image
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import embedded_model
from ml_backend.training.backbone import open_backbone
from ml_backend.training.confident_learning import tag_wrongness, wrongness
from ml_backend.training.label_model import fit_label_model
from ml_backend.training.labelled_images import ImageWithLabels, read_labelled_folder
from ml_backend.training.simulate_labels import label_score, simulate_labels

SOURCES = Path(__file__).parent / "sources.toml"
# Images of a class (of a set of several tags: images) that are read, in the order of a hash.
PER_CLASS, TAGGED = 150, 1200
PER_CLASS_SIZES = (1, 5, 10, 20)
SEEDS = int(os.environ.get("LABELLOOP_BENCH_SEEDS", "5"))
# Labelled images of the curves of active learning.
CURVE = (5, 8, 12, 17, 24, 34, 48, 68, 96)
TEST_IMAGES = 300
WRONG_SHARE, REVIEWED = 0.2, 300


@dataclass(frozen=True)
class Data:
    """A data set with the features of its images."""

    name: str
    kind: str
    classes: tuple[str, ...]
    features: np.ndarray
    truth: np.ndarray


def run() -> str:
    """Measure everything on every data set that is there, and give the tables."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("ignore", FutureWarning)
    sets, missing = [], []
    for source in tomllib.loads(SOURCES.read_text())["source"]:
        if "image_labels" in source["benches"]:
            data = _read(source)
            sets += [data] if data else []
            missing += [] if data else [source["repo"]]
    parts = Parts("image_labels", ("ml_backend/training", "ml_backend/models"))
    tables = [table(sets, parts) for table in (_sets, _accuracy, _active, _errors, _costs)] if sets else []
    if missing:
        tables.append(f"Not there (set LABELLOOP_MIRRORS to a folder of git mirrors): {', '.join(missing)}.")
    return "\n\n".join([*tables, *([parts.remark] if parts.remark else [])])


def _read(source: dict[str, str]) -> Data | None:
    git = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / source["repo"].replace("/", "+") / "repo"
    if not git.is_dir():
        return None
    root = ["git", f"--git-dir={git}"]
    listing = subprocess.run(
        [*root, "ls-tree", "-r", source["commit"], source["path"]], capture_output=True, check=False
    )
    if hashlib.sha256(listing.stdout).hexdigest() != source["sha256"]:
        return None
    home = Path(os.environ.get("LABELLOOP_HOME", ".labelloop")) / "bench" / "image_labels"
    backbone = open_backbone(embedded_model(), folder=home, threads=1)
    cached = home / f"{source['name']}-{backbone.version}-{source['sha256'][:12]}-{PER_CLASS}-{TAGGED}.npz"
    if not cached.is_file():
        folder = home / source["name"]
        archive = subprocess.run([*root, "archive", source["commit"], source["path"]], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        images = _chosen(folder / source["path"], source)
        rows, labels = [], []
        for image in images:
            spec = backbone.spec
            loaded = load_image(image.path.read_bytes(), max_side=max(spec.width, spec.height), name=image.name)
            prepared = prepare(loaded.pixels, spec, size=(loaded.width, loaded.height))
            rows.append(backbone.extract_features([prepared])[0].image_features)
            labels.append("|".join(image.labels))
        np.savez(cached, features=np.array(rows, np.float32), labels=np.array(labels))
    with np.load(cached) as arrays:
        features, labels = arrays["features"], [set(text.split("|")) - {""} for text in arrays["labels"].tolist()]
    classes = tuple(sorted(set().union(*labels)))
    truth = np.array([[name in given for name in classes] for given in labels])
    kind = "single" if all(len(given) == 1 for given in labels) else "multiple"
    return Data(source["name"], kind, classes, features, truth)


def _chosen(folder: Path, source: dict[str, str]) -> list[ImageWithLabels]:
    """The images that are read: the first of each class by a hash of their names."""
    from labelloop.service.settings import Settings

    if source.get("labels") == "file name":  # crazing_12.jpg
        files = sorted(folder.rglob("*.jpg"))
        images = [ImageWithLabels(file, file.name, (file.stem.rpartition("_")[0],)) for file in files]
    else:
        table = folder / source["labels"] if source.get("labels") else None
        images = list(read_labelled_folder(folder, table, settings=Settings()).images)
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    chosen = []
    for image in sorted(images, key=lambda image: hashlib.sha256(image.name.encode()).digest()):
        counts[image.labels] += 1
        if source.get("tags") or counts[image.labels] <= PER_CLASS:
            chosen.append(image)
    return chosen[:TAGGED] if source.get("tags") else chosen


def _sets(sets: list[Data], _parts: Parts) -> str:
    rows = ["| data set | images | labels | features |", "|---|---|---|---|"]
    for data in sets:
        what = "classes" if data.kind == "single" else "tags"
        rows.append(f"| {data.name} | {len(data.truth)} | {len(data.classes)} {what} | {data.features.shape[1]} |")
    return "## Data\n\n" + "\n".join(rows)


def _accuracy(sets: list[Data], parts: Parts) -> str:
    """Accuracy (macro-F1 of tags) on images that nothing was fitted on, by labelled images of a class."""
    rows = ["| data set | model | " + " | ".join(f"{size} a class" for size in PER_CLASS_SIZES) + " |",
            "|---|---|" + "---|" * len(PER_CLASS_SIZES)]  # fmt: skip
    for data in sets:
        rows += parts.rows(f"accuracy on {data.name}", lambda data=data: _accuracy_of(data))
    return "## Accuracy by labelled images\n\n" + "\n".join(rows)


def _accuracy_of(data: Data) -> list[str]:
    rows = []
    results: dict[tuple[str, int], list[float]] = defaultdict(list)
    for size in PER_CLASS_SIZES:
        for seed in range(2 * SEEDS if size == 1 else SEEDS):
            train, test = _split(data, size, seed)
            for name, score in _models(data, train, test).items():
                results[name, size].append(score)
    for name in dict.fromkeys(name for name, _ in results):
        cells = " | ".join(f"{np.mean(results[name, size]):.3f}" for size in PER_CLASS_SIZES)
        rows.append(f"| {data.name} | {name} | {cells} |")
    return rows


def _split(data: Data, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to fit on: `size` of each class, rows to test on)."""
    rng = np.random.default_rng(seed)
    train: set[int] = set()
    for column in range(len(data.classes)):
        of_class = rng.permutation(np.flatnonzero(data.truth[:, column]))
        fresh = [row for row in of_class.tolist() if row not in train]
        train.update(fresh[:size])
    test = rng.permutation(np.setdiff1d(np.arange(len(data.truth)), list(train)))[:TEST_IMAGES]
    return np.array(sorted(train)), test


def _models(data: Data, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    seen = np.flatnonzero(data.truth[train].any(axis=0))
    names = [data.classes[index] for index in seen]
    fitted = fit_label_model(data.features[train], data.truth[train][:, seen], classes=names, kind=data.kind)
    found = {"labelloop": label_score(fitted.model, data.features[test], data.truth[test], data.classes)}
    for name, make in (
        ("LogisticRegression, C by cross-validation", _regression),
        ("kNN, k by cross-validation", _neighbours),
    ):
        columns = [data.truth[train].argmax(axis=1)] if data.kind == "single" else list(data.truth[train].T.astype(int))
        fewest = min(int(np.bincount(column)[np.bincount(column) > 0].min()) for column in columns)
        model = make(fewest)
        if data.kind == "multiple":
            model = OneVsRestClassifier(model)
        model = make_pipeline(StandardScaler(), model)
        model.fit(data.features[train], columns[0] if data.kind == "single" else data.truth[train].astype(int))
        predicted = model.predict(data.features[test])
        if data.kind == "single":
            found[name] = float((predicted == data.truth[test].argmax(axis=1)).mean())
        else:
            chosen, right = predicted.astype(bool), data.truth[test]
            sums = chosen.sum(axis=0) + right.sum(axis=0)
            found[name] = float((2 * (chosen & right).sum(axis=0) / np.maximum(sums, 1)).mean())
    return found


def _regression(fewest: int) -> LogisticRegression | LogisticRegressionCV:
    if fewest < 2:
        return LogisticRegression(max_iter=300)
    return LogisticRegressionCV(Cs=np.logspace(-4, 2, 7), cv=StratifiedKFold(min(5, fewest)), max_iter=200)


def _neighbours(fewest: int) -> KNeighborsClassifier | GridSearchCV:
    if fewest < 2:
        return KNeighborsClassifier(1)
    grid = {"n_neighbors": [1, 3, 5], "weights": ["uniform", "distance"]}
    return GridSearchCV(KNeighborsClassifier(), grid, cv=StratifiedKFold(min(5, fewest)))


def _active(sets: list[Data], parts: Parts) -> str:
    """Images that active learning needs for the accuracy that random order has at each number of images."""
    rows = ["| data set | order | " + " | ".join(map(str, CURVE)) + " | images needed |",
            "|---|---|" + "---|" * (len(CURVE) + 1)]  # fmt: skip
    for data in sets:
        rows += parts.rows(f"active learning on {data.name}", lambda data=data: _active_of(data))
    return "## Active learning against random order\n\n" + "\n".join(rows)


def _active_of(data: Data) -> list[str]:
    rows = []
    images = [
        ImageWithLabels(Path(), f"{row:06}", tuple(np.array(data.classes)[given]))
        for row, given in enumerate(data.truth)
    ]
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    for seed in range(SEEDS):
        test = np.random.default_rng(1000 + seed).permutation(len(images))[:TEST_IMAGES]
        names = frozenset(images[row].name for row in test)
        for outcome in simulate_labels(
            [images[row] for row in np.random.default_rng(seed).permutation(len(images))],
            data.features[np.random.default_rng(seed).permutation(len(images))],
            test=names, kind=data.kind, sizes=CURVE, strategies=("random", "active"), seeds=1,
        ):  # fmt: skip
            scores[outcome.strategy, outcome.labelled].append(outcome.score)
    curves = {name: [float(np.mean(scores[name, size])) for size in CURVE] for name in ("random", "active")}
    reached = np.maximum.accumulate(curves["active"])
    ratio = [
        float(np.interp(value, reached, CURVE)) / size for value, size in zip(curves["random"], CURVE, strict=True)
    ][1:]
    for name, curve in curves.items():
        needed = f"{np.mean(ratio):.2f} on average, {max(ratio):.2f} at most" if name == "active" else "1"
        rows.append(f"| {data.name} | {name} | " + " | ".join(f"{value:.3f}" for value in curve) + f" | {needed} |")
    return rows


def _errors(sets: list[Data], parts: Parts) -> str:
    """AUROC of planted wrong labels by out-of-fold probabilities."""
    rows = ["| data set | labelloop | cleanlab, self-confidence | cleanlab, normalised margin |", "|---|---|---|---|"]
    for data in sets:
        rows += parts.rows(f"wrong labels on {data.name}", lambda data=data: _errors_of(data))
    return f"## Wrong labels found ({WRONG_SHARE:.0%} planted, AUROC)\n\n" + "\n".join(rows)


def _errors_of(data: Data) -> list[str]:
    rows = []
    has_cleanlab = importlib.util.find_spec("cleanlab") is not None
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        rows_of = rng.permutation(len(data.truth))[:REVIEWED]
        right = data.truth[rows_of]
        wrong = rng.random(len(right)) < WRONG_SHARE
        shift = rng.integers(1, len(data.classes), len(right))
        if data.kind == "single":
            given = np.where(wrong, (right.argmax(axis=1) + shift) % len(data.classes), right.argmax(axis=1))
            truth = np.eye(len(data.classes), dtype=bool)[given]
        else:
            truth = right.copy()
            truth[wrong, shift[wrong] - 1] ^= True
        used = truth.any(axis=0)
        fitted = fit_label_model(
            data.features[rows_of], truth[:, used], classes=np.array(data.classes)[used].tolist(), kind=data.kind
        )
        probabilities = fitted.out_of_fold
        if data.kind == "single":
            labels = truth[:, used].argmax(axis=1)
            scores = {"labelloop": wrongness(probabilities, labels)}
        else:
            labels = truth[:, used]
            scores = {"labelloop": tag_wrongness(probabilities, labels).max(axis=1)}
        if has_cleanlab:
            scores |= _cleanlab(probabilities, labels, data.kind)
        for name, score in scores.items():
            found[name].append(float(roc_auc_score(wrong, score)))
    cells = [
        f"{np.mean(found[name]):.3f}" if found[name] else "-"
        for name in ("labelloop", "self_confidence", "normalized_margin")
    ]
    rows.append(f"| {data.name} | " + " | ".join(cells) + " |")
    return rows


def _cleanlab(probabilities: np.ndarray, labels: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    from cleanlab.rank import get_label_quality_scores

    scores = {}
    for method in ("self_confidence", "normalized_margin"):
        if kind == "single":
            rows = probabilities / probabilities.sum(axis=1, keepdims=True)
            scores[method] = 1 - get_label_quality_scores(labels, rows, method=method)
        else:
            columns = [
                get_label_quality_scores(given.astype(int), np.stack([1 - row, row], axis=1), method=method)
                for given, row in zip(labels.T, probabilities.T, strict=True)
            ]
            scores[method] = 1 - np.min(columns, axis=0)
    return scores


def _costs(sets: list[Data], parts: Parts) -> str:
    """Time of a fit on 300 images and of a prediction."""
    rows = ["| data set | fit on 300 images, s | a prediction, ms |", "|---|---|---|"]
    for data in sets:
        rows += parts.rows(f"costs on {data.name}", lambda data=data: _costs_of(data))
    return "## Costs (seconds of one core)\n\n" + "\n".join(rows)


def _costs_of(data: Data) -> list[str]:
    rows = []
    used = data.truth[:300].any(axis=0)
    started = time.process_time()
    fitted = fit_label_model(
        data.features[:300],
        data.truth[:300][:, used],
        classes=np.array(data.classes)[used].tolist(),
        kind=data.kind,
    )
    fit_s = time.process_time() - started
    started = time.process_time()
    for row in data.features[:200]:
        fitted.model.probabilities(row[None])
    rows.append(f"| {data.name} | {fit_s:.2f} | {(time.process_time() - started) * 1000 / 200:.3f} |")
    return rows


if __name__ == "__main__":
    print(run())
