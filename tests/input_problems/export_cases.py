"""Problems of what `labelloop export` is given."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from exporters.dataset.versions import read_head
from labelloop.cli.main import main
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests.exporters.conftest import Build
from tests.input_problems.case import Case
from tests.wrong_files import WRONG_FILES

SECTION = "Exports: `labelloop export`"
_build = Build()
_TOUCH = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
_UNSIZED = {"original_width": None, "original_height": None}


def command(folder: Path, source: bytes | Path, *options: str) -> list[str]:
    """An export into the folder ``set`` that, once published, leaves the file ``triggered``."""
    path = source if isinstance(source, Path) else folder / "export.json"
    if isinstance(source, bytes):
        path.write_bytes(source)
    then = f"{sys.executable} -c '{_TOUCH}' {folder / 'triggered'}"
    to = f"file://{folder / 'set'}"
    return ["export", str(path), "--to", to, "--no-fetch", "--split", "train=1", "--then", then, *options]


def version(folder: Path) -> str:
    """The published version; empty where there is none."""
    head, _ = read_head(open_store(f"file://{folder / 'set'}", Settings(home=folder, label_studio_api_key="")))
    return head.version if head else ""


def nothing_left(folder: Path) -> None:
    """No version, published or not, and no trigger."""
    assert not [path for path in (folder / "set").rglob("*") if path.is_file()]
    assert not (folder / "triggered").exists()


def nothing_published(folder: Path) -> None:
    """No published version, and no trigger."""
    assert not version(folder)
    assert not (folder / "triggered").exists()


def first_stays(folder: Path) -> None:
    """The first version is still the published one, and nothing was triggered."""
    assert version(folder) == "v000001"
    assert not (folder / "triggered").exists()


def published(folder: Path) -> None:
    """A version is published and the trigger ran."""
    assert version(folder)
    assert (folder / "triggered").exists()


def tasks(count: int, *, first: int = 1) -> list[dict]:
    """Tasks with a box each."""
    return [_build.task(n, _build.annotation(_build.box(10, 10, 20, 20))) for n in range(first, first + count)]


def array(items: Sequence[object]) -> bytes:
    """A JSON array."""
    return json.dumps(items).encode()


def lines(items: Sequence[object]) -> bytes:
    """JSON Lines without a newline at the end."""
    return "\n".join(map(json.dumps, items)).encode()


def cut(form: Callable[[Sequence[object]], bytes], share: float, folder: Path) -> list[str]:
    """A file of 200 tasks that ends at a share of its bytes."""
    data = form(tasks(200))
    return command(folder, data[: int(len(data) * share)])


def cut_behind_a_list(folder: Path) -> list[str]:
    """A file that is cut right behind a bracket, so that its last byte looks like the end of the array."""
    data = array(tasks(200))
    return command(folder, data[: data.index(b"]", len(data) // 2) + 1])


def after(before: bytes, then: Callable[[Path], list[str]], folder: Path) -> list[str]:
    """A second export, after one that published a file."""
    words = command(folder, before)
    with pytest.raises(SystemExit) as ended:
        main(words[: words.index("--then")])
    assert not ended.value.code
    return then(folder)


def storage(objects: dict[str, bytes], folder: Path) -> list[str]:
    """A target storage with an annotation, and further objects."""
    place = folder / "target"
    place.mkdir()
    annotation = _build.annotation(_build.box(10, 10, 20, 20), number=7)
    task = {"id": 1, "data": {"image": "s3://photos/1.jpg"}}
    (place / "7").write_bytes(json.dumps(annotation | {"task": task}).encode())
    for name, data in objects.items():
        (place / name).write_bytes(data)
    return command(folder, place, "--max-errors", "1")


def predicted(count: int) -> list[dict]:
    """Tasks that only a model has seen."""
    prediction = {"id": 1, "model_version": "m", "score": 0.5, "result": [_build.box(1, 1, 5, 5)]}
    return [_build.task(n) | {"predictions": [prediction]} for n in range(1, count + 1)]


def unsized() -> list[dict]:
    """Tasks whose boxes do not say how large their image is."""
    return [_build.task(n, _build.annotation(_build.box(10, 10, 20, 20, **_UNSIZED))) for n in range(1, 5)]


def empty(count: int) -> list[dict]:
    """Tasks whose annotation holds nothing, and whose photos cannot be fetched."""
    return [_build.task(n, _build.annotation(), image=f"https://gone.invalid/{n}.jpg") for n in range(1, count + 1)]


def blank(count: int, *, first: int = 1) -> list[dict]:
    """Tasks whose annotation holds nothing, and whose image has a size."""
    numbers = range(first, first + count)
    return [_build.task(n, _build.annotation(number=n), width=64, height=48) for n in numbers]


def lone_points() -> list[dict]:
    """Tasks with two points and no region around them, as Label Studio's template "Keypoint Labeling" gives them."""
    points = _build.keypoint(10, 10, "Face"), _build.keypoint(12, 14, "Nose")
    return [_build.task(n, _build.annotation(*points)) for n in range(1, 5)]


