"""Load an ONNX detector of any supported layout, and run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, fuse_candidates
from ml_backend.detection.class_names import ClassNames, find_names, keypoint_names
from ml_backend.detection.detections import Detections, non_max_suppression
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import IMAGE_FEATURES, Arrays, Graph
from ml_backend.detection.preprocess import InputSpec, Prepared, prepare
from ml_backend.errors import LayoutFileError, ModelBroken, ModelError, NamesMissing, UnknownLayout
from ml_backend.inference.session import ONE_IMAGE, Engine
from ml_backend.inference.session_cache import CachedSession, OnnxSessionCache
from ml_backend.inference.version_id import model_version
from ml_backend.layouts import LAYOUTS, Layout, OutputReader, plain_spec
from ml_backend.layouts.base import WHOLE_NUMBERS, is_standard_image
from ml_backend.layouts.declared import Mismatch, declared_reader, input_spec, with_input
from ml_backend.layouts.image_processor import FILE as PROCESSOR
from ml_backend.layouts.image_processor import IMAGE_INPUT, processor_of, read_processor
from ml_backend.layouts.labelloop import tiles_of
from ml_backend.layouts.layout_file import Input, LayoutFile, layout_file_of, read_layout_file
from ml_backend.layouts.plausibility import Misfit, check_boxes, check_scores

log = structlog.get_logger(__name__)

# Layout of models that a layout file describes.
DECLARED = "layout-file"

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
        layout: Key of `LAYOUTS`, or `DECLARED`.
        why: Why the layout was chosen, in words.
        reader: Decodes the outputs.
        engine: The session.
        units_checked: Whether the trial run had boxes, so that their unit is verified.
        layout_file: The layout file that was read, in the model's folder; None without one.
        heads: Heads of its version by kind, in the order in which they are applied; see `ml_backend.heads`.
        tiles: Tiles along an image's longer side that the model was learned on; 1: whole images.
        gives_features: Whether detections carry frozen features where the graph has them; not needed without heads.
        cut_readers: Readers of its outputs on inputs of less than the whole size.
        uncut: Why its padding is run as well, see `cut_graph`; empty where it is not, or there is none.
    """

    version: str
    path: Path
    names: ClassNames
    layout: str
    why: str
    reader: OutputReader
    engine: Engine
    units_checked: bool = True
    layout_file: Path | None = None
    heads: Mapping[str, Any] = field(default_factory=dict)
    gives_features: bool = True
    tiles: int = 1
    cut_readers: "_CutReaders | None" = None
    uncut: str = ""

    @property
    def answers(self) -> frozenset[str]:
        """Names of the controls that its heads answer."""
        return frozenset(name for head in self.heads.values() for name in getattr(head, "controls", ()))

    @property
    def spec(self) -> InputSpec:
        """Input format of the network."""
        return self.reader.spec

    def spec_for(self, width: int, height: int) -> InputSpec:
        """Input format for an image of this size in pixels: of the whole size, or less where the graph takes it.

        Heads are trained on features of whole inputs.
        """
        cut = self.engine.graph.cut
        if cut is None or self.cut_readers is None or self.heads:
            return self.spec
        return cut.spec(self.spec, width, height)

    @property
    def provides(self) -> frozenset[str]:
        """What it can predict: see `OutputReader.provides`."""
        return self.reader.provides

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints of each detection; empty without keypoints."""
        if len(self.reader.keypoint_names) == self.reader.keypoints:
            return self.reader.keypoint_names
        return keypoint_names(self.engine.graph.metadata, self.reader.keypoints)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that a run computes: those that are decoded, and frozen features of candidates and of the image."""
        if not self.gives_features:
            return self.reader.outputs
        features = (self.reader.embeddings, IMAGE_FEATURES if self.engine.graph.image_features else "")
        return tuple(dict.fromkeys((*self.reader.outputs, *(name for name in features if name))))

    @property
    def batch(self) -> int:
        """Images per run."""
        return 1 if self.reader.single_image else self.engine.batch

    def detect(self, images: Sequence[Prepared], *, floor: float) -> list[Detections]:
        """Detect objects on at most `batch` images, in pixels of each original image, best first.

        Args:
            images: Of one size, made by `prepare` with this detector's `spec`, or with that of `spec_for`.
            floor: Minimum score.

        Raises:
            ModelBroken: The session failed on these images.
        """
        outputs = self.engine.run([image.tensor for image in images], self.outputs)
        try:
            decoded = self._reader_of(images[0], outputs).decode(outputs, self.candidate_floor(floor))
        except Misfit as error:
            raise self._misread(error) from error
        if not self.units_checked:
            self.check_units(decoded)
        detected = [
            self.postprocess(self.map_classes(candidates), image.fit, floor=floor).to_image(image.fit)
            for image, candidates in zip(images, decoded, strict=True)
        ]
        embeddings, image_features = outputs.get(self.reader.embeddings), outputs.get(IMAGE_FEATURES)
        return [
            detections.with_features(
                None if embeddings is None else embeddings[index],
                None if image_features is None else image_features[index],
            )
            for index, detections in enumerate(detected)
        ]

    def _reader_of(self, image: Prepared, outputs: Arrays) -> OutputReader:
        rows, columns = image.tensor.shape[:2] if self.spec.layout == "NHWC" else image.tensor.shape[1:]
        if (rows, columns) == (self.spec.height, self.spec.width) or self.cut_readers is None:
            return self.reader
        return self.cut_readers.reader(rows, columns, outputs)

    def check_units(self, detections: Sequence[Detections]) -> None:
        """Raise where boxes turn out to be normalised, or scores no probabilities, which the trial run did not show.

        Raises:
            ModelBroken: The boxes are not in pixels of the input, or the scores not in 0..1.
        """
        try:
            check_scores(detections)
            for image_detections in detections:
                check_boxes([image_detections], self.spec)
        except Misfit as error:
            raise self._misread(error) from error

    def _misread(self, error: Misfit) -> ModelBroken:
        """The error of values that the trial run did not show, and that the layout does not have."""
        return ModelBroken(
            path=self.path,
            reason=f"it was opened as {self.layout}, and {error}",
            fix="Name its layout: --layout or LABELLOOP_MODEL_LAYOUT (`ssd` where boxes are shares of the input), or "
            "describe its outputs in a layout file (docs/reference/layout-file.md).",
        )

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
        count = len(self.names.names) if indices is None else len(indices)
        if self.reader.classes is None:
            self._check_class_numbers(candidates.classes[candidates.scores > 0], count)
        inside = (candidates.classes >= 0) & (candidates.classes < count)
        if indices is None:
            return candidates if inside.all() else candidates[inside]
        candidates = candidates[inside]
        candidates = replace(candidates, classes=np.asarray(indices, np.int64)[candidates.classes])
        return candidates[candidates.classes >= 0]

    def _check_class_numbers(self, numbers: npt.NDArray[np.int64], count: int) -> None:
        """Check class numbers of the outputs, of which the trial run may have shown none, against the names.

        Raises:
            ModelBroken: There are others than the names allow for.
        """
        highest = numbers.max(initial=-1)
        if highest >= count:
            raise ModelBroken(
                path=self.path,
                reason=f"it gives the class number {highest}, and its names ({self.names.source}) end at {count - 1}",
                fix="Name every class in the model's order, or say where class numbers start: `first` in `[classes]` "
                "of a layout file (docs/reference/layout-file.md).",
            )
        if self.names.indices is not None and self.names.indices[0] < 0 and (numbers == 0).any():
            raise self._misread(
                Misfit("its class numbers start at 0, not at 1 behind a background (`first = 0` in `[classes]`)")
            )


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
        layout: Key of `LAYOUTS` to force; empty: that of the model's layout file, else recognised.
        threads: Threads per run; 0: one per core.
        names: File of the class names; None: from the model or its sidecars.
        allow_numbered: Use numbers as names where none are found; else that is an error.
        version: Version string; empty: `model_version` of its bytes.
        cache_folder: Folder for this file's `OnnxSessionCache`.

    Raises:
        ModelMissing: The file does not exist.
        ModelBroken: It cannot be opened or run.
        UnknownLayout: Its outputs match no layout, or not the forced one.
        LayoutFileError: The model's layout file cannot be used.
        NamesMissing: No class names are found.
    """
    version = version or model_version(path, layout=layout)
    request = _Request.of(path, layout)
    opened = _open_cached(request, threads, OnnxSessionCache(cache_folder)) if cache_folder else _open(request, threads)
    return Detector(
        version=version,
        path=path,
        names=_named(request, opened, names, numbered=allow_numbered),
        layout=opened.layout,
        why=opened.why,
        reader=opened.reader,
        engine=opened.engine,
        units_checked=bool(layout) or _fits(opened),
        layout_file=request.file_path,
        tiles=_tiles(path, opened.engine.graph),
        cut_readers=_CutReaders(request, opened) if opened.engine.graph.cut is not None else None,
        uncut=opened.uncut,
    )


def _tiles(path: Path, graph: Graph) -> int:
    try:
        return tiles_of(graph.metadata)
    except ValueError as error:
        raise ModelBroken(path=path, reason=str(error)) from error


@dataclass(frozen=True)
class _Request:
    """What to open: the model, and how its layout is known.

    Attributes:
        path: The ONNX file.
        layout: Key of `LAYOUTS` that the caller forces; empty: none.
        file: The model's layout file; None without one, or where the caller forces a layout.
        file_path: Its path.
        processor_path: `preprocessor_config.json` next to it; None without one, or where the layout file has `[input]`.
    """

    path: Path
    layout: str
    file: LayoutFile | None = None
    file_path: Path | None = None
    processor_path: Path | None = None

    @classmethod
    def of(cls, path: Path, layout: str) -> "_Request":
        """Read the model's layout file, unless a layout is forced."""
        file_path = None if layout else layout_file_of(path)
        file = read_layout_file(file_path) if file_path else None
        processor = processor_of(path) if file is None or file.input is None else None
        return cls(path, layout, file, file_path, processor)

    @cached_property
    def processor(self) -> Input | None:
        """How Hugging Face's image processor shows images; read on first use, because it may be another model's.

        Raises:
            ModelBroken: Its file cannot be followed.
        """
        return read_processor(self.processor_path, self.path) if self.processor_path else None

    def refused(self, key: str, reason: str) -> LayoutFileError:
        """The error of a layout file that does not fit the graph."""
        assert self.file_path is not None
        return LayoutFileError(self.file_path, key, reason)

    def spec(self, graph: Graph) -> InputSpec:
        """Input format of the trial run."""
        if self.file is not None and self.file.input is not None and not self.file.layout:
            return input_spec(self.file.input, graph)
        return plain_spec(self.shown(graph))

    def reader(self, name: str, graph: Graph, outputs: Arrays) -> OutputReader:
        """Bind a layout to the graph."""
        if name == DECLARED and self.file is not None:
            return declared_reader(self.file, graph, outputs)
        reader = LAYOUTS[name].read(self.shown(graph), outputs)
        suppression = self.file.suppression if self.file is not None else None
        if suppression is None:
            return reader
        return replace(reader, suppress_iou=None if suppression.done else suppression.iou)

    def shown(self, graph: Graph) -> Graph:
        """The graph with the declared input format as its metadata."""
        shown = self.file.input if self.file is not None else None
        if self.is_processed(graph) and self.processor is not None:
            fixed = graph.image is not None and None not in graph.image.shape[-3:]
            shown = msgspec.structs.replace(self.processor, size=None) if fixed else self.processor
        return with_input(graph, shown) if shown is not None else graph

    def is_processed(self, graph: Graph) -> bool:
        """Whether images are shown as Hugging Face's image processor does."""
        named = graph.image is not None and graph.image.name == IMAGE_INPUT
        return self.processor_path is not None and named and "input" not in graph.metadata


