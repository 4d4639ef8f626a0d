"""Problems of the file that `labelloop qc report`, `qc consensus` and `qc what-if` are given."""

import json
from functools import partial
from pathlib import Path

from tests.exporters.conftest import BOX_CONFIG
from tests.input_problems.case import Case
from tests.input_problems.export_cases import array, lines, tasks
from tests.wrong_files import WRONG_FILES

SECTION = "Files of quality control: `labelloop qc report`, `qc consensus`, `qc what-if`"
_COMMANDS = {"report": "--json", "consensus": "--out", "what-if": "--json"}


def command(name: str, data: bytes, folder: Path) -> list[str]:
    """A command of quality control on a file."""
    (folder / "export.json").write_bytes(data)
    (folder / "config.xml").write_text(BOX_CONFIG.format(labels='<Label value="car"/>'))
    (folder / "policy.toml").write_text("")
    config = [f"--label-config={folder / 'config.xml'}"]
    policy = [f"--policy={folder / 'policy.toml'}"] if name == "what-if" else []
    out = f"{_COMMANDS[name]}={folder / 'out.json'}"
    return ["qc", name, f"--from={folder / 'export.json'}", *config, *policy, out]


def nothing_written(folder: Path) -> None:
    """No file was written."""
    assert not (folder / "out.json").exists()


_ARRAY, _LINES = array(tasks(200)), lines(tasks(200))
CASES = (
    *(
        Case(problem, "refused", partial(command, name, data), (said,), 1, nothing_written)
        for name in _COMMANDS
        for problem, data, said in (
            ("a JSON export that is cut", _ARRAY[: len(_ARRAY) // 2], "it is cut short: it ends at byte"),
            (
                "a JSON export that is cut behind a list",
                _ARRAY[: _ARRAY.index(b"]", len(_ARRAY) // 2) + 1],
                "it is cut short: it ends at byte",
            ),
            ("JSON Lines cut within a line", _LINES[: len(_LINES) // 3], "it is cut short: it ends at byte"),
            (
                "one page of the API's answer",
                json.dumps({"tasks": tasks(2), "total": 9}).encode(),
                "it contains 2 of 9",
            ),
        )
    ),
    *(
        Case(f"{problem}, instead of tasks", "refused", partial(command, "what-if", data), (said,), 1, nothing_written)
        for problem, (data, said) in WRONG_FILES.items()
    ),
    *(
        Case('an object with all tasks as "tasks"', "read", partial(command, name, data), (said,), 0)
        for name, said in {"report": "3 tasks", "consensus": "3 tasks", "what-if": "tasks 3 3"}.items()
        for data in (json.dumps({"tasks": tasks(3)}).encode(),)
    ),
)
