"""`labelloop trainer` against the ML backend's endpoints: a lease, the data, the model and back; no torch here."""

import fcntl
import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from labelloop.service.errors import LabelloopError
from labelloop.service.media.errors import MediaHostRefused, MediaMissing, MediaUnreachable
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import StoreUnreachable
from labelloop.service.web.app import create_web_app
from ml_backend.finetune.classes import with_classes
from ml_backend.finetune.errors import NotTrainable, TrainingRuns
from ml_backend.finetune.graph import Weights
from ml_backend.finetune.protocol import LEASE_HEADER, TOKEN_HEADER, Folds, TrainOffer, TrainProgress
from ml_backend.finetune.returned import ReturnedModelRefused, with_returned_weights
from ml_backend.finetune.run import TRAINED_KEY, Finetuned
from ml_backend.finetune.trial import Trial
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.finetuning import ProjectTraining
from ml_backend.learning.service import LearningService
from ml_backend.learning.store.train_jobs import TrainJobStore, returned_key
from ml_backend.learning.train_by_hand import train_by_hand
from ml_backend.learning.train_child import _run
from ml_backend.learning.train_schedule import time_limit_s
from ml_backend.server.trainer_endpoints import TrainerEndpoints
from ml_backend.trainer.agent import AgentOptions, run_agent
from ml_backend.trainer.client import BackendRefused, BackendUnreachable, LeaseGone, TrainerClient
from ml_backend.trainer.finished import FinishedModels
from tests.ml_backend.learning.conftest import PROJECT

TOKEN = "a-token-of-the-tests"
NAMES = ("Disc", "Square")


@pytest.fixture
def settings(tmp_path):
    """Without the features of the embedded model, which are not needed here."""
    (tmp_path / "photos").mkdir()
    return Settings(home=tmp_path / "home", local_files_root=tmp_path / "photos", inference_threads=1)


@pytest.fixture
def project(context, studio, policy):
    """Six labelled tasks; returns the version that is served."""
    policy("held_out = 0.0\n[train]\nlabels = 4\n")
    for seed in range(1, 7):
        studio.label(seed)
    context.training_data.connect(PROJECT)
    context.sync.sweep(PROJECT, config=studio.label_config(PROJECT), held_out=0.0)
    return context.base_models.served(PROJECT).version


def connected(settings, context, token=TOKEN):
    app = trainer_app(settings.replace(trainer_token=SecretStr(token)), context)
    return TrainerClient("http://localhost", TOKEN, transport=httpx.WSGITransport(app=app))


def trainer_app(settings, context):
    """The ML backend's web app with the trainer's endpoints alone: no model is loaded."""
    app = create_web_app("ml_backend", settings)
    TrainerEndpoints(settings, LearningService(settings), context.media).add(app)
    return app


@pytest.fixture
def client(settings, context, project):
    with connected(settings, context) as client:
        yield client


@pytest.fixture
def job(context, project):
    facts = {"labelled": 6, "place": "anywhere", "minutes": 1, "cores": 1, "memory_bytes": 2**32}
    return context.train_jobs.create(PROJECT, **facts)


@pytest.fixture
def options(tmp_path):
    return AgentOptions("gpu-box", "cpu", tmp_path / "trainer", once=True, heartbeat_s=0.05)


def graph(names=NAMES):
    return with_classes(load_detector(embedded_model(), threads=1), onnx.load(embedded_model()), names)


def changed(model, by=0.001):
    """A model with other weights of its largest tensor."""
    weights = Weights.of(model)
    name = max(weights.stored, key=lambda name: numpy_helper.to_array(weights.stored[name]).size)
    weights.write(name, weights.value(name) + by)
    return model


def ended(how="budget", unsaved=""):
    return SimpleNamespace(ended=how, seconds=60.0, seen=80, steps=10, curve=(), best=None, unsaved=unsaved)


