"""The order of the open tasks: before anything is learned, after it, with held-out tasks at their share."""

import pytest

from ml_backend.learning.annotations import is_held_out
from ml_backend.learning.poller import LearningPoller
from ml_backend.learning.task_order import HEAD, place_score, rest_score, with_held_out
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.predict.predictor import Predictor
from tests.ml_backend.learning.conftest import PROJECT


def never():
    return False


def test_before_any_label_the_most_diverse_images_come_first(context, studio, policy):
    policy("held_out = 0\n")
    alike = [studio.add_image(3) for _ in range(6)]  # six times the same photo
    other = studio.add_image(4)
    done = rank_open_tasks(context, PROJECT, stop=never)
    assert done.prelabelled == 7
    order = studio.queue(done.version)
    assert len(order) == 7
    assert other in order[:2]
    assert len(set(order[:2]) & set(alike)) == 1


def test_existing_prelabels_get_the_score_of_their_position(context, studio, policy):
    policy("held_out = 0\n")
    tasks = [studio.add_image(seed) for seed in (3, 4, 5)]
    version = context.base_models.served(PROJECT).version
    studio.import_predictions(
        PROJECT, [{"task": task, "result": [], "score": 0.9, "model_version": version} for task in tasks]
    )
    rank_open_tasks(context, PROJECT, stop=never)
    assert studio.model_versions(PROJECT) == {version: 3}
    scores = [item["score"] for task in tasks for item in studio.tasks_by_id[task]["predictions"]]
    assert sorted(scores) == [place_score(index) for index in range(3)]


def test_new_version_prelabels_open_tasks_in_acquisition_order(context, learn, studio, policy):
    policy("debounce_s = 0\nheld_out = 0\n")
    waiting = [studio.add_image(seed) for seed in range(20, 32)]
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    done = rank_open_tasks(context, PROJECT, stop=never)
    assert (done.version, done.prelabelled, done.stopped) == (run.version, 12, False)
    assert sorted(studio.queue(run.version)) == waiting
    drawn = [
        result for task in waiting for item in studio.tasks_by_id[task]["predictions"] for result in item["result"]
    ]
    assert {result["value"]["rectanglelabels"][0] for result in drawn} >= {"Disc", "Square"}
    assert rank_open_tasks(context, PROJECT, stop=never).prelabelled == 0  # all have theirs
    expected = context.image_vectors.features(
        PROJECT, context.base_models.backbone(context.base_models.served(PROJECT)).version, waiting
    )
    assert {expected[task].version for task in waiting} == {run.version}


def test_prelabels_use_thresholds_of_version_or_project(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\n")
    monkeypatch.setattr(
        "ml_backend.learning.evaluation.candidate.learned_thresholds", lambda _, **__: {"Disc": 0.0, "Square": 1.0}
    )
    task = studio.add_image(20)
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])

    def shown():
        rank_open_tasks(context, PROJECT, stop=never)
        [created] = studio.tasks_by_id[task]["predictions"]
        studio.tasks_by_id[task]["predictions"] = []
        return {result["value"]["rectanglelabels"][0] for result in created["result"]}

    assert shown() == {"Disc"}
    thresholds = {"score_thresholds": {"square": 0.05, "disc": 1}}
    studio.put_backend(PROJECT, context.settings.ml_url, "", extra_params=thresholds)
    assert shown() == {"Square"}


def test_newer_event_interrupts_the_ranking(context, learn, studio, policy):
    policy("debounce_s = 0\nheld_out = 0\n")
    learn(tasks=[studio.label(seed) for seed in (1, 2)])
    assert rank_open_tasks(context, PROJECT, stop=lambda: True).stopped


