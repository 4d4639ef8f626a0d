"""From submits to a version that is served: what is learned, when, what the gate lets through, how it is un-learned."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.jobs.inbox import Backoff, Inbox
from labelloop.service.jobs.jobs import Jobs, Reject
from labelloop.service.jobs.worker import run_worker
from labelloop.service.store import open_store
from labelloop.service.studio import StudioNotFound
from ml_backend.cli import learn as commands
from ml_backend.jobs import handlers, periodic_jobs
from ml_backend.learning.annotations import LabelledImage, config_hash_of, is_held_out
from ml_backend.learning.events import LEARN, QUEUE, read_event
from ml_backend.learning.poller import LearningPoller
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.learning.training_run import Learner
from ml_backend.learning.training_set import MAX_IMAGES, sample_images
from ml_backend.policy import LearningPolicyError
from ml_backend.serving import activation
from ml_backend.serving.activation import roll_back, served_version
from tests.ml_backend.learning.conftest import CONFIG, PROJECT, box_json

QUIET = "debounce_s = 0\nheld_out = 0\n"


@pytest.fixture(autouse=True)
def _no_waiting(policy):
    policy(QUIET)


def finds(context, version, seed, studio):
    """Labels of what a version is sure of on a photo that it never saw."""
    task = studio.tasks_by_id[studio.add_image(seed)]
    backbone = context.base_models.backbone(context.base_models.served(PROJECT))
    facts = {
        "backbone": backbone,
        "base": context.base_models.served(PROJECT).base,
        "config": LabelConfig.parse(CONFIG),
    }
    exam = context.evaluator.evaluate(version, [(task["id"], LabelledImage(task["data"]["image"]))], **facts)
    [result] = exam.detections
    return {exam.names[index] for index, score in zip(result.classes, result.scores, strict=True) if score > 0.5}


def test_submits_train_a_version_and_a_deletion_retrains_it(context, learn, studio, settings, policy):
    base = served_version(settings, project=PROJECT)
    assert learn(tasks=[studio.label(1)]) is None  # one labelled task is fewer than two
    tasks = [studio.label(seed) for seed in (2, 4, 5)]
    run = learn(tasks=tasks)
    assert (run.verdict, run.judged_by, run.tasks, run.boxes) == ("published", "cross-validation", 4, 8)
    assert run.classes == {"Disc": 4, "Square": 4}
    assert run.base == run.parent == base
    assert run.version == served_version(settings, project=PROJECT) != base
    assert set(run.seconds) == {"wait", "read", "photos", "fit", "judge", "heads", "publish", "follow"}
    assert {"Disc", "Square"} <= finds(context, run.version, 11, studio)
    assert context.runs.last(PROJECT) == [run_with_id := context.runs.of_version(PROJECT, run.version)]
    assert run_with_id.metrics.cross_validation
    # Nothing new: no run, except for "Start training".
    assert learn(tasks=tasks) is None
    assert learn(sweep=True) is None
    # All squares go: what is served next has no such class.
    for task in studio.tasks_by_id.values():
        for item in task["annotations"]:
            item["result"] = [box for box in item["result"] if box["value"]["rectanglelabels"] == ["Disc"]]
            item["updated_at"] = "2026-02-02T00:00:00.000000Z"
    second = learn(sweep=True)
    assert second.verdict == "published"
    assert second.parent == run.version
    assert second.classes == {"Disc": 4}
    assert "Square" not in finds(context, second.version, 13, studio)
    # All annotations go: the base is served again.
    gone = [item["id"] for task in studio.tasks_by_id.values() for item in task["annotations"]]
    for task in studio.tasks_by_id.values():
        task["annotations"] = []
    last = learn(annotations=gone)
    assert last is None
    assert context.runs.last(PROJECT)[0].verdict == "withdrawn"
    assert served_version(settings, project=PROJECT) == base


def test_debounce_reads_once_and_includes_late_submits(context, studio, policy, monkeypatch):
    policy("debounce_s = 0.2\nheld_out = 0\n")
    context.training_data.connect(PROJECT)
    context.training_data.update_project(PROJECT, config=config_hash_of(LabelConfig.parse(CONFIG)))
    first, second = (studio.label(seed) for seed in (1, 2))
    context.inbox.put(LEARN, str(PROJECT), "first", {"tasks": [first, second], "source": "test"})
    requests = []
    read = context.sync.read
    monkeypatch.setattr(
        context.sync, "read", lambda project, tasks, **more: (requests.append(set(tasks)), read(project, tasks, **more))
    )
    learner = Learner(context)
    run = learner.learn(PROJECT, context.inbox.unfinished_events(LEARN, str(PROJECT)))
    assert (run.verdict, run.tasks, requests) == ("published", 2, [{first, second}])
    assert run.seconds["wait"] >= 0.2
    # An annotator corrects the task right after it was read.
    context.inbox.put(LEARN, str(PROJECT), "second", {"tasks": [studio.label(4)], "source": "test"})
    late = studio.add_image(5)
    debounce = learner._debounce

    def settle(*given):
        studio.label(5, task=late)
        context.inbox.put(LEARN, str(PROJECT), "third", {"tasks": [late], "source": "test"})
        return debounce(*given)

    monkeypatch.setattr(learner, "_debounce", settle)
    assert learner.learn(PROJECT, context.inbox.unfinished_events(LEARN, str(PROJECT))).tasks == 4


def test_version_has_thresholds_from_edits(context, learn, studio, policy):
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4, 5, 7, 8)])
    result = context.base_models.thresholds(run.version)
    assert result == run.metrics.thresholds
    assert result.keys() == {"Cat", "Disc", "Square"}  # the base has the class cat, without annotations yet
    assert all(0 < threshold < 1 for threshold in result.values())
    policy(QUIET + "thresholds = false\n")
    second = learn(now=True)
    assert context.base_models.thresholds(second.version) == {} == second.metrics.thresholds
    assert context.base_models.thresholds(second.base) == {}


def test_thresholds_use_predictions_before_training_on_the_image(context, learn, studio):
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    assert context.training_data.predictions(PROJECT) == []  # the base knows none of the classes
    task = studio.label(5)
    second = learn(tasks=[task])
    [(drawn, [result])] = context.training_data.predictions(PROJECT)
    assert result.url == drawn[0].url
    assert {label for label, score in zip(result.labels, result.scores, strict=True) if score > 0.5} == {
        "Disc",
        "Square",
    }
    assert len(result.scores) == len(result.boxes) > 2  # also what was too weak to be shown
    assert min(result.scores) < 0.3
    # It was learned from since: what is asked later would know the answer.
    studio.tasks_by_id[task]["annotations"][0] |= {"updated_at": "2026-02-02T00:00:00.000000Z", "result": []}
    assert learn(tasks=[task]).parent == second.version != run.version
    [(drawn, [again])] = context.training_data.predictions(PROJECT)
    assert (again, drawn[0].boxes) == (result, ())


def test_worse_candidate_is_stored_as_refused(context, learn, studio, settings, monkeypatch):
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    before = served_version(settings, project=PROJECT)
    for seed in (5, 7):
        task = studio.add_image(seed)
        studio.annotate(task, 1, [box_json("Disc", (5, 5, 60, 40)), box_json("Square", (250, 10, 310, 50))])
        studio.tasks_by_id[task]["annotations"][0]["id"] += 1000
    monkeypatch.setattr("ml_backend.learning.evaluation.acceptance.NOISE", 0.0)
    run = learn(sweep=True)
    assert run.verdict == "refused"
    assert "AP50" in run.reason
    assert run.ap50 < run.parent_ap50
    assert served_version(settings, project=PROJECT) == before
    manifest = context.base_models.registry.manifest(run.version)
    assert manifest.metrics["verdict"] == "refused"
    assert manifest.metrics["reason"] == run.reason


def test_held_out_tasks_are_not_trained_on_and_evaluate(learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0.5\n")
    monkeypatch.setattr("ml_backend.learning.evaluator.ENOUGH_PHOTOS", 2)
    monkeypatch.setattr("ml_backend.learning.evaluator.ENOUGH_BOXES", 2)
    tasks = [studio.label(seed) for seed in (1, 2, 4, 5, 7, 8)]
    held = [task for task in tasks if is_held_out(PROJECT, task, 0.5)]
    assert 2 <= len(held) <= 4
    run = learn(tasks=tasks)
    assert (run.tasks, run.held_out, run.judged_by) == (6 - len(held), len(held), "held-out")
    assert run.parent_ap50 < run.ap50
    assert run.metrics.photos == len(held)


def test_a_rollback_and_an_activation_by_hand_are_respected(context, learn, studio, settings):
    first = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    second = learn(tasks=[studio.label(5)])
    assert second.parent == first.version
    roll_back(settings=settings, project=PROJECT, studio=studio)
    assert served_version(settings, project=PROJECT) == first.version
    assert learn(sweep=True) is None  # nothing new was drawn: it stays rolled back
    third = learn(tasks=[studio.label(7)])
    assert third.parent == first.version
    assert third.base == first.base


def test_unloadable_image_skips_only_its_task(learn, studio):
    tasks = [studio.label(seed) for seed in (1, 2, 4)]
    missing = studio.add_task({"image": "/data/local-files/?d=gone.png"})
    studio.annotate(missing, 1, [box_json("Disc", (10, 10, 60, 60))])
    run = learn(tasks=[*tasks, missing])
    assert run.verdict == "published"
    assert "1 image could not be loaded (task " in run.reason


def test_worker_with_another_model_refuses_to_train(learn, studio, settings):
    studio.put_backend(PROJECT, settings.ml_url, "mine-1", model_version="mine-123456789abc")
    run = learn(tasks=[studio.label(seed) for seed in (1, 2)])
    assert run.verdict == "failed"
    assert "mine-123456789abc" in run.reason
    assert "LABELLOOP_MODEL" in run.reason


@pytest.fixture
def connection(studio, settings, monkeypatch):
    """The project's connection in Label Studio, which still has the title `before` and tells no version."""
    monkeypatch.setattr(activation, "SWAP_S", 0.0)
    return studio.put_backend(PROJECT, settings.ml_url, "before")


