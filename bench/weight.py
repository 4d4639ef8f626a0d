"""What the project weighs: files, pages, settings, commands, dependencies, their size on disk, and the cold start.

Dependencies are those of the packages' metadata without extras, and all that these need in turn. Their sizes are those
of the packages that are installed now, also for earlier commits. A cold start is processor time, the least of several
runs, with bytecode on disk.
"""

import ast
import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("labelloop", "ml_backend", "qc_webhooks", "exporters")
RUNS = 5


def weights(root: Path, scratch: Path) -> dict[str, str]:
    """What is counted of a checkout, by its title.

    Args:
        root: The checkout.
        scratch: Folder for its bytecode.
    """
    requirements = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = closure(requirements)
    size = sum(installed_size(name) for name in needed)
    command = "labelloop.cli" if (root / "labelloop" / "cli.py").exists() else "labelloop.cli.main"
    return {
        "Python files of the four packages": f"{sum(_files(root / package) for package in PACKAGES):,}",
        "of the tests": str(_files(root / "tests")),
        "of the benches": str(_files(root / "bench")),
        "lines of Python in the four packages": f"{sum(_lines(root / package) for package in PACKAGES):,}",
        "of the tests and benches": f"{_lines(root / 'tests') + _lines(root / 'bench'):,}",
        "pages of docs/": str(len(list((root / "docs").rglob("*.md")))),
        "settings (`LABELLOOP_...`)": str(_calls(root / "labelloop", "_option")),
        "commands": str(_calls(root / "labelloop", "Command")),
        "direct dependencies, without extras": str(len(requirements)),
        "packages installed, without extras": str(len(needed)),
        "their size on disk": f"{size / 1e6:,.0f} MB",
        "test functions": f"{_tests(root / 'tests'):,}",
        "cold start of `labelloop --version`": f"{cold_start(root, command, '--version', scratch):.2f} s",
        "cold start of `labelloop --help`": f"{cold_start(root, command, '--help', scratch):.2f} s",
    }


def closure(requirements: list[str]) -> frozenset[str]:
    """The names of the packages that these need, themselves included; of those that are not installed only the name."""
    needed: set[tuple[str, frozenset[str]]] = set()
    pending = [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        entry = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if entry in needed:
            continue
        needed.add(entry)
        try:
            texts = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        extras = ["", *requirement.extras]
        pending += [
            child
            for child in map(Requirement, texts)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return frozenset(name for name, _ in needed)


def installed_size(name: str) -> int:
    """Bytes of a package's files; 0 if it is not installed."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return 0
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


def cold_start(root: Path, module: str, option: str, scratch: Path) -> float:
    """Processor seconds of a command of a checkout, the least of several runs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    seconds = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(  # in the checkout's folder, whose modules come first
            [sys.executable, "-m", module, option], cwd=root, env=environment, capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def _files(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.py"))


def _lines(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.rglob("*.py"))


def _nodes(folder: Path) -> Iterator[ast.AST]:
    for path in folder.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text()))


def _calls(folder: Path, name: str) -> int:
    """How often a function or class is called by its bare name: an entry of a table is a call."""
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in _nodes(folder)
    )


def _tests(folder: Path) -> int:
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in _nodes(folder))
