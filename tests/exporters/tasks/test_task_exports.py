"""A project of any kind leaves: versions of tasks are incremental, split, checked, compared and shown."""

import json

import pytest

from exporters.cli.dataset import dataset_diff, dataset_pull
from exporters.cli.export_summary import summary
from exporters.cli.validate import dataset_validate
from exporters.convert.task_lines import NOT_FORMED
from exporters.errors import ExportError
from exporters.pipeline.export import export
from exporters.tasks.flat import rebuild
from exporters.tasks.line import flat_of
from exporters.tasks.table import TASK_FORMATS
from tests.accessibility import faults
from tests.exporters.tasks.configs import CONFIGS
from tests.simulated_answers import simulate

EVERY = tuple(name for name in TASK_FORMATS if name != "tasks-parquet")


def lines_of(out, split="train", folder="latest"):
    return [json.loads(text) for text in (out.root / folder / f"tasks-jsonl/{split}.jsonl").read_text().splitlines()]


def canonical(results):
    return sorted(json.dumps(result, sort_keys=True) for result in results)


def text_task(number, mood="good", *, text="", **fields):
    results = [
        {"id": "a", "from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": [mood]}},
        {"id": "b", "from_name": "topics", "to_name": "text", "type": "choices", "value": {"choices": ["a"]}},
    ]
    made = {"id": number, "completed_by": 3, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"}
    annotation = made | {"lead_time": 2.5, "result": results}
    return {"id": number, "data": {"text": text or f"text {number}"}, "annotations": [annotation]} | fields


@pytest.mark.parametrize("name", ["spans", "chat", "video", "pages", "buckets"])
def test_every_kind_of_project_leaves_without_loss(run, name):
    xml, simulated = CONFIGS[name], simulate(CONFIGS[name])
    out = run([simulated.task(1)], label_config=xml, formats=EVERY, annotation="all", max_errors=0.0)
    assert out.report.published
    made = lines_of(out)
    assert [line["annotation"]["by"] for line in made] == [1, 2, 3]
    for line, results in zip(made, simulated.results.values(), strict=True):
        assert line["data"] == simulated.data
        assert canonical(rebuild(flat_of(line))) == canonical(results)
    assert lines_of(out, folder="versions/v000001") == made


def test_a_project_without_images_gets_lines_by_default(run):
    out = run([text_task(1)], label_config=CONFIGS["choices"])
    assert out.manifest["formats"] == ["tasks-jsonl"]
    (line,) = lines_of(out)
    assert line == {
        "task": 1,
        "split": "train",
        "data": {"text": "text 1"},
        "answers": {"mood": "good", "topics": ["a"]},
        "regions": [],
        "relations": [],
        "controls": {
            "mood": {"id": "a", "type": "choices", "object": "text"},
            "topics": {"id": "b", "type": "choices", "object": "text"},
        },
        "annotation": {
            "id": 1, "by": 3, "rule": "latest", "ground_truth": False, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-02T00:00:00Z", "lead_time": 2.5,
        },
        "consensus": None,
    }  # fmt: skip
    assert "1 tasks, 2 entries" in summary(out.report)
    assert "1 tasks (train 1)" in (out.root / "latest/README.md").read_text()
    page = (out.root / "latest/report.html").read_text()
    assert "mood" in page
    assert faults(page) == []


def test_captions_of_images_get_lines_by_default(run):
    simulated = simulate(CONFIGS["captions"])
    out = run([simulated.task(1) | {"id": 20_240_101_123_456}], label_config=CONFIGS["captions"])
    assert out.manifest["formats"] == ["tasks-jsonl"]
    (line,) = lines_of(out)
    assert (line["task"], line["answers"]) == (20_240_101_123_456, {"caption": "a rusty old lorry"})


def test_a_file_without_a_label_config_shows_what_it_is_of(run, build):
    assert run([text_task(1)], to="text").manifest["formats"] == ["tasks-jsonl"]
    photo = build.task(1, build.annotation(build.box(1, 1, 5, 5)))
    assert run([photo], to="photo").manifest["formats"] == ["coco", "voc", "yolo-detect"]


def test_formats_of_images_are_refused_with_the_way_out(run):
    with pytest.raises(ExportError, match="coco is of images") as refused:
        run([text_task(1)], label_config=CONFIGS["choices"], formats=("coco",))
    assert "--format tasks-jsonl" in refused.value.fix
    out = run([text_task(1)], label_config=CONFIGS["choices"], formats=("coco", "tasks-jsonl", "conll"))
    assert out.manifest["formats"] == ["tasks-jsonl"]
    assert out.report.left_out.keys() == {"coco", "conll"}


def test_both_kinds_of_formats_lie_side_by_side(run, build):
    with_image = build.task(1, build.annotation(build.box(10, 10, 30, 30), number=1), width=640, height=360)
    turned = build.task(2, build.annotation(build.box(10, 10, 30, 30, rotation=20), number=2), width=640, height=360)
    without = {"id": 3, "data": {"note": "no image"}, "annotations": [build.annotation(number=3)]}
    empty = build.task(4)
    tasks = [with_image, turned, without, empty]
    out = run(tasks, formats=("coco", "tasks-jsonl"), split="train=.5,val=.5")
    alone = run(tasks, formats=("coco",), to="alone", split="train=.5,val=.5")
    assert out.instances("train") == alone.instances("train")
    assert out.instances("val") == alone.instances("val")
    assert out.manifest["accounts"]["tasks"]["kept"] == 3
    assert alone.manifest["accounts"]["tasks"]["kept"] == 2
    images = {image["task"]: image["split"] for image in out.catalogue}
    by_task = {line["task"]: line["split"] for split in ("train", "val") for line in lines_of(out, split)}
    assert images == {task: split for task, split in by_task.items() if task != 3}
    assert by_task.keys() == {1, 2, 3}
    assert run(tasks, formats=("coco", "tasks-jsonl"), split="train=.5,val=.5").report.written.tasks == 0


def test_splits_are_the_same_whatever_the_formats(run, build):
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5), number=n), width=64, height=36, who=n % 7)
        for n in range(1, 40)
    ]
    for options in ({}, {"group_by": "who"}):
        shares = {"split": "train=.5,val=.3,test=.2", **options}
        both = run(tasks, formats=("coco", "tasks-jsonl"), to=f"both{len(options)}", **shares)
        alone = run(tasks, formats=("tasks-jsonl",), to=f"alone{len(options)}", **shares)
        for split in ("train", "val", "test"):
            assert lines_of(both, split) == lines_of(alone, split)


