"""Our own table of a project's tasks: read once, then by what changed; what a question to it costs."""

import time

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from labelloop.service.db.engine import MIGRATIONS, create_engine, migrate, open_database
from labelloop.service.settings import Settings
from labelloop.service.studio.tasks import TaskStamp
from ml_backend.learning import task_sync
from ml_backend.learning.annotations import config_hash_of
from ml_backend.learning.events import tasks_event
from ml_backend.learning.image_vectors import BackgroundEmbedder
from ml_backend.learning.poller import LearningPoller
from ml_backend.learning.store.tasks import MAX_TRIES, QueuedTask, TaskVectorStore
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.learning.task_sync import TaskSync
from ml_backend.training.acquisition import random_order, rank, sample_without_near_duplicates
from tests.ml_backend.learning.conftest import PROJECT

BACKBONE, VERSION = "base-1", "learned-1"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, settings):
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    engine = open_database(Settings(home=settings.home, database_url=url))
    yield TaskVectorStore(engine)
    engine.dispose()


@pytest.fixture
def sync(studio, store):
    return TaskSync(studio, store, PROJECT)


@pytest.fixture
def unread(studio):
    """Tasks without an image file; these tests load no images."""
    return [studio.add_task({"image": f"/data/local-files/?d={number}.png"}) for number in range(12)]


def read_all(sync):
    assert sync.continue_first_read(lambda: False)


def open_tasks(store):
    return sorted(store.without_vectors(PROJECT, VERSION, limit=1000))


def test_first_read_is_resumable(sync, store, studio, unread, monkeypatch):
    monkeypatch.setattr(task_sync, "PAGE", 5)
    assert not sync.continue_first_read(lambda: True)
    assert open_tasks(store) == unread[:5]
    assert sync.refresh() == 0  # what changes comes after the first reading
    studio.calls.clear()
    read_all(sync)
    assert open_tasks(store) == unread
    assert studio.reads == 2  # tasks 6 to 10, and the rest


def test_task_changed_during_the_first_reading_comes_as_a_change(sync, store, studio, unread, monkeypatch):
    monkeypatch.setattr(task_sync, "PAGE", 5)
    sync.continue_first_read(lambda: True)
    studio.annotate(unread[0], 1, [])
    read_all(sync)
    sync.refresh()
    assert open_tasks(store) == unread[1:]


@pytest.mark.parametrize("skipped", [False, True])
def test_one_request_reads_all_missed_changes(sync, store, studio, unread, skipped):
    read_all(sync)
    sync.refresh()
    studio.annotate(unread[3], 1, [], was_cancelled=skipped)
    new = studio.add_task({"image": "new.png"})
    studio.calls.clear()
    sync.refresh()
    assert studio.reads == 1
    assert open_tasks(store) == sorted({*unread, new} - {unread[3]})


def test_deletions_are_found_by_task_counts(sync, store, studio, unread):
    studio.annotate(unread[0], 1, [])
    read_all(sync)
    assert not sync.compare_if_due()
    del studio.tasks_by_id[unread[5]]
    studio.tasks_by_id[unread[0]]["annotations"].clear()  # made a draft again: the task's own time stays
    sync.refresh()
    assert unread[5] in open_tasks(store)
    assert sync.compare_if_due()
    assert open_tasks(store) == [item for item in unread if item != unread[5]]


def test_lasting_mismatch_is_compared_at_intervals(sync, studio, unread):
    read_all(sync)
    studio.fields["task_number"] = 99
    assert sync.compare_if_due()
    assert not sync.compare_if_due()


def test_large_project_starts_with_a_random_sample(sync, store, studio, unread, monkeypatch):
    monkeypatch.setattr(task_sync, "SAMPLE_SIZE", 8)
    monkeypatch.setattr(task_sync, "PAGE", 5)
    studio.annotate(unread[0], 1, [])
    sync.seed()
    sample = open_tasks(store)
    assert len(sample) == 8
    assert max(sample) > unread[5]  # from all over it
    assert unread[0] not in sample
    read_all(sync)
    assert open_tasks(store) == unread[1:]


@pytest.fixture
def vectors(store):
    """A thousand open tasks; every second was looked at by a version, every fifth of these in vain."""
    chance = np.random.default_rng(0)
    store.mirror(PROJECT).put([TaskStamp(number, "2026-01-01") for number in range(1, 1001)])
    created = {number: chance.normal(size=8).astype(np.float32) for number in range(1, 1001)}
    store.save_vectors(PROJECT, BACKBONE, {number: ("photo", vector) for number, vector in created.items()})
    doubts = {number: None if number % 10 == 0 else float(chance.random()) for number in range(2, 1001, 2)}
    store.save_uncertainties(PROJECT, "learned-0", doubts, dict.fromkeys(doubts, 0.5))
    return created, doubts


