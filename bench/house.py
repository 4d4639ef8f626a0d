"""How the code reads and what it weighs, in counts: names, idioms, docstrings, cycles; files, dependencies, start.

Counts, not verdicts. Earlier commits are read from the repository's history; where that is missing, only the working
tree is counted.
"""

import ast
import re
import subprocess
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.weight import PACKAGES, weights

ROOT = Path(__file__).parents[1]
COMMITS: Mapping[str, str] = {"11e2178": "first review", "4a17226": "before the layout"}
DOCS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md")
PAGES = ("*.jinja", "*.html", "*.jinja2")
SHORT_FILE, LONG_LINE = 80, 120

# Words that say nothing of a value: they are not names.
PLACEHOLDERS = frozenset(
    [
        "told",
        "said",
        "one",
        "each",
        "some",
        "mine",
        "theirs",
        "found",
        "made",
        "kept",
        "given",
        "place",
        "asked",
        "seen",
        "heard",
        "shown",
        "known",
        "settled",
        "taken",
        "those",
        "all_of",
        "here",
        "there",
        "away",
        "beside",
        "none",
        "look",
        "looks",
        "stance",
    ]
)
IDIOMS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(is|are) told\b", r"\bbe had\b", r"\bhangs? on\b", r"\ball the same\b", r"\bof late\b", r"\bwhoever\b",
        r"\bnobody\b", r"\bsomebody\b", r"\bno \w+ but\b", r"\bnow and then\b", r"\bso many\b", r"\btold apart\b",
        r"\bmend(s|ed)?\b", r"\banew\b", r"\beverybody\b", r"\bbeside\b", r"\bfor all there is\b", r"\bas it is\b",
        r"\bwhat all\b", r"\bgone on with\b", r"\blook(s|ed)? (at )?whether\b", r"\bnought\b",
        r"\bso that it need not\b",
    )
)  # fmt: skip

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Module:
    """A source file: its path below the repository, text and syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Its dotted name."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")


def run() -> str:
    """The counts and weights of the earlier commits and of the working tree, in Markdown."""
    read: dict[str, dict[str, str]] = {}
    weighed: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for commit, title in {**COMMITS, "": "now"}.items():
            root = checkout(commit, Path(folder) / commit) if commit else ROOT
            if root is not None:
                name = f"{commit} ({title})" if commit else title
                read[name], weighed[name] = counts(root), weights(root, Path(folder))
    return f"## How it reads\n\n{_table(read)}\n\n## What it weighs\n\n{_table(weighed)}"


def _table(columns: Mapping[str, Mapping[str, str]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {what} | {' | '.join(column[what] for column in columns.values())} |" for what in columns["now"]]
    return "\n".join(lines)


def counts(root: Path) -> dict[str, str]:
    """What is counted of a checkout, by its title."""
    modules = list(read_modules(root))
    code = sum(_code_lines(module) for module in modules)
    classes = defaultdict(set)
    names: Counter[str] = Counter()
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].add(module.path)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names[node.id] += 1
    vague = sum(names[name] for name in PLACEHOLDERS)
    docs = [path.read_text() for pattern in DOCS for path in sorted(root.glob(pattern))]
    pages = [path.read_text() for package in PACKAGES for page in PAGES for path in (root / package).rglob(page)]
    args, returns = _documented(modules)
    return {
        "files": f"{len(modules):,}",
        f"files under {SHORT_FILE} lines": str(sum(module.text.count("\n") < SHORT_FILE for module in modules)),
        "code lines without docstrings, comments and blanks": f"{code:,}",
        "public class names in two files": str(sum(len(paths) > 1 for paths in classes.values())),
        "bound names that are placeholders": f"{vague / names.total():.1%}",
        "idioms in docstrings and comments": str(sum(_idioms(_prose(module)) for module in modules)),
        "idioms in docs": str(sum(map(_idioms, docs))),
        "idioms in strings and pages": str(sum(map(_idioms, [*map(_strings, modules), *pages]))),
        f"lines of docs over {LONG_LINE} columns, rows of tables aside": str(
            sum(len(line) > LONG_LINE and line[0] != "|" for text in docs for line in text.splitlines())
        ),
        "public functions with parameters that have Args": args,
        "public functions with a result that have Returns": returns,
        "import contracts": str(_contracts(root)),
        "import cycles": str(len(import_cycles(modules))),
    }


def read_modules(root: Path) -> Iterator[Module]:
    """The source files of the four packages."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_text()
            yield Module(path.relative_to(root), text, ast.parse(text))


def import_cycles(modules: Sequence[Module]) -> list[list[str]]:
    """Groups of modules that import each other, also inside functions and for type checkers only.

    Tarjan's strongly connected components of more than one module (SIAM Journal on Computing 1, 1972).
    """
    names = {module.name for module in modules}
    graph = {module.name: sorted(_imports(module, names)) for module in modules}
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in graph[name]:
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            at = stack.index(name)
            component, stack[at:] = stack[at:], []
            if len(component) > 1:
                cycles.append(sorted(component))

    for name in graph:
        if name not in order:
            visit(name)
    return cycles


def _imports(module: Module, names: set[str]) -> set[str]:
    targets = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            targets |= submodules or {node.module}
    return (targets & names) - {module.name}


def checkout(commit: str, folder: Path) -> Path | None:
    """The repository at a commit; None where its history does not have it."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        return None
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _definitions(module: Module) -> Iterator[Definition]:
    return (node for node in ast.walk(module.tree) if isinstance(node, Definition))


def _prose(module: Module) -> str:
    """Docstrings and comments."""
    docstrings = (ast.get_docstring(node) or "" for node in _definitions(module))
    return " ".join([*docstrings, *re.findall(r"#\s(.*)", module.text)]).lower()


def _strings(module: Module) -> str:
    """String literals of several words that are no docstrings: errors, help and logs."""
    first = (node.body[0] for node in _definitions(module) if node.body)
    docstrings = {id(statement.value) for statement in first if isinstance(statement, ast.Expr)}
    texts = (node for node in ast.walk(module.tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return " ".join(text.value for text in texts if isinstance(text.value, str) and " " in text.value).lower()


def _idioms(text: str) -> int:
    lowered = text.lower()
    return sum(len(idiom.findall(lowered)) for idiom in IDIOMS)


def _code_lines(module: Module) -> int:
    lines = sum(bool(line.strip()) and not line.strip().startswith("#") for line in module.text.splitlines())
    docstrings = (node.body[0] for node in _definitions(module) if ast.get_docstring(node))
    return lines - sum((node.end_lineno or 0) - node.lineno + 1 for node in docstrings)


def _documented(modules: Sequence[Module]) -> tuple[str, str]:
    """Shares of public functions whose docstring has ``Args``, and ``Returns`` or ``Yields``."""
    parameters = with_args = results = with_returns = 0
    for module in modules:
        for node in _definitions(module):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            docstring = ast.get_docstring(node) or ""
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if [argument for argument in arguments if argument.arg not in ("self", "cls")]:
                parameters += 1
                with_args += bool(re.search(r"^\s*Args:", docstring, re.MULTILINE))
            if node.returns is not None and not (isinstance(node.returns, ast.Constant) and node.returns.value is None):
                results += 1
                with_returns += bool(re.search(r"^\s*(Returns|Yields):", docstring, re.MULTILINE))
    return f"{with_args / parameters:.0%}", f"{with_returns / results:.0%}"


def _contracts(root: Path) -> int:
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    return len(settings["tool"]["importlinter"]["contracts"])