@dataclass(frozen=True)
class _Opened:
    engine: Engine
    reader: OutputReader
    layout: str
    why: str
    trial_outputs: Arrays
    uncut: str = ""


class _CutReaders:
    """Readers of the outputs of one graph on inputs of less than the whole size. Thread-safe."""

    def __init__(self, request: _Request, opened: _Opened) -> None:
        self._request, self._opened = request, opened
        self._readers: dict[tuple[int, int], OutputReader] = {}

    def reader(self, height: int, width: int, outputs: Arrays) -> OutputReader:
        """Bind the layout to inputs of this size, once; `outputs` are those of a run on one."""
        reader = self._readers.get((height, width))
        if reader is None:
            graph = self._opened.engine.graph
            assert graph.image is not None
            batch, channels = graph.image.shape[0], graph.channels
            shape = (batch, height, width, channels) if graph.channels_last else (batch, channels, height, width)
            image = replace(graph.image, shape=shape)
            inputs = tuple(image if tensor.name == image.name else tensor for tensor in graph.inputs)
            reader = self._request.reader(self._opened.layout, replace(graph, inputs=inputs), outputs)
            self._readers[height, width] = reader
        return reader


def _with_cut(request: _Request, opened: _Opened, threads: int, save_optimized: Path) -> _Opened:
    """The same model on a graph whose input may be cut, where that changes nothing else; else unchanged, and why.

    Models learned here are not cut: their scores are calibrated on whole inputs. On a GPU none is: there padding costs
    little, and the search of kernels for each new size much.
    """
    from ml_backend.inference.cut_graph import has_padding  # loads onnx

    if opened.reader.calibrations is not None or not opened.engine.on_cpu or not has_padding(opened.reader.spec):
        return opened
    own = save_optimized.with_name(f"{save_optimized.name}.cut")
    try:
        cut = _cut(request, opened, threads, own)
    except (ModelError, Misfit, ValueError, IndexError, KeyError) as error:  # the graph depends on the size
        cut = f"it cannot be run on a part of its input ({type(error).__name__}: {error})"[:200]
    if isinstance(cut, str):
        own.unlink(missing_ok=True)
        # Once: the next start opens the model from the cache.
        log.warning("input_not_cut", model=str(request.path), reason=cut, effect="the padding of images is run as well")
        return replace(opened, uncut=cut)
    if own.is_file():
        own.replace(save_optimized)
    return cut


