"""Load an ONNX detector of any supported layout, and run it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, fuse_candidates
from ml_backend.detection.class_names import ClassNames, find_names, keypoint_names
from ml_backend.detection.detections import Detections, non_max_suppression
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import Arrays
from ml_backend.detection.preprocess import InputSpec, Prepared, prepare
from ml_backend.errors import ModelBroken, NamesMissing, UnknownLayout
from ml_backend.inference.session import Engine
from ml_backend.inference.session_cache import CachedSession, OnnxSessionCache
from ml_backend.inference.version_id import model_version
from ml_backend.layouts import LAYOUTS, OutputReader, plain_spec
from ml_backend.layouts.plausibility import Misfit, check_boxes, check_scores

# Number of numbered classes where the outputs do not tell the count.
MAX_NUMBERED_CLASSES = 1000


def embedded_model() -> Path:
    """Path of the model included in labelloop."""
    return Path(str(files("ml_backend").joinpath("models", "base.onnx")))


@dataclass(frozen=True)
class Detector:
    """A loaded model.

    Attributes:
        version: Returned by `/setup` and stored with every prediction.
        path: The file.
        names: Class names in the model's order.
        layout: Key of `LAYOUTS`.
        why: Why the layout was chosen, in words.
        reader: Decodes the outputs.
        engine: The session.
        units_checked: Whether the trial run had boxes, so that their unit is verified.
    """

    version: str
    path: Path
    names: ClassNames
    layout: str
    why: str
    reader: OutputReader
    engine: Engine
    units_checked: bool = True

    @property
    def spec(self) -> InputSpec:
        """Input format of the network."""
        return self.reader.spec

    @property
    def provides(self) -> frozenset[str]:
        """What it can predict: see `OutputReader.provides`."""
        return self.reader.provides

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints of each detection; empty without keypoints."""
        return keypoint_names(self.engine.graph.metadata, self.reader.keypoints)

    @property
    def batch(self) -> int:
        """Images per run."""
        return 1 if self.reader.single_image else self.engine.batch

    def detect(self, images: Sequence[Prepared], *, floor: float) -> list[Detections]:
        """Detect objects on at most `batch` images, in pixels of each original image, best first.

        Args:
            images: Made by `prepare` with this detector's `spec`.
            floor: Minimum score.

        Raises:
            ModelBroken: The session failed on these images.
        """
        outputs = self.engine.run([image.tensor for image in images], self.reader.outputs)
        decoded = self.reader.decode(outputs, self.candidate_floor(floor))
        if not self.units_checked:
            self.check_units(decoded)
        return [
            self.postprocess(self.map_classes(candidates), image.fit, floor=floor).to_image(image.fit)
            for image, candidates in zip(images, decoded, strict=True)
        ]

    def check_units(self, detections: Sequence[Detections]) -> None:
        """Raise where boxes turn out to be normalised, which the trial run did not show.

        Raises:
            ModelBroken: The boxes are not in pixels of the input.
        """
        try:
            for image_detections in detections:
                check_boxes([image_detections], self.spec)
        except Misfit as error:
            raise ModelBroken(
                path=self.path,
                reason=f"it was opened as {self.layout}, and {error}",
                fix="Name its layout: --layout or LABELLOOP_MODEL_LAYOUT (`ssd` where boxes are shares of the input).",
            ) from error

    def candidate_floor(self, floor: float) -> float:
        """Minimum candidate score that affects results with scores of at least `floor`."""
        return floor if self.reader.calibrations is None else MIN_CANDIDATE_SCORE

    def postprocess(self, candidates: Detections, fit: Fit, *, floor: float) -> Detections:
        """Suppress or fuse candidates down to `candidate_floor(floor)`; best first, in pixels of the input."""
        if self.reader.calibrations is not None:
            return fuse_candidates(candidates, fit, floor=floor, calibrations=self.reader.calibrations)
        if self.reader.suppress_iou is None:
            return candidates[np.argsort(-candidates.scores, kind="stable")]
        return non_max_suppression(candidates, iou=self.reader.suppress_iou)

    def map_classes(self, candidates: Detections) -> Detections:
        """Map class numbers to indices into the names; drop background."""
        indices = self.names.indices
        if indices is None:
            in_range = (candidates.classes >= 0) & (candidates.classes < len(self.names.names))
            return candidates if in_range.all() else candidates[in_range]
        inside = (candidates.classes >= 0) & (candidates.classes < len(indices))
        candidates = candidates[inside]
        candidates = replace(candidates, classes=np.asarray(indices, np.int64)[candidates.classes])
        return candidates[candidates.classes >= 0]


def load_detector(
    path: Path,
    *,
    layout: str = "",
    threads: int = 0,
    names: Path | None = None,
    allow_numbered: bool = False,
    version: str = "",
    cache_folder: Path | None = None,
) -> Detector:
    """Open a model, run it once on a grey image and recognise its output layout.

    Args:
        path: The ONNX file.
        layout: Key of `LAYOUTS` to force; empty: recognised.
        threads: Threads per run; 0: one per core.
        names: File of the class names; None: from the model or its sidecars.
        allow_numbered: Use numbers as names where none are found; else that is an error.
        version: Version string; empty: `model_version` of its bytes.
        cache_folder: Folder for this file's `OnnxSessionCache`.

    Raises:
        ModelMissing: The file does not exist.
        ModelBroken: It cannot be opened or run.
        UnknownLayout: Its outputs match no layout, or not the forced one.
        NamesMissing: No class names are found.
    """
    version = version or model_version(path, layout=layout)
    opened = (
        _open_cached(path, layout, threads, OnnxSessionCache(cache_folder))
        if cache_folder
        else _open(path, layout, threads)
    )
    return Detector(
        version=version,
        path=path,
        names=_named(path, opened.engine, opened.reader, names, numbered=allow_numbered),
        layout=opened.layout,
        why=opened.why,
        reader=opened.reader,
        engine=opened.engine,
        units_checked=bool(layout) or _fits(opened),
    )