def trains(*, model=lambda: changed(graph()), trial=None, how="budget", untried=""):
    """A training without torch."""
    seen = []

    def train(job, reporter, stopping):
        seen.append(job)
        reporter.phase("training")
        for number in range(3):
            state = {"step": number, "seen": 8 * number, "share": number / 3, "loss": 3.0 - number}
            reporter.step(SimpleNamespace(**state, ap50=None, best=None))
        reporter.send()
        if how == "budget":
            onnx.save(model(), job.out)
        return Finetuned(ended(how), {}, 0, 0, len(job.images), job.names, (), 0.0, (), trial, untried)

    train.seen = seen
    return train


def kept_model(client, options, tmp_path, **progress):
    """A trained model of the next job, in the home folder of its trainer."""
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    finished, model = FinishedModels(options.home, client), tmp_path / "trained.onnx"
    onnx.save(changed(graph()), model)
    assert finished.keep(offer, TrainProgress(**progress), model, print)
    return finished


def run(client, options, train, *, stop_after=None):
    said = []
    stopping = lambda: stop_after is not None and any(stop_after in line for line in said)  # noqa: E731
    run_agent(client, options, stopping=stopping, say=said.append, train=train)
    return said


def test_the_doors_are_closed_by_default(settings, context, project, job):
    with connected(settings, context, token="") as client, pytest.raises(BackendRefused) as refused:
        client.work("gpu-box", "cpu", wait_s=0)
    assert "LABELLOOP_TRAINER_TOKEN" in str(refused.value)
    with connected(settings, context, token="another-token-of-tests") as client, pytest.raises(BackendRefused):
        client.work("gpu-box", "cpu", wait_s=0)
    assert context.train_jobs.trainers() == []


def test_every_door_needs_the_token(settings, context, project, job):
    app = trainer_app(settings.replace(trainer_token=SecretStr(TOKEN)), context)
    claimed = context.train_jobs.claim(job.id, "gpu-box")
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/trainer")]
    assert len(rules) == 7
    for rule in rules:
        path = rule.rule.replace("<int:number>", str(job.id)).replace("<name>", "1-0")
        method = next(iter(rule.methods - {"HEAD", "OPTIONS"}))
        answer = app.test_client().open(path, method=method, headers={LEASE_HEADER: claimed.token}, json={})
        assert answer.status_code == 403, path
        if "jobs" in path:  # the token alone opens no job
            headers = {TOKEN_HEADER: TOKEN, LEASE_HEADER: "another"}
            answer = app.test_client().open(path, method=method, headers=headers, json={})
            assert answer.json["error"]["code"] == "lease_lost", path


def test_without_work_nothing_is_given(client, context):
    assert client.work("gpu-box", "cpu", wait_s=0) == (None, 0.0)
    [known] = context.train_jobs.trainers()
    assert (known.name, known.device) == ("gpu-box", "cpu")


def test_a_request_for_work_is_kept_open(client, context, project):
    def create():
        facts = {"labelled": 6, "place": "trainer", "minutes": 1, "cores": 1, "memory_bytes": 2**32}
        context.train_jobs.create(PROJECT, **facts)

    timer = threading.Timer(0.3, create)
    timer.start()
    offer, _ = client.work("gpu-box", "cpu", wait_s=10)
    timer.join()
    assert offer.project == PROJECT


@pytest.mark.slow
def test_a_trained_model_comes_back_and_is_judged(client, context, options, job, project):
    train = trains(trial=Trial(0.5, 0.9, 6, 12))
    said = run(client, options, train)
    assert "handed back" in said[-1]
    [given] = train.seen
    assert given.names == ("Disc", "Square")
    assert len(given.images) == 6
    assert all(image.boxes for image in given.images)
    assert not given.model.exists()  # the scratch folder is gone
    back = context.train_jobs.job(job.id)
    assert (back.state, back.holder, back.classes) == ("returned", "gpu-box", NAMES)
    assert back.progress.step == 2
    assert [point[1] for point in back.progress.curve] == [3.0, 2.0, 1.0]
    judged = judge(context, job)
    assert judged.state in {"published", "refused"}
    assert "0.900 in a trial on 6 images with 12 boxes" in judged.reason
    manifest = context.base_models.registry.manifest(judged.version)
    assert (manifest.classes, manifest.metrics["trainer"]) == (NAMES, "labelloop train")
    file = context.base_models.registry.get(judged.version, manifest.model)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(file).metadata_props}
    assert '"images": 6' in metadata[TRAINED_KEY]
    assert not context.base_models.registry.store.exists(returned_key(job.id))


