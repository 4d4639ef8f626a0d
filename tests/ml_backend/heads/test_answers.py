"""Answers about images and objects: learned, judged by control, stored, and filled in only where they are certain."""

from dataclasses import replace

import numpy as np
import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.detections import Detections
from ml_backend.heads import image_labels, region_labels
from ml_backend.heads.answers import AnswersHead, LearnedControl, find_wrong_answers, thresholds_of
from ml_backend.heads.base import FitInput, HeadExample, ImagePrediction

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="weather" toName="image"><Choice value="sun"/><Choice value="rain"/><Choice value="snow"/></Choices>
<Choices name="tags" toName="image" choice="multiple"><Choice value="odd"/><Choice value="high"/></Choices>
<Taxonomy name="place" toName="image"><Choice value="Town"><Choice value="Square"/><Choice value="Street"/></Choice>
<Choice value="Country"/></Taxonomy>
<Rating name="stars" toName="image" maxRating="5"/>
<RectangleLabels name="box" toName="image"><Label value="car"/><Label value="bus"/></RectangleLabels>
<Choices name="state" toName="image" perRegion="true"><Choice value="whole"/><Choice value="cut"/></Choices></View>"""
WEATHER = ("sun", "rain", "snow")
PLACES = ("Town/Square", "Town/Street", "Country")
CENTRES = np.random.default_rng(1).normal(0, 1, (5, 40))


def features(kind, rng, spread=1.0):
    return (CENTRES[kind] + rng.normal(0, spread, 40)).astype(np.float32)


def image(task, choices, row, *, boxes=(), region_choices=(), embeddings=None, labels=()):
    return HeadExample(
        task, f"/{task}.jpg", 100, 80, np.array(boxes, np.float32).reshape(-1, 4), labels,
        np.zeros((len(boxes), 8), np.float32) if embeddings is None else embeddings, row,
        lambda: np.zeros((80, 100, 3), np.uint8), choices=choices, region_choices=region_choices,
    )  # fmt: skip


def weather_images(count, *, seed=0, spread=1.0, first=0):
    rng = np.random.default_rng(seed)
    kinds = [index % 3 for index in range(count)]
    return [
        image(first + index, {"weather": (WEATHER[kind],), "place": (PLACES[kind],), "stars": (str(kind + 2),),
                              **({"tags": ("odd",)} if kind == 1 else {})}, features(kind, rng, spread))
        for index, kind in enumerate(kinds)
    ]  # fmt: skip


def fit(examples, *, held_out=(), parent=None, config=CONFIG):
    return image_labels.fit_image_labels(
        FitInput(LabelConfig.parse(config), examples, held_out=held_out, parent=parent)
    )


def prediction(row, detections=None):
    detections = detections or Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    detections = replace(detections, image_features=row)
    return ImagePrediction(detections, ("car", "bus"), 100, 80, lambda: np.zeros((80, 100, 3)))


def test_every_control_about_the_image_is_learned():
    result = fit(weather_images(24))
    assert result.passed
    assert set(result.head.controls) == {"weather", "tags", "place", "stars"}
    answers = image_labels.apply_image_labels(result.head, prediction(CENTRES[1].astype(np.float32))).choices
    assert answers["weather"].values == ("rain",)
    assert answers["tags"].values == ("odd",)
    assert answers["place"].values == ("Town/Street",)
    assert answers["stars"].values == ("3",)
    assert all(0 <= answer.uncertainty <= 1 and answer.score >= answer.threshold for answer in answers.values())


def test_head_survives_its_file():
    head = fit(weather_images(24)).head
    restored = AnswersHead.from_bytes(head.to_bytes())
    row = prediction(CENTRES[2].astype(np.float32))
    assert image_labels.apply_image_labels(restored, row).choices == image_labels.apply_image_labels(head, row).choices
    assert restored.controls["weather"].tasks == head.controls["weather"].tasks == frozenset(range(24))
    assert restored.to_bytes() == head.to_bytes()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda _: b"", lambda data: data.replace(b"head", b"heat")]
)
def test_damaged_file_is_a_value_error(damage):
    with pytest.raises(ValueError):
        AnswersHead.from_bytes(damage(fit(weather_images(12)).head.to_bytes()))


def test_features_without_signal_are_refused():
    result = fit(weather_images(24, spread=60.0))
    assert not result.passed
    assert "always the same answer" in result.reason


def test_one_answer_for_all_images_is_nothing_to_learn():
    rng = np.random.default_rng(0)
    result = fit([image(index, {"weather": ("sun",)}, features(0, rng)) for index in range(9)])
    assert result.head is None
    assert "every answer is sun" in result.reason


def test_corrected_answers_are_unlearned():
    wrong = [image(example.task, {"weather": ("sun" if example.choices["weather"] == ("rain",) else "rain",)},
                   example.image_features) for example in weather_images(24)
             if example.choices["weather"] != ("snow",)]  # fmt: skip
    parent = fit(wrong).head
    right = [example for example in weather_images(24) if example.choices["weather"] != ("snow",)]
    result = fit(right, parent=parent)
    assert result.passed
    row = prediction(CENTRES[1].astype(np.float32))
    assert image_labels.apply_image_labels(parent, row).choices["weather"].values == ("sun",)
    assert image_labels.apply_image_labels(result.head, row).choices["weather"].values == ("rain",)


def test_candidate_that_is_worse_on_new_answers_keeps_the_parent():
    parent = fit(weather_images(60)).head
    held_out = weather_images(40, seed=3, first=500)
    result = fit(weather_images(9, seed=5, spread=2.5, first=200), held_out=held_out, parent=parent)
    weather = next(part for part in result.reason.split("; ") if part.startswith("weather"))
    assert "below" in weather
    assert "served model" in weather


def test_value_that_the_config_lost_is_not_predicted():
    parent = fit(weather_images(24)).head
    result = fit(weather_images(24), parent=parent, config=CONFIG.replace('<Choice value="snow"/>', ""))
    assert result.head.controls["weather"].model.classes == ("sun", "rain")


def test_tags_that_were_never_asked_are_no_negatives():
    question = LearnedControl.of(LabelConfig.parse(CONFIG).controls["tags"], [("odd",)])
    rng = np.random.default_rng(0)
    rows = [image(index, {"tags": ("odd",)} if index == 4 else {}, features(0, rng)) for index in range(8)]
    assert image_labels.answered_images(question, rows).tasks == (4, 5, 6, 7)


def test_hidden_control_is_not_filled_in():
    conditional = CONFIG.replace(
        '<Choices name="tags" toName="image" choice="multiple">',
        '<Choices name="tags" toName="image" choice="multiple" visibleWhen="choice-selected" whenTagName="weather" '
        'whenChoiceValue="snow">',
    )
    head = fit(weather_images(30), config=conditional).head
    if "tags" in head.controls:
        answers = image_labels.apply_image_labels(head, prediction(CENTRES[1].astype(np.float32))).choices
        assert answers["tags"].values == ()


def test_wrong_answer_is_found_with_what_fits_better():
    examples = weather_images(30)
    examples[4] = replace(examples[4], choices={"weather": ("snow",)})
    question = LearnedControl.of(LabelConfig.parse(CONFIG).controls["weather"], [("sun",)])
    asked = image_labels.answered_images(question, examples)
    [issue] = find_wrong_answers(question, asked, least=0.8)
    assert (asked.tasks[issue.example], issue.given, issue.suggested) == (4, "snow", "rain")


def test_image_without_features_has_no_answers():
    head = fit(weather_images(24)).head
    assert image_labels.apply_image_labels(head, prediction(None)).choices == {}
    assert image_labels.apply_image_labels(head, prediction(np.zeros(7, np.float32))).choices == {}


def test_uncertain_answers_are_not_filled_in():
    head = fit(weather_images(30)).head
    between = ((CENTRES[0] + CENTRES[1]) / 2).astype(np.float32)
    answer = image_labels.apply_image_labels(head, prediction(between)).choices["weather"]
    assert answer.uncertainty > 0.3
    assert answer.values == () or answer.score >= answer.threshold


def test_threshold_rises_where_predictions_are_often_corrected():
    rng = np.random.default_rng(0)
    probabilities = np.stack([p := rng.uniform(0.5, 1.0, 300), 1 - p], axis=1)
    right = np.stack([r := rng.random(300) < p, ~r], axis=1)
    wrong = np.stack([r := rng.random(300) < p - 0.35, ~r], axis=1)
    good, bad = (thresholds_of(probabilities, truth, ("a", "b"), "single")["a"] for truth in (right, wrong))
    assert 0.55 < good < 0.75
    assert bad > good + 0.1


def region_image(task, rng):
    states = [index % 2 for index in range(4)]
    boxes = np.array([(0 if state else 20, 10, 40, 40) for state in states], np.float32)
    return image(
        task, {}, None, boxes=boxes, embeddings=rng.normal(0, 1, (4, 8)).astype(np.float32),
        labels=("car", "bus", "car", "bus"),
        region_choices=tuple({"state": ("cut" if state else "whole",)} for state in states),
    )  # fmt: skip


def test_attribute_of_an_object_is_learned_from_its_place():
    rng = np.random.default_rng(0)
    examples = [region_image(task, rng) for task in range(10)]
    result = region_labels.fit_region_labels(FitInput(LabelConfig.parse(CONFIG), examples, names=("car", "bus")))
    assert result.passed
    detections = Detections(
        np.array([(0, 10, 40, 40), (30, 10, 60, 40)], np.float32), np.array([0.9, 0.8], np.float32), np.array([1, 1]),
        embeddings=rng.normal(0, 1, (2, 8)).astype(np.float32),
    )  # fmt: skip
    answers = region_labels.apply_region_labels(result.head, prediction(None, detections)).region_choices
    restored = AnswersHead.from_bytes(result.head.to_bytes())
    assert region_labels.apply_region_labels(restored, prediction(None, detections)).region_choices == answers
    assert answers[0]["state"].values == ("cut",)


def test_project_without_questions_has_no_head():
    config = LabelConfig.parse('<View><Image name="i" value="$i"/><RectangleLabels name="b" toName="i"/></View>')
    assert image_labels.fit_image_labels(FitInput(config, weather_images(6))) is None
    assert region_labels.fit_region_labels(FitInput(config, weather_images(6))) is None
