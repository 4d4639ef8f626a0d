"""The recipe for few labels, and what decides between fine-tuning and the refit; no torch here."""

from pathlib import Path

import pytest

from ml_backend.finetune import cross_validation
from ml_backend.finetune.cross_validation import CROSS_BELOW, CrossValidation, FoldJob, cross_validate, is_due
from ml_backend.finetune.protocol import TrainProgress
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.reporting import Reporter
from ml_backend.finetune.scores import Score
from ml_backend.training.datasets import LocalImage


@pytest.mark.parametrize(("boxes", "rate"), [(1, 1e-4), (25, 1e-4), (125, 5e-4), (250, 1e-3), (9000, 1e-3)])
def test_few_boxes_are_trained_at_a_lower_rate(boxes, rate):
    assert Recipe().for_boxes(boxes).rate == pytest.approx(rate)


def test_the_rate_rises_after_the_class_layers_and_falls_to_the_end():
    recipe = Recipe()
    rates = [recipe.rate_at(share / 100) for share in range(10, 101)]
    assert rates[0] < rates[3] < max(rates) == pytest.approx(recipe.rate, rel=0.01)
    assert rates[-1] == pytest.approx(recipe.rate * recipe.last_rate)
    assert rates.index(max(rates)) <= 6


def image(number):
    return LocalImage(Path(f"{number}.png"), f"{number}.png", ((0.0, 0.0, 9.0, 9.0),), ("a",))


IMAGES = [image(number) for number in range(10)]


def test_few_images_are_cross_validated_unless_the_steps_are_fixed():
    many = [image(number) for number in range(CROSS_BELOW)]
    assert [is_due(IMAGES, Recipe()), is_due(many, Recipe()), is_due(IMAGES, Recipe(steps=9))] == [True, False, False]


@pytest.mark.parametrize(("refit", "tuned", "passed"), [(0.9, 0.89, False), (0.5, 0.5, True), (0.5, 0.7, True)])
def test_a_worse_result_does_not_pass_by_any_tolerance(refit, tuned, passed):
    crossed = CrossValidation(refit, tuned, 20)
    assert crossed.passed is passed
    assert f"AP50 {tuned:.3f} by cross-validation on 20 images" in crossed.reason


@pytest.fixture
def folds(monkeypatch):
    """Folds without torch; what was trained on and evaluated in each."""
    seen = []

    def refit_score(path, trained, evaluated, **_):
        seen.append((path.name, {one.name for one in trained}, {one.name for one in evaluated}))
        return Score(0.75 if path.name == "tuned.onnx" else 0.5)

    monkeypatch.setattr(cross_validation, "refit_score", refit_score)
    monkeypatch.setattr(cross_validation, "_tuned", lambda *_, **__: (Path("tuned.onnx"), "yolox"))
    return seen


def job(tmp_path, images=IMAGES):
    file = tmp_path / "train" / "checkpoint.pt"
    return FoldJob(Path("parent.onnx"), images, ("a",), Recipe(), "", "cpu", tmp_path, file)


def crossed(tmp_path, **more):
    options = {"progress": lambda _: None, "stopping": lambda: False, "clock": lambda: 0.0}
    return cross_validate(job(tmp_path, **more), **options)


def test_each_image_is_evaluated_once_by_models_that_did_not_see_it(tmp_path, folds):
    assert crossed(tmp_path) == CrossValidation(0.5, 0.75, 10)
    names = {one.name for one in IMAGES}
    for _, trained, evaluated in folds:
        assert trained | evaluated == names
        assert not trained & evaluated
    tuned = [evaluated for name, _, evaluated in folds if name == "tuned.onnx"]
    assert tuned[0] | tuned[1] == names
    assert not tuned[0] & tuned[1]


def test_folds_that_are_done_are_not_trained_again(tmp_path, folds):
    crossed(tmp_path)
    done = len(folds)
    assert crossed(tmp_path).tuned == 0.75
    assert len(folds) == done
    crossed(tmp_path, images=IMAGES[:8])  # other images
    assert len(folds) == 2 * done


def test_without_boxes_in_a_half_there_is_nothing_to_compare(tmp_path, folds):
    bare = [LocalImage(one.path, one.name, (), ()) for one in IMAGES[1:]]
    assert crossed(tmp_path, images=[IMAGES[0], *bare]) is None


def test_a_reporter_whose_lease_is_lost_says_so():
    sent = []
    reporter = Reporter(lambda progress: sent.append(progress) or len(sent) < 2, minutes=10, device="cpu")
    reporter.phase("training")
    assert reporter.send()
    assert not reporter.lost
    assert not reporter.send()
    assert reporter.lost
    assert sent[0] == TrainProgress(phase="training", device="cpu")


def test_a_reporter_bears_a_backend_that_does_not_answer_for_a_lease():
    now = [0.0]

    def send(_):
        raise OSError("no route")

    reporter = Reporter(send, minutes=10, clock=lambda: now[0])
    now[0] = 60.0
    assert reporter.send()
    now[0] = 120.0
    assert not reporter.send()
    assert reporter.lost
