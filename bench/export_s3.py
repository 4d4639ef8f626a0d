"""Exports to a real S3 server, OpenStack Swift, and to the disk in turn; requests are counted."""

import subprocess
import tempfile
import time
from pathlib import Path

from labelloop.service.settings import Settings

ROUNDS = 2
FEW = 10


def to_s3(file: Path, tasks: int) -> str:
    """To a real S3 server and to the disk in turn, with the requests counted."""
    from bench.export_inputs import write_export
    from tests.system.s3_fixtures import KEY, SECRET, VENV, start, takes_xattrs

    head = "## To S3\n\n"
    if not (VENV / "bin" / "swift-proxy-server").exists():
        return head + "Not measured: `sh tests/system/setup.sh` installs the server, OpenStack Swift."
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir=VENV.parent) as beside:
        folder = Path(temporary) if takes_xattrs(Path(temporary)) else Path(beside)
        try:
            endpoint = f"http://127.0.0.1:{start(folder, processes)}"
            write_export(folder / "few.json", FEW)
            found = {
                (many, kinds): _to_s3(path, f"{many}", kinds, endpoint, folder, (KEY, SECRET))
                for many, path in ((FEW, folder / "few.json"), (tasks, file))
                for kinds in ("coco", "coco,voc,yolo-detect")
            }
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
    return "\n".join(
        [
            f"{head}To OpenStack Swift on this machine, whose own work is in the time, and to the disk in turn,",
            f"best of {ROUNDS}. What {FEW} tasks take is there whatever the size; Swift checks conditions when a write",
            "begins, so an exporter claims its version and looks at the claim again after a while, beside converting.",
            "",
            "| tasks | formats | s to S3 | s to disk | times | times, what is fixed set aside | requests |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {many:,} | {kinds} | {s3:.2f} | {disk:.2f} | {s3 / disk:.2f} | "
                + (f"{(s3 - found[FEW, kinds][0]) / (disk - found[FEW, kinds][1]):.2f}" if many > FEW else "-")
                + f" | {count} |"
                for (many, kinds), (s3, disk, count) in found.items()
            ),
        ]
    )


def _to_s3(
    file: Path, name: str, kinds: str, endpoint: str, folder: Path, key: tuple[str, str]
) -> tuple[float, float, int]:
    """Seconds to S3, seconds to the disk, requests."""
    import botocore.endpoint

    from bench.export import export_to
    from labelloop.service.store.s3_client import s3_client

    settings = Settings(
        home=folder / "home", s3_endpoint_url=endpoint, s3_access_key_id=key[0], s3_secret_access_key=key[1]
    )
    bucket = f"{name}-{kinds.replace(',', '-')}"
    s3_client(settings).create_bucket(Bucket=bucket)
    requests: list[str] = []
    send = botocore.endpoint.Endpoint._send  # noqa: SLF001 - where every request goes through

    def counted_send(self, request):
        requests.append(request.method)
        return send(self, request)

    botocore.endpoint.Endpoint._send = counted_send  # noqa: SLF001
    walls: dict[str, list[float]] = {"s3": [], "file": []}
    try:
        for number in range(ROUNDS):
            for place, to in (("s3", f"s3://{bucket}/{number}"), ("file", f"file://{folder}/{bucket}{number}")):
                requests.clear()
                clock = time.perf_counter()
                export_to(file, kinds, to, settings)
                walls[place].append(time.perf_counter() - clock)
                if place == "s3":
                    counted = len(requests)
    finally:
        botocore.endpoint.Endpoint._send = send  # noqa: SLF001
    return min(walls["s3"]), min(walls["file"]), counted