def _cut(request: _Request, opened: _Opened, threads: int, save_optimized: Path) -> _Opened | str:
    """The model on a graph whose input may be cut, or why there is none."""
    from ml_backend.inference.cut_graph import cut_graph, is_same, pattern  # loads onnx

    graph, spec = opened.engine.graph, opened.reader.spec
    made = cut_graph(request.path, graph, opened.trial_outputs, spec)
    if isinstance(made, str):
        return made
    engine = Engine(request.path, threads=threads, save_optimized=save_optimized, changed=made[0])
    cut = replace(opened, engine=engine)
    readers = _CutReaders(request, cut)

    def run(tensor: npt.NDArray[Any]) -> list[Detections]:
        outputs = engine.run([tensor], opened.reader.outputs)
        rows, columns = tensor.shape[:2] if graph.channels_last else tensor.shape[1:]
        whole = (rows, columns) == (spec.height, spec.width)
        return (opened.reader if whole else readers.reader(rows, columns, outputs)).decode(outputs, -np.inf)

    again = engine.run([_grey(spec)], opened.reader.outputs)
    if not all(np.array_equal(opened.trial_outputs[name], array) for name, array in again.items()):
        return "it gives other values once its input may be cut"
    same = is_same(made[1], run, prepare(pattern(spec), spec).tensor, channels_last=graph.channels_last)
    return cut if same else "it gives other boxes on a part of its input"


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