@dataclass(frozen=True)
class _Opened:
    engine: Engine
    reader: OutputReader
    layout: str
    why: str
    trial_outputs: Arrays


def _fits(opened: _Opened) -> bool:
    """Whether the trial run had boxes to check.

    Raises:
        Misfit: The decoded values are implausible.
    """
    for name in opened.reader.outputs:
        if np.issubdtype(opened.trial_outputs[name].dtype, np.floating) and np.isnan(opened.trial_outputs[name]).any():
            raise Misfit(f"some values of its output {name} are not numbers (NaN)")
    with np.errstate(all="ignore"):
        detections = opened.reader.decode(opened.trial_outputs, -np.inf)
    check_scores(detections)
    return "classes" in opened.reader.provides or check_boxes(detections, opened.reader.spec)


def _open_cached(path: Path, layout: str, threads: int, cache: OnnxSessionCache) -> _Opened:
    """Like `_open`, but reuse the optimised graph and the trial run from the cache."""
    try:
        opened = _open_from_cache(path, threads, cache.load())
        if opened is not None:
            return opened
        with cache.locked() as graph_path:
            opened = _open_from_cache(path, threads, cache.load())
            if opened is None:
                opened = _open(path, layout, threads, save_optimized=graph_path)
                cache.store(graph_path, layout=opened.layout, why=opened.why, trial_outputs=opened.trial_outputs)
            return opened
    except OSError:  # the cache is not writable
        return _open(path, layout, threads)


def _open_from_cache(path: Path, threads: int, cached: CachedSession | None) -> _Opened | None:
    if cached is None or cached.layout not in LAYOUTS:
        return None
    try:
        engine = Engine(path, threads=threads, optimized=cached.graph)
        reader = LAYOUTS[cached.layout].read(engine.graph, cached.trial_outputs)
    except (ModelBroken, ValueError, IndexError, KeyError):  # the cached file is damaged: open it from scratch
        return None
    return _Opened(engine, reader, cached.layout, cached.why, cached.trial_outputs)


def _open(path: Path, layout: str, threads: int, *, save_optimized: Path | None = None) -> _Opened:
    engine = Engine(path, threads=threads, save_optimized=save_optimized)
    try:
        trial = plain_spec(engine.graph)
    except ValueError as error:
        raise ModelBroken(path=path, reason=str(error)) from error
    trial_outputs = engine.run([prepare(np.full((256, 256, 3), 114, np.uint8), trial).tensor])
    name, why = _recognised(path, engine, trial_outputs, layout)
    try:
        reader = LAYOUTS[name].read(engine.graph, trial_outputs)
        reader.decode(trial_outputs, 0.5)
        opened = _Opened(engine, reader, name, why, trial_outputs)
        _fits(opened)
    except Misfit as error:
        if not layout:
            raise _unknown(
                path, engine, trial_outputs, layout, reason=f"it looks like {name} ({why}), but {error}"
            ) from error
        return replace(opened, why=f"{why}, although {error}")
    except (ValueError, IndexError, KeyError) as error:
        if layout:
            raise _unknown(path, engine, trial_outputs, layout, reason=str(error)) from error
        raise ModelBroken(path=path, reason=str(error)) from error
    return opened


def _named(path: Path, engine: Engine, reader: OutputReader, names_file: Path | None, *, numbered: bool) -> ClassNames:
    try:
        return find_names(
            path, engine.graph.metadata, reader.classes, background=reader.background, names_file=names_file
        )
    except NamesMissing as error:
        if not numbered or error.named is not None:
            raise
        return ClassNames(
            tuple(map(str, range(reader.classes or MAX_NUMBERED_CLASSES))), "their numbers (no names found)"
        )


def _recognised(path: Path, engine: Engine, trial_outputs: Arrays, forced: str) -> tuple[str, str]:
    if forced:
        if forced not in LAYOUTS:
            raise _unknown(path, engine, trial_outputs, forced)
        return forced, "asked for"
    rejected = []
    for name, layout in LAYOUTS.items():
        try:
            why = layout.recognise(engine.graph, trial_outputs)
        except Misfit as error:
            rejected.append(f"it looks like {name}, but {error}")
            continue
        if why:
            return name, why
    raise _unknown(path, engine, trial_outputs, forced, reason="; ".join(rejected))


def _unknown(path: Path, engine: Engine, trial_outputs: Arrays, forced: str, reason: str = "") -> UnknownLayout:
    problem = f"is not of the layout {forced!r}" if forced else "has outputs that no known layout matches"
    return UnknownLayout(
        path=path,
        problem=f"{problem}: {reason}" if reason else problem,
        outputs=engine.graph.describe_outputs(trial_outputs),
        layouts=", ".join(LAYOUTS),
    )
