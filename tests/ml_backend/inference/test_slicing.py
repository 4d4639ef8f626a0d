"""Sliced inference detects small objects in large images, and counts none twice."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import InputSpec
from ml_backend.inference.slicing import Slices, detect_sliced, slice_boxes


class Spots:
    """Detects the visible part of every bright spot of at least 4 x 4 input pixels."""

    batch = 2
    spec = InputSpec(64, 64, pad=0)

    def __init__(self):
        self.looks = 0

    def detect(self, photos, *, floor):
        from scipy import ndimage

        results = []
        for photo in photos:
            self.looks += 1
            numbered, _ = ndimage.label(photo.tensor[0] > 127)
            boxes = [(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(numbered)]
            boxes = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= 4]
            plain = Detections(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.linspace(0.9, 0.8, len(boxes), dtype=np.float32),
                np.zeros(len(boxes), np.int64),
            )
            results.append(plain.to_image(photo.fit))
        return results


def photo_of(width, height, *spots):
    photo = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in spots:
        photo[top:bottom, left:right] = 255
    return photo


def boxes(detections):
    return sorted(tuple(round(side) for side in box) for box in detections.boxes.tolist())


def test_small_objects_are_detected_in_slices():
    spots = [(20, 20, 28, 28), (300, 200, 308, 208), (500, 390, 508, 398)]
    photo = photo_of(512, 400, *spots)
    whole = detect_sliced(Spots(), photo, Slices(), floor=0.3)
    sliced = detect_sliced(Spots(), photo, Slices(64, 0.25), floor=0.3)
    assert boxes(whole) == []
    assert boxes(sliced) == spots


def test_object_cut_by_slices_is_one_box():
    photo = photo_of(128, 128, (30, 30, 98, 50), (100, 100, 110, 112))
    detections = detect_sliced(Spots(), photo, Slices(64, 0.25), floor=0.3)
    assert len(detections) == 2
    [large, small] = boxes(detections)
    assert np.abs(np.array(large) - (30, 30, 98, 50)).max() <= 2
    assert small == (100, 100, 110, 112)


def test_fragments_yield_to_the_full_object():
    class Unsure(Spots):
        def detect(self, photos, *, floor):
            first = self.looks == 0
            results = super().detect(photos, floor=floor)
            if first:
                results[0] = dataclasses.replace(results[0], scores=results[0].scores * 0.5)
            return results

    merged = detect_sliced(Unsure(), photo_of(192, 192, (20, 20, 170, 170)), Slices(64, 0.25), floor=0.3)
    assert merged.scores.max() < 0.5
    assert np.abs(np.array(boxes(merged)) - (20, 20, 170, 170)).max() <= 3


def test_small_image_is_not_sliced():
    spots = Spots()
    detect_sliced(spots, photo_of(60, 40, (10, 10, 30, 30)), Slices(64, 0.2), floor=0.3)
    assert spots.looks == 1


def test_reduced_decode_is_not_sliced():
    spots = Spots()
    detections = detect_sliced(spots, photo_of(128, 128, (64, 64, 128, 128)), Slices(64), floor=0.3, size=(1280, 1280))
    assert (spots.looks, boxes(detections)) == (1, [(640, 640, 1280, 1280)])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 700), st.sampled_from([0.0, 0.1, 0.2, 0.5]))
def test_slices_cover_the_image_and_overlap(width, height, side, overlap):
    parts = slice_boxes(width, height, Slices(side, overlap))
    if max(width, height) <= side:
        assert parts == []
        return
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(part[low], part[high]) for part in parts})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(end - start == min(side, length) for start, end in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= int(side * overlap) - 1
    assert len(set(parts)) == len(parts)


def test_extra_params_enable_slicing(make_onnx, album):
    from labelloop.labeling.studio.config import LabelConfig
    from ml_backend.inference.detector import load_detector
    from ml_backend.predict.label_mapping import find_targets
    from ml_backend.predict.predictor import Predictor
    from ml_backend.predict.protocol import read_options

    rows = np.zeros((1, 6, 126))
    rows[0, :, 0] = [48, 32, 20, 20, 0.9, 0]
    detector = load_detector(make_onnx({"o": rows}, metadata={"names": ["a", "b"]}))
    config = LabelConfig.parse(
        '<View><Image name="i" value="$i"/><RectangleLabels name="l" toName="i"><Label value="a"/></RectangleLabels>'
        "</View>"
    )
    targets = find_targets(config, detector.names.names)
    predictor = Predictor(album(x=np.zeros((128, 192, 3), np.uint8)), score_threshold=0.3)

    def count(extra):
        options = read_options(extra)
        tasks = [{"id": n, "data": {"i": "x"}} for n in range(3)]
        entries = predictor.predict(tasks, detector=detector, targets=targets, options=options)
        return [len(entry.result) for entry in entries]

    assert count({}) == [1, 1, 1]
    # The model detects the same in the full image and in each of 2 x 2 slices: five boxes, none inside another.
    assert count('{"slice": 96, "slice_overlap": 0}') == [5, 5, 5]


@pytest.mark.parametrize("extra", [{"slice": 10}, {"slice": "large"}, {"slice": 640, "slice_overlap": 1}])
def test_invalid_slices_are_rejected(extra):
    from labelloop.service.errors import BadRequest
    from ml_backend.predict.protocol import read_options

    with pytest.raises(BadRequest, match="slice"):
        read_options(extra)


@pytest.mark.parametrize("extra", [{"score_thresholds": 0.5}, {"score_thresholds": {"car": 2}}])
def test_invalid_thresholds_are_rejected(extra):
    from labelloop.service.errors import BadRequest
    from ml_backend.predict.protocol import read_options

    with pytest.raises(BadRequest, match=r"score_thresholds|car"):
        read_options(extra)
