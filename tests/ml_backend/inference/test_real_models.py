"""Real detectors on real images: a person and a cat, with the embedded model and others where available."""

import numpy as np
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import embedded_model, load_detector

# Approximate ground truth: x_min, y_min, x_max, y_max.
PERSON = (0, 0, 370, 512)
CAT = (0, 0, 450, 300)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def best(detector, photo):
    [detections] = detector.detect([prepare(photo, detector.spec)], floor=0.3)
    top = int(np.argmax(detections.scores))
    return detector.names.names[detections.classes[top]], detections.boxes[top]


@pytest.fixture(scope="module")
def embedded():
    return load_detector(embedded_model())


@pytest.mark.parametrize(("which", "name", "truth"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_embedded_model_detects(which, name, truth, embedded, request):
    label, box = best(embedded, request.getfixturevalue(which))
    assert label == name
    assert iou(box, truth) > 0.8


def test_embedded_model_has_names_and_license(embedded):
    assert embedded.layout == "labelloop"
    assert embedded.names.source == "metadata"
    assert embedded.engine.graph.metadata["license"]


def test_batches_equal_single_runs(embedded, astronaut, chelsea):
    photos = [prepare(photo, embedded.spec) for photo in (astronaut, chelsea, astronaut[::-1])]
    engine = embedded.engine
    together = engine.run([photo.tensor for photo in photos], ["boxes", "scores"])
    for index, photo in enumerate(photos):
        alone = engine.run([photo.tensor], ["boxes", "scores"])
        np.testing.assert_allclose(together["boxes"][index], alone["boxes"][0], rtol=1e-3, atol=0.05)
        np.testing.assert_allclose(together["scores"][index], alone["scores"][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("which", "name", "truth"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_yolox_nano_detects(which, name, truth, shared, request):
    model = shared / "models" / "yolox_nano.onnx"
    if not model.is_file():
        pytest.skip(f"needs {model}")
    detector = load_detector(model)
    assert detector.layout == "yolox"
    label, box = best(detector, request.getfixturevalue(which))
    assert label == name
    assert iou(box, truth) > 0.8


@pytest.mark.parametrize(("file", "layout"), [("nanodet_m.onnx", "nanodet"), ("fastestdet.onnx", "fastestdet")])
@pytest.mark.parametrize(("which", "name", "truth"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_other_layouts_detect(file, layout, which, name, truth, shared, request):
    model = shared / "models" / file
    if not model.is_file():
        pytest.skip(f"needs {model}")
    detector = load_detector(model)
    assert detector.layout == layout
    label, box = best(detector, request.getfixturevalue(which))
    assert label == name
    assert iou(box, truth) > 0.45  # NanoDet leaves out the legs
