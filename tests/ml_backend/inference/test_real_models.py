"""Real detectors on real photos: the embedded one finds a person and a cat, and so does YOLOX-nano where it is had."""

import numpy as np
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import embedded_model, load_detector

# Where the person and the cat are, by eye: x_min, y_min, x_max, y_max.
PERSON = (0, 0, 370, 512)
CAT = (0, 0, 450, 300)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def best(detector, photo):
    [found] = detector.detect([prepare(photo, detector.spec)], floor=0.3)
    top = int(np.argmax(found.scores))
    return detector.names.names[found.classes[top]], found.boxes[top]


@pytest.fixture(scope="module")
def embedded():
    return load_detector(embedded_model())


@pytest.mark.parametrize(("which", "name", "place"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_the_embedded_model_finds(which, name, place, embedded, request):
    found, box = best(embedded, request.getfixturevalue(which))
    assert found == name
    assert iou(box, place) > 0.8


def test_the_embedded_model_carries_its_names_and_its_terms(embedded):
    assert embedded.layout == "labelloop"
    assert embedded.names.source == "metadata"
    assert embedded.engine.graph.metadata["license"]


def test_many_photos_at_once_give_what_each_gives_alone(embedded, astronaut, chelsea):
    photos = [prepare(photo, embedded.spec) for photo in (astronaut, chelsea, astronaut[::-1])]
    engine = embedded.engine
    together = engine.run([photo.tensor for photo in photos], ["boxes", "scores"])
    for index, photo in enumerate(photos):
        alone = engine.run([photo.tensor], ["boxes", "scores"])
        np.testing.assert_allclose(together["boxes"][index], alone["boxes"][0], rtol=1e-3, atol=0.05)
        np.testing.assert_allclose(together["scores"][index], alone["scores"][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("which", "name", "place"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_yolox_nano_finds(which, name, place, shared, request):
    model = shared / "models" / "yolox_nano.onnx"
    if not model.is_file():
        pytest.skip(f"needs {model}")
    detector = load_detector(model)
    assert detector.layout == "yolox"
    found, box = best(detector, request.getfixturevalue(which))
    assert found == name
    assert iou(box, place) > 0.8


@pytest.mark.parametrize(("file", "layout"), [("nanodet_m.onnx", "nanodet"), ("fastestdet.onnx", "fastestdet")])
@pytest.mark.parametrize(("which", "name", "place"), [("astronaut", "person", PERSON), ("chelsea", "cat", CAT)])
def test_detectors_of_other_layouts_find(file, layout, which, name, place, shared, request):
    model = shared / "models" / file
    if not model.is_file():
        pytest.skip(f"needs {model}")
    detector = load_detector(model)
    assert detector.layout == layout
    found, box = best(detector, request.getfixturevalue(which))
    assert found == name
    assert iou(box, place) > 0.45  # NanoDet leaves out the legs
