"""Owns `Detector`: a model file made ready to look at photos, whatever its layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, fuse_candidates
from ml_backend.detection.class_names import Names, find_names, point_names
from ml_backend.detection.detections import Detections, suppress
from ml_backend.detection.onnx_graph import Arrays
from ml_backend.detection.preprocess import Fit, InputSpec, Prepared, prepare
from ml_backend.errors import ModelBroken, NamesMissing, UnknownLayout
from ml_backend.inference.session import Engine
from ml_backend.inference.session_cache import CachedSession, OnnxSessionCache
from ml_backend.inference.version_id import model_version
from ml_backend.layouts import LAYOUTS, Reader, plain_spec
from ml_backend.layouts.plausibility import Misfit, check_boxes, check_scores

MOST_NUMBERED = 1000
"""Classes that are called by numbers where the outputs do not say how many there are."""


def embedded_model() -> Path:
    """The model that comes with labelloop."""
    return Path(str(files("ml_backend").joinpath("models", "base.onnx")))


@dataclass(frozen=True)
class Detector:
    """A model ready to run.

    Attributes:
        version: What `/setup` answers and every prediction carries.
        path: The file.
        names: Class names, in the model's order, and where they were found.
        layout: Key of `LAYOUTS`; `why` it was chosen, in words.
        reader: The layout bound to this graph.
        proven: Whether the trial run gave boxes, so that it is known in which unit they are.
    """

    version: str
    path: Path
    names: Names
    layout: str
    why: str
    reader: Reader
    engine: Engine
    proven: bool = True

    @property
    def spec(self) -> InputSpec:
        """What the network wants to be shown."""
        return self.reader.spec

    @property
    def gives(self) -> frozenset[str]:
        """What it can fill a control with: see `Reader.gives`."""
        return self.reader.gives

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the keypoints of each detection; none where it gives none."""
        return point_names(self.engine.graph.metadata, self.reader.points)

    @property
    def batch(self) -> int:
        """Photos that one run takes."""
        return 1 if self.reader.alone else self.engine.batch

    def detect(self, photos: Sequence[Prepared], *, floor: float) -> list[Detections]:
        """What is on at most `batch` photos, in pixels of each original photo, best first.

        Args:
            photos: Made by `prepare` with this detector's `spec`.
            floor: Scores below it are left out.

        Raises:
            ModelBroken: The engine failed on these photos.
        """
        seen = self.engine.run([photo.tensor for photo in photos], self.reader.outputs)
        decoded = self.reader.decode(seen, self.reach(floor))
        if not self.proven:
            self._prove(decoded)
        return [
            photo.fit.to_photo(self.settled(self._numbered(one), photo.fit, floor=floor))
            for photo, one in zip(photos, decoded, strict=True)
        ]

    def _prove(self, found: Sequence[Detections]) -> None:
        """Raises ModelBroken where boxes turn out to be shares of the input, which no trial run showed."""
        try:
            for one in found:
                check_boxes([one], self.spec)
        except Misfit as error:
            raise ModelBroken(
                self.path,
                f"it was opened as {self.layout}, and {error}",
                fix="Name its layout: --layout or LABELLOOP_MODEL_LAYOUT (`ssd` where boxes are shares of the input).",
            ) from error

    def reach(self, floor: float) -> float:
        """The score down to which candidates count for what is shown from a floor on."""
        return floor if self.reader.lines is None else MIN_CANDIDATE_SCORE

    def settled(self, found: Detections, fit: Fit, *, floor: float) -> Detections:
        """What is shown of candidates down to `reach(floor)`, best first; all in pixels of the input."""
        if self.reader.lines is not None:
            return fuse_candidates(found, fit, floor=floor, lines=self.reader.lines)
        if self.reader.suppress_iou is None:
            return found[np.argsort(-found.scores, kind="stable")]
        return suppress(found, iou=self.reader.suppress_iou)

    def _numbered(self, found: Detections) -> Detections:
        """Classes as indices into the names; what stands for no class is no detection."""
        places = self.names.places
        if places is None:
            known = (found.classes >= 0) & (found.classes < len(self.names.names))
            return found if known.all() else found[known]
        inside = (found.classes >= 0) & (found.classes < len(places))
        found = found[inside]
        found = replace(found, classes=np.asarray(places, np.int64)[found.classes])
        return found[found.classes >= 0]


