"""A data set that lost objects, as by a lifecycle rule of the bucket, is reported and repaired."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporters.dataset.versions import read_version
from exporters.errors import DatasetDamaged
from exporters.validate.version import verify
from labelloop.service.settings import Settings
from labelloop.service.store import open_store


@pytest.fixture
def tasks(build):
    return [build.task(n, build.annotation(build.box(10, 10, 20, 20, label))) for n, label in enumerate("abc", 1)]


def store(out):
    return open_store(f"file://{out.root}", Settings(home=out.root, label_studio_api_key=""))


def flaws(out):
    return verify(store(out))[1]


def test_export_afresh_restores_lost_and_changed_objects(run, tasks):
    out = run(tasks)
    for path in out.objects():
        for harm in (Path.unlink, lambda file: file.write_bytes(b"something else")):
            harm(path)
            assert flaws(out), "harmed and not noticed"
            run(tasks, afresh=True)
            assert not flaws(out)


def test_unreadable_index_makes_the_export_rewrite_everything(run, tasks, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        "exporters.pipeline.export_run._log", SimpleNamespace(warning=lambda message, **_: warnings.append(message))
    )
    out = run(tasks)
    index = read_version(store(out)).generations[0].index
    (out.root / "objects" / index.sha256[:2] / index.sha256).unlink()
    assert run(tasks).report.written.tasks == len(tasks)
    assert not flaws(out)
    assert warnings == ["everything_is_written_again"]


def test_lost_class_map_takes_the_numbers_of_the_published_version(run, tasks):
    out = run(tasks)
    (out.root / "classes.json").unlink()
    assert run(tasks[::-1]).report.classes == out.report.classes == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("harm", ["half a head", "no manifest", "another manifest"])
def test_dangling_head_names_a_fix_that_works(run, tasks, harm):
    out = run(tasks)
    head, manifest = out.root / "HEAD.json", out.root / "versions/v000001/manifest.json"
    if harm == "half a head":
        head.write_text('{"version":')
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created_at": "today"}))
    with pytest.raises(DatasetDamaged) as error:
        run(tasks)
    assert "remove HEAD.json" in error.value.fix
    head.unlink()
    again = run(tasks)
    assert read_version(store(out)).version == again.report.version
    assert not flaws(out)