def test_version_is_announced_after_the_ranking(context, learn, studio, connection, monkeypatch):
    """Otherwise tasks would come at random, and a second annotator might get none."""
    waiting = [studio.add_image(seed) for seed in range(20, 24)]
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    connection["model_version"] = run.version
    assert (run.verdict, connection["title"]) == ("published", "before")
    existing = []
    named = studio.update_ml_backend
    monkeypatch.setattr(
        studio,
        "update_ml_backend",
        lambda *row, **more: (existing.extend(studio.queue(run.version)), named(*row, **more)),
    )
    rank_open_tasks(context, PROJECT, stop=lambda: False)
    assert connection["title"] == studio.fields["model_version"] == run.version
    assert sorted(existing) == waiting


@pytest.mark.parametrize("prelabels", [0, 500])
def test_version_is_announced_without_or_after_a_slow_ranking(context, learn, studio, connection, policy, prelabels):
    policy(f"{QUIET}prelabels = {prelabels}\n")
    studio.add_image(20)
    first = learn(tasks=[studio.label(seed) for seed in (1, 2)])
    context.training_data.update_project(
        PROJECT, untold_since=time.time() - 600
    )  # submits came faster than an order could be made
    task = studio.label(4)
    connection["model_version"] = "learned-9-ffffffffffff"  # another one: announced, and refused
    run = learn(tasks=[task])
    assert run.version != first.version
    assert context.training_data.project(PROJECT).untold_since is None
    assert context.training_data.project(PROJECT).swept_at == 0.0  # the poller tries again