def test_fair_sample_of_a_few_is_that_of_all(store, vectors):
    created, doubts = vectors
    fresh = [number for number in created if number not in doubts]
    wanted = [
        fresh[index]
        for index in sample_without_near_duplicates(np.stack([created[item] for item in fresh]), np.zeros((0, 8)), 40)
    ]
    few, block = store.vectors(PROJECT, BACKBONE, store.random_sample(PROJECT, VERSION, limit=200))
    assert [few[index] for index in sample_without_near_duplicates(block, np.zeros((0, 8), np.float32), 40)] == wanted


def test_order_by_doubt_of_a_few_is_that_of_all(store, vectors):
    _, doubts = vectors
    numbers = list(doubts)
    wanted = [numbers[index] for index in rank(list(doubts.values()))][:40]
    doubted = store.by_uncertainty(PROJECT, VERSION, empty=False, fresh=False, limit=40)
    empty = store.by_uncertainty(PROJECT, VERSION, empty=True, fresh=False, limit=40)
    both = [*doubted, *empty]
    assert [both[index] for index in rank([doubts[number] for number in both])][:40] == wanted


def test_vectors_of_another_backbone_are_none(store, vectors, sync):
    sync.use_backbone("base-2")
    assert store.vectors(PROJECT, "base-2", [1, 2])[0] == []
    assert store.random_sample(PROJECT, VERSION, limit=10) == []
    assert len(store.next_to_embed(PROJECT, limit=2000)) == 1000


def test_unloadable_image_is_retried_last_then_given_up(store, sync, unread):
    read_all(sync)
    first = store.next_to_embed(PROJECT, limit=1)
    for _ in range(MAX_TRIES):
        store.mark_failed(PROJECT, first)
        assert store.next_to_embed(PROJECT, limit=1) != first
    assert first[0] not in store.next_to_embed(PROJECT, limit=100)
    assert first[0] in store.without_vectors(PROJECT, VERSION, limit=100)


def test_background_embedding_is_resumable(context, studio, monkeypatch):
    context.training_data.connect(PROJECT)
    tasks = [studio.add_image(seed) for seed in range(3, 8)]
    broken = studio.add_task({"image": "/data/local-files/?d=gone.png"})
    read_all(TaskSync(studio, context.image_vectors, PROJECT))
    monkeypatch.setattr("ml_backend.learning.image_vectors.BATCH", 2)
    monkeypatch.setattr("ml_backend.learning.image_vectors.ROUND_S", 600.0)  # at low priority on a busy machine
    lookout = BackgroundEmbedder(context)
    lookout.embed_open_tasks(PROJECT, until=0.0)  # one slice
    expected = len(context.image_vectors.random_sample(PROJECT, VERSION, limit=100))
    assert 1 <= expected <= 2
    lookout.run()
    assert sorted(context.image_vectors.random_sample(PROJECT, VERSION, limit=100)) == tasks
    assert context.image_vectors.without_vectors(PROJECT, VERSION, limit=100) == [broken]
    assert context.image_vectors.next_to_embed(PROJECT, limit=1) == []


def test_submits_never_starve_a_cold_start(context, studio, policy, monkeypatch):
    policy("held_out = 0\n")
    monkeypatch.setattr("ml_backend.learning.task_queue.FIRST_BATCH", 3)
    tasks = [studio.add_image(seed) for seed in range(3, 10)]
    created = []
    while (done := rank_open_tasks(context, PROJECT, stop=lambda: True)).prelabelled:
        created.append(done.prelabelled)
    assert created == [3, 3, 1]
    assert sorted(studio.queue(done.version)) == tasks
    assert len({item["score"] for task in tasks for item in studio.tasks_by_id[task]["predictions"]}) == len(tasks)


def test_requests_of_an_order_do_not_grow_with_the_project(context, learn, studio, policy):
    policy("debounce_s = 0\nheld_out = 0\nprelabels = 4\n")
    for seed in range(20, 26):
        studio.add_image(seed)
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    rank_open_tasks(context, PROJECT, stop=lambda: False)

    def asked(task):
        studio.calls.clear()
        learn(tasks=[task])
        rank_open_tasks(context, PROJECT, stop=lambda: False)
        return studio.reads

    few = asked(studio.label(5))
    for number in range(3000):
        studio.add_task({"image": f"/data/local-files/?d={number}-.png"})
    TaskSync(studio, context.image_vectors, PROJECT).refresh()
    assert asked(studio.label(7)) == few <= 6


