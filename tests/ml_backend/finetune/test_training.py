"""Training in torch: conversion, losses, the loop, and the model written back. Skipped without the extra `[train]`."""

import importlib.util
import json
import resource
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the extra [train] is not installed; `make test-train` runs these")
if importlib.util.find_spec("onnx2pytorch") is None:  # it is not imported here: torchvision may be in its way
    pytest.skip("the extra [train] is not installed; `make test-train` runs these", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")

from ml_backend.detection.preprocess import prepare  # noqa: E402
from ml_backend.finetune.convert import (  # noqa: E402
    OUTPUTS,
    TOLERANCE,
    _difference,
    open_trainable,
    save_model,
    trained_model,
)
from ml_backend.finetune.errors import GpuMemoryFull, GpuMissing, NotTrainable, ObjectsTooSmall  # noqa: E402
from ml_backend.finetune.loop import Trainer, runs_in_half  # noqa: E402
from ml_backend.finetune.losses import assign, detection_loss, giou_loss, pairwise_iou  # noqa: E402
from ml_backend.finetune.pictures import Album  # noqa: E402
from ml_backend.finetune.recipe import Recipe  # noqa: E402
from ml_backend.finetune.run import TRAINED_KEY, FinetuneJob, finetune  # noqa: E402
from ml_backend.finetune.torch_parts import choose_device  # noqa: E402
from ml_backend.finetune.trial import hold_out  # noqa: E402
from ml_backend.inference.detector import embedded_model, load_detector  # noqa: E402
from ml_backend.training.datasets import LocalImage  # noqa: E402
from tests.ml_backend.finetune.graphs import small_yolox  # noqa: E402

NAMES = ("blue", "red")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def images(tmp_path):
    """Twelve images with one square each, whose class is its colour."""
    rng, drawn = np.random.default_rng(0), []
    for index in range(12):
        pixels = np.full((64, 64, 3), 110, np.uint8)
        x, y, side = (int(value) for value in rng.integers((4, 4, 20), (30, 30, 30)))
        pixels[y : y + side, x : x + side] = (220, 30, 30) if index % 2 else (30, 30, 220)
        file = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(file)
        box = (float(x), float(y), float(x + side), float(y + side))
        drawn.append(LocalImage(file, file.name, (box,), (NAMES[index % 2],)))
    return drawn


def opened(tmp_path, **options):
    return open_trainable(
        small_yolox(tmp_path / "small.onnx", **options), NAMES, layout="yolox", folder=tmp_path
    )  # fmt: skip


@pytest.mark.parametrize("half", [False, True])
def test_a_converted_model_computes_what_onnx_runtime_does(tmp_path, half):
    model = opened(tmp_path, half=half)
    assert model.difference <= TOLERANCE
    assert model.batched
    assert model.names == NAMES
    boxes, objectness, scores = model.module(torch.rand(3, 3, 64, 64) * 255)
    assert (boxes.shape, objectness.shape, scores.shape) == ((3, 84, 4), (3, 84), (3, 84, 2))
    (boxes.mean() + objectness.mean() + scores.mean()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters.values())


def test_the_embedded_model_goes_round(tmp_path):
    model = open_trainable(embedded_model(), ("a", "b", "c"), folder=tmp_path)
    assert model.difference <= TOLERANCE
    written, difference = trained_model(model, model.parameters, path=embedded_model())
    assert difference <= TOLERANCE
    save_model(written, tmp_path / "out.onnx")
    detector = load_detector(tmp_path / "out.onnx", threads=1)
    assert detector.layout == "labelloop"
    assert detector.names.names == ("a", "b", "c")
    assert detector.reader.embeddings  # the refit goes on upon it


@pytest.mark.parametrize(("layout", "same"), [("nanodet", True), ("yolov8", True), ("yolox", False)])
def test_rounding_of_unlikely_scores_is_no_difference_where_they_are_divided_by_the_best(layout, same):
    """Best scores of 5e-5 from sigmoids that differ by 1e-7, as torch and ONNX Runtime give them."""
    best = np.full((1, 10), 5e-5, np.float32)
    boxes = np.zeros((1, 10, 4), np.float32)
    quotients = [np.full((1, 10, 2), value, np.float32) for value in (0.920, 0.922)]
    reference, computed = ({"boxes": boxes, "objectness": best, "scores": each} for each in quotients)
    detector = SimpleNamespace(layout=layout, spec=SimpleNamespace(height=64, width=64))
    module = lambda _: [torch.from_numpy(computed[name]) for name in OUTPUTS]  # noqa: E731
    image = np.zeros((3, 64, 64), np.float32)
    assert (_difference(module, [image], [reference], detector, together=False) <= TOLERANCE) == same
    computed["objectness"] = best + 0.01
    assert _difference(module, [image], [reference], detector, together=False) > TOLERANCE


def test_trained_weights_are_those_of_the_file(tmp_path):
    model = opened(tmp_path)
    state = {name: parameter.detach() + 0.01 for name, parameter in model.parameters.items()}
    written, difference = trained_model(model, state, path=tmp_path / "small.onnx")
    assert difference <= TOLERANCE
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    for name, value in state.items():
        np.testing.assert_allclose(values[name], value.numpy())


def test_a_refit_is_refused_with_the_model_to_train(tmp_path):
    path = small_yolox(tmp_path / "small.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="learned_from", value="base-123")
    onnx.save(model, path)
    with pytest.raises(NotTrainable, match="refit of base-123"):
        open_trainable(path, NAMES, layout="yolox", folder=tmp_path)


def test_giou_is_that_of_torchvision():
    referee = pytest.importorskip("torchvision.ops", reason="torchvision does not import", exc_type=Exception)
    first = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 20], [30, 30, 40, 40]])
    second = torch.tensor([[2.0, 2, 12, 12], [5, 5, 9, 20], [0, 0, 4, 4]])
    expected = referee.generalized_box_iou_loss(first, second)
    torch.testing.assert_close(giou_loss(first, second), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pairwise_iou(first, second), referee.box_iou(first, second), atol=1e-4, rtol=1e-4)


