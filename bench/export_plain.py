"""What the plain files of an export cost beside the rest: CPU, memory, requests and bytes; in a folder and in S3.

Each measurement is a process of its own, best of `REPEATS`: without plain files (``--no-latest --no-archives``), with
one part, with both. To S3: a first export, one after 1 % of the tasks changed, one after nothing changed.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.export import CONFIG
from bench.export_inputs import write_export

TASKS = (20_000,)
S3_TASKS = 2_000
REPEATS = 1
FORMATS = ("coco", "voc", "yolo-detect", "coco,voc,yolo-detect")
PARTS = {"neither": (False, False), "latest/": (False, True), "archives": (True, False), "both": (True, True)}


def run() -> str:
    """Measure; gives the tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        files = {tasks: Path(folder) / f"{tasks}.json" for tasks in (*TASKS, S3_TASKS)}
        for tasks, file in files.items():
            write_export(file, tasks)
        busy = os.getloadavg()[0]
        parts = [_on_disk({tasks: files[tasks] for tasks in TASKS}), _to_s3(files[S3_TASKS])]
    return "\n\n".join([*parts, f"Load of the machine at the start: {busy:.0f}."])


def _on_disk(files: dict[int, Path]) -> str:
    lines = [
        "## In a folder",
        "",
        "CPU seconds of an export (some 8 boxes and 1 polygon a task), imports not counted; peak MiB with both parts.",
        "",
        f"| tasks | formats | {' | '.join(PARTS)} | again, nothing changed | peak MiB | MiB of neither |",
        "|---|---|" + "---|" * (len(PARTS) + 3),
    ]
    for tasks, file in files.items():
        for formats in FORMATS:
            cells, peaks, again = [], [], 0.0
            for archives, latest in PARTS.values():
                first, second, peak = min(_measure(file, formats, archives, latest) for _ in range(REPEATS))
                cells.append(f"{first:.2f}")
                peaks.append(peak)
                again = second
            lines.append(
                f"| {tasks:,} | {formats} | {' | '.join(cells)} | {again:.2f} | {peaks[-1]:.0f} | {peaks[0]:.0f} |"
            )
    return "\n".join(lines)


def _measure(file: Path, formats: str, archives: bool, latest: bool) -> tuple[float, float, float]:
    words = [str(file), formats, str(int(archives)), str(int(latest))]
    line = [sys.executable, "-W", "ignore", "-m", "bench.export_plain", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    first, second, peak = json.loads(done.stdout.splitlines()[-1])
    return first, second, peak


def _child(file: str, formats: str, archives: str, latest: str) -> None:
    # what is imported is paid before the clock starts
    import exporters.pipeline.export
    import exporters.report.page
    from labelloop.service.settings import Settings

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        spent = []
        for _ in range(2):
            clock = time.process_time()
            exporters.pipeline.export.export(
                Path(file),
                settings=Settings(home=Path(folder) / "home"),
                to=f"{folder}/set",
                formats=formats.split(","),
                label_config=CONFIG,
                fetch=False,
                archives=archives == "1",
                latest=latest == "1",
            )
            spent.append(time.process_time() - clock)
    print(json.dumps([*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def _to_s3(file: Path) -> str:
    """Requests by kind, bytes sent and seconds, on a real S3 server."""
    from tests.system.s3_fixtures import KEY, SECRET, VENV, start, takes_xattrs

    head = f"## To S3, {S3_TASKS:,} tasks, COCO, VOC and YOLO\n\n"
    if not (VENV / "bin" / "swift-proxy-server").exists():
        return head + "Not measured: `sh tests/system/setup.sh` installs the server, OpenStack Swift."
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir=VENV.parent) as beside:
        folder = Path(temporary) if takes_xattrs(Path(temporary)) else Path(beside)
        try:
            endpoint = f"http://127.0.0.1:{start(folder, processes)}"
            return head + _requests(file, endpoint, (KEY, SECRET), folder)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def _requests(file: Path, endpoint: str, key: tuple[str, str], folder: Path) -> str:
    import botocore.endpoint

    from exporters.pipeline.export import export
    from labelloop.service.settings import Settings
    from labelloop.service.store.s3_client import s3_client

    settings = Settings(
        home=folder / "home", s3_endpoint_url=endpoint, s3_access_key_id=key[0], s3_secret_access_key=key[1]
    )
    s3_client(settings).create_bucket(Bucket="plain")
    changed = folder / "changed.json"
    told = json.loads(file.read_text())
    for task in told[::100]:
        task["annotations"][0]["result"][:1] = []
    changed.write_text(json.dumps(told))
    asked: Counter[str] = Counter()
    send = botocore.endpoint.Endpoint._send  # noqa: SLF001 - where every request goes through

    def counted_send(self, request):
        loose = any(f"/latest/{name}" in request.url for name in ("yolo-detect/labels", "voc/Annotations"))
        asked["loose files" if loose and request.method == "PUT" else "others"] += 1
        asked["bytes"] += int(request.headers.get("Content-Length") or 0) if request.method == "PUT" else 0
        return send(self, request)

    lines = [
        "| export | requests for loose files | other requests | MB sent | s | files of latest/ written, the same |",
        "|---|---|---|---|---|---|",
    ]
    botocore.endpoint.Endpoint._send = counted_send  # noqa: SLF001
    try:
        cases = (("first", file), ("1 % changed", changed), ("nothing changed", changed))
        for name, source in cases:
            asked.clear()
            clock = time.perf_counter()
            report = export(source, settings=settings, to="s3://plain/set", label_config=CONFIG, fetch=False)
            seconds, counts = time.perf_counter() - clock, report.latest_files
            lines.append(
                f"| {name} | {asked['loose files']:,} | {asked['others']} | {asked['bytes'] / 1e6:.1f} | {seconds:.1f} "
                f"| {counts['written']:,}, {counts['same']:,} |"
            )
    finally:
        botocore.endpoint.Endpoint._send = send  # noqa: SLF001
        shutil.rmtree(folder / "home", ignore_errors=True)
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        _child(*sys.argv[1:])
    else:
        print(run())
