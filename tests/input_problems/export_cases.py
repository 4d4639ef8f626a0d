"""Problems of what `labelloop export` is given."""

import sys
from pathlib import Path

from exporters.versions import read_head
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests.exporters.conftest import Build
from tests.input_problems.case import Case
from tests.wrong_files import WRONG_FILES

SECTION = "Exports: `labelloop export`"
_build = Build()
_TOUCH = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"


def command(folder: Path, data: bytes, *options: str, name: str = "export.json") -> list[str]:
    """An export of a file into the folder ``set``, with a command that leaves the file ``triggered``."""
    (folder / name).write_bytes(data)
    then = f"{sys.executable} -c '{_TOUCH}' {folder / 'triggered'}"
    to = f"file://{folder / 'set'}"
    return ["export", str(folder / name), "--to", to, "--no-fetch", "--split", "train=1", "--then", then, *options]


def published(folder: Path) -> str:
    """The published version; empty where there is none."""
    head = read_head(open_store(f"file://{folder / 'set'}", Settings(home=folder / "home", label_studio_api_key="")))
    return head[0].version if head and head[0] else ""


def nothing_left(folder: Path) -> None:
    """No version, published or not, and no trigger."""
    assert not [path for path in (folder / "set").rglob("*") if path.is_file()]
    assert not (folder / "triggered").exists()


def tasks(count: int) -> list[dict]:
    """Tasks with a box each."""
    return [_build.task(n, _build.annotation(_build.box(10, 10, 20, 20))) for n in range(1, count + 1)]


CASES = tuple(
    Case(
        f"{name}, instead of Label Studio's tasks",
        "refused",
        lambda folder, data=data: command(folder, data),
        (words,),
        1,
        nothing_left,
    )
    for name, (data, words) in WRONG_FILES.items()
)
