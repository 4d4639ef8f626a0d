"""The report of a project that learned: what it says is what happened; the page and the file are safe to open."""

import re
from itertools import pairwise

import msgspec
import pytest

from labelloop.service.db.engine import open_database
from ml_backend.cli.learn_report import learn_report
from ml_backend.finetune.protocol import TrainProgress
from ml_backend.learning.annotations import LabelledImage, TaskTrainingData
from ml_backend.learning.report.charts import edits_over_time, head_curves, learning_curve
from ml_backend.learning.report.page import learning_page
from ml_backend.learning.report.prelabel_edits import PrelabelEdits, edits_by_class
from ml_backend.learning.report.report import (
    RECENT,
    ClassQuality,
    LearningReport,
    Next,
    TaskEdits,
    make_report,
    sampled_positions,
)
from ml_backend.learning.store.annotations import NotConnectedToLearning, TrainingDataStore
from ml_backend.learning.store.label_errors import LabelErrorNote, LabelErrorStore
from ml_backend.learning.store.runs import HeadMetrics, RunMetrics, TrainingRun
from ml_backend.learning.task_order import place_score
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.policy import LearningPolicy
from tests.accessibility import faults
from tests.ml_backend.learning.conftest import PROJECT, box_json, draw_discs

CORRECTED = PrelabelEdits(moved=1, added=2, deleted=1)


def correct(studio, task, seed, version):
    """An annotator corrects a pre-label that found the disc, a little off, and a square where there is none."""
    drawn = draw_discs(seed)[1]
    (label, (x0, y0, x1, y1)), *_ = drawn
    prelabels = [box_json(label, (x0 - 9, y0, x1, y1), score=0.8), box_json("Square", (5, 5, 60, 40), score=0.4)]
    row = {"task": task, "result": prelabels, "score": 0.1, "model_version": version}
    studio.import_predictions(PROJECT, [row])
    [prediction] = [item for item in studio.tasks_by_id[task]["predictions"] if item["result"] == prelabels]
    results = [box_json(name, box) for name, box in drawn]
    studio.annotate(task, 1, results, parent_prediction=prediction["id"], lead_time=12.5)


@pytest.fixture
def learned(context, learn, studio, policy):
    """What a project was through that was labelled, learned, corrected, learned again and put in order."""
    policy("debounce_s = 0\nheld_out = 0\n")
    first = learn(tasks=[studio.label(seed) for seed in (1, 2, 4)])
    seeds = (5, 7)
    tasks = [studio.add_image(seed) for seed in seeds]
    for task, seed in zip(tasks, seeds, strict=True):
        correct(studio, task, seed, first.version)
    second = learn(tasks=tasks)
    waiting = [studio.add_image(seed) for seed in (8, 10, 11)]
    rank_open_tasks(context, PROJECT, stop=lambda: False)
    return (first, second), tasks, waiting


def run_of(tasks, **more):
    """A run that published a version."""
    text = {
        "ap50": 0.4,
        "parent_ap50": 0.2,
        "judged_by": "cross-validation",
        "reason": "better",
        "verdict": "published",
    }
    return TrainingRun(
        **{"project": PROJECT, "asked_at": 1.0, "started_at": 2.0, "finished_at": 3.0, "source": "test", "boxes": 9}
        | {"tasks": tasks, "held_out": 0, "version": f"learned-{tasks}-abc", "metrics": RunMetrics(), **text, **more}
    )


def edited(task, edits=CORRECTED):
    """A task with a pre-label that was corrected."""
    return TaskEdits(task=task, place=task + 1, drawn_at=5.0, version="learned-2-abc", prelabelled=True, lead_time=9.0,
                     edits=edits, by_class={"Disc": edits})  # fmt: skip


def report_of(runs, tasks, *, name="Disc"):
    """A report, made by hand."""
    return LearningReport(
        project=PROJECT, made_at=9.5, served=runs[-1].version, counts={"teaches": len(tasks)}, runs=runs, tasks=tasks,
        drawn=len(tasks), several=0, first=(CORRECTED, 1), lately=(CORRECTED, 1), waiting=1, course=["Go on."],
        classes=[ClassQuality(name=name, boxes=4, ap50=0.4, before=None, edits=CORRECTED)],
        next=[Next(task=31, score=0.0, why="it promises most")],
        doubts=[LabelErrorNote(32, f"Perhaps a {name} is missing.", 0.83)], doubted=1,
    )  # fmt: skip