def test_the_same_text_is_in_one_split(run):
    tasks = [text_task(n, text=f"text {n % 5}", meta={"n": n}) for n in range(1, 40)]
    tasks = [task | {"data": task["data"] | {"fold": ["train", "val"][task["id"] % 2]}} for task in tasks]
    shares = "train=.5,val=.5"
    for options in ({}, {"split_key": "fold"}):
        out = run(tasks, label_config=CONFIGS["choices"], split=shares, to=f"set{len(options)}", **options)
        splits: dict[str, set[str]] = {}
        for split in ("train", "val"):
            for line in lines_of(out, split):
                splits.setdefault(line["data"]["text"], set()).add(split)
        assert all(len(found) == 1 for found in splits.values())
        if options:
            assert any(loss["kind"] == "split" for loss in out.losses)


def test_unchanged_tasks_are_not_written_again(run, capsys):
    tasks = [text_task(n) for n in range(1, 41)]
    options = {"label_config": CONFIGS["choices"], "formats": ("tasks-jsonl", "csv"), "split": "train=.7,val=.3"}
    run(tasks, **options)
    changed = [*tasks[:10], text_task(11, "bad"), *tasks[11:39], text_task(50)]
    out, afresh = run(changed, **options), run(changed, to="afresh", **options)
    assert out.report.written.tasks == 2
    assert out.files() == afresh.files()
    assert run(changed, **options).report.written.tasks == 0
    assert dataset_diff(out.root.as_uri(), "v000001", "v000002") == 0
    printed = capsys.readouterr().out
    assert "1 added, 1 removed, 1 changed, 38 the same" in printed
    assert "answers to mood: 1 added, 1 removed, 1 changed" in printed


def test_more_processes_write_the_same(run):
    tasks = [text_task(n, text=f"text {n % 90}") for n in range(1, 200)]
    options = {"label_config": CONFIGS["choices"], "formats": ("tasks-jsonl", "csv"), "split": "train=.7,val=.3"}
    assert run(tasks, to="one", workers=1, **options).files() == run(tasks, to="two", workers=2, **options).files()


def test_what_cannot_be_read_is_listed(run):
    skipped = text_task(2)
    skipped["annotations"][0]["was_cancelled"] = True
    broken = text_task(4)
    broken["annotations"][0]["result"].append("no result")
    tasks = [text_task(1), skipped, {"id": 3, "data": {"text": "x"}}, broken, text_task(1, text="same id"), {"id": 5}]
    out = run(tasks, label_config=CONFIGS["choices"])
    assert [line["task"] for line in lines_of(out)] == [1, 4]
    assert out.manifest["accounts"]["tasks"]["dropped"] == {
        "a task of this id came before": 1, "malformed": 1, "not annotated": 1, "skipped by the annotator": 1,
    }  # fmt: skip
    assert [loss["detail"] for loss in out.losses if loss["kind"] == "region"] == [
        "result[2]: expected an object, found str"
    ]


