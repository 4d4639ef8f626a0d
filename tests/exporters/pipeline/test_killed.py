"""An export with several processes that is ended from outside: no process and no file of it stays."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="car"/></RectangleLabels></View>'
)
COMMAND = [sys.executable, "-m", "labelloop.cli.main"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """An export of Label Studio that takes some seconds: 60 MB."""
    folder = tmp_path_factory.mktemp("killed")
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["car"]}
    region = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 640}
    results = [region | {"id": f"r{number}", "original_height": 480, "value": value} for number in range(100)]
    text = json.dumps({"annotations": [{"id": 1, "completed_by": 1, "result": results}], "data": {"image": "IMAGE"}})
    file = folder / "tasks.jsonl"
    with file.open("w") as out:
        for number in range(3000):
            out.write(f'{{"id": {number + 1}, {text[1:].replace("IMAGE", f"s3://b/{number}.jpg")}\n')
    (folder / "config.xml").write_text(CONFIG)
    return file


def processes_of(session: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            pids.append(int(stat.parent.name))
    return pids


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("folder", ["t", "temporary folder with a path too long for a socket " + "x" * 60])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_export_leaves_no_process_and_no_file(number, folder, source, tmp_path, wait_until):
    temporary = tmp_path / folder
    temporary.mkdir()
    to = f"file://{tmp_path / 'set'}"
    environment = os.environ | {"TMPDIR": str(temporary), "LABELLOOP_HOME": str(tmp_path / "home")}
    words = ["export", source, "--to", to, "--label-config", source.parent / "config.xml", "--workers", "2"]
    with (tmp_path / "log").open("w") as log:
        export = subprocess.Popen(
            [*COMMAND, *words], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(
            lambda: any(temporary.glob("labelloop-*/[0-9]*")) or export.poll() is not None
        )  # a piece is on its way
        assert export.poll() is None, (tmp_path / "log").read_text()
        export.send_signal(number)
        status = export.wait(60)
        wait_until(lambda: not processes_of(export.pid))
    finally:
        for process in processes_of(export.pid):
            os.kill(process, signal.SIGKILL)
    if number == signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
        assert "Stopped." in (tmp_path / "log").read_text()
        assert not list(temporary.rglob("*"))
    looked = subprocess.run(
        [*COMMAND, "dataset", "gc", to, "--delete", "--json", "-"], env=environment, capture_output=True, check=True
    )
    status = json.loads(looked.stdout)
    if number == signal.SIGKILL:
        assert status["unfinished"] > 0
        assert status["unfinished_bytes"] > 0
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    assert not list((tmp_path / "set" / ".labelloop" / "parts").glob("labelloop-*"))