def test_pool_beyond_its_time_follows_and_no_image_is_tried_twice(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\n")
    monkeypatch.setattr("ml_backend.learning.task_queue.POOL_S", 0.0)
    monkeypatch.setattr("ml_backend.learning.task_queue.available_cores", lambda: 1)
    gone = studio.add_task({"image": "/data/local-files/?d=gone.png"})
    waiting = [studio.add_image(seed) for seed in range(20, 31)]
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    attempts, predict = [], Predictor.predict

    def counted(self, tasks, **options):
        attempts.extend(task["id"] for task in tasks)
        return predict(self, tasks, **options)

    monkeypatch.setattr(Predictor, "predict", counted)
    assert rank_open_tasks(context, PROJECT, stop=never).prelabelled == 11
    assert sorted(attempts) == sorted([gone, *waiting])
    assert len(studio.calls_of("import_predictions")) == 2, "half of the pool is ranked first, the other half follows"
    assert sorted(studio.queue(run.version)) == waiting


def test_large_project_names_the_version_before_a_bulk_import(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\n")
    monkeypatch.setattr("ml_backend.learning.task_queue.LARGE", 10)
    monkeypatch.setattr("ml_backend.learning.task_queue.POOL_S", 600.0)  # the whole pool, however busy the machine is
    named_after: list[int] = []
    monkeypatch.setattr(
        "ml_backend.learning.task_queue.announce_version",
        lambda _context, _project, version: named_after.append(len(studio.queue(version))),
    )
    waiting = [studio.add_image(seed) for seed in range(20, 32)]
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    done = rank_open_tasks(context, PROJECT, stop=lambda: len(studio.queue(run.version)) == HEAD)
    assert (done.prelabelled, done.stopped, named_after) == (HEAD, True, [HEAD])
    assert len(studio.calls_of("add_prediction")) == HEAD
    assert not studio.calls_of("import_predictions")
    backbone = context.base_models.backbone(context.base_models.served(PROJECT)).version
    features = context.image_vectors.features(PROJECT, backbone, waiting)
    assert {entry.version for entry in features.values()} == {run.version}, "an interrupted ranking keeps uncertainties"
    rank_open_tasks(context, PROJECT, stop=never)
    assert sorted(studio.queue(run.version)) == waiting


def test_unseen_tasks_keep_their_share_where_time_ends_within_the_pool(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\nprelabels = 16\n")
    seen = [studio.add_image(seed) for seed in range(20, 32)]
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    rank_open_tasks(context, PROJECT, stop=never)
    unseen = [studio.add_image(seed) for seed in range(32, 40)]
    run = learn(tasks=[studio.label(5)])
    monkeypatch.setattr("ml_backend.learning.task_queue.POOL_S", 0.0)
    monkeypatch.setattr("ml_backend.learning.task_queue.available_cores", lambda: 1)
    rank_open_tasks(context, PROJECT, stop=lambda: bool(studio.queue(run.version)))
    ranked = set(studio.queue(run.version))
    assert (len(ranked & set(seen)), len(ranked & set(unseen))) == (6, 2)


def test_version_is_named_before_the_first_read_of_a_large_project_goes_on(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\n")
    monkeypatch.setattr("ml_backend.learning.task_sync.PAGE", 5)
    pages_before: list[int] = []
    monkeypatch.setattr(
        "ml_backend.learning.task_queue.announce_version",
        lambda *_: pages_before.append(len(studio.calls_of("stamps"))),
    )
    for seed in range(20, 32):
        studio.add_image(seed)
    run = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    studio.calls.clear()
    rank_open_tasks(context, PROJECT, stop=lambda: bool(studio.queue(run.version)))
    assert (pages_before, len(studio.calls_of("stamps"))) == ([0], 1)


def test_no_pre_labels_where_the_policy_wants_none(context, studio, policy):
    studio.add_image(3)
    policy("prelabels = 0\n")
    assert rank_open_tasks(context, PROJECT, stop=never) is None


def test_unloadable_image_does_not_block_other_tasks(context, studio, policy):
    policy("held_out = 0\n")
    studio.add_task({"image": "/data/local-files/?d=gone.png"})
    good = studio.add_image(3)
    done = rank_open_tasks(context, PROJECT, stop=never)
    assert studio.queue(done.version) == [good]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_held_out_tasks_take_their_share_of_the_places(share):
    order = list(range(1000))
    mixed = with_held_out(order, lambda number: is_held_out(PROJECT, number, share), share=share, labelled=0, held=0)
    assert sorted(mixed) == order
    early = sum(is_held_out(PROJECT, number, share) for number in mixed[:200])
    assert early == pytest.approx(200 * share, abs=2)
    others = [number for number in mixed if not is_held_out(PROJECT, number, share)]
    assert others == sorted(others)  # the order of all others stays


def test_scores_say_the_order():
    places = [place_score(index) for index in range(200)]
    assert places == sorted(places)
    assert len(set(places[: 3 * HEAD])) == 3 * HEAD
    assert place_score(199) <= rest_score(5.0) < rest_score(1.0) < rest_score(0.1) <= 0.9
    assert rest_score(0.3) > rest_score(None) > rest_score(2.0)


def test_outdated_prelabels_are_deleted_and_the_version_stays_set(context, learn, studio, policy, monkeypatch):
    policy("debounce_s = 0\nheld_out = 0\n")
    studio.add_image(20)
    first = learn(tasks=[studio.label(seed) for seed in (1, 2)])
    rank_open_tasks(context, PROJECT, stop=never)
    second = learn(tasks=[studio.label(4)])
    rank_open_tasks(context, PROJECT, stop=never)
    others = {"task": 1, "result": [], "score": 0.5, "model_version": "other-model"}
    studio.import_predictions(PROJECT, [others])
    watchman = LearningPoller(context)
    watchman.announce_served_version(PROJECT)
    assert set(studio.model_versions(PROJECT)) == {first.version, second.version, "other-model"}
    monkeypatch.setattr("ml_backend.learning.poller.OUTDATED_S", 0.0)
    watchman.announce_served_version(PROJECT)
    assert set(studio.model_versions(PROJECT)) == {second.version, "other-model"}
    assert studio.fields["model_version"] == second.version


IMAGE = '<Image name="image" value="$image"/>'
LABELS = '<RectangleLabels name="label" toName="image"><Label value="Qwx"/><Label value="Zvb"/></RectangleLabels>'
TEXT = '<Text name="t" value="$image"/><Labels name="l" toName="t"><Label value="Person"/></Labels>'


@pytest.mark.parametrize(("config", "ordered"), [(LABELS, True), (TEXT, False)])
def test_labels_without_a_class_are_ranked_if_trainable(config, ordered, context, studio, policy):
    studio.fields["label_config"] = f"<View>{IMAGE}{config}</View>"
    tasks = [studio.add_image(seed) for seed in (3, 4, 5)]
    done = rank_open_tasks(context, PROJECT, stop=never)
    assert (done is not None) is ordered
    assert [len(studio.tasks_by_id[task]["predictions"]) for task in tasks] == [int(ordered)] * 3