def test_first_read_in_the_background_makes_way_for_a_submit(context, studio, monkeypatch):
    monkeypatch.setattr(task_sync, "PAGE", 5)
    for number in range(30):
        studio.add_task({"image": f"{number}.png"})
    context.training_data.connect(PROJECT)
    config = config_hash_of(studio.label_config(PROJECT))
    context.training_data.update_project(PROJECT, swept_at=time.time(), config=config)
    poller, stamps = LearningPoller(context), studio.stamps

    def stamps_while_someone_submits(*arguments, **options):
        context.enqueue(tasks_event(PROJECT, [1], key="submit", source="webhook"))
        return stamps(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(studio, "stamps", stamps_while_someone_submits)
        poller.run()
    assert context.image_vectors.count_open(PROJECT) == 5


def test_ranking_drops_done_and_deleted_tasks(context, learn, studio, policy):
    policy("debounce_s = 0\nheld_out = 0\n")
    waiting = [studio.add_image(seed) for seed in range(20, 26)]
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    TaskSync(studio, context.image_vectors, PROJECT).continue_first_read(lambda: False)
    studio.annotate(waiting[0], 1, [])
    del studio.tasks_by_id[waiting[1]]
    done = rank_open_tasks(context, PROJECT, stop=lambda: False)
    assert sorted(studio.queue(done.version)) == waiting[2:]
    assert sorted(context.image_vectors.prelabelled(PROJECT, done.version, limit=100)) == waiting[2:]


def test_replaced_image_is_embedded_again(context, learn, studio, policy):
    policy("debounce_s = 0\nheld_out = 0\n")
    task, other = studio.add_image(20), studio.add_image(21)
    learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    rank_open_tasks(context, PROJECT, stop=lambda: False)
    backbone = context.base_models.backbone(context.base_models.served(PROJECT)).version
    before = context.image_vectors.features(PROJECT, backbone, [task])[task]
    studio.update_task(task, data=studio.tasks_by_id[other]["data"])
    learn(tasks=[studio.label(5)])
    rank_open_tasks(context, PROJECT, stop=lambda: False)
    after = context.image_vectors.features(PROJECT, backbone, [task])[task]
    assert after.photo != before.photo
    np.testing.assert_array_equal(
        after.vector, context.image_vectors.features(PROJECT, backbone, [other])[other].vector
    )


def test_tables_of_an_earlier_version_open_without_loss(settings):
    engine = create_engine(settings.database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0012_learn_config")
        vectors = {number: np.full(4, number, np.float32) for number in range(1, 2002)}
        text = {"project": PROJECT, "backbone": BACKBONE, "photo": "p", "version": "", "score": None, "doubt": None}
        rows = [{**text, "task": number, "vector": vector.tobytes()} for number, vector in vectors.items()]
        rows[1] |= {"version": VERSION, "score": 0.2, "doubt": 0.7}
        connection.execute(sa.insert(sa.table("learn_looks", *map(sa.column, rows[0]))), rows)
        lesson = {"project": PROJECT, "task": 3, "seen": "s", "state": "teaches", "reason": "", "annotations": "[]"}
        lesson |= {"photos": "[]", "boxes": 0, "read_at": 0.0}
        connection.execute(sa.insert(sa.table("learn_tasks", *map(sa.column, lesson))), [lesson])
    migrate(engine)
    store = TaskVectorStore(engine)
    assert store.queued(PROJECT, VERSION, limit=5) == [QueuedTask(2, 0.2, 0.7)]
    assert store.prelabelled(PROJECT, VERSION, limit=5) == [2]
    assert store.annotated(PROJECT, vectors) == {3}
    fresh = [number for number in vectors if number not in {2, 3}]
    order = [fresh[index] for index in random_order(np.stack([vectors[number] for number in fresh]))]
    assert store.random_sample(PROJECT, VERSION, limit=3000) == order


def test_choosing_a_pool_sorts_no_whole_project(settings):
    """SQLite's plan of each query that chooses tasks: in the order of an index, without a sort of all open tasks."""
    engine = open_database(settings)
    statements = []
    sa.event.listen(engine, "before_cursor_execute", lambda *event: statements.append(event[2:4]))
    store = TaskVectorStore(engine)
    store.without_vectors(PROJECT, VERSION, limit=10)
    store.next_to_embed(PROJECT, limit=10)
    store.random_sample(PROJECT, VERSION, limit=10)
    store.prelabelled(PROJECT, VERSION, limit=10)
    for empty in (False, True):
        store.by_uncertainty(PROJECT, VERSION, empty=empty, fresh=True, limit=10)
    queries = [(text, values) for text, values in statements if text.lstrip().startswith("SELECT")]
    assert len(queries) == 6
    with engine.connect() as connection:
        for text, values in queries:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            assert "B-TREE FOR ORDER BY" not in str(plan), f"{text}: {plan}"
    engine.dispose()