_CUT = "it is cut short: it ends at byte"
CASES = (
    *(
        Case("a JSON export that is cut anywhere", "refused", partial(cut, array, share), (_CUT,), 1, nothing_left)
        for share in (0.001, 0.3, 0.5, 0.9, 0.9999)
    ),
    Case("a JSON export that is cut behind a list", "refused", cut_behind_a_list, (_CUT,), 1, nothing_published),
    *(
        Case("JSON Lines cut within a line", "refused", partial(cut, lines, share), (_CUT,), 1, nothing_left)
        for share in (0.001, 1 / 3, 0.5, 0.999)
    ),
    Case(
        "JSON Lines without a newline at the end",
        "read",
        lambda folder: command(folder, lines(tasks(3))),
        ("tasks: 3 of 3",),
        0,
        published,
    ),
    Case(
        "a broken line within JSON Lines",
        "skipped and counted",
        lambda folder: command(folder, lines(tasks(2)) + b'\n{"id": 9, "da\n' + lines(tasks(2, first=3))),
        ("1 not: malformed", "tasks: 4 of 5", "NOT published: 20.0% failed"),
        1,
        nothing_published,
        "published while at most --max-errors failed",
    ),
    Case(
        "something else than a task within a JSON export",
        "skipped and counted",
        lambda folder: command(folder, array([*tasks(200), None, *tasks(1, first=201)])),
        ("1 not: malformed", "tasks: 201 of 202"),
        0,
        published,
        "published while at most --max-errors failed",
    ),
    Case(
        "one page of the answer of Label Studio's API",
        "refused",
        lambda folder: command(folder, json.dumps({"tasks": tasks(3), "total": 200}).encode()),
        ("it contains 3 of 200 tasks",),
        1,
        nothing_published,
    ),
    Case(
        'an object with all tasks as "tasks"',
        "read",
        lambda folder: command(folder, json.dumps({"total": 3, "tasks": tasks(3), "pages": 1}).encode()),
        ("tasks: 3 of 3",),
        0,
        published,
    ),
    *(
        Case(
            "an object of a target storage that is cut short",
            "refused",
            partial(storage, {"8": data}),
            ("cut short: 8 ends at byte",),
            1,
            nothing_left,
        )
        for data in (b"", b'{"id": 8, "result": [')
    ),
    Case(
        "an object of a target storage that is no annotation",
        "skipped and counted",
        partial(storage, {"8": b'{"id": 8, "result": []}'}),
        ("1 not: malformed",),
        0,
        published,
        "published while at most --max-errors failed",
    ),
    Case(
        "far fewer tasks than the published version has",
        "refused",
        partial(after, array(tasks(200)), lambda folder: command(folder, array(tasks(66)))),
        ("far smaller than the published version: 66 of 200 tasks (67% fewer)", "--allow-shrink"),
        1,
        first_stays,
        "the version is kept unpublished",
    ),
    Case(
        "far fewer objects than the published version has",
        "refused",
        partial(
            after,
            array(tasks(10)),
            lambda folder: command(folder, array([*tasks(1), *blank(9, first=2)])),
        ),
        ("1 of 10 regions (90% fewer)",),
        1,
        first_stays,
        "the version is kept unpublished",
    ),
    Case(
        "far fewer tasks, with --allow-shrink",
        "read",
        partial(after, array(tasks(200)), lambda folder: command(folder, array(tasks(66)), "--allow-shrink")),
        ("tasks: 66 of 66",),
        0,
        published,
    ),
    Case(
        "tasks that have only predictions",
        "refused",
        lambda folder: command(folder, array(predicted(200))),
        (
            "no image is in it. Dropped tasks: 200 (only predictions, no annotation)",
            "Create Annotations From Predictions",
        ),
        1,
        nothing_left,
    ),
    Case(
        "a project without tasks",
        "refused",
        lambda folder: command(folder, b"[]"),
        ("no image is in it. The source has no tasks",),
        1,
        nothing_left,
    ),
    Case(
        "every task left out by an option",
        "refused",
        lambda folder: command(folder, array(tasks(5)), "--annotation", "user:99"),
        ("no image is in it. Dropped tasks: 5 (no annotation by the policy)",),
        1,
        nothing_left,
    ),
    Case(
        "every task left out, and a version is published",
        "refused",
        partial(after, array(tasks(5)), lambda folder: command(folder, array(tasks(5)), "--annotation", "user:99")),
        ("no image is in it, and images are in the one before",),
        1,
        first_stays,
        "the version is kept unpublished",
    ),
    Case(
        "only empty annotations, and no label config",
        "refused",
        lambda folder: command(folder, array(blank(1))),
        ("no object is in it, and no label config names classes",),
        1,
        nothing_left,
    ),
    Case(
        "key points without the box of their object, for formats of objects",
        "refused",
        lambda folder: command(folder, array(lone_points())),
        ("What is drawn are key points that belong to no region.", "RectangleLabels next to KeyPointLabels"),
        1,
        nothing_left,
    ),
    Case(
        "boxes on images of unknown size, for YOLO",
        "converted",
        lambda folder: command(folder, array(unsized()), "--format", "yolo-detect,yolo-obb,yolo-segment"),
        ("images of unknown size, in the formats that need none 4", "failed: 0 (0.0%)"),
        0,
        published,
        "rows are shares of the image; turned boxes and masks fail",
    ),
    Case(
        "boxes on images of unknown size, for COCO, VOC and YOLO",
        "skipped and counted",
        lambda folder: command(folder, array([*unsized(), *tasks(4, first=5)])),
        ("4 image of unknown size, left out", "coco, voc: images of unknown size left out"),
        0,
        published,
        "by COCO and VOC; YOLO holds them",
    ),
    Case(
        "boxes on images of unknown size, for COCO and VOC alone",
        "skipped and counted",
        lambda folder: command(folder, array([*unsized(), *tasks(4, first=5)]), "--format", "coco,voc"),
        ("4 not: no image with a known size", "NOT published: 50.0% failed"),
        1,
        nothing_published,
        "published while at most --max-errors failed",
    ),
    Case(
        "empty annotations of photos that cannot be fetched",
        "skipped and counted",
        lambda folder: command(folder, array([*empty(3), *tasks(1, first=9)]), "--max-errors", "1"),
        ("failed: 3 (75.0%)",),
        0,
        published,
        "each photo is one failure",
    ),
    *(
        Case(
            f"{name}, instead of Label Studio's tasks",
            "refused",
            lambda folder, data=data: command(folder, data),
            (words,),
            1,
            nothing_left,
        )
        for name, (data, words) in WRONG_FILES.items()
    ),
)