def test_half_a_character_stops_nothing(run):
    task = text_task(1, text="an emoji: \ud83d cut, and whole: 😀")
    source = json.dumps([task, text_task(2)])
    assert "\\ud83d cut" in source
    out = run([task, text_task(2)], label_config=CONFIGS["choices"], formats=EVERY)
    assert [line["data"]["text"] for line in lines_of(out)] == ["an emoji: \ufffd cut, and whole: 😀", "text 2"]


def test_a_deeply_nested_task_stops_nothing(run):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    task = text_task(1)
    task["annotations"][0]["result"].append({"id": "x", "from_name": "y", "type": "z", "value": {"a": deep}})
    task["data"]["deep"] = deep
    out = run([task, text_task(2)], label_config=CONFIGS["choices"], formats=EVERY)
    first, second = lines_of(out)
    assert first["data"]["deep"] == deep
    assert canonical(rebuild(flat_of(first))) == canonical(task["annotations"][0]["result"])
    assert second["task"] == 2


def test_options_of_images_without_effect_are_said(run):
    options = {"label_config": CONFIGS["choices"], "formats": ("tasks-jsonl", "csv")}
    out = run([text_task(1)], rename=("good=fine",), copy_images=True, **options)
    assert lines_of(out)[0]["answers"]["mood"] == "good"
    said = [warning.split(" ")[0] for warning in out.report.warnings]
    assert said == ["--rename", "--copy-images"]
    assert run([text_task(1)], to="plain", **options).report.warnings == ()


def test_disputed_tasks_are_out_or_apart(run):
    tasks = [text_task(1), text_task(2)]
    tasks[1]["data"] |= {"qc_status": "disputed", "qc_agreement": 0.2}
    assert [line["task"] for line in lines_of(run(tasks, label_config=CONFIGS["choices"]))] == [1]
    out = run(tasks, label_config=CONFIGS["choices"], disputed="apart")
    (line,) = lines_of(out, "disputed")
    assert line["qc"] == {"status": "disputed", "agreement": 0.2}
    assert line["data"] == {"text": "text 2"}


def test_consensus_of_quality_control_comes_with_its_provenance(run):
    task = text_task(1)
    other = text_task(1, "bad")["annotations"][0] | {"id": 2, "completed_by": 4}
    formed = [result | {"meta": {"labelloop": {"probability": 0.9}}} for result in other["result"]]
    prediction = {
        "id": 9,
        "model_version": "QC consensus",
        "score": 0.9,
        "result": formed,
        "created_at": "2026-01-03T00:00:00Z",
    }
    task |= {"annotations": [*task["annotations"], other], "predictions": [prediction]}
    (line,) = lines_of(run([task], label_config=CONFIGS["choices"]))
    assert line["consensus"]["answers"]["mood"] == "bad"
    assert line["consensus"]["controls"]["mood"]["meta"] == {"labelloop": {"probability": 0.9}}
    (line,) = lines_of(run([task], label_config=CONFIGS["choices"], annotation="consensus"))
    assert line["answers"]["mood"] == "bad"
    assert line["annotation"]["annotators"] == [3, 4]
    assert line["consensus"] == {
        "formed_by": "quality control", "prediction": 9, "created_at": "2026-01-03T00:00:00Z", "probability": 0.9,
    }  # fmt: skip
    old = task | {"predictions": [prediction | {"created_at": "2026-01-01T12:00:00Z"}]}
    out = run([old], label_config=CONFIGS["choices"], annotation="consensus")
    assert lines_of(out)[0]["annotation"]["rule"] == NOT_FORMED
    assert out.manifest["accounts"]["chosen_by"] == {NOT_FORMED: 1}


