"""Simulate labelling of whole images: replay a labelled data set through the code that learns Choices.

As `simulate` does for boxes: a strategy orders the images; at each requested number of labels a model is fitted and
evaluated on the test images. Every seed draws its own pool.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labelloop.service.media import MediaError, load_image
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.training.acquisition import COLD_START_IMAGES
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.label_acquisition import label_vectors, next_labels, uncertainty_of
from ml_backend.training.label_model import Kind, LabelModel, fit_label_model
from ml_backend.training.labelled_images import ImageWithLabels
from ml_backend.training.simulate import POOL_SHARE, STEP, Strategy

# Metric by kind of label.
METRICS: Mapping[Kind, str] = {"single": "accuracy", "multiple": "macro-F1", "ordinal": "accuracy"}


@dataclass(frozen=True)
class LabelRun:
    """One point of a learning curve; `--json` lists them under `runs`.

    Attributes:
        strategy: How images were chosen.
        labelled: Requested number of labelled images.
        seed: Of the pool.
        score: Accuracy, or macro-F1 of tags, on the test images.
        images: Labelled images, fewer than requested where the pool ran out.
        classes: Labels that occur on them.
        seconds: To fit the model.
    """

    strategy: Strategy
    labelled: int
    seed: int
    score: float
    images: int
    classes: int
    seconds: float


@dataclass(frozen=True)
class ImageFeatureSource:
    """Frozen features of whole images, through a disk cache."""

    backbone: FrozenBackbone
    cache: FeatureCache

    def extract(self, image: ImageWithLabels) -> Floats:
        """Return the features (g,) of an image.

        Raises:
            MediaError: It cannot be decoded.
        """
        content = image.path.read_bytes()
        key = f"{self.backbone.cache_key}-whole-{hashlib.sha256(content).hexdigest()[:24]}"

        def compute() -> CandidateFeatures:
            spec = self.backbone.spec
            loaded = load_image(content, max_side=spec.decode_side, name=image.name)
            prepared = prepare(loaded.pixels, spec, size=(loaded.width, loaded.height))
            return self.backbone.extract_features([prepared])[0][np.zeros(0, np.int64)]  # boxes would take megabytes

        features = self.cache.image_features(key, compute)[0]
        return np.zeros(0, np.float32) if features is None else features


def image_features(
    source: ImageFeatureSource, images: Sequence[ImageWithLabels], progress: Callable[[int, int], None]
) -> tuple[list[ImageWithLabels], Floats, list[str]]:
    """Extract the features of all images.

    Returns:
        The images that can be decoded, their features (n, g), and messages for the others.
    """
    good, rows, bad = [], [], []
    for index, image in enumerate(images, 1):
        try:
            rows.append(source.extract(image))
        except MediaError as error:
            bad.append(f"{image.name}: {error}")
        else:
            good.append(image)
        progress(index, len(images))
    return good, np.array(rows, np.float32).reshape(len(good), -1), bad


def split_by_hash(images: Sequence[ImageWithLabels], share: float) -> frozenset[str]:
    """Names of test images: those of the data set's own test folders, else a share of all, by a hash of the name."""
    own = frozenset(image.name for image in images if image.is_test)
    if own and len(own) < len(images):
        return own
    digests = {image.name: hashlib.sha256(f"labelloop test {image.name}".encode()).digest() for image in images}
    return frozenset(name for name, digest in digests.items() if int.from_bytes(digest[:8], "big") < share * 2**64)


def simulate_labels(
    images: Sequence[ImageWithLabels],
    features: Floats,
    *,
    test: frozenset[str],
    kind: Kind,
    sizes: Sequence[int],
    strategies: Sequence[Strategy],
    seeds: int,
) -> Iterator[LabelRun]:
    """Yield one run after the other, as they finish.

    Args:
        images: Labelled images, in any order.
        features: (n, g) float32 of them.
        test: Names of the images that models are evaluated on; the others may be labelled.
        kind: Whether each image has one label.
        sizes: Numbers of labelled images.
        strategies: How they are chosen.
        seeds: Draws per strategy.
    """
    order = sorted(range(len(images)), key=lambda index: images[index].name)
    tested = [index for index in order if images[index].name in test]
    pool = np.array([index for index in order if images[index].name not in test], np.int64)
    classes = tuple(sorted({label for image in images for label in image.labels}))
    truth = np.array([[label in image.labels for label in classes] for image in images], bool)
    vectors = label_vectors(features)
    for strategy in strategies:
        for seed in range(seeds):
            share = max(min(len(pool), max(sizes)), round(len(pool) * POOL_SHARE))
            unlabelled = pool[np.random.default_rng(seed).permutation(len(pool))[:share]].tolist()
            labelled: list[int] = []
            model: LabelModel | None = None
            for size in sorted(set(sizes)):
                while len(labelled) < size and unlabelled:
                    count = min(1 + len(labelled) // STEP, size - len(labelled), len(unlabelled))
                    if strategy == "random" or len(labelled) < COLD_START_IMAGES:
                        chosen = list(range(1 if strategy == "active" else count))
                    else:
                        model = model or _fit(features, truth, classes, labelled, kind)[0]
                        doubts = uncertainty_of(model.probabilities(features[unlabelled]), kind)
                        chosen = next_labels(doubts, vectors[unlabelled], vectors[labelled], count)
                    labelled += [unlabelled[index] for index in chosen]
                    unlabelled = [item for index, item in enumerate(unlabelled) if index not in set(chosen)]
                    model = None
                started = time.perf_counter()
                model, used = _fit(features, truth, classes, labelled, kind)
                seconds = time.perf_counter() - started
                score = label_score(model, features[tested], truth[tested], classes)
                yield LabelRun(strategy, size, seed, score, len(labelled), used, seconds)


def label_score(model: LabelModel, features: Floats, truth: npt.NDArray[np.bool_], classes: Sequence[str]) -> float:
    """Accuracy of the best class, or macro-F1 of tags above 0.5 over the tags of the test images.

    Args:
        model: Fitted on some of the classes; a class that it does not know is never right.
        features: (n, g) of the test images.
        truth: (n, k) whether each class applies.
        classes: Names of all classes.
    """
    probabilities = np.zeros(truth.shape)
    probabilities[:, [classes.index(name) for name in model.classes]] = model.probabilities(features)
    if model.kind != "multiple":
        return float(truth[np.arange(len(truth)), probabilities.argmax(axis=1)].mean())
    chosen = probabilities > 0.5
    used = truth.any(axis=0)
    both, sums = (chosen & truth).sum(axis=0)[used], (chosen.sum(axis=0) + truth.sum(axis=0))[used]
    return float((2 * both / np.maximum(sums, 1)).mean())


def _fit(
    features: Floats, truth: npt.NDArray[np.bool_], classes: Sequence[str], labelled: Sequence[int], kind: Kind
) -> tuple[LabelModel, int]:
    """Fit a model on the classes that occur; returns it and their number."""
    occurring = np.flatnonzero(truth[labelled].any(axis=0))
    if not len(occurring):
        occurring = np.arange(1)
    names = [classes[index] for index in occurring.tolist()]
    fitted = fit_label_model(features[labelled], truth[labelled][:, occurring], classes=names, kind=kind)
    return fitted.model, len(names)