def _open_cached(request: _Request, threads: int, cache: OnnxSessionCache) -> _Opened:
    """Like `_open`, but reuse the optimised graph and the trial run from the cache."""
    try:
        opened = _open_from_cache(request, threads, cache.load())
        if opened is not None:
            return opened
        with cache.locked() as graph_path:
            opened = _open_from_cache(request, threads, cache.load())
            if opened is None:
                opened = _open(request, threads, save_optimized=graph_path)
                opened = _with_cut(request, opened, threads, graph_path)
                session = CachedSession(
                    graph_path, opened.layout, opened.why, opened.trial_outputs, opened.uncut,
                    opened.engine.graph.pixels,
                )  # fmt: skip
                cache.store(graph_path, session)
            return opened
    except OSError:  # the cache is not writable
        return _open(request, threads)


def _open_from_cache(request: _Request, threads: int, cached: CachedSession | None) -> _Opened | None:
    if cached is None or cached.layout not in {*LAYOUTS, DECLARED}:
        return None
    if (cached.layout == DECLARED) != (request.file is not None and not request.file.layout):
        return None
    try:
        engine = Engine(request.path, threads=threads, optimized=cached.graph)
        engine.graph = replace(engine.graph, known_pixels=cached.pixels)
        reader = request.reader(cached.layout, engine.graph, cached.trial_outputs)
    except (ModelBroken, ValueError, IndexError, KeyError):  # the cached file is damaged: open it from scratch
        return None
    return _Opened(engine, reader, cached.layout, cached.why, cached.trial_outputs, cached.uncut)


