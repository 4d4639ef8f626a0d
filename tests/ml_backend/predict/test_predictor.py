"""Predictions: one per task, in order; an unreadable image fails only its task."""

import random
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.errors import Busy
from labelloop.service.media import MediaUnreachable, NotAnImage
from labelloop.service.memory_budget import Abandoned, never_abandoned
from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import load_detector
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import PREPARE_THREADS, WAITING_BATCHES, Predictor, _in_batches
from ml_backend.predict.protocol import FailedPrediction, ProjectOptions, TaskPrediction
from ml_backend.predict.task_score import NEUTRAL

LABELS = '<Label value="Cat"/><Label value="Person"/><Label value="Car"/>'
IMAGE = '<Image name="image" value="$image"/>'
RECTANGLES = f'<RectangleLabels name="label" toName="image">{LABELS}</RectangleLabels>'
ONE = f"<View>{IMAGE}{RECTANGLES}</View>"
ONLY_CAR = f'<View>{IMAGE}<RectangleLabels name="label" toName="image"><Label value="Car"/></RectangleLabels></View>'
LIST = f'<View><Image name="image" valueList="$images"/>{RECTANGLES}</View>'
PAIR = f"""<View>{IMAGE}<Labels name="l" toName="image">{LABELS}</Labels>
<Rectangle name="box" toName="image"/></View>"""
TWO = f"""<View><Image name="left" value="$a"/><Image name="right" value="$b"/>
<RectangleLabels name="label" toName="left,right">{LABELS}</RectangleLabels></View>"""


@pytest.fixture
def photo():
    """Twice as large as the model's input: boxes are twice as large in it."""
    return np.zeros((128, 192, 3), np.uint8)


@pytest.fixture
def detector(labelloop_model):
    return load_detector(labelloop_model())


@pytest.fixture
def predict(detector):
    def run(photos, tasks, *, config=ONE, threshold=0.3, project=None, abandoned=never_abandoned, **options):
        targets = find_targets(LabelConfig.parse(config), detector.names.names)
        predictor = Predictor(photos, score_threshold=threshold, **options)
        requested = ProjectOptions(score_threshold=project)
        return predictor.predict(tasks, detector=detector, targets=targets, options=requested, abandoned=abandoned)

    return run


def task(number, **data):
    return {"id": number, "data": data}


def test_boxes_are_percent_of_the_original_photo_with_region_scores(predict, album, photo, detector):
    [entry] = predict(album(a=photo), [task(7, image="a")])
    assert entry.model_version == detector.version
    by_label = {result["value"]["rectanglelabels"][0]: result for result in entry.result}
    assert set(by_label) == {"Cat", "Person"}  # the car stands below the threshold
    cat = by_label["Cat"]
    assert cat["score"] == pytest.approx(0.81)
    assert (cat["original_width"], cat["original_height"], cat["image_rotation"]) == (192, 128, 0)
    assert (cat["from_name"], cat["to_name"], cat["type"]) == ("label", "image", "rectanglelabels")
    assert "item_index" not in cat
    box = [cat["value"][key] for key in ("x", "y", "width", "height")]
    assert box == pytest.approx([100 * 10 / 96, 100 * 8 / 64, 100 * 20 / 96, 100 * 16 / 64], abs=0.02)
    assert len({result["id"] for result in entry.result}) == 2


def test_entries_keep_the_order_of_tasks(predict, photo):
    class Slow:
        def photo(self, url, *, task_id=None, max_side=None, **_):
            from labelloop.service.media import DecodedImage

            time.sleep(0.03 if task_id % 3 == 0 else 0)
            side = 192 + task_id
            return DecodedImage(photo, side, 128)

    entries = predict(Slow(), [task(number, image="x") for number in range(1, 31)])
    assert [entry.result[0]["original_width"] for entry in entries] == [192 + number for number in range(1, 31)]


BAD = {
    "an error of the media": {"image": "broken"},
    "a host that is down": {"image": "down"},
    "an unknown address": {"image": "nowhere"},
    "no address": {},
    "null": {"image": None},
    "a number": {"image": 5},
    "an empty address": {"image": " "},
    "an object": {"image": {"url": "a"}},
    "a decoder that fails in a way of its own": {"image": "weird"},
}


@pytest.mark.parametrize("case", BAD)
def test_an_unreadable_image_fails_only_its_task(case, predict, album, photo):
    photos = album(
        a=photo,
        broken=NotAnImage("broken", "it is truncated"),
        down=MediaUnreachable("down", "it did not answer"),
        weird=ZeroDivisionError(),
    )
    codes = []
    tasks = [task(1, image="a"), task(2, **BAD[case]), task(3, image="a")]
    first, bad, last = predict(photos, tasks, on_skipped=codes.append)
    assert isinstance(bad, FailedPrediction)
    assert bad.error
    assert len(first.result) == len(last.result) == 2
    assert len(codes) == 1


