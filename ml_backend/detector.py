"""Owns `Detector`: a model file made ready to look at photos, whatever its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ml_backend.detections import Detections, suppress
from ml_backend.engine import Engine
from ml_backend.errors import ModelBroken, UnknownLayout
from ml_backend.graph import Arrays
from ml_backend.layouts import LAYOUTS, plain_spec
from ml_backend.names import Names, find_names
from ml_backend.preprocess import InputSpec, Prepared, prepare
from ml_backend.versions import model_version


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
        spec: What the network wants to be shown.
    """

    version: str
    path: Path
    names: Names
    layout: str
    why: str
    spec: InputSpec
    engine: Engine

    @property
    def batch(self) -> int:
        """Photos that one run takes."""
        return self.engine.batch

    def detect(self, photos: Sequence[Prepared], *, floor: float) -> list[Detections]:
        """The boxes on at most `batch` photos, in pixels of each original photo, best first.

        Args:
            photos: Made by `prepare` with this detector's `spec`.
            floor: Scores below it are left out.

        Raises:
            ModelBroken: The engine failed on these photos.
        """
        layout = LAYOUTS[self.layout]
        seen = self.engine.run([photo.tensor for photo in photos], layout.outputs(self.engine.graph))
        found = layout.decode(seen, self.spec, floor)
        if layout.suppress_iou is not None:
            found = [suppress(one, iou=layout.suppress_iou) for one in found]
        return [photo.fit.to_photo(one) for photo, one in zip(photos, found, strict=True)]


def load_detector(path: Path, *, layout: str = "", threads: int = 0) -> Detector:
    """Opens a model, tries it once on a grey photo and recognises what its outputs mean.

    Args:
        path: The ONNX file.
        layout: Key of `LAYOUTS` to use, whatever the recognisers say; empty: the first that recognises it.
        threads: Threads of one run; 0: one a core.

    Raises:
        ModelMissing, ModelBroken: It cannot be opened or run.
        UnknownLayout: Its outputs are of no known layout (or not of the one asked for).
        NamesMissing: Nothing names its classes.
    """
    version = model_version(path, layout=layout)
    engine = Engine(path, threads=threads)
    grey = np.full((256, 256, 3), 114, np.uint8)
    seen = engine.run([prepare(grey, plain_spec(engine.graph)).tensor])
    name, why = _recognised(path, engine, seen, layout)
    chosen = LAYOUTS[name]
    try:
        spec = chosen.spec(engine.graph)
        classes = chosen.classes(seen)
        chosen.decode(seen, spec, 0.5)
    except (ValueError, IndexError, KeyError) as error:
        if layout:
            raise _unknown(path, engine, seen, layout) from error
        raise ModelBroken(path, str(error)) from error
    return Detector(
        version=version,
        path=path,
        names=find_names(path, engine.graph.metadata, classes),
        layout=name,
        why=why,
        spec=spec,
        engine=engine,
    )


def _recognised(path: Path, engine: Engine, seen: Arrays, asked: str) -> tuple[str, str]:
    if asked:
        if asked not in LAYOUTS:
            raise _unknown(path, engine, seen, asked)
        return asked, "asked for"
    for name, layout in LAYOUTS.items():
        why = layout.recognise(engine.graph, seen)
        if why:
            return name, why
    raise _unknown(path, engine, seen, asked)


def _unknown(path: Path, engine: Engine, seen: Arrays, asked: str) -> UnknownLayout:
    return UnknownLayout(path, outputs=engine.graph.describe_outputs(seen), layouts=tuple(LAYOUTS), asked=asked)