def test_report_has_edits_runs_and_next_tasks(learned, studio, engine, settings, tmp_path, capsys):
    runs, tasks, waiting = learned
    served = runs[1].version
    LabelErrorStore(engine).save(PROJECT, LabelErrorNote(tasks[0], "Perhaps a Disc is missing.", 0.7))
    report = make_report(PROJECT, engine=engine, policy=LearningPolicy(), served=served, clock=lambda: 9.5)
    assert report.counts == {"teaches": 5}
    assert [run.version for run in report.runs] == [run.version for run in runs]
    corrected = [item for item in report.tasks if item.prelabelled]
    assert [item.task for item in corrected] == tasks
    assert corrected[0].edits == PrelabelEdits(moved=1, added=1, deleted=1)
    assert corrected[0].by_class == {"Disc": PrelabelEdits(moved=1), "Square": PrelabelEdits(added=1, deleted=1)}
    assert (corrected[0].version, corrected[0].lead_time) == (runs[0].version, 12.5)
    assert report.lately == (PrelabelEdits(moved=1, added=1, deleted=1), 1)
    assert [(item.name, item.boxes) for item in report.classes] == [("Disc", 5), ("Square", 5)]
    # The order that is listed is the one that Label Studio serves.
    assert [item.task for item in report.next] == studio.queue(served)
    assert {item.task for item in report.next} == set(waiting)
    assert all(item.why for item in report.next)
    assert report.waiting == 3

    page, figures = tmp_path / "deep" / "learning.html", tmp_path / "deep" / "learning.json"
    learn_report(PROJECT, out=page, json_=figures, settings=settings)
    text = capsys.readouterr().out
    assert "2 training runs: 2 published, 0 refused" in text
    assert "Last 1 pre-labelled tasks: 3.0 edits per task" in text
    assert f"task {tasks[0]}: Perhaps a Disc is missing." in text
    assert all(text in page.read_text() for text in (*(run.version for run in runs), "Disc", "cross-validation"))
    assert msgspec.json.decode(figures.read_bytes())["counts"] == {"teaches": 5}


def test_the_page_loads_nothing_and_links_to_the_project_and_its_tasks():
    report = report_of([run_of(2), run_of(3)], [edited(1)])
    page = learning_page(report, label_studio="http://studio:8080/", projects_at="../../")
    project = f"http://studio:8080/projects/{PROJECT}/data"
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == [
        "../../", project, *(f"{project}?task={task}" for task in (31, 32)),
    ]  # fmt: skip
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert faults(page) == []


def test_names_from_a_project_are_text_on_the_page():
    evil = '<img src=x onerror="alert(1)">'
    report = report_of([run_of(2, reason=evil, version=evil, verdict="refused")], [edited(1)], name=evil)
    page = learning_page(report)
    assert "<img" not in page
    assert page.count("&lt;img") >= 5


def test_a_project_that_learned_nothing_yet_has_a_page_too(engine):
    TrainingDataStore(engine).connect(PROJECT)
    report = make_report(PROJECT, engine=engine, policy=LearningPolicy(), served="base-1", clock=lambda: 0.0)
    page = learning_page(report)
    assert "Shown after the first evaluated training run." in page
    assert "Shown after the first training run." in page
    assert "Training starts with 2 labelled tasks; 0 so far." in page
    assert faults(page) == []


def test_unconnected_project_gets_the_connect_command(settings):
    open_database(settings)
    with pytest.raises(NotConnectedToLearning, match="labelloop connect 4"):
        learn_report(4, settings=settings)


def test_curve_has_a_point_per_run_and_a_line_per_evaluation():
    held = [run_of(tasks, judged_by="held-out", ap50=0.5) for tasks in (20, 40)]
    unjudged = [run_of(1, judged_by="nothing", ap50=None), run_of(4, verdict="failed", ap50=None)]
    curve = learning_curve([unjudged[0], run_of(2), run_of(3), run_of(3, verdict="refused"), unjudged[1], *held])
    assert [spot.kind for spot in curve.spots] == [*["cross-validation"] * 2, "refused", *["held-out"] * 2]
    assert [line.name for line in curve.lines] == ["cross-validation", "held-out"]
    assert all(0 <= spot.x <= curve.width and 0 <= spot.y <= curve.height for spot in curve.spots)
    assert curve.spots[3].x < curve.spots[4].x
    assert curve.spots[3].y < curve.spots[0].y  # a better one stands higher
    assert learning_curve(unjudged) is None