def load_detector(
    path: Path,
    *,
    layout: str = "",
    threads: int = 0,
    names: Path | None = None,
    numbered: bool = False,
    version: str = "",
    kept: Path | None = None,
) -> Detector:
    """Opens a model, tries it once on a grey photo and recognises what its outputs mean.

    Args:
        path: The ONNX file.
        layout: Key of `LAYOUTS` to use, whatever the recognisers say; empty: the first that recognises it.
        threads: Threads of one run; 0: one a core.
        names: File of the class names; None: those in the model, or beside it.
        numbered: Whether classes that nothing names are called by their numbers; else that is an error.
        version: What it is called; empty: `model_version` of its bytes.
        kept: Folder of this very file in which its opening is kept, and found when it is opened again: `Openings`.

    Raises:
        ModelMissing, ModelBroken: It cannot be opened or run.
        UnknownLayout: Its outputs are of no known layout (or not of the one asked for).
        NamesMissing: Nothing names its classes.
    """
    version = version or model_version(path, layout=layout)
    opened = _open_kept(path, layout, threads, OnnxSessionCache(kept)) if kept else _open(path, layout, threads)
    return Detector(
        version=version,
        path=path,
        names=_named(path, opened.engine, opened.reader, names, numbered=numbered),
        layout=opened.layout,
        why=opened.why,
        reader=opened.reader,
        engine=opened.engine,
        proven=bool(layout) or _fits(opened),
    )


@dataclass(frozen=True)
class _Opened:
    engine: Engine
    reader: Reader
    layout: str
    why: str
    seen: Arrays


def _fits(opened: _Opened) -> bool:
    """Whether the trial run gave boxes to judge by.

    Raises:
        Misfit: What the layout reads cannot be what it says.
    """
    for name in opened.reader.outputs:
        if np.issubdtype(opened.seen[name].dtype, np.floating) and np.isnan(opened.seen[name]).any():
            raise Misfit(f"some values of its output {name} are not numbers (NaN)")
    with np.errstate(all="ignore"):
        found = opened.reader.decode(opened.seen, -np.inf)
    check_scores(found)
    return "classes" in opened.reader.gives or check_boxes(found, opened.reader.spec)


def _open_kept(path: Path, layout: str, threads: int, openings: OnnxSessionCache) -> _Opened:
    """As `_open`, but what was opened here before is neither optimised nor tried again."""
    try:
        opened = _open_again(path, threads, openings.find())
        if opened is not None:
            return opened
        with openings.locked() as graph:
            opened = _open_again(path, threads, openings.find())
            if opened is None:
                opened = _open(path, layout, threads, keep=graph)
                openings.store(graph, layout=opened.layout, why=opened.why, seen=opened.seen)
            return opened
    except OSError:  # nothing can be kept there
        return _open(path, layout, threads)


def _open_again(path: Path, threads: int, found: CachedSession | None) -> _Opened | None:
    if found is None or found.layout not in LAYOUTS:
        return None
    try:
        engine = Engine(path, threads=threads, graph=found.graph)
        reader = LAYOUTS[found.layout].read(engine.graph, found.seen)
    except (ModelBroken, ValueError, IndexError, KeyError):  # the file was damaged since: once more from the beginning
        return None
    return _Opened(engine, reader, found.layout, found.why, found.seen)


def _open(path: Path, layout: str, threads: int, *, keep: Path | None = None) -> _Opened:
    engine = Engine(path, threads=threads, keep=keep)
    try:
        trial = plain_spec(engine.graph)
    except ValueError as error:
        raise ModelBroken(path, str(error)) from error
    seen = engine.run([prepare(np.full((256, 256, 3), 114, np.uint8), trial).tensor])
    name, why = _recognised(path, engine, seen, layout)
    try:
        reader = LAYOUTS[name].read(engine.graph, seen)
        reader.decode(seen, 0.5)
        opened = _Opened(engine, reader, name, why, seen)
        _fits(opened)
    except Misfit as error:
        if not layout:
            raise _unknown(path, engine, seen, layout, reason=f"it looks like {name} ({why}), but {error}") from error
        return replace(opened, why=f"{why}, although {error}")
    except (ValueError, IndexError, KeyError) as error:
        if layout:
            raise _unknown(path, engine, seen, layout, reason=str(error)) from error
        raise ModelBroken(path, str(error)) from error
    return opened


def _named(path: Path, engine: Engine, reader: Reader, given: Path | None, *, numbered: bool) -> Names:
    try:
        return find_names(path, engine.graph.metadata, reader.classes, spare=reader.spare, given=given)
    except NamesMissing as error:
        if not numbered or error.found is not None:
            raise
        return Names(tuple(map(str, range(reader.classes or MOST_NUMBERED))), "nothing, so they are numbers")


def _recognised(path: Path, engine: Engine, seen: Arrays, asked: str) -> tuple[str, str]:
    if asked:
        if asked not in LAYOUTS:
            raise _unknown(path, engine, seen, asked)
        return asked, "asked for"
    almost = []
    for name, layout in LAYOUTS.items():
        try:
            why = layout.recognise(engine.graph, seen)
        except Misfit as error:
            almost.append(f"it looks like {name}, but {error}")
            continue
        if why:
            return name, why
    raise _unknown(path, engine, seen, asked, reason="; ".join(almost))


def _unknown(path: Path, engine: Engine, seen: Arrays, asked: str, reason: str = "") -> UnknownLayout:
    outputs = engine.graph.describe_outputs(seen)
    return UnknownLayout(path, outputs=outputs, layouts=tuple(LAYOUTS), asked=asked, reason=reason)