def test_poller_retries_a_failed_announcement(context, learn, studio, connection):
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    rank_open_tasks(context, PROJECT, stop=lambda: False)  # it does not reach the backend
    assert (run.verdict, connection["title"]) == ("published", "before")
    connection["model_version"] = run.version
    LearningPoller(context).run()
    assert connection["title"] == studio.fields["model_version"] == run.version


def test_a_project_can_be_told_not_to_learn(learn, studio, policy, context):
    policy("learn = false\n")
    assert learn(tasks=[studio.label(seed) for seed in (1, 2, 4)]) is None
    assert context.runs.last(PROJECT) == []
    policy("first = 0\n")
    with pytest.raises(LearningPolicyError, match="first is 0"):
        learn(sweep=True)


def test_a_project_that_is_gone_is_forgotten(context, learn, studio):
    context.training_data.connect(PROJECT)
    del studio.projects_by_id[PROJECT]
    assert learn(sweep=True) is None
    assert context.training_data.projects() == []


@pytest.mark.parametrize("reads", ["label_config", "tasks"])
def test_a_404_about_something_else_forgets_no_project(context, learn, studio, settings, engine, monkeypatch, reads):
    """A proxy answers 404 while Label Studio starts; a task, a prediction or an ML backend is deleted meanwhile."""
    tasks = [studio.label(seed) for seed in (1, 2, 4)]
    learn(tasks=tasks)

    def not_found(*_args, **_fields):
        raise StudioNotFound("GET /api/x", 404, "(a web page: 404 | proxy)")

    with monkeypatch.context() as patch:
        patch.setattr(studio, reads, not_found)
        with pytest.raises(StudioNotFound):
            learn(sweep=True)
        with pytest.raises(StudioNotFound):
            handlers(settings, studio, engine)[LEARN](str(PROJECT), [context_event(context)])
        LearningPoller(context).run()
    assert [state.project for state in context.training_data.projects()] == [PROJECT]
    assert set(context.training_data.checksums(PROJECT)) == set(tasks)


