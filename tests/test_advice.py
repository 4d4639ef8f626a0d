"""Every command that a message, a fix or a page advises is one that the command line takes."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError, MissingArgumentError

from labelloop.cli.main import GROUPS, create_cli
from tests.test_docs import PAGES, names_of_commands, prose

ROOT = Path(__file__).parents[1]
PACKAGES = ("labelloop", "ml_backend", "qc_webhooks", "exporters")
# What stands for a value of the user's in a message, and a value to try.
PLACES = {
    "PROJECT": "7", "N": "7", "P": "7", "ID": "7", "NUMBER": "7", "FILE": "file", "VERSION": "cars-1", "URL": "file:///x",
    "NAME": "name", "COMMAND": "up", "TASK": "7", "M": "5", "...": "",
}  # fmt: skip
# A command ends where a sentence goes on.
_MARKED = re.compile(r"`(labelloop(?: [^`]*)?)`")
# A field of a message's template.
_FIELD = re.compile(r"\{(\w+)[^{}]*\}")
_AFTER_COLON = re.compile(r"(?:: |then |with )(labelloop [a-z][^.,;()`\n]*?)(?= keeps|[.,;()`\n]|$)")


def texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module as a user reads them, a value for each placeholder; docstrings are no messages."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else value_of(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield _FIELD.sub(lambda field: "--port" if field[1] == "option" else "7", node.value)


def value_of(part: ast.expr) -> str:
    """What a placeholder of a message may become."""
    return "--port" if ast.unparse(part) == "{option}" or "option}" in ast.unparse(part) else "7"


def advised() -> dict[str, str]:
    """Command -> a file that advises it."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
                for command in (*_MARKED.findall(text), *_AFTER_COLON.findall(text)):
                    found.setdefault(" ".join(command.split()), str(path.relative_to(ROOT)))
    return found


def refusal(command: str, *, whole: bool) -> str:
    """Why the command line does not take a command; empty where it does.

    Args:
        command: The command, as it is advised.
        whole: Whether it must be complete; else it may leave out arguments, as a sentence that names it does.
    """
    plain = re.sub(r"\[[^\]]*\]", "", command)  # what may be left out
    words = ["7" if word.startswith("$") else PLACES.get(word.rstrip("."), word) for word in shlex.split(plain)[1:]]
    words = [word.removesuffix("...") for word in words if word.removesuffix("...")]
    app = create_cli(words)
    if len(words) == 1 and words[0] in GROUPS and app[words[0]].default_command is None:
        return ""  # a family of commands, named as such
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        return f"{error}" if whole else ""
    except CycloptsError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shown_commands(page: Path) -> list[str]:
    """What follows `labelloop` wherever a page shows a command."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    inline = (f"\n{code}" for code in re.findall(r"`([^`\n]+)`", prose(page)))
    lines = blocks + "".join(inline)
    return re.findall(r"^(?:.*[|&;] )?(?:\S*/)?labelloop ([^|&;#\n]*)", lines, flags=re.MULTILINE)


ADVISED = advised()


def test_advice_is_found_in_the_source():
    assert "labelloop inbox replay --all" in ADVISED
    assert "labelloop connect 7" in ADVISED
    assert len(ADVISED) > 30


@pytest.mark.parametrize("command", sorted(ADVISED))
def test_a_command_that_a_message_advises_is_taken(command):
    whole = ADVISED[command].startswith("labelloop/doctor/")  # its fixes are copied into a terminal
    assert refusal(command, whole=whole) == "", f"{ADVISED[command]} advises `{command}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_that_a_page_shows_are_taken(page):
    shown = {command.strip() for command in shown_commands(page)}
    assert {command: said for command in shown if (said := refusal(f"labelloop {command}", whole=False))} == {}


def examples_in_help(text: str) -> list[str]:
    """The commands of labelloop in the blocks of code of a docstring."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL))
    return re.findall(r"^(?:\w+=\S+ )?(labelloop [^#&|\n]*)", blocks, flags=re.MULTILINE)


@pytest.mark.parametrize("name", [*names_of_commands(create_cli()), "learn"])
def test_help_shows_an_example_that_the_command_line_takes(name):
    app = create_cli(name.split())
    for word in name.split():
        app = app[word]
    examples = examples_in_help(inspect.getdoc(app.default_command) or "")
    arguments = app.assemble_argument_collection(parse_docstring=True)
    assert [argument.name for argument in arguments if not (argument.parameter.help or "")[:1].isupper()] == []
    needs_something = any(argument.required for argument in arguments)
    assert examples or not needs_something, f"labelloop {name} --help has no example"
    assert {example: said for example in examples if (said := refusal(example, whole=True))} == {}


def test_a_command_that_is_none_is_refused():
    for wrong in ("labelloop inbox replay all", "labelloop inbox replya --all", "labelloop connect"):
        assert refusal(wrong, whole=True)
