"""What each kind of store does, and what an export to it costs: a folder, and emulators of S3, Google and Azure.

The servers are those of the system tests: OpenStack Swift, fake-gcs-server and Azurite (`sh tests/system/setup.sh`).
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from labelloop.service.settings import Settings
from labelloop.service.store import ObjectChanged, ObjectExists, ObjectNotFound, Store, StoreError, open_store

TASKS = 300
CHANGED = 5
KINDS = ("coco", "voc", "yolo-detect")
RACERS, RACES, WRITERS = 8, 5, 3
BIG_BYTES = 40 << 20
KEYS = 201


@dataclass(frozen=True)
class Place:
    """A store to measure.

    Attributes:
        name: What it is.
        url: Its address.
        settings: How it is reached.
        requests: Counts the requests since the last call.
    """

    name: str
    url: str
    settings: Settings
    requests: Callable[[], int] | None


def run() -> str:
    """The table of behaviours, and seconds and requests of exports."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        places, missing = [], []
        for opener in (_folder, _swift, _google, _azure):
            try:
                places.append(stack.enter_context(opener(folder)))
            except _NotInstalled as error:
                missing.append(str(error))
        return "\n".join([*_behaviours(places), "", *_exports(places, folder), "", *(f"- {line}" for line in missing)])


class _NotInstalled(Exception):
    """A server is not installed."""


@contextmanager
def _folder(folder: Path) -> Iterator[Place]:
    yield Place("folder", (folder / "store").as_uri(), Settings(home=folder / "home"), None)


@contextmanager
def _swift(folder: Path) -> Iterator[Place]:
    import botocore.endpoint

    from labelloop.service.store.s3_client import s3_client
    from tests.system.s3_fixtures import KEY, SECRET, VENV, start, takes_xattrs

    if not (VENV / "bin" / "swift-proxy-server").exists():
        raise _NotInstalled("S3: OpenStack Swift is not installed")
    with tempfile.TemporaryDirectory(dir=VENV.parent) as beside:
        disk = folder if takes_xattrs(folder) else Path(beside)
        processes: list = []
        try:
            settings = Settings(
                home=folder / "home",
                s3_endpoint_url=f"http://127.0.0.1:{start(disk, processes)}",
                s3_access_key_id=KEY,
                s3_secret_access_key=SECRET,
            )
            s3_client(settings).create_bucket(Bucket="bench")
            with _counted(botocore.endpoint.Endpoint, "_send") as requests:
                yield Place("S3 (Swift)", "s3://bench/store", settings, requests)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


@contextmanager
def _google(folder: Path) -> Iterator[Place]:
    from requests import Session

    from tests.system.cloud_fixtures import HOME, running_gcs

    if not (HOME / "fake-gcs" / "bin").exists():
        raise _NotInstalled("Google: fake-gcs-server is not installed")
    with running_gcs() as server, _environment(server.environment()), _counted(Session, "send") as requests:
        yield Place("Google (fake-gcs)", f"gs://{server.make_bucket()}/store", Settings(home=folder / "home"), requests)


@contextmanager
def _azure(folder: Path) -> Iterator[Place]:
    import shutil

    from tests.system.cloud_fixtures import AZURITE, running_azure

    if not AZURITE.exists() or shutil.which("node") is None:
        raise _NotInstalled("Azure: Node or Azurite is not installed")
    log, seen = folder / "azurite.log", [0]

    def requests() -> int:
        lines = log.read_bytes().count(b" HTTP/1.1")
        new, seen[0] = lines - seen[0], lines
        return new

    with running_azure(log) as server, _environment(server.environment()):
        yield Place("Azure (Azurite)", f"az://{server.make_bucket()}/store", Settings(home=folder / "home"), requests)


@contextmanager
def _counted(owner: type, method: str) -> Iterator[Callable[[], int]]:
    """Count the calls of a method."""
    send, count, lock = getattr(owner, method), [0], threading.Lock()

    def counted(self, *args, **kwargs):
        with lock:
            count[0] += 1
        return send(self, *args, **kwargs)

    def since() -> int:
        with lock:
            new, count[0] = count[0], 0
        return new

    setattr(owner, method, counted)
    try:
        yield since
    finally:
        setattr(owner, method, send)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _second_create(store: Store, _: Path) -> str:
    store.create("once", b"first")
    try:
        store.create("once", b"second")
    except ObjectExists:
        return "refused" if store.get("once") == b"first" else "OVERWRITTEN"
    return "ACCEPTED"


def _stale_swap(store: Store, _: Path) -> str:
    old = store.put("state", b"one")
    store.swap("state", b"two", etag=old)
    try:
        store.swap("state", b"late", etag=old)
    except ObjectChanged:
        return "refused" if store.get("state") == b"two" else "OVERWRITTEN"
    return "ACCEPTED"