def context_event(context):
    """A stored event that compares the whole project."""
    context.inbox.put(LEARN, str(PROJECT), "sweep", {"sweep": True, "source": "test"})
    return context.inbox.unfinished_events(LEARN, str(PROJECT))[-1]


def test_the_poller_waits_for_pending_runs_but_not_for_ever(context, learn, studio, monkeypatch):
    """With a submit pending at each of its ticks, a change without a webhook was never found."""
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    poller = LearningPoller(context)
    poller.run()
    context.inbox.put(LEARN, str(PROJECT), "submit", {"tasks": [], "source": "test"})
    missed = studio.label(5)
    poller.run()
    assert len(context.inbox.unfinished_events(LEARN, str(PROJECT))) == 1
    monkeypatch.setattr("ml_backend.learning.poller.MAX_WAIT_S", -1.0)
    poller.run()
    *_, event = context.inbox.unfinished_events(LEARN, str(PROJECT))
    assert event.payload == {"tasks": [missed], "source": "poll"}
    assert missed in context.image_vectors.annotated(PROJECT, [missed]), "the table of tasks is read, too"


def test_events_that_ran_out_of_attempts_are_replayed_once(context, learn, studio):
    """Label Studio was down for longer than the attempts last, right after a poll whose cursor is past the change."""
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    inbox = Inbox(context.inbox.engine, backoff=Backoff(attempts=2, base_s=0.0))
    poller = LearningPoller(replace(context, inbox=inbox))

    def fail():
        while claim := inbox.claim(LEARN, str(PROJECT), "test"):
            inbox.retry(claim, "Label Studio does not answer")

    inbox.put(LEARN, str(PROJECT), "refused", {"tasks": [], "source": "poll"})
    inbox.mark_dead(inbox.claim(LEARN, str(PROJECT), "test"), "a retry would not help")
    inbox.put(LEARN, str(PROJECT), "down", {"tasks": [], "source": "poll"})
    fail()
    assert inbox.counts()["dead"] == 2
    poller.run()
    assert [event.key for event in inbox.unfinished_events(LEARN, str(PROJECT))] == ["down"]
    fail()
    poller.run()
    assert not inbox.unfinished_events(LEARN, str(PROJECT)), "a failure that stays is not repeated for ever"


def test_old_versions_are_deleted_and_not_rolled_back_to(context, learn, studio, settings, policy):
    policy(QUIET + "keep = 2\n")
    versions = [learn(tasks=[studio.label(seed) for seed in (1, 2)]).version]
    versions += [learn(tasks=[studio.label(seed)]).version for seed in (4, 5)]
    stored = {manifest.version for manifest in context.base_models.registry.versions()}
    assert stored == set(versions[1:])
    assert not list(open_store(settings.store_url, settings).list(f"models/versions/{versions[0]}/"))
    roll_back(settings=settings, project=PROJECT, studio=studio)
    assert served_version(settings, project=PROJECT) == versions[1]


@pytest.fixture
def working(settings, studio, engine):
    """Two workers with all handlers, in threads, each on a queue of its own."""
    inbox, stop = Inbox.from_settings(settings, engine), threading.Event()
    jobs = [
        Jobs(settings, inbox, handlers(settings, studio, engine), periodic_jobs(settings, studio, engine))
        for _ in range(2)
    ]
    threads = [threading.Thread(target=run_worker, args=(item,), kwargs={"stop": stop}) for item in jobs]
    for thread in threads:
        thread.start()
    yield jobs[0]
    stop.set()
    for thread in threads:
        thread.join()


def submitted(jobs, studio, seed):
    task = studio.label(seed)
    annotation = {**studio.tasks_by_id[task]["annotations"][0], "task": task}
    for hint in read_event({"action": "ANNOTATION_CREATED", "annotation": annotation, "project": {"id": PROJECT}}):
        jobs.submit(hint.topic, str(hint.project), hint.key, hint.payload)


def test_burst_is_two_runs_and_missed_changes_are_found(working, studio, context, policy, wait_until, monkeypatch):
    policy("debounce_s = 0.3\nheld_out = 0\nprelabels = 0\n")
    running, most = set(), []
    fitted = Learner._run_steps

    def counted(self, of):
        running.add(threading.get_ident())
        most.append(len(running))
        try:
            return fitted(self, of)
        finally:
            running.discard(threading.get_ident())

    monkeypatch.setattr(Learner, "_run_steps", counted)
    for seed in range(1, 7):
        submitted(working, studio, seed)
        time.sleep(0.05)
    wait_until(lambda: any(run.tasks == 6 for run in context.runs.last(PROJECT)), timeout_s=180)
    wait_until(lambda: not context.inbox.unfinished_events(LEARN, str(PROJECT)), timeout_s=180)
    assert len(context.runs.last(PROJECT)) <= 2
    assert set(most) == {1}
    studio.label(8)  # no webhook: the poller finds it
    wait_until(lambda: context.runs.last(PROJECT)[0].tasks == 7, timeout_s=180)
    assert context.runs.last(PROJECT)[0].source == "poll"


