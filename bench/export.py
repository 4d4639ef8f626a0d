"""Exports compared with label-studio-sdk's converter and panlabel: every shape of task, plain files on the disk.

Each measurement is a process of its own: user CPU seconds and peak memory are the process's. Ours and theirs run in
turn. `--only NAME,...` measures some shapes, `--tasks N` sets the size, `--repeats N` how often.

panlabel (Rust) is measured if LABELLOOP_PANLABEL names its program: ``pip install panlabel==0.7.0`` elsewhere.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.export_inputs import SHAPES, Shape, write_export
from bench.export_s3 import to_s3
from labelloop.cli.main import one_blas_thread
from labelloop.service.settings import Settings

if TYPE_CHECKING:
    from exporters.model.accounting import ExportReport

TASKS = 20_000
MEMORY_TASKS = 100_000
REPEATS = 1
CONFIG = SHAPES["plain"].config
PANLABEL = "LABELLOOP_PANLABEL"
PANLABEL_FORMATS = {"coco": "coco", "voc": "voc", "yolo-detect": "yolo"}
FEW = 10
# Masks and words make large files: what a size of the others means for them is in `Shape.share`.
HEAVY_SHARE = 0.1


# The peak memory of a process counts from what it was forked from: so the measured one is started by a small one.
_MEASURED = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime, used.ru_maxrss / 1024]))
"""


def export_to(
    file: Path, kinds: str, to: str, settings: Settings, *, shape: Shape = SHAPES["plain"], plain: bool = False
) -> "ExportReport":
    """Export a file; ``plain``: with the archives of a version too, as the command does."""
    from exporters.pipeline.export import export

    return export(
        file,
        settings=settings,
        to=to,
        formats=kinds.split(","),
        label_config=shape.config,
        annotation=shape.annotation,
        fetch=False,
        max_errors=1.0,
        archives=plain,
    )


def _ours(file: Path, shape: Shape, kind: str, folder: Path) -> None:
    export_to(file, kind, str(folder / "set"), Settings(home=folder / "home"), shape=shape, plain=True)


def _theirs(file: Path, shape: Shape, kind: str, folder: Path) -> None:
    import logging

    from label_studio_sdk.converter import Converter

    logging.disable(logging.ERROR)
    converter = Converter(config=shape.config, project_dir=str(folder), download_resources=False)
    converter.convert(str(file), str(folder / "out"), shape.pairs[kind], is_dir=False)


def _child(who: str, file: str, name: str, kind: str) -> None:
    # what is imported is paid before the clock starts, by both
    if who == "ours":
        with one_blas_thread():  # as the command begins
            import exporters.pipeline.export
            import exporters.report.page  # noqa: F401
    else:
        import label_studio_sdk.converter  # noqa: F401
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        (_ours if who == "ours" else _theirs)(Path(file), SHAPES[name], kind, Path(folder))
        after = resource.getrusage(resource.RUSAGE_SELF)
        threads = (after.ru_stime - before.ru_stime, after.ru_maxrss / 1024)
    print(json.dumps([after.ru_utime - before.ru_utime, *threads]))