def test_giou_of_known_boxes():
    same = torch.tensor([[0.0, 0, 4, 4]])
    assert giou_loss(same, same).item() == pytest.approx(0, abs=1e-5)
    # Two unit squares two apart: IoU 0, hull 3, union 2 -> 1 + 1/3.
    assert giou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]])).item() == pytest.approx(
        4 / 3, 1e-4
    )


def grid():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2) * 8 + 4, torch.full((64,), 8.0)


def test_an_object_gets_the_candidates_that_see_it():
    centres, strides = grid()
    boxes = torch.cat([centres - 8, centres + 8], dim=1)
    target = torch.tensor([[20.0, 20, 36, 36], [44, 44, 60, 60]])
    scores = torch.full((64, 2), 0.1)
    found = assign(boxes, scores, target, torch.tensor([0, 1]), centres=centres, strides=strides)
    assert len(found.candidates) == len(set(found.candidates.tolist()))  # a candidate has one object
    assert set(found.objects.tolist()) == {0, 1}
    for candidate, index in zip(found.candidates.tolist(), found.objects.tolist(), strict=True):
        middle = (target[index, :2] + target[index, 2:]) / 2
        assert (centres[candidate] - middle).abs().max() <= 2.5 * 8
    best = pairwise_iou(boxes, target).argmax(dim=0).tolist()
    assert set(best) <= set(found.candidates.tolist())


@pytest.mark.parametrize("own", [True, False])
def test_the_loss_is_least_where_the_answer_is_right(own):
    centres, strides = grid()
    target, classes = torch.tensor([[20.0, 20, 36, 36]]), torch.tensor([1])
    facts = {"centres": centres, "strides": strides, "own": own}
    near = ((centres - 28).abs().amax(dim=1) < 5).float()
    good = torch.where(near[:, None] > 0, target.expand(64, 4), torch.cat([centres, centres + 1], dim=1))
    right = torch.stack([near * 0.01, near * 0.97 + 0.01], dim=1)
    wrong = right.flip(1)
    values = {}
    for name, boxes, scores in (("right", good, right), ("class", good, wrong), ("boxes", good + 9, right)):
        loss, count = detection_loss(boxes, near * 0.97 + 0.01, scores, target, classes, **facts)
        values[name] = float(loss) / max(count, 1)
    assert values["right"] < min(values["class"], values["boxes"])


@pytest.mark.parametrize("own", [True, False])
def test_an_image_without_objects_lowers_the_scores(own):
    centres, strides = grid()
    raw = torch.zeros(64, 3, requires_grad=True)
    scores = raw.sigmoid()
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    loss, count = detection_loss(
        torch.rand(64, 4), scores[:, 0], scores[:, 1:], *empty, centres=centres, strides=strides, own=own
    )
    loss.backward()
    assert count == 0
    assert (raw.grad[:, 0] > 0).all()


def trainer(tmp_path, images, recipe, **options):
    model = opened(tmp_path)
    album = Album(images, NAMES, model.detector.spec, side=1.3)
    return Trainer(model, album, options.pop("held_out", None), recipe, device="cpu", **options)


SHORT = Recipe(steps=12, batch=4, rate=0.01, evaluations=3, patience=9)


