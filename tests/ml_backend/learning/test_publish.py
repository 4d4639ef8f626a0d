"""Files of learned versions: what a version that keeps the boxes of the served one is made of."""

from types import SimpleNamespace

import onnx
import pytest

from ml_backend.detection.onnx_graph import IMAGE_FEATURES
from ml_backend.inference.detector import load_detector
from ml_backend.learning.publish import VersionParts, store_candidate
from ml_backend.training.feature_export import export_image_features


@pytest.mark.parametrize("is_older", [True, False], ids=["older", "of this release"])
def test_versions_from_before_features_were_lent_get_them(labelloop_model, is_older):
    served = labelloop_model()
    if not is_older:
        onnx.save(export_image_features(load_detector(served, threads=1)), served)
    stored = []

    class BaseModels:
        registry = SimpleNamespace(add=lambda file, **_: stored.append(onnx.load(file)))

        def has_base(self, _served):
            return True

        def file(self, _version):
            return served, SimpleNamespace(layout="labelloop", classes=("cat",), metrics={"base": "x"})

    store_candidate(
        BaseModels(), SimpleNamespace(lent="it has no feature map"), VersionParts(None, {}, {}),
        served=SimpleNamespace(learned=True, version="learned-9", pointer="p", base="x"), project=1, tasks=10,
        metrics={},
    )  # fmt: skip
    assert [output.name for output in stored[0].graph.output].count(IMAGE_FEATURES) == 1
