"""The recipe of a training: every number that decides the result, recorded in the model's metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ml_backend.finetune.augment import AugmentOptions


@dataclass(frozen=True)
class Recipe:
    """Options of a training.

    Attributes:
        minutes: Budget of the training itself.
        steps: Number of optimizer steps; 0: as many as fit into `minutes`.
        batch: Images per step.
        rate: Greatest learning rate of AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).
        last_rate: Final learning rate, as a share.
        full_boxes: Labelled boxes from which `rate` applies as is; with fewer it is proportionally lower, because the
            weights are then fitted to few objects (see `for_boxes`).
        least_rate: Lowest share of `rate` for few boxes.
        probe: Share of the training, at its start, in which the class layers alone are trained, at `probe_rate`: else
            the first steps spoil the features for classes that are still wrong (LP-FT, Kumar et al. 2022,
            https://arxiv.org/abs/2202.10054).
        probe_rate: Learning rate of the class layers then.
        warm_up: Share of the rest in which the rate rises.
        weight_decay: Of weights, not of biases.
        clip: Greatest norm of a step's gradient.
        ema_decay: Of the running average of weights that is evaluated and written.
        plain: Share of the training, at its end, without mosaic and with weak augmentation.
        augment: Augmentations.
        seed: Of the order of images, the augmentations and the split.
        evaluations: Number of evaluations on the held-out images.
        patience: Evaluations without a better AP50 after which it stops, in the second half of the budget.
        mixed: Whether to compute in half precision on a GPU.
    """

    minutes: float = 10.0
    steps: int = 0
    batch: int = 8
    rate: float = 1e-3
    last_rate: float = 0.02
    full_boxes: int = 250
    least_rate: float = 0.1
    probe: float = 0.1
    probe_rate: float = 5e-3
    warm_up: float = 0.05
    weight_decay: float = 0.02
    clip: float = 10.0
    ema_decay: float = 0.995
    plain: float = 0.15
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    seed: int = 0
    evaluations: int = 10
    patience: int = 5
    mixed: bool = True

    def for_boxes(self, boxes: int) -> Recipe:
        """The recipe for a number of labelled boxes."""
        share = min(max(boxes / self.full_boxes, self.least_rate), 1.0)
        return replace(self, rate=self.rate * share)

    def rate_at(self, progress: float) -> float:
        """Learning rate at a share of the training after the probe: linear warm-up, then a cosine to `last_rate`."""
        progress = max(progress - self.probe, 0.0) / max(1 - self.probe, 1e-9)
        if progress < self.warm_up:
            return self.rate * max(progress / self.warm_up, 0.01)
        share = min(max((progress - self.warm_up) / max(1 - self.warm_up, 1e-9), 0.0), 1.0)
        return self.rate * (self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * share)) / 2)