def test_the_loss_falls(tmp_path, images):
    losses = []
    done = trainer(tmp_path, images, replace(SHORT, steps=60)).train(lambda state: losses.append(state.loss))
    assert done.steps == 60
    assert done.ended == "budget"
    assert losses[-1] < 0.8 * losses[2]


def test_the_same_seed_gives_the_same_weights(tmp_path, images):
    first, second = (trainer(tmp_path, images, SHORT).train().state for _ in range(2))
    other = trainer(tmp_path, images, replace(SHORT, seed=1)).train().state
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path, images):
    whole = trainer(tmp_path, images, SHORT).train()
    file = tmp_path / "checkpoint.pt"
    stopped = trainer(tmp_path, images, SHORT, checkpoint=file)
    first = stopped.train(lambda state: stopped.stop() if state.step == 5 else None)
    assert (first.ended, first.steps) == ("stopped", 5)
    again = trainer(tmp_path, images, SHORT, checkpoint=file)
    assert again.resumed == 5
    second = again.train()
    assert second.steps == whole.steps
    for name, value in whole.state.items():
        torch.testing.assert_close(second.state[name], value)


def test_a_training_survives_a_full_disk_and_says_that_nothing_is_saved(tmp_path, images, monkeypatch):
    detector, checkpoint = opened(tmp_path), tmp_path / "home" / "small.pt"
    album = Album(images, NAMES, detector.detector.spec, side=1.0)
    saved = torch.save

    def full(content, file):
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    done = Trainer(detector, album, album, Recipe(steps=4, evaluations=2), checkpoint=checkpoint).train()
    assert done.ended == "budget"
    assert "enforce fail" in done.unsaved
    assert not list(checkpoint.parent.iterdir())
    monkeypatch.setattr(torch, "save", saved)
    stopped = Trainer(detector, album, None, Recipe(steps=4), checkpoint=checkpoint)
    stopped.stop()
    assert stopped.train().unsaved == ""
    assert checkpoint.is_file()


