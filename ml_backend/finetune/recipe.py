"""The recipe of a training: every number that decides the result, recorded in the model's metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
        warm_up: Share of the training in which the rate rises.
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

    def rate_at(self, progress: float) -> float:
        """Learning rate at a share of the training: linear warm-up, then a cosine to `last_rate`."""
        if progress < self.warm_up:
            return self.rate * max(progress / self.warm_up, 0.01)
        share = min(max((progress - self.warm_up) / max(1 - self.warm_up, 1e-9), 0.0), 1.0)
        return self.rate * (self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * share)) / 2)
