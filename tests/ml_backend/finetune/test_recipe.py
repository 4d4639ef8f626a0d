"""The recipe for few labels, and what decides between fine-tuning and the refit; no torch here."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from ml_backend.detection.detections import Detections
from ml_backend.errors import NotLearnable
from ml_backend.finetune import trial
from ml_backend.finetune.checkpoints import checkpoint_file
from ml_backend.finetune.protocol import LEASE_S, TrainProgress
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.reporting import Reporter
from ml_backend.finetune.scores import Score, squared_error
from ml_backend.finetune.trial import (
    TRIAL_BELOW,
    NoTrial,
    Trial,
    TrialJob,
    hold_out,
    is_due,
    read_trial,
    run_trial,
    trial_file,
)
from ml_backend.training.datasets import LocalImage
from ml_backend.training.metrics import GroundTruth


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


def test_few_images_are_tried_unless_the_steps_are_fixed():
    many = [image(number) for number in range(TRIAL_BELOW)]
    assert [is_due(IMAGES, Recipe()), is_due(many, Recipe()), is_due(IMAGES, Recipe(steps=9))] == [True, False, False]


@pytest.mark.parametrize(
    ("refit", "tuned", "boxes", "passed"),
    [
        (0.9, 0.89, 400, False),
        (0.5, 0.52, 100, True),
        (0.5, 0.51, 100, False),  # one box
        (0.5, 0.6, 5, False),  # half a box
        (0.5, 0.5, 0, True),  # of an earlier trainer, which does not say how many
    ],
)
def test_the_gain_must_be_worth_two_boxes(refit, tuned, boxes, passed):
    made = Trial(refit, tuned, 5, boxes)
    assert made.passed is passed
    assert f"AP50 {tuned:.3f} in a trial on 5 images" in made.reason
    assert ("worth 2 boxes is needed" in made.reason) is (tuned > refit and not passed)


@pytest.mark.parametrize(("gained", "passed"), [(4.0, True), (1.9, False), (-3.0, False)])
def test_scores_nearer_to_the_labels_by_two_boxes_pass_too(gained, passed):
    made = Trial(0.8, 0.74, 5, 67, gained)
    assert made.passed is passed
    assert ("squared error of its scores is less by 4.0 boxes" in made.reason) is passed


def test_the_squared_error_is_the_brier_score_of_the_referee():
    names = ("cat", "dog")
    truth = GroundTruth(
        np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32), ("cat", "dog", "dog")
    )
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 31], [50, 50, 60, 60], [80, 80, 90, 90]]
    scores = [0.6, 0.9, 0.7, 0.4, 0.3]
    found = Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array([0, 0, 1, 0, 1]))
    right = [0, 1, 1, 0, 0, 1]  # the second finds the cat, the third a dog; the last dog is not found
    referee = brier_score_loss(right, [*scores, 0.0]) * len(right)
    assert squared_error(truth, found, names=names) == pytest.approx(referee, abs=1e-6)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert squared_error(truth, nothing, names=names) == 3.0
    assert squared_error(GroundTruth(np.zeros((0, 4), np.float32), ()), found, names=names) == pytest.approx(1.91)


@pytest.mark.parametrize(("per_image", "evaluated"), [(1, 10), (3, 7), (4, 5), (50, 5)])
def test_a_quarter_is_evaluated_or_enough_boxes_up_to_half(per_image, evaluated):
    images = [LocalImage(Path(f"{n}"), f"{n}", ((0, 0, 9, 9),) * per_image, ("a",) * per_image) for n in range(20)]
    trained, held = hold_out(images, seed=0)
    assert len(held) == evaluated
    assert {one.name for one in (*trained, *held)} == {one.name for one in images}
    assert len(trained) + len(held) == 20
    assert hold_out(images[::-1], seed=0) == (trained, held)


@pytest.fixture
def trials(monkeypatch):
    """Trials without torch; what was trained on and evaluated in each."""
    seen = []

    def refit_score(path, trained, evaluated, **_):
        seen.append((path.name, {one.name for one in trained}, {one.name for one in evaluated}))
        return Score(0.75, {}, 2.5) if path.name == "trial.onnx" else Score(0.5, {}, 4.0)

    monkeypatch.setattr(trial, "refit_score", refit_score)
    monkeypatch.setattr(trial, "_train", lambda *_, **__: None)
    return seen


def result(tmp_path, images=IMAGES):
    file = tmp_path / "train" / "checkpoint.pt"
    detector = SimpleNamespace(detector=SimpleNamespace(layout="yolox"))
    job = TrialJob(Path("parent.onnx"), detector, images, Recipe(), "", "cpu", tmp_path, file)
    found = run_trial(job, progress=lambda _: None, stopping=lambda: False, clock=lambda: 0.0)
    return found, read_trial(file)


def test_both_are_fitted_on_a_part_and_evaluated_on_the_others(tmp_path, trials):
    found, kept = result(tmp_path)
    assert found == kept == Trial(0.5, 0.75, 5, 5, 1.5)
    names = {one.name for one in IMAGES}
    assert [name for name, _, _ in trials] == ["parent.onnx", "trial.onnx"]
    for _, trained, evaluated in trials:
        assert trained | evaluated == names
        assert not trained & evaluated


@pytest.mark.parametrize("part", ["trained on", "held out"])
def test_without_boxes_in_a_part_there_is_no_trial_and_it_says_so(tmp_path, trials, part):
    with_boxes = {one.name for one in hold_out(IMAGES, seed=0)[part == "trained on"]}
    images = [one if one.name in with_boxes else LocalImage(one.path, one.name, (), ()) for one in IMAGES]
    with pytest.raises(NoTrial, match=f"no trial against the refit: the images {part} in it have no box"):
        result(tmp_path, images=images)
    assert not trials


def test_a_model_that_cannot_be_refitted_has_no_trial_and_it_says_so(tmp_path, monkeypatch):
    def refit_score(path, *_, **__):
        raise NotLearnable(path=path, reason="it has no last layer")

    monkeypatch.setattr(trial, "refit_score", refit_score)
    with pytest.raises(NoTrial, match=r"no trial against the refit: .*it has no last layer"):
        result(tmp_path)


def test_half_a_file_of_a_trial_is_none(tmp_path):
    file = tmp_path / "checkpoint.pt"
    trial_file(file).write_text('{"refit": 0.5')
    assert read_trial(file) is None


def test_files_of_old_trainings_are_deleted_with_their_checkpoints(tmp_path):
    folder = tmp_path / "train" / "checkpoints"
    folder.mkdir(parents=True)
    own = checkpoint_file(tmp_path, Path("model.onnx"), "v1", Recipe())
    endings = (".pt", ".trial.json", ".folds.json", ".partial")
    for age in range(6):
        for ending in endings[age % 2 :]:  # half of them were killed before a checkpoint
            file = folder / f"old{age}{ending}"
            file.touch()
            os.utime(file, (1e9 - age, 1e9 - age))
    own.touch()
    trial_file(own).touch()
    assert checkpoint_file(tmp_path, Path("model.onnx"), "v1", Recipe()) == own
    left = {file.name.partition(".")[0] for file in folder.iterdir()}
    assert left == {own.stem, "old0", "old1"}
    assert trial_file(own).is_file()
    checkpoint_file(tmp_path, Path("model.onnx"), "v1", Recipe(), fresh=True)
    assert not own.exists()
    assert not trial_file(own).exists()


def test_a_reporter_whose_lease_is_lost_says_so():
    sent = []
    reporter = Reporter(lambda progress: sent.append(progress) or len(sent) < 2, minutes=10, device="cpu")
    reporter.phase("training")
    assert reporter.send()
    assert not reporter.lost
    assert not reporter.send()
    assert reporter.lost
    assert sent[0] == TrainProgress(phase="training", device="cpu")


def test_without_a_printer_lines_go_to_the_log_of_the_program(tmp_path, capsys):
    def send(_):
        raise OSError("no route")

    setup_logging(Settings(home=tmp_path))  # after the import of the module
    Reporter(send, minutes=10).send()
    out, err = capsys.readouterr()
    assert "no route" in err
    assert not out


@pytest.mark.parametrize(
    ("owned", "outcome"), [(True, "still has its job"), (False, "no longer that of this training")]
)
def test_a_training_goes_on_while_the_backend_is_away_and_learns_from_it_who_has_the_job(owned, outcome):
    now, away, said = [0.0], [True], []

    def send(_):
        if away[0]:
            raise OSError("no route")
        return owned

    reporter = Reporter(send, minutes=10, clock=lambda: now[0], say=said.append)
    for now[0] in (0.0, 60.0, 2 * LEASE_S, 600.0):
        assert reporter.send()
    assert not reporter.lost
    [line] = said
    assert "no route" in line
    assert "goes on" in line
    away[0] = False
    assert reporter.send() is owned
    assert reporter.lost is not owned
    assert "after 600 s" in said[1]
    assert outcome in said[1]
    reporter.send()
    assert len(said) == 2