def _measure(who: str, file: Path, name: str, kind: str) -> list[float]:
    """[user CPU seconds without imports, those of the system, peak MiB] of one conversion in a fresh process."""
    line = [sys.executable, "-W", "ignore", "-m", "bench.export", "--child", who, str(file), name, kind]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _fast_folder() -> str | None:
    """A folder in memory where there is one, so that the disk is not what is measured."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(tasks: int = TASKS, repeats: int = REPEATS, only: str = "") -> str:
    """Measure; gives the tables as Markdown."""
    names = only.split(",") if only else list(SHAPES)
    load = os.getloadavg()[0]
    parts = [_shapes(tasks, repeats, [SHAPES[name] for name in names if SHAPES[name].pairs])]
    if not only:
        parts += [_whole_commands(tasks, repeats), _again(min(tasks, 2_000))]
    note = f"Load of the machine: {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end."
    return "\n\n".join([*parts, note])


def _shapes(tasks: int, repeats: int, shapes: list[Shape]) -> str:
    lines = [
        "## Against label-studio-sdk's converter",
        "",
        f"User CPU seconds of one format a process, imports not counted, best of {repeats} in turn. Ours is",
        "`labelloop export --to DIR`: the plain files in `latest/`, the archive and the report of the version, and the",
        "shards, checksums and accounts besides. The converter writes plain files.",
        "",
        "| a task holds | tasks | format | ours | converter | times | system s | converter's | MiB | converter's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        number = max(20, round(tasks * shape.share))
        with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
            file = Path(folder) / "export.json"
            write_export(file, number, shape)
            for kind in shape.pairs:
                found: dict[str, list[list[float]]] = {"ours": [], **({"theirs": []} if shape.pairs[kind] else {})}
                for _ in range(repeats):
                    for who, measured in found.items():
                        measured.append(_measure(who, file, shape.name, kind))
                ours, theirs = min(found["ours"]), min(found.get("theirs", ()), default=None)
                cells = [f"{theirs[0]:.2f}", f"{theirs[0] / ours[0]:.1f}"] if theirs else ["-", "-"]
                more = [f"{theirs[1]:.2f}", f"{theirs[2]:.0f}"] if theirs else ["-", "-"]
                lines.append(
                    f"| {shape.words} | {number:,} | {kind} | {ours[0]:.2f} | {cells[0]} | {cells[1]} "
                    f"| {ours[1]:.2f} | {more[0]} | {ours[2]:.0f} | {more[1]} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _whole_commands(tasks: int, repeats: int) -> str:
    """Whole processes beside panlabel's, on what it reads: upright boxes."""
    program = os.environ.get(PANLABEL, "")
    lines = [
        "## Whole commands, start included",
        "",
        f"User CPU seconds of `labelloop export --to DIR --no-fetch`, best of {repeats} in turn with panlabel 0.7.0, a",
        "Rust program that reads upright boxes alone.",
        "",
        "| tasks, some 8 boxes each | format | ours | panlabel | times | MiB | panlabel's |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        for number in (FEW, tasks):
            file = Path(folder) / f"{number}.json"
            write_export(file, number, SHAPES["boxes"])
            for kind in ("coco",) if number == FEW else PANLABEL_FORMATS:
                pairs = [
                    (_command(file, kind), _panlabel(program, file, kind) if program else None) for _ in range(repeats)
                ]
                ours = min(first for first, _ in pairs)
                theirs = min((second for _, second in pairs if second), default=None)
                cells = (f"{theirs[0]:.2f}", f"{theirs[0] / ours[0]:.2f}", f"{theirs[1]:.0f}") if theirs else ("-",) * 3
                lines.append(
                    f"| {number:,} | {kind} | {ours[0]:.2f} | {cells[0]} | {cells[1]} | {ours[1]:.0f} | {cells[2]} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _command(file: Path, kind: str) -> tuple[float, float]:
    """(user CPU seconds, peak MiB) of our whole command."""
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        config = Path(folder) / "config.xml"
        config.write_text(SHAPES["boxes"].config)
        command = ["-m", "labelloop.cli.main", "export", "--from", str(file), "--to", f"{folder}/set"]
        command += ["--label-config", str(config), "--format", kind, "--no-fetch", "--max-errors", "1"]
        return _spent([sys.executable, *command], {"LABELLOOP_HOME": f"{folder}/home"})


def _panlabel(program: str, file: Path, kind: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        out = f"{folder}/out{'.json' if kind == 'coco' else ''}"
        words = ["convert", "--from", "label-studio", "--to", PANLABEL_FORMATS[kind], "-i", str(file), "-o", out]
        return _spent([program, *words, "--allow-lossy"], {})


def _spent(line: list[str], settings: Mapping[str, str]) -> tuple[float, float]:
    """(user CPU seconds, peak MiB) of a whole process."""
    measured = [sys.executable, "-c", _MEASURED, *line]
    done = subprocess.run(measured, capture_output=True, text=True, check=True, env={**os.environ, **settings})
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _again(tasks: int) -> str:
    """A second export of a file in which 1 % changed, and one in which nothing did."""
    every, spent = 100, []
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        settings, file, changed = (
            Settings(home=Path(folder) / "home"),
            Path(folder) / "a.json",
            Path(folder) / "b.json",
        )
        write_export(file, tasks)
        read = json.loads(file.read_text())
        for task in read[::every]:
            task["annotations"][0]["result"][:1] = []
        changed.write_text(json.dumps(read))
        for source in (file, changed, changed):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            report = export_to(source, "coco", f"{folder}/set", settings, plain=True)
            spent.append((resource.getrusage(resource.RUSAGE_SELF).ru_utime - before, report.written))
    first, second, third = spent
    return (
        "## A second export\n\n"
        f"Of {tasks:,} tasks (coco, plain files) {tasks // every} changed: {second[0]:.2f} CPU seconds instead of "
        f"{first[0]:.2f}, {second[1].bytes / 1e3:,.0f} KB of shards instead of {first[1].bytes / 1e6:.1f} MB.\n"
        f"Where nothing changed: {third[0]:.2f} CPU seconds and {third[1].objects} shards. "
        "A file is read and compared as a whole each time; of a project only what changed is read."
    )


def memory(tasks: int = MEMORY_TASKS) -> str:
    """Peak MiB of the command at many tasks, shape by shape."""
    lines = ["| a task holds | tasks | format | MiB |", "|---|---|---|---|"]
    for shape in SHAPES.values():
        number = max(20, round(tasks * shape.share * (HEAVY_SHARE if shape.share < 1 else 1)))
        for kind in shape.pairs:
            with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
                file, config = Path(folder) / "export.json", Path(folder) / "config.xml"
                write_export(file, number, shape)
                config.write_text(shape.config)
                command = ["-m", "labelloop.cli.main", "export", "--from", str(file), "--to", f"{folder}/set"]
                command += ["--label-config", str(config), "--format", kind, "--no-fetch"]
                command += ["--annotation", shape.annotation, "--workers", "1", "--max-errors", "1"]
                _, peak = _spent([sys.executable, *command], {"LABELLOOP_HOME": f"{folder}/home"})
            lines.append(f"| {shape.words} | {number:,} | {kind} | {peak:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(["## Peak memory", "", *lines])


def main() -> None:
    """Measure and print the tables; `python -m bench export` keeps them."""
    parser = argparse.ArgumentParser(prog="python -m bench.export", description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", default="", help="shapes, comma-separated: " + ", ".join(SHAPES))
    parser.add_argument("--memory", action="store_true", help="measure the peak memory at 100,000 tasks instead")
    parser.add_argument("--s3", action="store_true", help="measure exports to a real S3 server instead")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(*options.child)
    elif options.memory:
        print(memory())
    elif options.s3:
        with tempfile.TemporaryDirectory() as folder:
            write_export(Path(folder) / "export.json", options.tasks)
            print(to_s3(Path(folder) / "export.json", options.tasks))
    else:
        print(run(options.tasks, options.repeats, options.only))


if __name__ == "__main__":
    main()