def _open(request: _Request, threads: int, *, save_optimized: Path | None = None) -> _Opened:
    path = request.path
    engine = Engine(path, threads=threads, save_optimized=save_optimized)
    try:
        trial = request.spec(engine.graph)
    except Mismatch as error:
        raise request.refused(error.key, error.reason) from error
    except ValueError as error:
        fix = "" if engine.graph.channels in {1, 3} else ONE_IMAGE
        if request.file is not None and request.file.input is not None:
            fix = f"Correct `[input]` of {request.file_path}."
        raise ModelBroken(path=path, reason=str(error), fix=fix) from error
    trial_outputs = _tried(request, engine, trial)
    name, why = _recognised(request, engine, trial_outputs)
    try:
        reader = request.reader(name, engine.graph, trial_outputs)
        if (reader.spec.height, reader.spec.width) == (trial.height, trial.width) and reader.spec != trial:
            # Now the grey image as this layout shows it: other ranges of pixels give values of no meaning.
            trial_outputs = engine.run([_grey(reader.spec)])
            reader = request.reader(name, engine.graph, trial_outputs)
        reader.decode(trial_outputs, 0.5)
        opened = _Opened(engine, reader, name, why, trial_outputs)
        _fits(opened)
    except Mismatch as error:
        if request.file is None:
            raise ModelBroken(path=path, reason=str(error)) from error
        raise request.refused(error.key, error.reason) from error
    except Misfit as error:
        if request.file is not None:
            key = "layout" if request.file.layout else ("scores" if "score" in str(error) else "boxes")
            raise request.refused(key, f"does not fit the graph: {error}") from error
        if not request.layout:
            raise _unknown(
                path, engine, trial_outputs, "", reason=f"it looks like {name} ({why}), but {error}"
            ) from error
        return replace(opened, why=f"{why}, although {error}")
    except (ValueError, IndexError, KeyError) as error:
        if request.file is not None:
            raise request.refused("layout", f"does not fit the graph: {error}") from error
        if request.layout:
            raise _unknown(path, engine, trial_outputs, request.layout, reason=str(error)) from error
        raise ModelBroken(path=path, reason=str(error)) from error
    return opened