def test_a_task_without_data_is_answered_all_the_same(predict, album):
    entries = predict(album(), [{"id": 1}, {"data": None}, {}])
    assert all(isinstance(entry, FailedPrediction) and entry.score == NEUTRAL for entry in entries)


def test_labels_and_rectangle_give_two_results_of_one_id(predict, album, photo):
    [entry] = predict(album(a=photo), [task(1, image="a")], config=PAIR)
    assert len(entry.result) == 4
    for drawn, labelled in zip(entry.result[::2], entry.result[1::2], strict=True):
        assert drawn["id"] == labelled["id"]
        assert (drawn["type"], drawn["from_name"]) == ("rectangle", "box")
        assert (labelled["type"], labelled["from_name"]) == ("labels", "l")
        geometry = {key: value for key, value in labelled["value"].items() if key != "labels"}
        assert geometry == drawn["value"]
        assert labelled["value"]["labels"][0] in {"Cat", "Person"}


def test_images_of_a_list_get_item_indices(predict, album, photo):
    photos = album(a=photo, b=photo[:64])
    [entry] = predict(photos, [task(1, images=["a", "gone", "b"])], config=LIST)
    assert sorted({result["item_index"] for result in entry.result}) == [0, 2]
    assert {result["original_height"] for result in entry.result if result["item_index"] == 2} == {64}
    assert len({result["id"] for result in entry.result}) == len(entry.result)


def test_two_images_of_a_task_differ_in_to_name(predict, album, photo):
    [entry] = predict(album(x=photo, y=photo[:64]), [task(1, a="x", b="y")], config=TWO)
    heights = {(result["to_name"], result["original_height"]) for result in entry.result}
    assert heights == {("left", 128), ("right", 64)}


THRESHOLDS = {
    "the backend's": (ONE, 0.3, None, 2),
    "a lower one": (ONE, 0.2, None, 3),
    "the project's beats the backend's": (ONE, 0.2, 0.805, 1),
    "the control's beats both": (ONE.replace("toName", 'model_score_threshold="0.2" toName'), 0.9, 0.9, 3),
    "nothing reaches it": (ONE, 0.99, None, 0),
    "zero": (ONE, 0.0, None, 3),
}


@pytest.mark.parametrize("case", THRESHOLDS)
def test_thresholds_stand_in_this_order(case, predict, album, photo):
    config, backend, project, expected = THRESHOLDS[case]
    [entry] = predict(album(a=photo), [task(1, image="a")], config=config, threshold=backend, project=project)
    assert len(entry.result) == expected


def test_a_near_miss_scores_lower_than_no_candidates(predict, album, photo):
    [near] = predict(album(a=photo), [task(1, image="a")], threshold=0.82)
    [nothing] = predict(album(a=photo), [task(1, image="a")], threshold=1.0, config=ONLY_CAR)
    assert near.result == nothing.result == []
    assert 0 <= near.score < nothing.score == NEUTRAL


def test_the_same_question_has_the_same_answer(predict, album, photo):
    tasks = [task(1, image="a"), task(2, image="a")]
    assert predict(album(a=photo), tasks) == predict(album(a=photo), tasks)
    first, second = predict(album(a=photo), tasks)
    assert first.result[0]["id"] != second.result[0]["id"]


def test_without_targets_no_image_is_fetched(predict, album, photo):
    photos = album(a=photo)
    config = f'<View>{IMAGE}<Choices name="c" toName="image"><Choice value="Cat"/></Choices></View>'
    [entry] = predict(photos, [task(1, image="a")], config=config)
    assert (isinstance(entry, FailedPrediction), photos.asked) == (True, [])


def test_photos_held_at_once_do_not_grow_with_the_request(predict, photo):
    class Counting:
        held = most = 0
        lock = threading.Lock()

        def photo(self, url, *, task_id=None, max_side=None, **_):
            from labelloop.service.media import DecodedImage

            with self.lock:
                self.held += 1
                self.most = max(self.most, self.held)
            time.sleep(0.002)
            with self.lock:
                self.held -= 1
            return DecodedImage(photo, 192, 128)

    photos = Counting()
    assert len(predict(photos, [task(number, image="x") for number in range(250)])) == 250
    assert 1 < photos.most <= PREPARE_THREADS


def test_tasks_after_the_deadline_fail_instead_of_being_empty(predict, photo):
    over = threading.Event()

    class Hanging:
        def photo(self, url, *, task_id=None, max_side=None, **_):
            from labelloop.service.media import DecodedImage

            if task_id > 2:
                over.wait(60)
            return DecodedImage(photo, 192, 128)

    started = time.monotonic()
    entries = predict(Hanging(), [task(number, image="x") for number in range(1, 21)], budget_s=2)
    assert time.monotonic() - started < 30
    over.set()
    assert [type(entry) for entry in entries] == [TaskPrediction] * 2 + [FailedPrediction] * 18


