"""Owns the base of a project: the model whose features it learns on, and the versions that were learned from it."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from labelloop.service.cores import cores
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.serving import activation
from ml_backend.serving.active_versions import GIVEN, read_pointer
from ml_backend.serving.registry import Manifest, Registry
from ml_backend.training.backbone import FrozenBackbone, open_backbone

LEARNER = "labelloop"
"""`metrics["learner"]` of a version that was learned in service."""

OPEN = 2
"""Backbones that stay in memory."""


@dataclass(frozen=True)
class Served:
    """What is served to a project, and what it comes from.

    Attributes:
        version: What is served, as every prediction names it.
        base: The version that is learned on: what is served, or what that was learned from.
        pointer: The base as the pointer names it; `GIVEN` for the model that the backend is started with.
        path: The base's file.
        layout: Its forced layout; empty: recognised.
        learned: Whether `version` was learned here.
    """

    version: str
    base: str
    pointer: str
    path: Path
    layout: str
    learned: bool


class BaseModels:
    """Finds and opens bases. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet."""
        self._settings = settings
        self._store = open_store(settings.store_url, settings)
        self.registry = Registry(self._store)
        self._cache = activation.cache_of(settings)
        # One core stays free for a fit, which runs on one: pre-labels are renewed meanwhile.
        self._threads = settings.inference_threads or max(cores() - 1, 1)
        self._open: dict[str, FrozenBackbone] = {}
        self._lock = threading.Lock()

    def served(self, project: int) -> Served:
        """What is served to a project now.

        Raises:
            StoreError: The store cannot be read.
            ModelError: A version is not what it should be.
        """
        active = read_pointer(self._store)[0].active(str(project))
        version, learned = active, False
        while version != GIVEN:
            manifest = self.registry.manifest(version)
            if not is_learned(manifest):
                return Served(active, version, version, self._cache.fetch(self.registry, manifest), manifest.layout,
                              learned)  # fmt: skip
            version, learned = manifest.metrics.get("base_pointer", GIVEN), True
        given = activation.given_version(self._settings)
        path = self._settings.model or embedded_model()
        return Served(active or given, given, GIVEN, path, self._settings.model_layout, learned)

    def detector(self, version: str) -> Detector:
        """A version, opened to look at photos; the model that the backend is started with by its own version.

        Raises:
            UnknownVersion: There is none of that name.
            ModelError: It cannot be opened.
        """
        if version == activation.given_version(self._settings):
            path, layout = self._settings.model or embedded_model(), self._settings.model_layout
        else:
            manifest = self.registry.manifest(version)
            path, layout = self._cache.fetch(self.registry, manifest), manifest.layout
        return replace(load_detector(path, layout=layout, threads=self._threads), version=version)

    def thresholds(self, version: str) -> dict[str, float]:
        """The thresholds that a version brings; the model that the backend is started with brings none.

        Raises:
            UnknownVersion: There is none of that name.
        """
        if version == activation.given_version(self._settings):
            return {}
        return dict(self.registry.manifest(version).thresholds)

    def backbone(self, served: Served) -> FrozenBackbone:
        """The base, opened to be learned on.

        Raises:
            NotLearnable: Its last layer cannot be refitted.
            ModelError: It cannot be opened.
        """
        with self._lock:
            if served.base not in self._open:
                folder = self._settings.home / "ml_backend" / "backbones"
                opened = open_backbone(served.path, folder=folder, layout=served.layout, threads=self._threads)
                while len(self._open) >= OPEN:
                    self._open.pop(next(iter(self._open)))
                self._open[served.base] = opened
            return self._open[served.base]


def is_learned(manifest: Manifest) -> bool:
    """Whether a version was learned in service, not made elsewhere."""
    return manifest.metrics.get("learner") == LEARNER
