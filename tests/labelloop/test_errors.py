"""Errors are made from the templates of their classes: every call gives the fields that they need."""

import ast
from pathlib import Path
from string import Formatter

import pytest

from labelloop.service.errors import LabelloopError

PACKAGES = ("labelloop", "ml_backend", "qc_webhooks", "exporters")


def fields_of(template: ast.expr) -> set[str]:
    return {field.partition(".")[0] for _, field, _, _ in Formatter().parse(ast.literal_eval(template)) if field}


def incomplete_calls(sources: dict[str, str]) -> list[str]:
    """Calls of error classes without the fields of their templates."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    classes = {node.name: node for _, node in nodes if isinstance(node, ast.ClassDef)}
    errors = {"LabelloopError"}
    while True:
        derived = {name for name, node in classes.items() if errors & {ast.unparse(base) for base in node.bases}}
        if derived <= errors:
            break
        errors |= derived

    def declared(name: str, member: str) -> ast.AST | None:
        """The member's definition in the class or in its nearest base."""
        for node in classes[name].body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == member:
                return node.value
            if isinstance(node, ast.FunctionDef) and node.name == member:
                return node
        bases = [ast.unparse(base) for base in classes[name].bases]
        return next((declared(base, member) for base in bases if base in errors - {"LabelloopError"}), None)

    incomplete = []
    for file, call in nodes:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in classes.keys() & errors:
            name = call.func.id
            given = {keyword.arg for keyword in call.keywords}
            if declared(name, "__init__") or None in given:
                continue
            templates = {member: declared(name, member) for member in ("message", "fix")}
            needed = {
                field
                for member, template in templates.items()
                if isinstance(template, ast.expr) and member not in given and not (member == "message" and call.args)
                for field in fields_of(template)
            }
            lacks_message = templates["message"] is None and not call.args
            if needed - given or lacks_message or (call.args and templates["message"] is not None):
                incomplete.append(f"{file}:{call.lineno}: {name}")
    return incomplete


def test_every_error_gets_the_fields_of_its_templates():
    files = [file for package in PACKAGES for file in Path(package).rglob("*.py")]
    assert incomplete_calls({str(file): file.read_text() for file in files}) == []


@pytest.mark.parametrize(
    "call", ["Broken(path=1)", "Broken('a.onnx', reason='x')", "Plain(fix='y')", "Broken()", "Derived(reason=1)"]
)
def test_calls_without_their_fields_are_reported(call):
    classes = (
        "class Broken(LabelloopError):\n    message = '{path}: {reason}'\n\n"
        "class Derived(Broken):\n    fix = 'Replace {path}.'\n\n"
        "class Plain(LabelloopError):\n    code = 'plain'\n\n"
    )
    complete = "Broken(path=1, reason=2)\nDerived(path=1, reason=2)\nPlain('text')\n"
    assert incomplete_calls({"a.py": classes + complete}) == []
    assert len(incomplete_calls({"a.py": classes + call})) == 1


def test_templates_data_and_overrides():
    class Broken(LabelloopError):
        code = "broken"
        message = "The model {path} is broken: {reason}."
        fix = "Replace {path}."

    error = Broken(path="{m}.onnx", reason="no graph")
    assert str(error) == "The model {m}.onnx is broken: no graph. Replace {m}.onnx."
    assert (error.code, error.status, error.path) == ("broken", 500, "{m}.onnx")
    assert Broken(path="m", reason="x", fix="Wait {s}.").fix == "Wait {s}."
    gone = LabelloopError("It is {gone}.", code="gone", status=410)
    assert (str(gone), gone.code, gone.status, LabelloopError.code) == ("It is {gone}.", "gone", 410, "labelloop_error")
