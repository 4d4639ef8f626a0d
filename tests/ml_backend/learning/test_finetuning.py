"""A project's fine-tuned model passes the gate, becomes the base of the next refit, or says why not; no torch here."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from labelloop.service.studio import StudioUnreachable
from ml_backend.finetune.classes import with_classes
from ml_backend.finetune.errors import TooLittleToTrain
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.run import Finetuned
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.learning import finetuning
from ml_backend.learning.events import LEARN, QUEUE
from ml_backend.learning.finetuning import SOURCE, finetune_project
from ml_backend.learning.store.annotations import NotConnectedToLearning
from ml_backend.learning.training_run import Learner
from ml_backend.serving.active_versions import read_pointer, set_active
from tests.ml_backend.learning.conftest import PROJECT


class Ended:
    """A training's result, without torch."""

    ended, seconds, seen, steps, curve, best = "budget", 60.0, 100, 10, (), None


@pytest.fixture
def trained(monkeypatch):
    """A training that writes what `model` gives; returns the jobs that it was asked for."""
    jobs = []

    def use(model):
        def finetune(job, **_):
            jobs.append(job)
            onnx.save(model(), job.out)
            return Finetuned(Ended(), {}, len(job.test), 0, len(job.images), ("Cat",), (), 0.0, ())

        monkeypatch.setattr("ml_backend.learning.finetuning.finetune", finetune)
        return jobs

    return use


def other_classes():
    """The embedded model with untrained class layers: it finds nothing."""
    names = ["Cat", "Disc", "Square"]
    return with_classes(load_detector(embedded_model(), threads=1), onnx.load(embedded_model()), names)