def judge(context, job):
    claimed = context.train_jobs.claim(job.id, "worker here")
    _run(context, context.train_jobs, claimed, SimpleNamespace(send=lambda: True), threading.Event())
    return context.train_jobs.job(job.id)


@pytest.mark.slow
def test_a_refit_that_is_better_stays(client, context, options, job, project):
    run(client, options, trains(trial=Trial(0.9, 0.5, 6, 12)))
    judged = judge(context, job)
    assert judged.state == "refused"
    assert "the refit stays" in judged.reason
    assert context.base_models.served(PROJECT).version == project


@pytest.mark.slow
def test_an_impossible_trial_is_part_of_the_reason_and_of_the_run(client, context, options, job, project):
    run(client, options, trains(untried="no trial against the refit: a part has no box"))
    judged = judge(context, job)
    assert judged.state == "refused"
    assert "too few held-out tasks to judge it" in judged.reason
    assert "no trial against the refit: a part has no box" in judged.reason
    assert context.runs.of_version(PROJECT, judged.version).reason == judged.reason


def test_a_trainer_that_is_stopped_gives_its_job_back(client, context, options, job):
    assert "given back" in run(client, options, trains(how="stopped"))[-1]
    again = context.train_jobs.job(job.id)
    assert (again.state, again.attempts) == ("waiting", 0)
    assert again.reason == "the trainer gpu-box was stopped"


def test_a_trainer_whose_job_was_given_to_another_drops_it(client, context, options, job):
    def train(job_, reporter, stopping):
        token = context.train_jobs.job(job.id).token
        context.train_jobs.release(job.id, token, reason="gpu-box sent no more heartbeats")
        context.train_jobs.claim(job.id, "another")
        while not stopping():
            pass
        return Finetuned(ended("stopped"), {}, 0, 0, 0, (), (), 0.0, ())

    assert "given to another" in run(client, options, train)[-1]
    assert context.train_jobs.job(job.id).holder == "another"


def test_a_training_goes_on_while_the_ml_backend_is_away(client, context, options, job, monkeypatch):
    away, heard = [True], threading.Event()

    def progress(offer, sent):
        if away[0]:
            later = TrainJobStore(context.train_jobs._engine, clock=lambda _: time.time() + 1000)
            away[0] = bool(later.expire())  # of no other job the second time
            raise BackendUnreachable(url="http://localhost", reason="it restarts")
        heard.set()
        return TrainerClient.progress(client, offer, sent)

    def train(job_, reporter, stopping):
        assert heard.wait(10)
        assert not stopping()
        return trains()(job_, reporter, stopping)

    monkeypatch.setattr(client, "progress", progress)
    said = run(client, options, train)
    assert [line for line in said if "cannot be sent, and the training goes on" in line and "it restarts" in line]
    assert [line for line in said if "still has its job" in line]
    assert "handed back" in said[-1]
    assert context.train_jobs.job(job.id).state == "returned"


def test_a_model_is_taken_after_its_lease_expired(client, context, options, job, monkeypatch):
    answered = []

    def away_for_a_while(offer, file):
        if not answered:
            answered.append("unreachable")
            later = TrainJobStore(context.train_jobs._engine, clock=lambda _: time.time() + 1000)
            assert [lost.id for lost in later.expire()] == [job.id]
            assert context.train_jobs.job(job.id).state == "waiting"
            raise BackendUnreachable(url="http://localhost", reason="it restarts")
        TrainerClient.hand_back(client, offer, file)

    monkeypatch.setattr(client, "hand_back", away_for_a_while)
    lines = run(client, replace(options, heartbeat_s=600.0), trains())
    assert "offered until it is taken" in lines[-2]
    assert "handed back" in lines[-1]
    assert context.train_jobs.job(job.id).state == "returned"


