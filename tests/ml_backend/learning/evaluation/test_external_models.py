"""A model that was trained elsewhere passes the same gate; classes of a base meet the labels of a project."""

import onnx
import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.annotations import is_held_out
from ml_backend.learning.evaluation.external_models import admit
from ml_backend.learning.evaluator import known_classes, labels_of
from tests.ml_backend.learning.conftest import PROJECT

LABELS = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Vehicle" predicted_values="car,bus"/><Label value="Cat"/><Label value="Disc"/></RectangleLabels></View>"""
NAMES = ("car", "cat", "dog", "bus")


@pytest.mark.parametrize(
    ("drawn", "known"),
    [
        ((), [("car", 0), ("Cat", 1), ("bus", 3)]),  # a label of two classes: both answer for it
        (("Vehicle",), [("Vehicle", 0), ("Cat", 1)]),  # drawn: it is learned from the first of them on
        (("Disc", "Cat"), [("car", 0), ("Cat", 1), ("bus", 3)]),
    ],
)
def test_base_classes_are_named_by_project_labels(drawn, known):
    config = LabelConfig.parse(LABELS)
    assert labels_of(config, NAMES) == ("Vehicle", "Cat", "", "Vehicle")
    assert known_classes(config, NAMES, drawn) == known


@pytest.fixture
def judged(learn, studio, policy):
    """A project whose learned version is served, with enough held-out tasks to judge by."""
    policy("debounce_s = 0\nheld_out = 0.5\n")
    return learn(tasks=[studio.label(seed) for seed in range(1, 9)])


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch):
    monkeypatch.setattr("ml_backend.learning.evaluator.ENOUGH_PHOTOS", 2)
    monkeypatch.setattr("ml_backend.learning.evaluator.ENOUGH_BOXES", 2)


def add(context, tmp_path, name):
    """The embedded model as one that was made elsewhere, with another name for one of its classes."""
    model = onnx.load(embedded_model())
    names = next(entry for entry in model.metadata_props if entry.key == "names")
    names.value = names.value.replace('"person"', f'"{name}"')
    onnx.save(model, tmp_path / "elsewhere.onnx")
    return context.base_models.registry.add(tmp_path / "elsewhere.onnx", project=str(PROJECT)).version


def test_worse_external_model_is_refused_with_its_ap50(context, judged, tmp_path):
    assert judged.judged_by == "held-out"
    verdict = admit(context, PROJECT, add(context, tmp_path, "disc")).verdict
    assert not verdict.passed
    assert verdict.judged_by == "held-out"
    assert verdict.ap50 < verdict.parent_ap50 == pytest.approx(judged.ap50, abs=1e-6)
    run = context.runs.last(PROJECT)[0]
    assert (run.verdict, run.source, run.parent) == ("refused", "models add", judged.version)


def test_equal_external_model_passes(context, judged, tmp_path):
    file = context.base_models.registry.manifest(judged.version).model
    (tmp_path / "same.onnx").write_bytes(context.base_models.registry.get(judged.version, file))
    same = context.base_models.registry.add(tmp_path / "same.onnx", project=str(PROJECT)).version
    done = admit(context, PROJECT, same)
    verdict = done.verdict
    assert verdict.passed
    assert set(done.thresholds) == {"Cat", "Disc", "Square"}, "classes without annotations too"
    assert all(0 < value < 1 for value in done.thresholds.values())
    assert verdict.ap50 == verdict.parent_ap50
    assert context.runs.last(PROJECT)[0].verdict == "admitted"


def test_without_held_out_labels_it_passes_unevaluated(context, studio, tmp_path):
    task = studio.label(1)
    verdict = admit(context, PROJECT, add(context, tmp_path, "disc")).verdict
    assert verdict.passed
    assert verdict.judged_by == "nothing"
    assert f"only {int(is_held_out(PROJECT, task, 0.1))} held-out images" in verdict.reason


def test_worse_model_is_refused_on_all_labelled_images(context, learn, studio, policy, tmp_path):
    policy("debounce_s = 0\nheld_out = 0\n")
    judged = learn(tasks=[studio.label(seed) for seed in range(1, 9)])
    verdict = admit(context, PROJECT, add(context, tmp_path, "disc")).verdict
    assert judged.judged_by == "cross-validation"
    assert not verdict.passed
    assert verdict.judged_by == "labelled photos"
    assert verdict.parent_ap50 == judged.ap50
    assert f"{judged.ap50:.3f} by the served version, by cross-validation: lower" in verdict.reason
    file = context.base_models.registry.manifest(judged.version).model
    (tmp_path / "same.onnx").write_bytes(context.base_models.registry.get(judged.version, file))
    same = context.base_models.registry.add(tmp_path / "same.onnx", project=str(PROJECT)).version
    assert admit(context, PROJECT, same).verdict.passed


def test_evaluation_does_not_connect_the_project(context, studio, tmp_path):
    studio.label(1)
    admit(context, PROJECT, add(context, tmp_path, "disc"))
    assert context.training_data.project(PROJECT) is None