@pytest.fixture
def project(learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0.5\n")
    for module in ("finetuning", "evaluator"):
        monkeypatch.setattr(f"ml_backend.learning.{module}.ENOUGH_PHOTOS", 2)
        monkeypatch.setattr(f"ml_backend.learning.{module}.ENOUGH_BOXES", 2)
    return learn(tasks=[studio.label(seed) for seed in range(1, 9)])


def test_a_better_model_is_served_and_the_refit_goes_on_upon_it(context, project, trained, monkeypatch):
    file = context.base_models.registry.manifest(project.version).model
    content = context.base_models.registry.get(project.version, file)
    jobs = trained(lambda: onnx.load_from_string(content))
    done = finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")
    assert done.published, done.reason
    served = context.base_models.served(PROJECT)
    assert (served.base, served.learned) == (done.version, True)
    assert done.notes == (f"served as {served.version}, refitted upon it",)
    assert done.version not in read_pointer(context.base_models.registry.store)[0].used()  # never served itself
    [job] = jobs
    held = {image.name.split("-")[0] for image in job.test}
    assert held
    assert not held & {image.name.split("-")[0] for image in job.images}
    boxes = np.array([box for image in job.images for box in image.boxes])
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    refit, run = context.runs.last(PROJECT)[:2]
    assert (run.source, run.verdict, run.judged_by) == (SOURCE, "admitted", "held-out")
    assert run.seconds == {"train": 60.0}
    assert (refit.version, refit.base, refit.verdict) == (served.version, done.version, "published")
    assert context.inbox.unfinished_events(QUEUE, str(PROJECT))


@pytest.mark.parametrize("verdict", ["refused", "failed", None])
def test_without_a_refit_it_is_served_itself(context, project, trained, monkeypatch, verdict):
    file = context.base_models.registry.manifest(project.version).model
    content = context.base_models.registry.get(project.version, file)
    trained(lambda: onnx.load_from_string(content))
    run = SimpleNamespace(verdict=verdict, reason="no gain", version="") if verdict else None
    monkeypatch.setattr(Learner, "refit_upon", lambda *_: run)
    done = finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")
    assert done.published
    assert context.base_models.served(PROJECT).version == done.version
    assert ("served without a refit: no gain" in done.notes) is (verdict is not None)
    events = context.inbox.unfinished_events(LEARN, str(PROJECT))
    assert any(event.payload.get("source") == "activation" for event in events)


@pytest.fixture
def refits(monkeypatch):
    """refits(outcomes, served) -> what `_refit` gives, and the number of attempts; no project behind it."""

    def run(outcomes, served):
        left, versions, attempts = list(outcomes), list(served), []

        def refit_upon(*_):
            attempts.append(1)
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def now(_):
            version = versions.pop(0) if len(versions) > 1 else versions[0]
            return SimpleNamespace(version=version, base="other" if version == "other" else "old")

        monkeypatch.setattr(Learner, "refit_upon", refit_upon)
        context = SimpleNamespace(base_models=SimpleNamespace(served=now))
        return *finetuning._refit(context, PROJECT, "tuned"), len(attempts)

    return run


REFUSED = SimpleNamespace(verdict="refused", reason="another version was activated meanwhile", version="")
PUBLISHED = SimpleNamespace(verdict="published", reason="", version="tuned-1")


@pytest.mark.parametrize(
    ("outcomes", "served", "refitted", "attempts"),
    [
        ([PUBLISHED], ["a"], "tuned-1", 1),
        ([REFUSED, PUBLISHED], ["a", "a", "b"], "tuned-1", 2),  # the worker published b upon the same base
        ([REFUSED], ["a"], "", 1),  # refused by the gate
        ([REFUSED], ["a", "a", "other", "other", "other"], "", 1),  # activated by hand
        ([StudioUnreachable(url="http://studio", reason="no answer")], ["a"], "", 1),
    ],
    ids=["published", "published meanwhile", "refused", "by hand", "no Label Studio"],
)
def test_a_refit_that_the_worker_publishes_meanwhile_is_replaced(refits, outcomes, served, refitted, attempts):
    version, notes, made = refits(outcomes, served)
    assert (version, made) == (refitted, attempts)
    assert ("served without a refit" in notes[0]) is not bool(refitted)


def test_a_model_activated_by_hand_meanwhile_stays(context, project, trained, monkeypatch, tmp_path):
    registry = context.base_models.registry
    content = registry.get(project.version, registry.manifest(project.version).model)
    trained(lambda: onnx.load_from_string(content))

    model = onnx.load_from_string(content)
    model.doc_string = "another"
    onnx.save(model, tmp_path / "other.onnx")
    other = registry.add(tmp_path / "other.onnx", metrics={})

    def activated(*_):
        set_active(registry.store, other.version, str(PROJECT))
        return SimpleNamespace(verdict="refused", reason="another version was activated meanwhile", version="")

    monkeypatch.setattr(Learner, "refit_upon", activated)
    done = finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")
    assert not done.published
    assert f"labelloop models activate {done.version} --project {PROJECT}" in done.reason
    assert context.base_models.served(PROJECT).version == other.version


def test_a_worse_model_is_kept_and_not_served(context, project, trained):
    trained(other_classes)
    done = finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")
    assert not done.published
    assert "held-out" in done.reason
    assert context.base_models.served(PROJECT).version == project.version
    assert context.base_models.registry.manifest(done.version).parent == project.version


def test_without_held_out_tasks_nothing_can_judge_it(context, project, trained, monkeypatch):
    monkeypatch.setattr("ml_backend.learning.finetuning.ENOUGH_PHOTOS", 50)
    trained(other_classes)
    done = finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")
    assert not done.published
    assert f"labelloop models activate {done.version} --project {PROJECT}" in done.reason
    assert context.base_models.served(PROJECT).version == project.version


def test_a_project_without_labels_is_told_so(context, trained, studio, learn, policy):
    with pytest.raises(NotConnectedToLearning):
        finetune_project(context, PROJECT + 90, recipe=Recipe(), device="cpu")
    context.training_data.connect(PROJECT)
    trained(other_classes)
    with pytest.raises(TooLittleToTrain):
        finetune_project(context, PROJECT, recipe=Recipe(), device="cpu")


def test_old_models_are_deleted_and_the_served_one_stays(context, project, trained, policy, monkeypatch):
    monkeypatch.setattr("ml_backend.learning.finetuning.ENOUGH_PHOTOS", 50)
    policy("debounce_s = 0\nheld_out = 0.5\nkeep = 1\n")
    versions = []
    for number in range(3):

        def model(number=number):
            changed = other_classes()
            changed.doc_string = str(number)
            return changed

        trained(model)
        versions.append(finetune_project(context, PROJECT, recipe=Recipe(), device="cpu").version)
    left = {manifest.version for manifest in context.base_models.registry.versions()}
    assert versions[-1] in left
    assert not {versions[0], versions[1]} & left
    assert project.version in left