def test_damaged_lines_are_found(run, tmp_path, capsys):
    from exporters.validate.issues import IssueReport
    from exporters.validate.tasks import check_content, check_task_files

    xml = CONFIGS["spans"]
    out = run([simulate(xml).task(n) for n in (1, 2)], label_config=xml, formats=EVERY)
    assert dataset_validate(str(out.root)) == 0, capsys.readouterr().out
    folder = out.root / "latest"
    file = folder / "tasks-jsonl/train.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    dangling = first | {"task": 7, "relations": [{"from": "nobody", "to": "x"}]}
    file.write_text("\n".join([*map(json.dumps, (first, first, dangling, {"task": 8, "regions": 3})), "{"]) + "\n")
    (folder / "tasks-jsonl/val.jsonl").write_text(json.dumps(first | {"split": "val"}) + "\n")
    spans = folder / "spacy-jsonl/train.jsonl"
    shifted = json.loads(spans.read_text().splitlines()[0])
    shifted["spans"][0]["start"] += 1
    spans.write_text(json.dumps(shifted) + "\n")
    (folder / "conll/train.conll").write_text("a -X- _ O\nb -X- _ I-PER\nc d\n")
    (folder / "preference-jsonl").mkdir()
    (folder / "preference-jsonl/train.jsonl").write_text('{"prompt": "", "chosen": "a", "rejected": "a"}\n')
    capsys.readouterr()
    assert dataset_validate(str(folder)) == 1
    assert "tasks-leak" in capsys.readouterr().out
    report = IssueReport()
    check_task_files(folder, report)
    check_content(folder, report)
    assert report.counts == {
        "tasks-line": 3, "tasks-twice": 1, "tasks-dangling": 1, "tasks-span": 2, "tasks-pair": 1, "tasks-leak": 1,
    }  # fmt: skip


def test_a_folder_of_one_format_is_checked(run, tmp_path, capsys):
    broken = text_task(3)
    broken["annotations"][0]["result"].append("no result")
    out = run([text_task(1), text_task(2), broken], label_config=CONFIGS["choices"], formats=("tasks-jsonl",))
    assert out.losses
    assert dataset_validate(str(out.root)) == 0, capsys.readouterr().out
    dataset_pull(str(out.root), to=tmp_path / "pulled", formats="tasks-jsonl")
    assert (tmp_path / "pulled/dropped.jsonl").read_text()
    assert dataset_validate(str(tmp_path / "pulled")) == 0, capsys.readouterr().out
    (tmp_path / "pulled/val.jsonl").write_bytes((tmp_path / "pulled/train.jsonl").read_bytes())
    assert dataset_validate(str(tmp_path / "pulled")) == 1


def test_damage_of_any_kind_is_listed(tmp_path):
    from exporters.validate.issues import IssueReport
    from exporters.validate.tasks import check_content, check_task_files

    deep = b'{"data": ' + b"[" * 9000 + b"]" * 9000 + b"}"
    odd = {"task": 1, "split": "train", "regions": [], "relations": [{"from": ["a"], "to": "b"}]}
    token = {"text": "a", "start": "0", "end": 1}
    for name, content in {
        "tasks-jsonl/train.jsonl": deep + b"\n" + json.dumps(odd).encode(),
        "spacy-jsonl/train.jsonl": json.dumps({"text": "a", "spans": [], "tokens": [token]}).encode(),
        "conll/train.conll": b"a -X- _ O\n\xff -X- _ O\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content + b"\n")
    report = IssueReport()
    check_task_files(tmp_path, report)
    check_content(tmp_path, report)
    assert report.counts == {"tasks-line": 2, "tasks-dangling": 1, "tasks-span": 1}


@pytest.mark.parametrize("kind", ["file", "lines"])
def test_a_source_of_any_kind_gives_the_same_lines(run, tmp_path, kind):
    tasks = [text_task(n) for n in range(1, 5)]
    whole = run(tasks, label_config=CONFIGS["choices"], to="whole")
    if kind == "lines":
        source = tmp_path / "tasks.jsonl"
        source.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    else:
        source = tmp_path / "target"
        source.mkdir()
        for task in tasks:
            annotation = task["annotations"][0] | {"task": {"id": task["id"], "data": task["data"]}}
            (source / str(annotation["id"])).write_text(json.dumps(annotation))
    assert lines_of(run(source, label_config=CONFIGS["choices"], to="other")) == lines_of(whole)


def test_a_live_project_leaves_and_only_changes_follow(run, fake_studio, settings, tmp_path):
    tasks = [text_task(n) for n in range(1, 6)]
    studio = fake_studio(tasks, CONFIGS["choices"])
    options = {"settings": settings, "studio": studio, "to": f"file://{tmp_path}/live", "split": "train=1"}
    first = export(7, **options)
    assert first.accounts.formats.keys() == {"tasks-jsonl"}
    studio.edit_annotation(3, result=text_task(3, "bad")["annotations"][0]["result"])
    assert export(7, **options).written.tasks == 1
    lines = [json.loads(text) for text in (tmp_path / "live/latest/tasks-jsonl/train.jsonl").read_text().splitlines()]
    assert [line["answers"]["mood"] for line in lines] == ["good", "good", "bad", "good", "good"]
    whole = run(tasks, label_config=CONFIGS["choices"], to="whole")
    assert [line["data"] for line in lines_of(whole)] == [line["data"] for line in lines]
