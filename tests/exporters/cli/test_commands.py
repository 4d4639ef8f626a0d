"""The commands: what they print, write and exit with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

from exporters.cli import dataset as dataset_commands
from exporters.cli import export as commands
from exporters.dataset.versions import read_head
from exporters.errors import BadOption, ExportError, VersionNotFound
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests.web_server import WebServer


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABELLOOP_LOCAL_FILES_ROOT", str(tmp_path / "photos"))
    app = App(result_action="return_value")
    app.command(commands.export)
    app.command(dataset_commands.dataset_list, name="list")
    app.command(dataset_commands.dataset_diff, name="diff")
    app.command(dataset_commands.dataset_gc, name="gc")
    app.command(dataset_commands.dataset_pull, name="pull")
    return app


@pytest.fixture
def file(build, tmp_path, photos):
    path = tmp_path / "cars.json"
    tasks = [
        build.task(1, build.annotation(build.box(10, 10, 20, 20)), image=photos("one.jpg")),
        build.task(2, build.annotation(build.box(10, 10, 20, 20)), qc_status="disputed"),
    ]
    path.write_text(json.dumps(tasks))
    return path


def test_export_says_what_it_wrote_and_what_not(app, file, tmp_path, capsys):
    assert app(["export", "--from", str(file), "--format", "coco,voc", "--split", "train=1"]) == 0
    out, err = capsys.readouterr()
    assert "store/cars v000001" in out
    assert "tasks: 1 of 2\n    1 not: disputed" in out
    assert "coco: 1 objects" in out
    assert err == ""  # no terminal: no progress bar
    assert (tmp_path / "home/store/cars/HEAD.json").is_file()


def test_report_for_programs(app, file, tmp_path, capsys):
    to = f"file://{tmp_path / 'set'}"
    assert app(["export", "--from", str(file), "--to", to, "--json", "-", "--disputed", "in", "--no-fetch"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["published"]
    assert report["accounts"]["tasks"] == {"input": 2, "kept": 2, "dropped": {}}
    again = ["export", "--from", str(file), "--to", to, "--json", str(tmp_path / "report.json")]
    assert app([*again, "--allow-shrink"]) == 0
    assert json.loads((tmp_path / "report.json").read_bytes())["version"] == "v000002"


def test_too_many_errors_end_with_status_one(app, build, tmp_path, capsys):
    path = tmp_path / "bad.json"
    good = build.task(2, build.annotation(build.box(10, 10, 20, 20)))
    path.write_text(json.dumps([build.task(1, build.annotation(build.box(10, 10, 0, 20))), good]))
    assert app(["export", "--from", str(path)]) == 1
    assert "NOT published" in capsys.readouterr().out
    assert app(["export", "--from", str(path), "--max-errors", "1"]) == 0


def test_label_config_is_read_from_a_file(app, file, config, tmp_path, capsys):
    (tmp_path / "config.xml").write_text(config("dog", "car"))
    assert app(["export", "--from", str(file), "--label-config", str(tmp_path / "config.xml")]) == 0
    assert "classes  dog 1, car 2" in capsys.readouterr().out


def test_list_and_pull_show_a_newcomer_what_there_is(app, file, tmp_path, capsys):
    to = f"file://{tmp_path / 'set'}"
    app(["export", "--from", str(file), "--to", to, "--split", "train=1"])
    app(["export", "--from", str(file), "--to", to, "--split", "train=1", "--format", "coco"])
    capsys.readouterr()
    assert app(["list", to]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("  v000001")
    assert second.startswith("* v000002")
    assert "images: train 1" in second
    assert app(["pull", to, "--version", "v000001", "--format", "yolo-detect", "--to", str(tmp_path / "yolo")]) == 0
    assert {
        str(path.relative_to(tmp_path / "yolo")) for path in Path(tmp_path / "yolo").rglob("*") if path.is_file()
    } == {
        ".pulled",
        "images.jsonl",
        "dropped.jsonl",
        "data.yaml",
        "train.txt",
        "labels/train/one.txt",
        "images/train/one.jpg",
    }


def test_pull_without_photos_ends_with_status_one_and_names_them(app, file, tmp_path, capsys):
    to = f"file://{tmp_path / 'set'}"
    app(["export", "--from", str(file), "--to", to, "--disputed", "in"])
    assert app(["pull", to, "--to", str(tmp_path / "all")]) == 1
    assert "s3://photos/2.jpg" in capsys.readouterr().err
    assert app(["pull", to, "--to", str(tmp_path / "none"), "--no-images"]) == 0


def test_failures_are_named_with_what_to_do_about_them(app, build, tmp_path, capsys):
    good = [build.box(1, 1, 5, 5, id=f"good{n}") for n in range(5)]
    bad = [build.box(10, 10, 0, 20, id=f"flat{n}") for n in range(5)]
    task = build.task(7, build.annotation(*good, *bad, number=3))
    skipped = build.task(8, build.annotation(was_cancelled=True))
    (tmp_path / "bad.json").write_text(json.dumps([task, skipped]))
    assert app(["export", "--from", str(tmp_path / "bad.json")]) == 1
    output = capsys.readouterr().out
    named = [line.strip() for line in output.splitlines() if line.strip().startswith("task 7")]
    assert named == [
        f"task 7, annotation 3, region flat{n}: malformed: width: is 0: a rectangle without area" for n in range(3)
    ]
    assert "task 8" not in output  # it is out by the rules
    assert "NOT published: 50.0% failed, over --max-errors 0.01." in output
    assert "/versions/v000001/dropped.jsonl" in output


def test_first_version_without_images_is_not_made(app, build, tmp_path, capsys):
    (tmp_path / "none.json").write_text(json.dumps([build.task(7)]))
    assert app(["export", "--from", str(tmp_path / "none.json")]) == 1
    assert "no image is in it. Dropped tasks: 1 (not annotated)." in capsys.readouterr().out
    assert not [path for path in (tmp_path / "home/store").rglob("*") if path.is_file()]


def test_empty_version_does_not_replace_one_with_images(app, build, tmp_path, capsys):
    to = ["--to", f"file://{tmp_path / 'set'}"]
    source = tmp_path / "some.json"
    source.write_text(json.dumps([build.task(n, build.annotation(build.box(1, 1, 5, 5))) for n in range(1, 4)]))
    assert app(["export", "--from", str(source), *to]) == 0
    assert app(["export", "--from", str(source), *to, "--annotation", "user:99"]) == 1
    output = capsys.readouterr().out
    assert "NOT published: no image is in it" in output
    assert "annotations of user 1 (not asked for) 3" in output, "it does not say who annotated"
    assert read_head(open_store(to[1], Settings()))[0].version == "v000001"
    assert app(["list", to[1]]) == 0
    assert "not published: no image" in capsys.readouterr().out


WRONG_OPTIONS = {
    "no label config there": (["--label-config", "nope.xml"], "nope.xml"),
    "a label config at an address": (["--label-config", "https://example.com/config.xml"], "a file on this machine"),
    "errors in percent": (["--max-errors", "5"], "--max-errors must be a share from 0 to 1"),
    "a report into no folder": (["--json", "no/such/folder/report.json"], "--json"),
    "a program that is not there": (["--then", "./no-such-program --fast"], "no-such-program does not exist"),
    "a time that is none": (["--watch", "--at", "25:00"], "--at must be a time of day"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_option_is_named_before_anything_is_made(app, file, tmp_path, name):
    words, expected = WRONG_OPTIONS[name]
    with pytest.raises(ExportError) as error:
        app(["export", "--from", str(file), "--to", f"file://{tmp_path / 'set'}", *words])
    assert expected in str(error.value)
    assert not (tmp_path / "set").exists()


def test_webhook_that_is_down_keeps_the_command_from_nothing(app, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_MEDIA_HOSTS", "127.0.0.1")
    words = ["export", "--from", str(file), "--to", f"file://{tmp_path / 'set'}", "--webhook", "http://127.0.0.1:9/x"]
    assert app([*words, "--then", f"touch {tmp_path / 'trained'}"]) == 1
    assert (tmp_path / "trained").exists()
    assert "The webhook to 127.0.0.1 failed: it cannot be reached" in capsys.readouterr().err


def test_unknown_version_lists_the_existing_ones(app, file, build, tmp_path, capsys):
    to = f"file://{tmp_path / 'set'}"
    with pytest.raises(VersionNotFound, match="no data set at"):
        app(["pull", to, "--to", str(tmp_path / "out")])
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([build.task(1, build.annotation(build.box(10, 10, 0, 20)))]))
    app(["export", "--from", str(bad), "--to", to])
    with pytest.raises(VersionNotFound, match=r"no published version.*v000001"):
        app(["pull", to, "--to", str(tmp_path / "out")])
    app(["export", "--from", str(file), "--to", to])
    with pytest.raises(VersionNotFound, match="It has v000001, v000002"):
        app(["pull", to, "--to", str(tmp_path / "out"), "--version", "v7"])
    for name in ("2", "v2", "v000002"):
        assert app(["pull", to, "--to", str(tmp_path / name), "--version", name, "--no-images"]) == 0


@pytest.mark.parametrize(
    ("formats", "meant"),
    [("coc", "coco"), ("voc,yollo-detect", "yolo-detect"), ("yolo", "yolo-detect, yolo-segment"), ("jsonl", "tasks")],
)
def test_a_misspelled_format_is_answered_with_the_near_one(app, file, tmp_path, formats, meant):
    with pytest.raises(BadOption) as refused:
        app(["export", str(file), "--to", str(tmp_path / "set"), "--format", formats])
    assert f"Did you mean {meant}" in refused.value.fix
    assert not (tmp_path / "set").exists()


def test_an_empty_target_is_not_the_store(app, file):
    with pytest.raises(ExportError, match="--to is empty"):
        app(["export", str(file), "--to", " "])


@pytest.mark.parametrize("json", [[], ["--json", "-"]])
def test_list_refuses_a_place_without_a_data_set_and_makes_none(app, tmp_path, json, capsys):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(VersionNotFound, match="no data set at") as refused:
        app(["list", nowhere.as_uri(), *json])
    assert "Check the address" in refused.value.fix
    assert "labelloop export --to" in refused.value.fix
    assert not nowhere.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("key", "data"), [("a.b", {"a": {"b": "s3://b/c.jpg"}}), ("pages[1].b", {"pages": [{}, {"b": "s3://b/c.jpg"}]})]
)
def test_images_under_a_path_of_the_data_are_exported(app, build, tmp_path, key, data):
    file, config = tmp_path / "nested.json", tmp_path / "config.xml"
    file.write_text(json.dumps([build.task(1, build.annotation(build.box(1, 1, 5, 5))) | {"data": data}]))
    config.write_text(
        f'<View><Image name="image" value="${key}"/><RectangleLabels name="label" toName="image">'
        '<Label value="car"/></RectangleLabels></View>'
    )
    options = ["--label-config", str(config), "--to", str(tmp_path / "set"), "--split", "train=1", "--format", "coco"]
    assert app(["export", "--from", str(file), *options]) == 0
    coco = json.loads((tmp_path / "set/latest/coco/annotations/instances_train.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["c.jpg"]
    assert len(coco["annotations"]) == 1


@pytest.mark.parametrize("fetch", ["--fetch", "--no-fetch"])
def test_images_without_a_readable_size_are_named_in_the_advice(app, build, tmp_path, capsys, fetch):
    answer = {"id": "a", "type": "choices", "from_name": "kind", "to_name": "image", "value": {"choices": ["car"]}}
    file = tmp_path / "unsized.json"
    file.write_text(json.dumps([build.task(1, build.annotation(answer), image="/data/local-files/?d=gone.jpg")]))
    assert app(["export", str(file), "--to", str(tmp_path / "set"), "--format", "coco", fetch]) == 1
    out, err = capsys.readouterr()
    assert ("gone.jpg cannot be read" in out + err) == (fetch == "--fetch")
    assert ("Omit --no-fetch" in out + err) == (fetch == "--no-fetch")
    assert "--format yolo-classify or tasks-jsonl" in out + err


def test_images_under_another_key_than_the_config_says_are_named_in_the_advice(app, build, tmp_path, capsys):
    file, config = tmp_path / "nested.json", tmp_path / "config.xml"
    file.write_text(
        json.dumps([build.task(1, build.annotation(build.box(1, 1, 5, 5))) | {"data": {"a": {"c": "c.jpg"}}}])
    )
    config.write_text(
        '<View><Image name="image" value="$a.b"/><RectangleLabels name="label" toName="image"><Label value="car"/>'
        "</RectangleLabels></View>"
    )
    assert app(["export", "--from", str(file), "--label-config", str(config), "--to", str(tmp_path / "set")]) == 1
    out, err = capsys.readouterr()
    assert "1 not: no image in its data" in out
    assert "check --label-config: its Image takes its value from another key" in out + err


def test_export_to_a_disk_loads_few_modules(file, tmp_path, monkeypatch):
    """What is loaded decides how much memory the smallest export takes, and how long it takes to begin."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))  # a Label Studio of ours would be asked
    code = (
        "import sys; from labelloop.cli.main import main\n"
        f"try: main(['export', '--from', {str(file)!r}, '--to', {str(tmp_path / 'lean')!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'scipy', 'botocore', 'httpx', 'sqlalchemy', 'structlog', 'pydantic', 'huey', 'PIL', 'asyncio',"
        " 'exporters.formats.webdataset', 'exporters.tasks.documents'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", ["export", "pull"])
