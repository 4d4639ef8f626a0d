"""Tasks converted by other processes: the same data set to the byte, and no version where one of them dies."""

import os
import pickle
import random
import signal
import sys
from pathlib import Path

import pytest

from exporters.dataset.versions import read_version
from exporters.errors import ExportError
from exporters.pipeline import scheduler as conversion
from exporters.pipeline.pools import ProcessPool
from exporters.pipeline.scheduler import convert_unit
from labelloop.service.store import open_store

FORMATS = ("coco", "voc", "yolo-detect")


def many(build, number=300, seed=0):
    """Build tasks that depend on earlier ones: duplicate names, ids and addresses, and late labels."""
    rng = random.Random(seed)
    tasks, folds = [], ("train", "val", "test")
    for position in range(1, number + 1):
        label = rng.choice(["car"] * 40 + [f"new {position}", "late"])
        results = [build.box(rng.uniform(0, 50), 5, 20, 20, label, id=f"r{n}") for n in range(rng.randrange(5))]
        image = rng.choice([f"s3://b/{position}.jpg"] * 20 + ["s3://b/same.jpg", f"s3://b/{position % 7}/photo.jpg"])
        task = rng.choice([position] * 40 + [None, 7, max(1, position - 30)])
        tasks.append(
            build.task(task, build.annotation(*results, number=position), image=image, fold=folds[position % 3])
        )
    return tasks


class InTurn:
    """A pool without processes: what goes to one and comes back goes through a pickle."""

    workers = 3

    def __init__(self, order):
        self.order = pickle.dumps(order)
        self.pieces = 0

    def submit(self, piece):
        self.pieces += 1
        return pickle.dumps((pickle.loads(self.order), piece))

    def result(self, submitted):
        return pickle.loads(pickle.dumps(convert_unit(*pickle.loads(submitted))))

    def close(self):
        pass


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(conversion, "BLOCK_TASKS", 8)
    monkeypatch.setattr(conversion, "SEGMENT_BYTES", 20_000)


# Files with a date or the address of the data set.
DATED = {"manifest.json", "HEAD.json", "VERSION.json", "README.md", "report.html"}


def everything(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and ".labelloop" not in path.parts and path.name not in DATED:
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options", [{}, {"split": "train=.5,val=.5"}, {"split_key": "fold"}, {"annotation": "consensus"}], ids=str
)
def test_a_pool_gives_the_same_data_set_to_the_byte(run, build, config, monkeypatch, seed, options):
    tasks = many(build, seed=seed)
    monkeypatch.setattr("exporters.pipeline.pools.ProcessPool", lambda order, workers: InTurn(order))
    options = {"formats": FORMATS, "label_config": config("car", "bus"), **options}
    alone = run(tasks, to="alone", workers=1, **options)
    pooled = run(tasks, to="pooled", workers=3, **options)
    assert pooled.report.accounts == alone.report.accounts
    assert pooled.report.classes == alone.report.classes
    objects, others = everything(alone.root), everything(pooled.root)
    assert objects.items() <= others.items()  # pieces that had to be converted again left theirs, for `dataset gc`
    first, second = (read_version(open_store(str(export.root), None)) for export in (alone, pooled))
    assert first.generations == second.generations


def test_real_processes_give_the_same_data_set(run, build, config):
    tasks = many(build)
    alone = run(tasks, to="alone", workers=1, formats=FORMATS, label_config=config("car"))
    pooled = run(tasks, to="pooled", workers=2, formats=FORMATS, label_config=config("car"))
    first, second = (read_version(open_store(str(export.root), None)) for export in (alone, pooled))
    assert first.generations == second.generations
    assert first.accounts == second.accounts


def test_a_second_export_builds_on_what_a_pool_wrote(run, build, config):
    tasks = many(build)
    run(tasks, workers=2, formats=FORMATS, label_config=config("car"))
    again = run(tasks, workers=2, formats=FORMATS, label_config=config("car"))
    assert again.report.written.objects <= 3 + len(FORMATS)  # dependent tasks are reconverted, in one segment
    assert again.report.written.tasks < 100


def test_a_worker_that_is_killed_costs_no_version(run, build, config, monkeypatch):
    tasks = many(build)
    first = run(tasks[:5], workers=1, formats=FORMATS, label_config=config("car"))

    class Killing(ProcessPool):
        killed = False

        def result(self, submitted):
            if not Killing.killed:
                Killing.killed = True
                for process in list(self._executor._processes.values()):
                    os.kill(process.pid, signal.SIGKILL)
            return super().result(submitted)

    monkeypatch.setattr("exporters.pipeline.pools.ProcessPool", Killing)
    with pytest.raises(ExportError, match="ended in the middle") as error:
        run(tasks, workers=2, afresh=True, formats=FORMATS, label_config=config("car"))
    assert "--workers 1" in error.value.fix
    assert read_version(open_store(str(first.root), None)).version == first.report.version
    assert run(tasks, workers=1, formats=FORMATS, label_config=config("car")).report.version == "v000002"


def test_small_exports_start_no_process(run, build, config, monkeypatch):
    monkeypatch.setattr("exporters.pipeline.pools.ProcessPool", lambda *_: pytest.fail("a pool was started"))
    run(many(build), formats=FORMATS, label_config=config("car"))


def test_a_ray_cluster_gives_the_same_data_set(run, build, config):
    pytest.importorskip("ray", reason="the extra [scale] is not installed")
    tasks = many(build)
    alone = run(tasks, to="alone", workers=1, formats=FORMATS, label_config=config("car"))
    spread = run(tasks, to="spread", ray="local", workers=2, formats=FORMATS, label_config=config("car"))
    first, second = (read_version(open_store(str(export.root), None)) for export in (alone, spread))
    assert first.generations == second.generations


def test_without_ray_it_is_said_what_to_install(run, build, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Exception, match="needs the extra `scale`"):
        run(many(build, number=2), ray="local", formats=FORMATS, label_config=config("car"))
