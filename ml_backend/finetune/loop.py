"""The training loop: AdamW with warm-up and cosine, running average, early stop, checkpoints that survive a kill."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
import torch
from torch.optim.swa_utils import AveragedModel

from ml_backend.detection.detections import Detections, non_max_suppression
from ml_backend.detection.preprocess import prepare
from ml_backend.finetune.augment import AugmentOptions, Picture, as_input, augmented, mosaic
from ml_backend.finetune.convert import TrainableDetector
from ml_backend.finetune.errors import GpuMemoryFull
from ml_backend.finetune.losses import detection_loss
from ml_backend.finetune.pictures import ENOUGH_TO_DECIDE, Album
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.torch_parts import Device, choose_device
from ml_backend.layouts import best_class
from ml_backend.training.metrics import GroundTruth, mean_ap50

log = structlog.get_logger(__name__)


# Minimum score of the detections that count for AP50, as in `training.simulate`.
EVALUATION_FLOOR = 0.005

# Compute capability of the first NVIDIA GPUs with bfloat16.
FIRST_WITH_HALF = (8, 0)

# Least gain in AP50 on the held-out images that counts as better.
BETTER = 0.002


@dataclass(frozen=True)
class Progress:
    """State of a training, for its progress bar.

    Attributes:
        step: Optimizer steps done.
        seen: Images seen.
        share: Share of the budget used, in [0, 1].
        loss: Mean of the last steps.
        ap50: Last AP50 on the held-out images; None before the first evaluation.
        best: Best so far.
    """

    step: int
    seen: int
    share: float
    loss: float
    ap50: float | None
    best: float | None


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        state: Parameters by tensor name: the running average that was best.
        steps: Optimizer steps done.
        seen: Images seen.
        seconds: Of the budget's clock.
        ended: Why it ended.
        curve: (share of the budget, mean loss, AP50 on the held-out images or None) of each evaluation.
        best: Best AP50 on the held-out images, that of `state` where they are enough to decide; None without.
        unsaved: Why the last checkpoint could not be written; empty where it was.
    """

    state: dict[str, Any]
    steps: int
    seen: int
    seconds: float
    ended: Literal["budget", "early stop", "stopped"]
    curve: tuple[tuple[float, float, float | None], ...]
    best: float | None
    unsaved: str = ""


@dataclass
class _State:
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    pending: list[int] = field(default_factory=list)
    best: float | None = None
    best_at: int = 0
    best_state: dict[str, Any] = field(default_factory=dict)
    curve: list[tuple[float, float, float | None]] = field(default_factory=list)