def test_unreadable_policy_is_a_dead_letter_with_the_reason(settings, studio, engine, policy):
    policy("frist = 3\n")
    event = SimpleNamespace(payload={"sweep": True}, created_at=time.time(), id=1)
    for topic in (LEARN, QUEUE):
        with pytest.raises(Reject, match="frist"):
            handlers(settings, studio, engine)[topic](str(PROJECT), [event])


def test_sample_includes_all_images_with_rare_classes():
    def lesson(number):
        labels = ("Disc",) if number % 100 else ("Disc", "Square")
        return number, LabelledImage(f"{number}.jpg", labels=labels)

    few, many = [lesson(number) for number in range(MAX_IMAGES)], [lesson(number) for number in range(3000)]
    assert sample_images(few) == few
    result = sample_images(many)
    assert result == sample_images(many[::-1])
    assert MAX_IMAGES <= len(result) <= MAX_IMAGES + 30
    assert sum("Square" in photo.labels for _, photo in result) == 30


def test_renamed_label_is_retrained_without_a_submit(context, learn, studio):
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    LearningPoller(context).run()
    assert not context.inbox.unfinished_events(LEARN, str(PROJECT))
    renamed = '<Label value="Block" predicted_values="Square"/>'
    studio.fields["label_config"] = studio.fields["label_config"].replace('<Label value="Square"/>', renamed)
    LearningPoller(context).run()
    events = context.inbox.unfinished_events(LEARN, str(PROJECT))
    assert [event.payload["source"] for event in events] == ["label config"]
    run = Learner(context).learn(PROJECT, events)
    assert (run.verdict, set(run.classes)) == ("published", {"Disc", "Block"})


def test_poller_finds_a_deletion_without_a_webhook(context, learn, studio):
    tasks = [studio.label(seed) for seed in (1, 2, 4)]
    learn(tasks=tasks)
    watchman = LearningPoller(context)
    watchman.announce_served_version(PROJECT)  # until then tasks are not compared
    studio.fields["total_annotations_number"] = 3
    watchman.run()
    studio.tasks_by_id[tasks[0]]["annotations"].clear()  # made a draft again: the task's own time stays
    studio.fields["total_annotations_number"] = 2
    watchman.run()
    [event] = context.inbox.unfinished_events(LEARN, str(PROJECT))
    assert event.payload["tasks"] == [tasks[0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [(QUIET, "0 tasks with annotations, 2 needed"), ("learn = false\n", "its learn.toml turns learning off")],
)
def test_impossible_training_request_is_refused_with_the_reason(context, settings, policy, monkeypatch, text, said):
    monkeypatch.setattr(commands, "Settings", lambda: settings)
    context.training_data.connect(PROJECT)
    policy(text)
    with pytest.raises(commands.NoFit, match=said):
        commands.learn(PROJECT, now=True)
    assert not context.inbox.unfinished_events("learn", str(PROJECT))


def test_training_is_requested_while_events_are_pending(context, settings, policy, monkeypatch, capsys):
    monkeypatch.setattr(commands, "Settings", lambda: settings)
    context.training_data.connect(PROJECT)
    policy(QUIET)
    context.inbox.put("learn", str(PROJECT), "task:1", {"tasks": [1]})
    commands.learn(PROJECT, now=True)
    assert "is requested" in capsys.readouterr().out
    assert len(context.inbox.unfinished_events("learn", str(PROJECT))) == 2


def test_requested_run_without_labels_is_recorded_as_failed(context, learn, studio, policy):
    policy(QUIET)
    run = learn(now=True)
    assert (run.verdict, run.version) == ("failed", "")
    assert "0 tasks with annotations, 2 needed" in run.reason
    assert learn(tasks=[]) is None


def test_project_without_a_trainable_control_is_not_trained(context, learn, studio, policy):
    policy(QUIET)
    for seed in range(3):
        studio.label(seed)
    studio.fields["label_config"] = (
        '<View><Image name="image" value="$image"/><TextArea name="p" toName="image"/></View>'
    )
    assert learn(sweep=True) is None
    run = learn(now=True)
    assert run.verdict == "failed"
    assert "p (TextArea on Image) is" in run.reason