def test_line_goes_forward_where_labelled_tasks_became_fewer():
    curve = learning_curve([run_of(4, ap50=0.5), run_of(8, ap50=0.6), run_of(4, ap50=0.7)])
    assert len(curve.spots) == 3
    [line] = curve.lines
    assert line.points == " ".join(f"{spot.x},{spot.y}" for spot in (curve.spots[2], curve.spots[1]))


def test_external_model_is_a_point_and_breaks_no_line():
    elsewhere = run_of(0, held_out=7, judged_by="held-out", verdict="admitted", version="mine-abc")
    curve = learning_curve([*(run_of(tasks, held_out=7, judged_by="held-out") for tasks in (20, 40)), elsewhere])
    assert curve.spots[2].x == curve.spots[1].x
    [line] = curve.lines
    assert len(line.points.split()) == 2


def test_the_quality_by_class_is_that_of_what_is_served(learned, engine, settings):
    (first, second), *_ = learned
    for served, thresholds in ((first, first.metrics.thresholds), (second, second.metrics.thresholds)):
        facts = {"engine": engine, "policy": LearningPolicy(), "clock": lambda: 9.5}
        report = make_report(PROJECT, served=served.version, **facts)
        assert {item.name: item.threshold for item in report.classes}.items() <= thresholds.items()
        assert all(item.ap50 is not None for item in report.classes)
    assert all(item.threshold is None for item in make_report(PROJECT, served="elsewhere", **facts).classes)


@pytest.mark.parametrize(("tasks", "columns"), [(1, 1), (40, 40), (90, 30)])
def test_columns_of_edits_are_as_high_as_their_boxes(tasks, columns):
    plot = edits_over_time([edited(number) for number in range(tasks)])
    added, moved, deleted = (
        next(bar for bar in plot.bars if bar.kind == kind) for kind in ("added", "moved", "deleted")
    )
    assert added.height == pytest.approx(2 * moved.height, abs=0.2)
    assert deleted.height == pytest.approx(moved.height, abs=0.2)
    assert deleted.y == pytest.approx(plot.zero)
    assert added.y + added.height == pytest.approx(moved.y, abs=0.2)
    marks = {tick.text: tick.at for tick in plot.y}
    assert marks["0"] == pytest.approx(plot.zero)
    assert plot.zero - moved.height == pytest.approx(marks["1"], abs=0.2)
    assert len({bar.x for bar in plot.bars}) == columns


def test_page_samples_many_tasks_and_says_so(learned, engine):
    facts = {"engine": engine, "policy": LearningPolicy(), "served": "", "clock": lambda: 9.5}
    everything = make_report(PROJECT, **facts)
    assert [item.place for item in everything.tasks] == [1, 2, 3, 4, 5]
    assert "Counted on" not in learning_page(everything)
    assert "Counted on 3 of 5 tasks" in learning_page(msgspec.structs.replace(everything, tasks=everything.tasks[:3]))
    for count, most in ((5000, 600), (601, 600), (41, 40), (40, 40), (3, 600)):
        chosen = sampled_positions(count, most)
        assert len(chosen) == min(count, most)
        assert chosen == sorted(set(chosen))
        ends = min(RECENT, count)
        assert chosen[:ends] == list(range(ends))
        assert chosen[-ends:] == list(range(count - ends, count))
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps) <= 2 + count // most


def test_without_a_task_there_is_no_plot_of_edits():
    assert edits_over_time([]) is None


def test_held_out_task_is_marked_at_every_rank(engine, learned, context):
    runs, _, waiting = learned
    served = runs[1].version
    scores = dict.fromkeys(waiting, place_score(12))
    context.image_vectors.save_uncertainties(PROJECT, served, dict.fromkeys(waiting, 0.2), scores)
    facts = {"engine": engine, "served": served, "clock": lambda: 9.5}
    all_held = make_report(PROJECT, policy=LearningPolicy(held_out=1.0), **facts)
    assert all("held out for evaluation" in item.why for item in all_held.next)
    none_held = make_report(PROJECT, policy=LearningPolicy(held_out=0.0), **facts)
    assert not any("held out for evaluation" in item.why for item in none_held.next)