def test_a_model_outlives_its_trainer(client, context, options, job, monkeypatch):
    def away(*_):
        raise BackendUnreachable(url="http://localhost", reason="it restarts")

    with monkeypatch.context() as patch:
        patch.setattr(client, "hand_back", away)
        said, trained = [], trains(how="budget")
        stop = lambda: any("is trained" in line for line in said)  # noqa: E731 - Ctrl-C
        run_agent(client, options, stopping=stop, say=said.append, train=trained)
    assert "also after a restart" in said[-1]
    kept = options.home / "train" / "finished"
    assert sorted(file.suffix for file in kept.iterdir()) == [".json", ".onnx"]
    assert [file.stat().st_mode & 0o777 for file in kept.glob("*.json")] == [0o600], "it has the lease"

    said = run(client, options, None, stop_after="handed back")
    assert said == [f"Job {job.id}: handed back; the ML backend evaluates it."]
    returned = context.train_jobs.job(job.id)
    assert (returned.state, returned.progress.ended, returned.progress.images) == ("returned", "budget", 6)
    assert not list(kept.iterdir())


def test_a_model_that_cannot_be_kept_is_handed_back_at_once(client, context, options, job):
    (options.home / "train").parent.mkdir(parents=True, exist_ok=True)
    (options.home / "train").write_text("no folder")
    said = run(client, options, trains(how="budget"), stop_after="handed back")
    assert any("cannot be kept" in line and "offered once" in line for line in said)
    assert context.train_jobs.job(job.id).state == "returned"


def test_a_kept_model_of_a_job_that_another_has_is_dropped(client, context, options, job, tmp_path):
    finished = kept_model(client, options, tmp_path)
    context.train_jobs.release(job.id, context.train_jobs.job(job.id).token, reason="no heartbeats")
    context.train_jobs.claim(job.id, "another")
    said = []
    finished.hand_back(said.append)
    assert said == [f"Job {job.id}: dropped, it was given to another, cancelled or is too late."]
    assert not list(finished.folder.iterdir())
    assert context.train_jobs.job(job.id).holder == "another"


def test_a_model_kept_for_another_ml_backend_is_named(client, options, job, tmp_path):
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    model = tmp_path / "trained.onnx"
    model.write_bytes(b"weights")
    FinishedModels(options.home, SimpleNamespace(url="https://labels.example.org/ml")).keep(
        offer, TrainProgress(), model, print
    )
    said = run(client, options, None, stop_after="labels.example.org")
    assert "Start a trainer with that --url" in said[0]
    assert len(list((options.home / "train" / "finished").iterdir())) == 2


def test_a_kept_model_is_handed_back_by_one_of_two_trainers(client, context, options, job, tmp_path):
    finished = kept_model(client, options, tmp_path)
    with next(finished.folder.glob("*.json")).open("rb") as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        said = []
        finished.hand_back(said.append)
        assert said == []
    next(finished.folder.glob("*.onnx")).unlink()  # the other has handed it back, and deletes its record next
    finished.hand_back(said.append)
    assert (said, context.train_jobs.job(job.id).state) == ([], "running")


def test_leftovers_of_a_crash_are_deleted_after_a_day(client, options, job, tmp_path):
    finished = kept_model(client, options, tmp_path)
    whole = sorted(finished.folder.iterdir())
    new, old = finished.folder / "1.onnx", [finished.folder / name for name in ("2.onnx", "3.partial", "4.json")]
    for file in (new, *old):
        file.write_bytes(b"{")
    for file in (*whole, *old):
        os.utime(file, (time.time() - 90_000,) * 2)
    said = []
    finished.tidy(said.append)
    assert sorted(finished.folder.iterdir()) == sorted([*whole, new])
    assert [line.partition(" cannot be read")[0] for line in said] == [str(old[2])]


def test_a_model_of_a_long_outage_is_taken(client, context, options, job, tmp_path, monkeypatch):
    finished = kept_model(client, options, tmp_path, ended="budget")
    later = context.train_jobs.now() + time_limit_s(job.minutes) + 1
    monkeypatch.setattr(TrainJobStore, "now", lambda _: later)
    said = []
    finished.hand_back(said.append)
    assert said == [f"Job {job.id}: handed back; the ML backend evaluates it."]


