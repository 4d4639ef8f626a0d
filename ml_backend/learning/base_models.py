"""Find and open base models: the model whose features a project trains on, and the versions learned from it."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.system import available_cores
from ml_backend.heads import load_heads
from ml_backend.heads.base import Head
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.malloc import trim_memory
from ml_backend.serving import activation
from ml_backend.serving.active_versions import DEFAULT_MODEL, read_pointer
from ml_backend.serving.registry import Registry, VersionManifest
from ml_backend.training.backbone import FrozenBackbone, open_backbone

# Value of `metrics["learner"]` of versions learned in service.
LEARNER = "labelloop"

# Most backbones kept in memory.
MAX_BACKBONES = 2


@dataclass(frozen=True)
class ServedModel:
    """The version served to a project and its base model.

    Attributes:
        version: The served version.
        base: The version to train on: the served one, or the one it was learned from.
        pointer: The base's key in the pointer; `DEFAULT_MODEL` for the default model.
        path: The base's ONNX file.
        layout: Its forced layout; empty: detected.
        learned: Whether `version` was learned in service.
    """

    version: str
    base: str
    pointer: str
    path: Path
    layout: str
    learned: bool


class BaseModels:
    """Finds and opens base models. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._store = open_store(settings.store_url, settings)
        self.registry = Registry(self._store)
        self._cache = activation.cache_of(settings)
        # Leave one core to training, which runs at the same time as pre-labelling.
        self._threads = settings.inference_threads or max(available_cores() - 1, 1)
        self._open: dict[str, FrozenBackbone] = {}
        self._heads: dict[str, dict[str, Head]] = {}
        self._lock = threading.Lock()

    def served(self, project: int) -> ServedModel:
        """Return the version served to a project now, and its base.

        Raises:
            StoreError: The store cannot be read.
            ModelError: A version is missing or damaged.
        """
        active = read_pointer(self._store)[0].active(str(project))
        version, learned = active, False
        while version != DEFAULT_MODEL:
            manifest = self.registry.manifest(version)
            if not is_learned(manifest):
                return ServedModel(
                    active, version, version, self._cache.fetch(self.registry, manifest), manifest.layout, learned
                )
            version, learned = manifest.metrics.get("base_pointer", DEFAULT_MODEL), True
        default = activation.default_version(self._settings)
        path = self._settings.model or embedded_model()
        return ServedModel(active or default, default, DEFAULT_MODEL, path, self._settings.model_layout, learned)

    def base(self, version: str) -> ServedModel:
        """Return a version that was added from outside as if it were served: to train upon it before it is.

        Raises:
            ModelError: There is no such version, or it is damaged.
            StoreError: The store cannot be read.
        """
        path, manifest = self.file(version)
        return ServedModel(version, version, version, path, manifest.layout, learned=False)

    def detector(self, version: str) -> Detector:
        """Open a version for inference; the default model is opened by its own version.

        Raises:
            ModelError: There is no such version.
            ModelError: It cannot be opened.
        """
        if version == activation.default_version(self._settings):
            path, layout = self._settings.model or embedded_model(), self._settings.model_layout
        else:
            manifest = self.registry.manifest(version)
            path, layout = self._cache.fetch(self.registry, manifest), manifest.layout
        detector = load_detector(path, layout=layout, threads=self._threads)
        return replace(detector, version=version, heads=self.heads(version))

    def file(self, version: str) -> tuple[Path, VersionManifest]:
        """Return the local ONNX file of a version on the store, and its manifest.

        Raises:
            ModelError: There is no such version.
            StoreError: The store cannot be read.
        """
        manifest = self.registry.manifest(version)
        return self._cache.fetch(self.registry, manifest), manifest

    def has_base(self, served: ServedModel) -> bool:
        """Whether the served version was learned on the base that is trained on now: then its features are the same.

        A version on the default model has another base once the settings name another file.

        Raises:
            ModelError: There is no such version.
            StoreError: The store cannot be read.
        """
        if not served.learned:
            return True
        return bool(self.registry.manifest(served.version).metrics.get("base", served.base) == served.base)

    def thresholds(self, version: str) -> dict[str, float]:
        """Return the thresholds per class of a version; empty for the default model.

        Raises:
            ModelError: There is no such version.
        """
        if version == activation.default_version(self._settings):
            return {}
        return dict(self.registry.manifest(version).thresholds)

    def heads(self, version: str) -> dict[str, Head]:
        """Return the heads of a version by kind; none for the default model.

        Raises:
            ModelError: There is no such version.
            StoreError: The store cannot be read.
        """
        if version == activation.default_version(self._settings):
            return {}
        with self._lock:
            if version in self._heads:
                return self._heads[version]
        manifest = self.registry.manifest(version)
        heads: dict[str, Head] = {}
        if manifest.heads:
            heads = load_heads(self._cache.fetch(self.registry, manifest).parent, manifest.heads)
        with self._lock:
            while len(self._heads) >= MAX_BACKBONES:
                self._heads.pop(next(iter(self._heads)))
            self._heads[version] = heads
        return heads

    def backbone(self, served: ServedModel) -> FrozenBackbone:
        """Open the base model for training.

        Raises:
            NotLearnable: Its last layer cannot be refitted.
            ModelError: It cannot be opened.
        """
        with self._lock:
            if served.base not in self._open:
                folder = self._settings.home / "ml_backend" / "backbones"
                opened = open_backbone(served.path, folder=folder, layout=served.layout, threads=self._threads)
                while len(self._open) >= MAX_BACKBONES:
                    self._open.pop(next(iter(self._open)))
                self._open[served.base] = opened
                trim_memory()  # recognising a layout and exporting a graph left 60 MB free
            return self._open[served.base]


def is_learned(manifest: VersionManifest) -> bool:
    """Whether a version was learned in service, not added from outside."""
    return manifest.metrics.get("learner") == LEARNER