class Trainer:
    """Trains one detector on one album."""

    def __init__(
        self,
        detector: TrainableDetector,
        album: Album,
        held_out: Album | None,
        recipe: Recipe,
        *,
        device: Device = "auto",
        checkpoint: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        decides: bool = True,
    ) -> None:
        """Prepare, and read the checkpoint if there is one of the same recipe.

        Args:
            detector: The detector; its parameters change.
            album: Images to train on.
            held_out: Images to evaluate on; None, or too few to decide: the last running average is the result.
            recipe: Options.
            device: Where to compute; auto: a GPU where there is one.
            checkpoint: File for the state; None: none.
            clock: Of the budget, in seconds.
            decides: Whether `held_out` may end the training and choose its result; else it is only shown.

        Raises:
            GpuMissing: See `choose_device`.
        """
        self._detector, self._album, self._held_out, self._recipe = detector, album, held_out, recipe
        self._clock, self._checkpoint = clock, checkpoint
        self._spec = detector.detector.spec
        self.device = choose_device(device)
        torch.manual_seed(recipe.seed)
        self._module = detector.module.to(self.device).eval()  # batch statistics stay frozen
        self._half = recipe.mixed and self.device == "cuda" and self._computes_half()
        self._parameters = list(detector.parameters.values())
        first = {id(detector.parameters[name]) for name in detector.class_tensors}
        self._body = [parameter for parameter in self._parameters if id(parameter) not in first]
        self._probe = recipe.probe if first else 0.0
        groups = [
            {"params": chosen, "weight_decay": recipe.weight_decay if matrix else 0.0}
            for matrix in (True, False)
            if (chosen := [parameter for parameter in self._parameters if (parameter.ndim > 1) == matrix])
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99))
        self._average = AveragedModel(torch.nn.ParameterList(self._parameters), avg_fn=self._averaged)
        self._centres = torch.from_numpy(detector.anchors.centres).to(self.device)
        self._strides = torch.from_numpy(detector.anchors.strides).to(self.device)
        self._state = _State()
        self._rng = np.random.default_rng(recipe.seed)
        self._stop, self._unsaved = False, ""
        self._decides = decides and held_out is not None and len(held_out) >= ENOUGH_TO_DECIDE
        self._read_checkpoint()

    def stop(self) -> None:
        """Ask the loop to write its checkpoint and end after the current step."""
        self._stop = True

    def train(self, progress: Callable[[Progress], None] = lambda _: None) -> TrainingResult:
        """Run to the end of the budget, to an early stop, or until `stop` is called.

        Raises:
            GpuMemoryFull: The memory of the GPU does not suffice.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx2pytorch indexes in a way that torch deprecates
            try:
                return self._train(progress)
            except torch.cuda.OutOfMemoryError as error:
                raise GpuMemoryFull(reason=str(error)[:200]) from error

    def _train(self, progress: Callable[[Progress], None]) -> TrainingResult:
        state, recipe = self._state, self._recipe
        started = self._clock() - state.seconds
        every = 1 / recipe.evaluations
        losses: list[float] = []
        ended: Literal["budget", "early stop", "stopped"] = "budget"
        while True:
            state.seconds = self._clock() - started
            share = self._share()
            if share >= 1:
                break
            if self._stop:
                ended = "stopped"
                break
            losses.append(self._step([self._next() for _ in range(recipe.batch)], share))
            if share >= every * (len(state.curve) + 1):
                self._evaluate(share, float(np.mean(losses[-50:])))
                self._write_checkpoint()
                if self._decides and share > 0.5 and len(state.curve) - state.best_at >= recipe.patience:
                    ended = "early stop"
                    break
            progress(self._progress(share, losses))
        if ended == "stopped":
            self._write_checkpoint()
        elif ended == "budget":
            self._evaluate(1.0, float(np.mean(losses[-50:] or [0.0])))
        progress(self._progress(1.0 if ended != "stopped" else self._share(), losses))
        final = state.best_state or self._snapshot()
        return TrainingResult(
            final, state.step, state.seen, state.seconds, ended, tuple(state.curve), state.best, self._unsaved
        )

    def evaluate(self, album: Album) -> float:
        """AP50 of the running average on other images."""
        with _Swapped(self._parameters, list(self._average.module)):
            return self._ap50(album)

    def _next(self) -> int:
        """The next image: each once a round, in a new order."""
        if not self._state.pending:
            self._state.pending = self._rng.permutation(len(self._album)).tolist()
        return self._state.pending.pop()

    def _share(self) -> float:
        recipe = self._recipe
        if recipe.steps:
            return self._state.step / recipe.steps
        return self._state.seconds / (60 * recipe.minutes)

    def _progress(self, share: float, losses: Sequence[float]) -> Progress:
        state = self._state
        ap50 = state.curve[-1][2] if state.curve else None
        return Progress(
            state.step, state.seen, min(share, 1.0), float(np.mean(losses[-50:] or [0.0])), ap50, state.best
        )

    def _step(self, indices: Sequence[int], share: float) -> float:
        probing = share < self._probe
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.probe_rate if probing else self._recipe.rate_at(share)
        for parameter in self._body:
            parameter.requires_grad_(not probing)
        pictures = [self._draw(index, share) for index in indices]
        batches = [pictures] if self._detector.batched else [[picture] for picture in pictures]
        # The divisor is the number of assigned candidates of the whole step, known only after it: gradients are
        # summed and divided before the step.
        total, assigned = 0.0, 0
        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            loss, count = self._loss(batch)
            loss.backward()
            total, assigned = total + float(loss.detach()), assigned + count
        divisor = max(assigned, 1)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.div_(divisor)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip)
        if torch.isfinite(norm):
            self._optimizer.step()
        self._average.update_parameters(torch.nn.ParameterList(self._parameters))
        self._state.step += 1
        self._state.seen += len(indices)
        return float(total / divisor)

    def _loss(self, batch: Sequence[Picture]) -> tuple[Any, int]:
        images = torch.from_numpy(np.stack([as_input(picture.pixels, self._spec) for picture in batch]))
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self._half):
            boxes, objectness, scores = self._module(images.to(self.device, memory_format=torch.channels_last))
        total, assigned = torch.zeros((), device=self.device), 0
        for index, picture in enumerate(batch):
            loss, count = detection_loss(
                boxes[index],
                objectness[index],
                scores[index],
                torch.from_numpy(picture.boxes).to(self.device),
                torch.from_numpy(picture.classes).to(self.device),
                centres=self._centres,
                strides=self._strides,
                own=self._detector.own_objectness,
            )
            total, assigned = total + loss, assigned + count
        return total, assigned

    def _computes_half(self) -> bool:
        """Whether the GPU has bfloat16 (NVIDIA: since Ampere; before, torch emulates it), and the graph runs in it."""
        blank = torch.zeros((1, 3, self._spec.height, self._spec.width), device=self.device)
        return torch.cuda.get_device_capability() >= FIRST_WITH_HALF and runs_in_half(self._module, blank)

    def _draw(self, index: int, share: float) -> Picture:
        options = self._recipe.augment
        if share >= 1 - self._recipe.plain:
            options = weak(options)
        if options.mosaic and self._rng.random() < options.mosaic:
            others = self._rng.integers(0, len(self._album), 3).tolist()
            return mosaic([self._album[at] for at in (index, *others)], self._spec, options, self._rng)
        return augmented(self._album[index], self._spec, options, self._rng)

    def _averaged(self, average: Any, parameter: Any, count: Any) -> Any:
        decay = min(self._recipe.ema_decay, (1 + float(count)) / (10 + float(count)))
        return torch.lerp(average, parameter, 1 - decay)

    def _evaluate(self, share: float, loss: float) -> None:
        state = self._state
        ap50 = self.evaluate(self._held_out) if self._held_out is not None else None
        state.curve.append((share, loss, ap50))
        if ap50 is None:
            return
        if state.best is None or ap50 >= state.best + BETTER:
            state.best, state.best_at = ap50, len(state.curve)
            state.best_state = self._snapshot() if self._decides else {}

    def _snapshot(self) -> dict[str, Any]:
        names = self._detector.parameters
        return {name: value.detach().cpu().clone() for name, value in zip(names, self._average.module, strict=True)}

    def _ap50(self, album: Album) -> float:
        with torch.no_grad():
            return self._ap50_of(album)

    def _ap50_of(self, album: Album) -> float:
        truths, detections = [], []
        names = self._detector.names
        for index in range(len(album)):
            picture = album[index]
            height, width = picture.pixels.shape[:2]
            prepared = prepare(picture.pixels, self._spec, size=(width, height))
            outputs = self._module(torch.from_numpy(np.asarray(prepared.tensor, np.float32))[None].to(self.device))
            boxes, objectness, scores = (output[0].float().cpu().numpy() for output in outputs)
            candidates = best_class(boxes, objectness[:, None] * scores, EVALUATION_FLOOR)
            detections.append(_suppressed(candidates, self._detector).to_image(prepared.fit))
            truths.append(GroundTruth(picture.boxes, tuple(names[number] for number in picture.classes)))
        return mean_ap50(truths, detections, names=names)

    def _write_checkpoint(self) -> None:
        if self._checkpoint is None:
            return
        state = self._state
        content = {
            "recipe": _recipe_key(self._recipe),
            "names": list(self._detector.names),
            "images": self._album.digest,
            "parameters": [parameter.detach().cpu() for parameter in self._parameters],
            "average": [value.detach().cpu() for value in self._average.module],
            "averaged": int(self._average.n_averaged),
            "optimizer": self._optimizer.state_dict(),
            "rng": self._rng.bit_generator.state,
            "progress": [state.step, state.seen, state.seconds, state.best, state.best_at],
            "pending": state.pending,
            "best_state": state.best_state,
            "curve": [list(point) for point in state.curve],
        }
        partial = self._checkpoint.with_suffix(".partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, partial)
            partial.replace(self._checkpoint)
        except (OSError, RuntimeError) as error:  # a full disk, which torch's writer reports in a way of its own
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._unsaved:
                log.warning("checkpoint_not_written", file=str(self._checkpoint), reason=str(error)[:200])
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
            self._unsaved = reason or type(error).__name__
        else:
            self._unsaved = ""

    def _read_checkpoint(self) -> None:
        content = read_checkpoint(self._checkpoint, self._recipe, self._detector.names, self._album.digest)
        if not content:
            return
        with torch.no_grad():
            for parameter, value in zip(self._parameters, content["parameters"], strict=True):
                parameter.copy_(value)
            for parameter, value in zip(self._average.module, content["average"], strict=True):
                parameter.copy_(value)
        self._average.n_averaged.fill_(content["averaged"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._rng.bit_generator.state = content["rng"]
        state = self._state
        state.step, state.seen, state.seconds, state.best, state.best_at = content["progress"]
        state.pending, state.best_state = content["pending"], content["best_state"]
        state.curve = [tuple(point) for point in content["curve"]]

    @property
    def resumed(self) -> int:
        """Steps that a checkpoint had done."""
        return self._state.step


def read_checkpoint(file: Path | None, recipe: Recipe, names: Sequence[str], images: str) -> dict[str, Any]:
    """The checkpoint of a training with a recipe and classes on images; empty without one.

    Args:
        file: The file; None: none.
        recipe: Options, whose budget does not count.
        names: Class names.
        images: `images_digest` of the images: a trial must not go on from weights that saw what it is evaluated on.
    """
    if file is None or not file.is_file():
        return {}
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises whatever a damaged file gives
        log.warning("checkpoint_damaged", file=str(file), reason=str(error)[:200])
        return {}
    if "images" not in content:
        log.warning(
            "checkpoint_not_used",
            file=str(file),
            reason="it is of an earlier version; the training starts from the beginning",
        )
    wanted = {"recipe": _recipe_key(recipe), "names": list(names), "images": images}
    return content if all(content.get(key) == value for key, value in wanted.items()) else {}


def _recipe_key(recipe: Recipe) -> str:
    """Names a recipe whatever its budget, so that a training can go on for longer."""
    return repr(replace(recipe, minutes=0.0))


def weak(options: AugmentOptions) -> AugmentOptions:
    """The augmentation of the last part: as images are served, apart from the flip."""
    return replace(options, mosaic=0.0, scale=(0.9, 1.1), colour=tuple(part / 2 for part in options.colour))  # type: ignore[arg-type]


def runs_in_half(module: Any, images: Any) -> bool:
    """Whether a module computes images (b, 3, h, w) in bfloat16; some graphs mix types that torch does not convert."""
    try:
        with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(bool(torch.isfinite(output).all()) for output in module(images))
    except RuntimeError as error:
        log.warning("mixed_precision_off", reason=str(error)[:200])
        return False


def _suppressed(candidates: Detections, detector: TrainableDetector) -> Detections:
    return non_max_suppression(candidates, iou=detector.detector.reader.suppress_iou or 0.45)


class _Swapped:
    """Gives parameters the values of others, and gives them back."""

    def __init__(self, parameters: Sequence[Any], values: Sequence[Any]) -> None:
        self._parameters, self._values = parameters, values

    def __enter__(self) -> None:
        self._own = [parameter.data for parameter in self._parameters]
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data = value.data.to(parameter.device)

    def __exit__(self, *_: object) -> None:
        for parameter, own in zip(self._parameters, self._own, strict=True):
            parameter.data = own