def test_a_model_that_comes_too_late_is_dropped(client, context, options, job, tmp_path, monkeypatch):
    finished = kept_model(client, options, tmp_path, ended="budget")
    later = context.train_jobs.now() + time_limit_s(job.minutes, trained=True) + 1
    monkeypatch.setattr(TrainJobStore, "now", lambda _: later)
    said = []
    finished.hand_back(said.append)
    assert said == [f"Job {job.id}: dropped, it was given to another, cancelled or is too late."]
    assert not list(finished.folder.iterdir())


def test_an_expired_lease_ends_for_good_once_another_has_the_job(context, job):
    token = context.train_jobs.claim(job.id, "gpu-box").token
    later = TrainJobStore(context.train_jobs._engine, clock=lambda _: time.time() + 1000)
    assert later.expire()
    assert not later.expire()
    assert context.train_jobs.claim(job.id, "another") is not None
    assert not context.train_jobs.heartbeat(job.id, token)
    assert context.train_jobs.job(job.id).holder == "another"


def test_a_model_that_cannot_be_trained_ends_the_job_with_the_fix(client, context, options, job):
    def train(job_, *_):
        raise NotTrainable(path=job_.model, reason="it is quantised")

    run(client, options, train)
    failed = context.train_jobs.job(job.id)
    assert failed.state == "failed"
    assert "it is quantised" in failed.reason


def test_a_crash_is_tried_again(client, context, options, job):
    def train(*_):
        raise ZeroDivisionError("0 images")

    run(client, options, train)
    again = context.train_jobs.job(job.id)
    assert (again.state, again.attempts) == ("waiting", 1)
    assert "ZeroDivisionError" in again.reason


def test_a_model_that_is_too_large_or_damaged_is_refused(client, context, job, tmp_path):
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    client.data(offer)
    file = tmp_path / "large.onnx"
    file.write_bytes(b"\0" * (offer.max_bytes + 1))
    with pytest.raises(Exception, match="its parent allows"):
        client.hand_back(offer, file)
    other = TrainOffer(offer.id, offer.project, "another lease", 1, 1, "m", "", "", 1)
    file.write_bytes(b"small")
    with pytest.raises(LeaseGone):
        client.hand_back(other, file)
    assert not client.progress(other, TrainProgress())
    client.hand_back(offer, file)
    judged = judge(context, job)
    assert judged.state == "failed"
    assert "it is not ONNX" in judged.reason


def test_a_project_that_stopped_learning_is_not_handed_out(client, job, policy):
    policy("learn = false\n")
    assert client.work("gpu-box", "cpu", wait_s=0)[0] is None