def test_each_kind_of_head_has_a_curve():
    def metrics(value, *, passed):
        result = HeadMetrics("accuracy", value, 0.5, passed, "better", "cross-validation")
        return RunMetrics(heads={"image_labels": result, "masks": HeadMetrics("mask IoU")})

    runs = [run_of(tasks, metrics=metrics(value, passed=value < 0.9), ap50=None)
            for tasks, value in ((4, 0.6), (8, 0.8), (9, 0.95))]  # fmt: skip
    [curve] = head_curves(runs)
    assert (curve.title, curve.metric) == ("Answers about images", "accuracy")
    assert [spot.kind for spot in curve.chart.spots] == ["cross-validation", "cross-validation", "refused"]
    assert (
        "8 labelled tasks: accuracy 0.800 (before: 0.500) by cross-validation, published" in curve.chart.spots[1].text
    )
    assert [line.name for line in curve.chart.lines] == ["cross-validation"]
    assert runs[0].metrics.lines() == [
        "Answers about images: accuracy 0.600 (before: 0.500), published.", "Masks: not published: .",
    ]  # fmt: skip
    page = learning_page(report_of(runs, [edited(1)]))
    assert "Answers about images" in page
    assert "No boxes were evaluated." in page


def test_edits_are_counted_where_several_people_annotate(engine):
    store = TrainingDataStore(engine)
    store.connect(PROJECT)
    photo = LabelledImage("a.jpg", 9, 9, ((0, 0, 5, 5),), ("Disc",))
    store.save(PROJECT, [TaskTrainingData(task=1, checksum="c", state="teaches", reason="consensus of 2",
                                          photos=(photo,), prelabels=(photo,), prelabel_version="m-1")])  # fmt: skip
    report = make_report(PROJECT, engine=engine, policy=LearningPolicy(), served="m-1", clock=lambda: 0.0)
    assert (report.drawn, report.several, report.lately) == (1, 1, (PrelabelEdits(accepted=1), 1))
    assert "Of 1 tasks with several annotators, what they agree on is compared" in learning_page(report)


def test_answers_count_as_edits():
    def image(**choices):
        return (LabelledImage("a.jpg", choices=choices),)

    shown = image(weather=("sun",), tags=("a", "b"), place=("town",))
    drawn = image(weather=("rain",), tags=("a", "c", "d"), mood=("good",))
    assert edits_by_class(shown, drawn) == {
        "rain": PrelabelEdits(relabelled=1), "a": PrelabelEdits(accepted=1), "b": PrelabelEdits(deleted=1),
        "c": PrelabelEdits(added=1), "d": PrelabelEdits(added=1), "town": PrelabelEdits(deleted=1),
        "good": PrelabelEdits(added=1),
    }  # fmt: skip


def reported(engine, **policy):
    facts = {"engine": engine, "policy": LearningPolicy(**policy), "served": "learned-30-abc", "clock": lambda: 1e9}
    return make_report(PROJECT, **facts)


def test_a_fine_tuning_is_shown_with_its_curve_and_marked_among_the_refits(engine, context):
    context.training_data.connect(PROJECT)
    assert "torch is not installed" in learning_page(reported(engine))
    jobs = context.train_jobs
    job = jobs.begin(PROJECT, "gpu-box", labelled=30, minutes=10, cores=1, memory_bytes=0)
    curve = ((0.2, 9.0, None), (5.0, 4.0, 0.5), (10.0, 3.0, 0.75))
    jobs.heartbeat(job.id, job.token, TrainProgress(phase="training", step=90, seen=720, share=0.5, curve=curve))
    page = learning_page(reported(engine))
    assert "Fine-tuning runs on gpu-box: training." in page
    assert "Loss over 10.0 minutes: 9.00 at first, 3.00 last." in page
    assert "AP50 over 10.0 minutes: 0.50 at first, 0.75 last." in page
    assert faults(page) == []
    assert job.token not in page
    jobs.finish(job.id, job.token, state="published", reason="better by far", version="trained-30-abc")
    for run in (run_of(30), run_of(0, version="trained-30-abc", source="train", verdict="admitted", ap50=0.8)):
        context.runs.add(run)
    page = learning_page(reported(engine))
    assert '<span class="pill tuned">fine-tuned</span>' in page
    assert '<path class="tuned"' in page
    assert "Better by far." in page
    assert reported(engine).trainings[0].token == ""


def test_a_failed_fine_tuning_names_its_fix(engine, context):
    context.training_data.connect(PROJECT)
    job = context.train_jobs.begin(PROJECT, "worker", labelled=30, minutes=10, cores=1, memory_bytes=0)
    context.train_jobs.finish(job.id, job.token, state="failed", reason="It ran out of memory: raise `memory_gb`.")
    page = learning_page(reported(engine))
    assert '<span class="pill failed">failed</span>' in page
    assert "raise <code>memory_gb</code>." in page