def test_disk_without_room_is_named(app, build, tmp_path, command):
    """As a limit on the size of files: what the system says then names no place."""
    source, to = tmp_path / "many.json", tmp_path / "set"
    source.write_text(json.dumps([build.task(n, build.annotation(build.box(1, 1, 5, 5))) for n in range(1, 400)]))
    export = ["export", str(source), "--to", f"file://{to}", "--workers", "1"]
    if command == "pull":
        app(export)
    words = export if command == "export" else ["dataset", "pull", f"file://{to}", "--to", str(tmp_path / "out")]
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from labelloop.cli.main import main; main(sys.argv[1:])"
    )
    # no cached bytecode: the limit would cut it off, for all programs after this one
    done = subprocess.run([sys.executable, "-B", "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{to if command == 'export' else tmp_path / 'out'}" in done.stderr
    assert "File too large" in done.stderr


def test_retries_are_logged_without_secrets(build, tmp_path):
    with WebServer(lambda request: (503, b"")) as host:
        image = f"{host.url}/a.jpg?token=s3cr3t-of-the-host"
        source, to = tmp_path / "one.json", f"file://{tmp_path / 'set'}"
        source.write_text(json.dumps([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=image)]))
        settings = {"LABELLOOP_HOME": str(tmp_path / "home"), "LABELLOOP_MEDIA_HOSTS": "127.0.0.1"}
        for words in (["export", str(source), "--to", to], ["dataset", "pull", to, "--to", str(tmp_path / "out")]):
            done = subprocess.run(
                [sys.executable, "-m", "labelloop.cli.main", *words],
                capture_output=True, text=True, check=False, env=os.environ | settings,
            )  # fmt: skip
    assert "1 image not available" in done.stderr
    (retry,) = [line for line in done.stderr.splitlines() if "trying_again" in line and "attempt=2" in line]
    assert "503" in retry
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize("delete", [[], ["--delete"]])
def test_gc_without_a_data_set_names_the_address(app, file, tmp_path, capsys, delete):
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    with pytest.raises(VersionNotFound) as refused:
        app(["gc", nowhere.as_uri(), *delete])
    assert "Check the address" in refused.value.fix
    assert not nowhere.exists()
    empty.mkdir()
    assert app(["gc", empty.as_uri(), *delete]) == 1
    assert "check the address" in capsys.readouterr().out
    app(["export", "--from", str(file), "--to", f"file://{tmp_path / 'set'}"])
    assert app(["gc", f"file://{tmp_path / 'set'}", *delete]) == 0
    assert "check the address" not in capsys.readouterr().out


def test_a_pull_into_a_file_is_refused(app, file, tmp_path):
    app(["export", "--from", str(file), "--to", f"file://{tmp_path / 'set'}"])
    with pytest.raises(ExportError, match="is a file") as refused:
        app(["pull", f"file://{tmp_path / 'set'}", "--format", "coco", "--to", str(file)])
    assert refused.value.fix == "Pass a folder."