def _tried(request: _Request, engine: Engine, spec: InputSpec) -> Arrays:
    """The outputs of the trial run; where it fails on a size that the graph leaves open, the error says so."""
    try:
        return engine.run([_grey(spec)])
    except ModelBroken as error:
        sides = engine.graph.image.shape[-3:] if engine.graph.image else ()
        if None not in sides:
            raise
        raise ModelBroken(
            path=request.path,
            reason=f"it leaves its input size open, and fails on {spec.height} x {spec.width}: {error.reason}",
            fix="Write its [height, width] as `size` into `[input]` of a layout file "
            "(docs/reference/layout-file.md), or export the model with a fixed size.",
        ) from error


def _grey(spec: InputSpec) -> npt.NDArray[Any]:
    """A grey image as the network's input."""
    return prepare(np.full((256, 256, 3), 114, np.uint8), spec).tensor


def _named(request: _Request, opened: _Opened, names_file: Path | None, *, numbered: bool) -> ClassNames:
    reader, path = opened.reader, request.path
    classes = request.file.classes if request.file is not None else None
    declared = (classes.names, request.file_path.name) if classes and request.file_path else ((), "")
    try:
        return find_names(
            path,
            opened.engine.graph.metadata,
            reader.classes,
            background=reader.background,
            names_file=names_file,
            declared=declared,
        )
    except NamesMissing as error:
        if error.named is None and reader.names:
            return ClassNames(reader.names, f"the layout {opened.layout}")
        if not numbered or error.named is not None:
            raise
        return ClassNames(
            tuple(map(str, range(reader.classes or MAX_NUMBERED_CLASSES))), "their numbers (no names found)"
        )


def _pixels_in_words(request: _Request, graph: Graph, layout: Layout) -> str:
    """Where the values of pixels come from, if not from what was declared, or from a layout whose models all agree."""
    if request.is_processed(graph):
        return f"; images as {PROCESSOR} says"
    declared = "input" in request.shown(graph).metadata or is_standard_image(graph)
    whole = graph.image is not None and graph.image.dtype in WHOLE_NUMBERS
    if declared or whole:
        return ""
    if graph.pixels:
        return "; pixels as its first operators say, which normalise them"
    if not layout.pixels_vary:
        return ""
    beside = f"{PROCESSOR} next to it, or " if graph.image is not None and graph.image.name == IMAGE_INPUT else ""
    return f"; how it is shown images is assumed: {beside}`[input]` of a layout file says it"


def _recognised(request: _Request, engine: Engine, trial_outputs: Arrays) -> tuple[str, str]:
    path = request.path
    if request.file is not None and request.file_path is not None:
        if not request.file.layout:
            return DECLARED, f"{request.file_path.name} declares its outputs"
        if request.file.layout not in LAYOUTS:
            raise request.refused("layout", f"is {request.file.layout!r}; known layouts: {', '.join(LAYOUTS)}")
        shown = _pixels_in_words(request, engine.graph, LAYOUTS[request.file.layout])
        return request.file.layout, f"{request.file_path.name} names it{shown}"
    if request.layout:
        if request.layout not in LAYOUTS:
            raise _unknown(path, engine, trial_outputs, request.layout)
        return request.layout, f"asked for{_pixels_in_words(request, engine.graph, LAYOUTS[request.layout])}"
    rejected = []
    for name, layout in LAYOUTS.items():
        try:
            why = layout.recognise(request.shown(engine.graph), trial_outputs)
        except Misfit as error:
            rejected.append(f"it looks like {name}, but {error}")
            continue
        if why:
            return name, f"{why}{_pixels_in_words(request, engine.graph, layout)}"
    raise _unknown(path, engine, trial_outputs, "", reason="; ".join(rejected))


def _unknown(path: Path, engine: Engine, trial_outputs: Arrays, forced: str, reason: str = "") -> UnknownLayout:
    problem = f"is not of the layout {forced!r}" if forced else "has outputs that no known layout matches"
    return UnknownLayout(
        path=path,
        problem=f"{problem}: {reason}" if reason else problem,
        outputs=engine.graph.describe_outputs(trial_outputs),
        layouts=", ".join(LAYOUTS),
    )
