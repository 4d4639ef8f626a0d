"""What a task, a request or a queue costs as it grows: time and memory of each program, each in a process of its own.

`SECTIONS` holds one function a section; each returns the section's Markdown, without its heading.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

BEFORE = "11e2178"
"""The commit before tasks were bounded, measured beside this one."""

# Regions of each annotator; annotators; of those the sizes that the commit before is measured at.
SIZES, PEOPLE, SIZES_BEFORE = (500, 1000, 5000, 20_000), 3, (500, 1000)
# A measurement that takes longer is ended.
MOST_S = 600

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Car"/><Label value="Person"/></RectangleLabels><PolygonLabels name="outline" toName="image">
<Label value="Car"/><Label value="Person"/></PolygonLabels></View>"""


def run() -> str:
    """Every section."""
    return "\n\n".join(f"## {title}\n\n{section()}" for title, section in SECTIONS.items())


def dense_tasks() -> str:
    """One task, three annotators: quality control's worker, report and consensus, and an export of the consensus."""
    told = f"""One task, three annotators who draw every object a little differently and miss one in twenty;
the sides of objects differ fourfold. Peak memory and time of the whole process; before is commit {BEFORE}."""
    head = ("regions, each annotator", "shape", "program", "MB", "s", "MB before", "s before")
    lines = [told, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    with tempfile.TemporaryDirectory() as folder, old_code() as before:
        for shape, sizes in (("boxes", SIZES), ("outlines of 30 corners", (500, 5000))):
            for size in sizes:
                source = Path(folder) / f"{size}.json"
                source.write_text(json.dumps([dense_task(size, PEOPLE, outlines=shape != "boxes")]))
                for program in PROGRAMS:
                    now = measured([sys.executable, "-m", "bench.bounds", program, str(source)])
                    old = "| |"
                    if before is not None and size in SIZES_BEFORE:
                        old = measured([sys.executable, "-P", __file__, program, str(source)], root=before)
                    lines.append(f"| {size:,} | {shape} | {program} | {now} {old}")
                source.unlink()
    return "\n".join(lines)


def sent_pixels() -> str:
    """Requests of large images; imported here, because programs of the commit before run this file too."""
    from bench.predict_memory import pixels

    return pixels()


def measured(command: list[str], *, root: Path | None = None) -> str:
    """A program's peak memory and its time, as two cells of a table."""
    here = Path(__file__).parents[1] if root is None else root
    home = tempfile.mkdtemp()
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=here, env={**os.environ, "PYTHONPATH": str(here), "LABELLOOP_HOME": home},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > MOST_S:
            process.kill()
            os.wait4(process.pid, 0)
            return f"ended after | {MOST_S} |"
        time.sleep(0.05)
    spent, memory = time.monotonic() - start, usage.ru_maxrss / 1024
    failed = "" if os.waitstatus_to_exitcode(status) == 0 else " (failed)"
    if failed:
        print(process.stderr.read().decode()[-2000:] if process.stderr else "", file=sys.stderr)
    return f"{memory:,.0f}{failed} | {spent:.1f} |"


@contextmanager
def old_code() -> Iterator[Path | None]:
    """The repository as it was at ``BEFORE``; None where it is not to be had."""
    from bench.house import checkout  # here, because programs of the commit before run this file too

    with tempfile.TemporaryDirectory() as folder:
        yield checkout(BEFORE, Path(folder) / BEFORE)


def dense_task(count: int, people: int, *, outlines: bool = False) -> dict[str, Any]:
    """A task of Label Studio with so many objects, drawn by so many annotators."""
    rng = np.random.default_rng(count)
    rows = int(np.ceil(np.sqrt(count)))
    step = 100 / rows
    corner = np.stack(np.divmod(np.arange(count), rows), axis=1) * step + rng.uniform(0, step / 2, (count, 2))
    truth = np.hstack((corner, rng.uniform(step / 4, step, (count, 2))))
    annotations = []
    for who in range(1, people + 1):
        drawn = truth + rng.normal(0, step / 40, truth.shape)
        results = [
            _result(f"{who}-{at}", drawn[at], rng, outlines=outlines)
            for at in np.flatnonzero(rng.random(count) > 0.05).tolist()
        ]
        stamp = f"2026-01-01T00:00:{who:02}.000000Z"
        annotations.append({"id": who, "completed_by": who, "result": results, "created_at": stamp,
                            "updated_at": stamp, "lead_time": 60.0})  # fmt: skip
    return {"id": 1, "project": 7, "data": {"image": "https://photos.test/1.jpg"}, "annotations": annotations,
            "predictions": [], "overlap": people, "is_labeled": True}  # fmt: skip


def _result(id_: str, edges: Any, rng: np.random.Generator, *, outlines: bool) -> dict[str, Any]:
    x, y, width, height = (float(each) for each in edges)
    label = "Car" if rng.random() < 0.9 else "Person"
    sides = {"x": x, "y": y, "width": width, "height": height}
    value: dict[str, Any] = {**sides, "rotation": 0, "rectanglelabels": [label]}
    if outlines:
        turn = np.linspace(0, 2 * np.pi, 30, endpoint=False)
        round_ = np.column_stack((np.cos(turn), np.sin(turn))) * (0.5 + rng.normal(0, 0.02, (30, 1)))
        points = (0.5 + round_) * (width, height) + (x, y)
        value = {"points": points.tolist(), "closed": True, "polygonlabels": [label]}
    kind = "polygonlabels" if outlines else "rectanglelabels"
    return {"id": id_, "from_name": "outline" if outlines else "label", "to_name": "image", "type": kind,
            "original_width": 8000, "original_height": 8000, "image_rotation": 0, "value": value}  # fmt: skip


def check(source: Path) -> None:
    """What the worker does with a task: judge, route, overlays, facts and drawing.

    Label Studio is another process: its copies of the task are no memory of the worker.
    """
    from labelloop.service.settings import Settings

    try:
        from labelloop.service.db.engine import open_database
        from labelloop.service.studio import Studio
        from qc_webhooks.pipeline.checker import Checker
        from qc_webhooks.store.decisions import DecisionStore
    except ModuleNotFoundError:  # the modules of BEFORE
        return check_before(source)

    server = subprocess.Popen(
        [sys.executable, "-m", "bench.bounds", "label studio", str(source)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        url = server.stdout.readline().strip()
        settings = Settings(home=Path(folder), label_studio_url=url, label_studio_api_key="0" * 40)
        engine = open_database(settings)
        studio = Studio.from_settings(settings)
        try:
            print(Checker(studio, DecisionStore(engine), settings.home).check(1, 1).verdict.outcome)
        finally:
            engine.dispose()
            os.kill(server.pid, signal.SIGKILL)  # not waited for: its memory would count as that of the worker


def serve_task(source: Path) -> None:
    """A Label Studio in memory with one project of the file's task, over HTTP; prints its URL."""
    from urllib.parse import parse_qsl, urlsplit

    from tests.label_studio_in_memory import LabelStudioInMemory
    from tests.web_server import Asked, WebServer

    studio = LabelStudioInMemory()
    project = studio.put_project(label_config=CONFIG, model_version="base-1")
    (task,) = json.loads(source.read_text())
    number = studio.put_task(project, task["data"], overlap=len(task["annotations"]))
    for each in task["annotations"]:
        studio.annotate(number, each["completed_by"], each["result"])
    del task

    def answer(asked: Asked) -> tuple[int, Any]:
        parts = urlsplit(asked.path)
        return studio.answer(
            asked.method, parts.path, dict(parse_qsl(parts.query)), json.loads(asked.body) if asked.body else None
        )

    server = WebServer(answer)
    print(server.url, flush=True)
    threading.Event().wait(MOST_S)


def check_before(source: Path) -> None:
    """The same with the modules of BEFORE; its Label Studio is in the worker's process."""
    from labelloop.service.settings import Settings

    old = {
        name: importlib.import_module(name)
        for name in (
            "labelloop.labeling.config", "labelloop.service.db", "qc_webhooks.check", "qc_webhooks.memory",
            "tests.qc_webhooks.conftest",
        )
    }  # fmt: skip
    label_config, tests = old["labelloop.labeling.config"].LabelConfig, old["tests.qc_webhooks.conftest"]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        engine = old["labelloop.service.db"].open_database(settings)
        studio = tests.MemoryStudio()
        studio.label_config = lambda _project: label_config.parse(CONFIG)
        (task,) = json.loads(source.read_text())
        id_ = studio.add_task(overlap=len(task["annotations"]))
        for each in task["annotations"]:
            studio.annotate(id_, each["completed_by"], each["result"])
        memory = old["qc_webhooks.memory"].MemoryStore(engine)
        checker = old["qc_webhooks.check"].Checker(studio, memory, settings.home)
        print(checker.check(tests.PROJECT, id_).verdict.outcome)
        engine.dispose()


def command(*arguments: str) -> None:
    """Runs labelloop."""
    try:
        main = importlib.import_module("labelloop.cli.main").main
    except ModuleNotFoundError:  # the module of BEFORE
        main = importlib.import_module("labelloop.cli").main
    sys.argv = ["labelloop", *arguments]
    main()


def offline(source: Path, *arguments: str) -> None:
    """Runs labelloop on a file."""
    config = source.with_suffix(".xml")
    config.write_text(CONFIG)
    command(*(each.format(source=source, config=config, out=source.with_suffix(".out")) for each in arguments))


# Program -> what it does with a file of one task.
PROGRAMS: Mapping[str, Callable[[Path], None]] = {
    "worker": check,
    "qc report": lambda source: offline(
        source, "qc", "report", "--from", "{source}", "--label-config", "{config}", "--json", "{out}"
    ),
    "qc consensus": lambda source: offline(
        source, "qc", "consensus", "--from", "{source}", "--label-config", "{config}", "--out", "{out}"
    ),
    "export": lambda source: offline(
        source, "export", "{source}", "--label-config", "{config}", "--to", f"file://{source}.set", "--format", "coco",
        "--annotation", "consensus",
    ),
}  # fmt: skip

# Title -> what is measured. To add one: write a function that returns Markdown, name it here.
SECTIONS: Mapping[str, Callable[[], str]] = {"Dense tasks": dense_tasks, "Pixels sent to `/predict`": sent_pixels}

if __name__ == "__main__":
    {**PROGRAMS, "label studio": serve_task}[sys.argv[1]](Path(sys.argv[2]))