def test_a_model_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    model, out = onnx.load(small_yolox(tmp_path / "small.onnx")), tmp_path / "out" / "a.onnx"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            save_model(model, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(out)
    assert not list(out.parent.iterdir())
    save_model(model, out)
    assert [file.name for file in out.parent.iterdir()] == ["a.onnx"]


def test_a_trial_does_not_go_on_from_weights_that_saw_its_evaluated_images(tmp_path, images):
    file = tmp_path / "checkpoint.pt"
    first = trainer(tmp_path, images, SHORT, checkpoint=file)
    first.train(lambda state: first.stop() if state.step == 3 else None)
    assert trainer(tmp_path, images[:6], SHORT, checkpoint=file).resumed == 0
    assert trainer(tmp_path, images, SHORT, checkpoint=file).resumed == 3
    content = torch.load(file, weights_only=True)
    del content["images"]  # as an earlier version wrote it, which trained on all images after its folds
    torch.save(content, file)
    assert trainer(tmp_path, images[:6], SHORT, checkpoint=file).resumed == 0


def test_a_damaged_checkpoint_starts_anew(tmp_path, images):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(b"half a file")
    assert trainer(tmp_path, images, SHORT, checkpoint=file).resumed == 0


def test_a_training_that_gets_no_better_stops_early(tmp_path, images):
    held = Album(images[:8], NAMES, opened(tmp_path).detector.spec, side=1.0)
    recipe = replace(SHORT, steps=100, rate=1e-9, evaluations=20, patience=3)
    done = trainer(tmp_path, images, recipe, held_out=held).train()
    assert done.ended == "early stop"
    assert 50 <= done.steps < 70


def test_a_budget_in_time_is_kept(tmp_path, images):
    clock = iter(range(10_000))
    done = trainer(tmp_path, images, replace(SHORT, steps=0, minutes=0.5), clock=lambda: next(clock)).train()
    assert 25 <= done.steps <= 30  # a second a step


def test_a_model_is_trained_written_and_compared(tmp_path, images):
    parent = small_yolox(tmp_path / "parent.onnx")
    out = tmp_path / "out" / "tuned.onnx"
    job = FinetuneJob(
        parent, images, out, replace(SHORT, steps=6), source="here", data_version="v1", layout="yolox", device="cpu",
        folder=tmp_path,
    )  # fmt: skip
    done = finetune(job)
    assert {"parent", "fine-tuned"} <= set(done.scores)
    assert done.evaluated == 2
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    facts = json.loads(metadata[TRAINED_KEY])
    assert facts["data_version"] == "v1"
    assert facts["steps"] == 6
    assert set(facts["figures"]) == set(done.scores)
    detector = load_detector(out, layout="yolox", threads=1)
    assert detector.names.names == NAMES
    before = load_detector(parent, layout="yolox", threads=1)
    assert detector.spec == before.spec
    assert [node.op_type for node in onnx.load(out).graph.node] == [
        node.op_type for node in onnx.load(parent).graph.node
    ]
    grey = prepare(np.full((64, 64, 3), 114, np.uint8), detector.spec)
    assert detector.engine.run([grey.tensor])["output"].shape == (1, 84, 7)


def test_a_trial_that_is_impossible_is_among_the_notes(tmp_path, images):
    """All boxes are on the images that the trial trains on."""
    trained, held = hold_out(images, seed=0)
    bare = [replace(image, boxes=(), labels=()) for image in held]
    clock = iter(range(10_000))
    recipe = replace(SHORT, steps=0, minutes=0.2)
    job = FinetuneJob(
        small_yolox(tmp_path / "parent.onnx"), [*trained, *bare], tmp_path / "tuned.onnx", recipe, layout="yolox",
        device="cpu", folder=tmp_path, test=trained[:2],
    )  # fmt: skip
    done = finetune(job, clock=lambda: next(clock))
    assert done.trial is None
    assert "the images held out in it have no box" in done.untried
    assert done.untried in done.notes


@pytest.mark.parametrize(("side", "said"), [(1.0, None), (5.0, "has 5.0 px at the input of 64 x 64 px"), (20.0, "")])
def test_objects_too_small_for_the_input_are_refused_or_named(tmp_path, images, side, said):
    small = [replace(image, boxes=((10.0, 10.0, 10.0 + side, 10.0 + side),)) for image in images]
    model = small_yolox(tmp_path / "small.onnx")
    job = FinetuneJob(
        model, small, tmp_path / "out.onnx", Recipe(steps=1), layout="yolox", folder=tmp_path, compare=False
    )
    if said is None:
        with pytest.raises(ObjectsTooSmall, match=r"median object has 1\.0 px .* narrower than 2 px"):
            finetune(job)
        return
    notes = [note for note in finetune(job).notes if "median object" in note]
    assert len(notes) == bool(said)
    assert all(said in note and "tiles" in note for note in notes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_missing_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(GpuMissing, match="torch finds no GPU"):
        finetune(FinetuneJob(tmp_path / "none.onnx", (), tmp_path / "out.onnx", Recipe(), device="cuda"))
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_a_full_gpu_is_named_with_the_fix(tmp_path, images):
    detector = opened(tmp_path)
    trainer = Trainer(detector, Album(images, NAMES, detector.detector.spec, side=1.0), None, Recipe(steps=1))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer._step = full
    with pytest.raises(GpuMemoryFull, match=r"2\.00 GiB") as refused:
        trainer.train()
    assert "--device cpu" in refused.value.fix


class TypesMixed(torch.nn.Module):
    """Writes what a convolution gave into a tensor of another type, which torch converts nowhere."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1)

    def forward(self, images):
        filled = torch.zeros((len(images), 4, *images.shape[2:]))
        filled[(torch.arange(len(images)),)] = self.layer(images)
        return (filled,)


def test_a_graph_that_cannot_compute_in_half_precision_is_found_out(tmp_path):
    detector = opened(tmp_path)
    spec = detector.detector.spec
    assert runs_in_half(detector.module, torch.zeros((1, 3, spec.height, spec.width)))
    mixed, images = TypesMixed(), torch.zeros((1, 3, 8, 8))
    assert mixed(images)[0].shape == (1, 4, 8, 8)
    assert not runs_in_half(mixed, images)


def test_gradients_in_half_precision_are_those_of_float32(tmp_path, images):
    detector = opened(tmp_path)
    album = Album(images, NAMES, detector.detector.spec, side=1.0)
    trainer = Trainer(detector, album, None, Recipe(steps=1))
    pictures, losses, gradients = [trainer._draw(0, 0.5)], [], []
    for trainer._half in (False, True):
        detector.module.zero_grad()
        loss, assigned = trainer._loss(pictures)
        loss.backward()
        losses.append(float(loss) / assigned)
        gradients.append(torch.cat([one.grad.ravel() for one in detector.parameters.values()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[1].dtype == torch.float32


def test_the_class_layers_are_trained_first_and_alone(tmp_path, images):
    model = opened(tmp_path)
    assert model.class_tensors
    before = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    album = Album(images, NAMES, model.detector.spec, side=1.3)
    probing = Trainer(model, album, None, replace(SHORT, steps=20, probe=0.5), device="cpu")
    probing.train(lambda state: probing.stop() if state.step == 4 else None)
    changed = {name for name, value in before.items() if not torch.equal(value, model.parameters[name].detach())}
    assert changed == model.class_tensors
    probing._stop = False
    probing.train()
    changed = {name for name, value in before.items() if not torch.equal(value, model.parameters[name].detach())}
    assert changed > model.class_tensors