def test_a_model_that_cannot_be_handed_out_is_no_silent_trainer(client, context, job, monkeypatch):
    def unreachable(*_):
        raise StoreUnreachable("s3://box", "", "the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(BaseModels, "served", unreachable)
        with pytest.raises(BackendUnreachable, match="the server does not answer"):
            client.work("gpu-box", "cpu", wait_s=0)
    waiting = context.train_jobs.job(job.id)
    assert (waiting.state, waiting.attempts) == ("waiting", 0)

    def damaged(*_, **__):
        raise NotTrainable(path=embedded_model(), reason="it is damaged")

    monkeypatch.setattr("ml_backend.server.trainer_endpoints.load_detector", damaged)
    assert client.work("gpu-box", "cpu", wait_s=0)[0] is None
    failed = context.train_jobs.job(job.id)
    assert failed.state == "failed"
    assert "it is damaged" in failed.reason


def test_a_training_that_hangs_loses_its_job(client, context, job, monkeypatch):
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    assert client.progress(offer, TrainProgress(phase="training"))
    later = context.train_jobs.now() + time_limit_s(job.minutes) + 1
    monkeypatch.setattr(TrainJobStore, "now", lambda _: later)
    assert not client.progress(offer, TrainProgress(phase="training"))
    lost = context.train_jobs.job(job.id)
    assert (lost.state, lost.attempts) == ("waiting", 1)
    assert lost.reason == "gpu-box did not finish it in time"


def test_figures_that_no_training_has_are_refused(client, context, job):
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    for folds in (Folds(0.0, 7.0, 6), Folds(-1e308, 0.5, 6), Folds(0.0, 0.5, 6, -1)):
        with pytest.raises(LabelloopError, match="between 0 and 1"):
            client.progress(offer, TrainProgress(crossed=folds))
    assert context.train_jobs.job(job.id).progress == TrainProgress()


def test_only_images_of_the_data_are_given(client, job):
    offer, _ = client.work("gpu-box", "cpu", wait_s=0)
    for name in ("../settings.env", "1", "1-99999999", "999-0", "x-0"):
        with pytest.raises(LabelloopError, match=r"no image|nothing at"):
            client.image(offer, name)


@pytest.mark.parametrize("error", [MediaHostRefused, MediaUnreachable, MediaMissing], ids=lambda kind: kind.code)
def test_an_image_that_cannot_be_loaded_is_left_out(client, context, options, job, monkeypatch, error):
    load = context.media.path

    def path(url, *, task_id):
        if task_id == 1:
            raise error(url, "it is gone")
        return load(url, task_id=task_id)

    monkeypatch.setattr(context.media, "path", path)
    train = trains(how="stopped")
    assert "given back" in run(client, options, train)[-1]
    assert len(train.seen[0].images) == 5


def without(model):
    del model.graph.node[-1]


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def infinite(model):
    changed(model, by=np.inf)


def reshaped(model):
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.concatenate([values, values]), tensor.name))


def rewired(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.attribute[0].ints[:] = [3, 3]


def added(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "more"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(without, "nodes"), (external, "another file"), (infinite, "not finite"), (reshaped, "another shape"),
     (rewired, "node .* differs"), (added, "tensors differ: more")],
    ids=lambda value: value.__name__ if callable(value) else "",
)  # fmt: skip
def test_anything_but_new_weights_is_refused(damage, said):
    model = graph()
    damage(model)
    with pytest.raises(ReturnedModelRefused, match=said):
        with_returned_weights(embedded_model(), model.SerializeToString(), NAMES)


def test_the_weights_are_taken_into_our_own_graph():
    model = changed(graph())
    model.metadata_props.add(key="learned_from", value="somewhere")
    model.doc_string = "theirs"
    taken = with_returned_weights(embedded_model(), model.SerializeToString(), NAMES)
    assert taken.doc_string != "theirs"
    assert "learned_from" not in {entry.key for entry in taken.metadata_props}
    theirs, ours = Weights.of(model), Weights.of(taken)
    assert all(np.array_equal(theirs.value(name), ours.value(name)) for name in theirs.stored)


def test_a_training_by_hand_is_a_job_and_there_is_one_at_a_time(context, project):
    def train(reporter):
        reporter.phase("training")
        with pytest.raises(TrainingRuns, match="running, labelloop train on"):
            train_by_hand(context, PROJECT, lambda _: None, minutes=1)
        return ProjectTraining(None, "trained-6-abc", published=False, reason="the refit stays")

    train_by_hand(context, PROJECT, train, minutes=1)
    [job] = context.train_jobs.last(PROJECT)
    assert (job.state, job.version, job.reason, job.labelled) == ("refused", "trained-6-abc", "the refit stays", 6)
    assert job.progress.phase == "training"

    for unsaved, said in (("", "goes on from its checkpoint"), ("No space left", "cannot be written: No space left")):
        tuned = Finetuned(ended("stopped", unsaved), {}, 0, 0, 0, (), (), 0.0, ())
        train_by_hand(context, PROJECT, lambda _, tuned=tuned: ProjectTraining(tuned), minutes=1)
        assert said in context.train_jobs.last(PROJECT)[0].reason

    def fail(_):
        raise NotTrainable(path=embedded_model(), reason="it is quantised")

    with pytest.raises(NotTrainable):
        train_by_hand(context, PROJECT, fail, minutes=1)
    last = context.train_jobs.last(PROJECT)[0]
    assert last.state == "failed"
    assert "it is quantised" in last.reason