def test_a_slow_engine_fails_the_remaining_tasks_in_time(labelloop_model, album, photo):
    detector = load_detector(labelloop_model())

    one_at_a_time = threading.Semaphore()  # who came first is next, as in the engine

    class Slow:
        version, names, spec, batch, heads = detector.version, detector.names, detector.spec, 1, detector.heads
        tiles = 1
        spec_for = staticmethod(detector.spec_for)

        def detect(self, photos, *, floor):
            with one_at_a_time:
                time.sleep(0.5)
            return detector.detect(photos, floor=floor)

    targets = find_targets(LabelConfig.parse(ONE), detector.names.names)
    predictor = Predictor(album(a=photo), score_threshold=0.3, budget_s=4)
    started = time.monotonic()
    entries = predictor.predict([task(n, image="a") for n in range(40)], detector=Slow(), targets=targets)
    assert time.monotonic() - started < 15  # of 20
    kinds = [type(entry) for entry in entries]
    assert 0 < kinds.count(TaskPrediction) < 10
    assert kinds == sorted(kinds, key=[TaskPrediction, FailedPrediction].index)


def test_an_engine_error_fails_the_request(labelloop_model, album, photo):
    detector = load_detector(labelloop_model())

    def fail(photos, outputs):
        raise ModelBroken(path=detector.path, reason="out of memory")

    detector.engine.run = fail
    targets = find_targets(LabelConfig.parse(ONE), detector.names.names)
    for count in (1, 5):
        with pytest.raises(ModelBroken, match="out of memory"):
            Predictor(album(a=photo), score_threshold=0.3).predict(
                [task(n, image="a") for n in range(count)], detector=detector, targets=targets
            )


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_batch_size_only_changes_the_number_of_runs(batch, labelloop_model, album, photo):
    detector = load_detector(labelloop_model())
    runs = []
    engine_run = detector.engine.run
    detector.engine.batch = batch
    detector.engine.run = lambda photos, outputs: runs.append(len(photos)) or engine_run(photos, outputs)
    photos = album(**{f"p{n}": photo[: 128 - n] for n in range(20)})
    targets = find_targets(LabelConfig.parse(ONE), detector.names.names)
    entries = Predictor(photos, score_threshold=0.3).predict(
        [task(n, image=f"p{n}" if n % 5 else "gone") for n in range(20)], detector=detector, targets=targets
    )
    assert [entry.result[0]["original_height"] if isinstance(entry, TaskPrediction) else None for entry in entries] == [
        128 - n if n % 5 else None for n in range(20)
    ]
    assert sum(runs) == 16
    assert max(runs) == min(batch, 16)


def test_a_cpu_runs_one_image_at_a_time(labelloop_model):
    assert load_detector(labelloop_model()).batch == 1


def test_work_stops_when_the_client_has_gone(predict, album, photo):
    photos, gone = album(a=photo), threading.Event()

    class Leaving:
        def photo(self, url, **options):
            gone.set()  # while the first photo is decoded
            return photos.photo(url, **options)

    with pytest.raises(Abandoned):
        predict(Leaving(), [task(n, image="a") for n in range(60)], abandoned=gone.is_set)
    assert len(photos.asked) <= PREPARE_THREADS


def test_no_memory_for_a_photo_refuses_the_request(predict, album, photo):
    photos = album(a=photo, b=Busy(reason="There was no memory for this work within 30 s."))
    with pytest.raises(Busy):
        predict(photos, [task(1, image="a"), task(2, image="b")])


def test_decodes_of_an_ended_request_do_not_wait_for_memory(predict, photo, wait_until):
    ended = []

    class Waiting:
        def photo(self, url, *, task_id=None, abandoned=lambda: False, **_):
            if task_id == 1:
                raise Busy(reason="There was no memory.")
            wait_until(abandoned)
            ended.append(task_id)
            raise Abandoned

    with pytest.raises(Busy):
        predict(Waiting(), [task(n, image="a") for n in range(1, 9)])
    wait_until(lambda: 0 < len(ended) <= PREPARE_THREADS)


@pytest.mark.parametrize("batch", [2, 4])
def test_few_images_wait_for_others_of_their_size(batch):
    """Images of many sizes, in turn: each batch has one size, the order is kept, and memory is bounded."""
    sizes = random.Random(4).choices(range(1, 6), k=80)
    alive, most = 0, 0

    def coming():
        nonlocal alive, most
        for number, size in enumerate(sizes):
            alive += 1
            most = max(most, alive)
            yield number, SimpleNamespace(prepared=SimpleNamespace(tensor=np.zeros((size, 1)), number=number))

    def detect(prepared, *, floor):
        assert len({one.tensor.shape for one in prepared}) == 1
        assert len(prepared) <= batch
        return [one.number for one in prepared]

    seen = []
    for number, _, detected in _in_batches(coming(), SimpleNamespace(batch=batch, detect=detect), 0.1):
        alive -= 1
        seen.append(detected)
        assert number == detected
    assert seen == list(range(len(sizes)))
    assert most <= WAITING_BATCHES * batch