def _race(store: Store, _: Path) -> str:
    winners = []
    for turn in range(RACES):
        barrier = threading.Barrier(RACERS)

        def create(n: int, turn: int = turn, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                store.create(f"race/{turn}", b"%d" % n)
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(RACERS) as pool:
            winners.append(sum(pool.map(create, range(RACERS))))
    return f"{winners.count(1)} of {RACES}"


def _waits(store: Store, _: Path) -> str:
    clock = time.perf_counter()
    for turn in range(3):
        store.create(f"alone/{turn}", b"x")
    return f"{(time.perf_counter() - clock) / 3 * 1000:.0f} ms"


def _increments(store: Store, _: Path) -> str:
    store.put("counter", b"0")

    def add(number: int) -> None:
        del number
        while True:
            data, etag = store.read("counter")
            try:
                store.swap("counter", b"%d" % (int(data) + 1), etag=etag)
            except ObjectChanged:
                continue
            return

    clock = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(add, range(WRITERS)))
    return f"{store.get('counter').decode()} of {WRITERS}, {time.perf_counter() - clock:.1f} s"


def _pages(store: Store, _: Path) -> str:
    store.put_many((f"many/{n:05}", b"x") for n in range(KEYS))
    clock = time.perf_counter()
    keys = list(store.list("many/"))
    assert keys == sorted(keys)
    return f"{len(keys):,}, {time.perf_counter() - clock:.2f} s"


def _big(store: Store, folder: Path) -> str:
    file = folder / "big"
    file.write_bytes(os.urandom(1 << 20) * (BIG_BYTES >> 20))
    store.put("big", file)
    store.download("big", folder / "back")
    return "same" if (folder / "back").read_bytes() == file.read_bytes() else "DIFFERENT"


def _copy(store: Store, _: Path) -> str:
    store.put("photo a ü.jpg", b"1")
    store.copy("photo a ü.jpg", "copy.jpg")
    return "yes" if store.get("copy.jpg") == b"1" else "NO"


def _delete(store: Store, _: Path) -> str:
    store.put("gone", b"")
    store.delete("gone")
    store.delete("gone")
    try:
        store.get("gone")
    except ObjectNotFound:
        return "yes"
    return "NO"


def _locks(store: Store, _: Path) -> str:
    with store.lock("name", wait_s=5):
        try:
            with store.lock("name", wait_s=0.2):
                return "SHARED"
        except StoreError:
            return "one holder"


def _self_test(store: Store, _: Path) -> str:
    return "nothing missing" if not store.self_test().detail else "works around If-Match"


BEHAVIOURS: dict[str, Callable[[Store, Path], str]] = {
    "a second `create` of a key": _second_create,
    "a `swap` with an old etag": _stale_swap,
    f"races of {RACERS} creators with one winner": _race,
    f"increments of {WRITERS} writers kept": _increments,
    "a `create` without rivals": _waits,
    f"list of {KEYS:,} keys": _pages,
    f"a file of {BIG_BYTES >> 20} MiB, up and down": _big,
    "copy by the store": _copy,
    "delete, and of what is missing": _delete,
    "lock": _locks,
    "self-test": _self_test,
}


def _behaviours(places: list[Place]) -> Iterator[str]:
    yield "## Behaviours"
    yield ""
    yield f"| | {' | '.join(place.name for place in places)} |"
    yield f"|---|{'---|' * len(places)}"
    stores = [open_store(f"{place.url}/behaviours", place.settings) for place in places]
    with tempfile.TemporaryDirectory() as folder:
        for name, behave in BEHAVIOURS.items():
            cells = []
            for place, store in zip(places, stores, strict=True):
                clock = time.perf_counter()
                cells.append(behave(store, Path(folder)))
                print(f"{name}, {place.name}: {time.perf_counter() - clock:.1f} s", file=sys.stderr, flush=True)
            yield f"| {name} | {' | '.join(cells)} |"


def _exports(places: list[Place], folder: Path) -> Iterator[str]:
    from bench.export import CONFIG, write_export
    from exporters.pipeline.export import export

    file = folder / "export.json"
    write_export(file, TASKS)
    changed = folder / "changed.json"
    tasks = json.loads(file.read_bytes())
    for task in tasks[:: TASKS // CHANGED]:
        task["annotations"][0]["result"] = task["annotations"][0]["result"][1:]
    changed.write_text(json.dumps(tasks))
    yield "## Exports"
    yield ""
    yield f"The same {TASKS:,} tasks of about 9 objects to COCO, VOC and YOLO with `latest/` and archives; then with"
    yield f"{CHANGED} tasks changed. Server and client share this machine, so seconds are of both."
    yield ""
    yield "| to | first: s | requests | second: s | requests | loose files written | kept |"
    yield "|---|---|---|---|---|---|---|"
    for place in places:
        cells = [place.name]
        for source in (file, changed):
            if place.requests:
                place.requests()
            clock = time.perf_counter()
            report = export(
                source,
                settings=place.settings,
                to=f"{place.url}/set",
                formats=list(KINDS),
                label_config=CONFIG,
                fetch=False,
                max_errors=1.0,
            )
            cells += [f"{time.perf_counter() - clock:.1f}", f"{place.requests():,}" if place.requests else "-"]
        cells += [f"{report.latest_files['written']:,}", f"{report.latest_files['same']:,}"]
        yield f"| {' | '.join(cells)} |"
