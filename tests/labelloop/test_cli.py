"""The command line: help, start-up time, and errors in one line with the fix."""

import importlib
import inspect
import io
import os
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from rich.console import Console

from labelloop import VERSION
from labelloop.cli import main as cli
from labelloop.cli.main import COMMANDS, GROUPS, create_cli, main
from labelloop.service.errors import LabelloopError


def labelloop(*words, **env):
    return subprocess.run(
        [sys.executable, "-m", "labelloop.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def help_of(*words):
    console = Console(file=io.StringIO(), width=200)
    create_cli(words).help_print(list(words), console=console)
    return console.file.getvalue()


def test_help_is_fast():
    """Processor time: the machine that runs the tests may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert labelloop("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1


def test_help_imports_no_command():
    code = (
        "import sys; from labelloop.cli.main import create_cli; create_cli().help_print();"
        " print({'numpy', 'sqlalchemy', 'flask', 'label_studio_sdk', 'onnxruntime', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_every_command_is_listed_with_its_purpose(group):
    lines = help_of(*group.split()).splitlines()
    for command in COMMANDS:
        of_group, _, name = command.name.rpartition(" ")
        if of_group == group:
            assert any(name in line and command.purpose.replace("`", "") in line for line in lines), command


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_exists_and_documents_each_parameter(command):
    module, _, name = command.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    text = " ".join(help_of(*command.name.split()).split())
    assert inspect.getdoc(function).splitlines()[0].replace("`", "")[:60] in text
    assert "--settings" not in text
    for parameter in inspect.signature(function).parameters:
        assert parameter == "settings" or f"{parameter}: " in inspect.getdoc(function)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_only_what_is_on_by_default_has_a_word_to_switch_it_off(command):
    app = create_cli(command.name.split())
    for word in command.name.split():
        app = app[word]
    for argument in app.assemble_argument_collection():
        off = [name for name in argument.names if name.startswith("--no-")]
        assert not off or argument.field_info.default is True


def test_error_is_one_line_and_the_fix_with_status_1(tmp_path):
    done = labelloop("down", LABELLOOP_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"No labelloop up is running in {tmp_path}.\n→ Nothing to do.\n"


@pytest.mark.parametrize("words", [
    "learn 7", "learn report 7", "qc status 7", "qc recheck 7", "qc undo 7", "qc adopt 7", "qc send-back 7",
    "qc what-if 7 --policy policy.toml", "qc tune --from 7 --target-error .1", "inbox counts", "rotate",
])  # fmt: skip
def test_a_home_that_no_service_used_is_named_and_stays_empty(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "typing-error"))
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "no service has run with this home folder" in error
    assert "Set LABELLOOP_HOME" in error
    assert not (tmp_path / "typing-error").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_of_any_encoding_shows_every_finding(encoding, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "labelloop.cli.main", "doctor"],
        capture_output=True,
        check=False,
        env={**os.environ, "LABELLOOP_HOME": str(tmp_path / "höme"), "PYTHONIOENCODING": encoding},
    )
    assert b"Traceback" not in done.stderr
    out = done.stdout.decode(encoding)
    assert ("→" if encoding == "utf-8" else "\\u2192") in out
    assert "To check a project as well" in out


def test_invalid_setting_is_an_error(monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_URL", "nonsense")
    with pytest.raises(SystemExit) as ended:
        main(["down"])
    assert ended.value.code == 1
    assert "LABELLOOP_LABEL_STUDIO_URL" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("LABELLOOP_DEBUG", "1")
    with pytest.raises(LabelloopError, match="No labelloop up is running"):
        main(["down"])


def test_disk_error_is_one_line_that_names_the_file(tmp_path, monkeypatch, capsys):
    tasks = tmp_path / "tasks.json"
    tasks.write_text('[{"id": 1, "data": {"text": "a"}, "annotations": [{"id": 1, "completed_by": 1, "result": []}]}]')
    with pytest.raises(SystemExit):
        main(["export", str(tasks), "--to", str(tmp_path / "set"), "--format", "tasks-jsonl"])
    capsys.readouterr()
    missing = tmp_path / "no such folder" / "list.json"
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "list", str(tmp_path / "set"), "--json", str(missing)])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{missing}: No such file or directory.\n"


def test_closed_output_pipe_ends_silently():
    code = "import sys; from labelloop.cli.main import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "export", "--help"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as ran:
        ran.stdout.close()
        errors = ran.stderr.read()
    assert (ran.returncode, errors) == (1, b"")


@pytest.mark.parametrize(
    "words",
    [["connect"], ["connect", "one"], ["nonsense"], ["up", "--port", "many"], ["inbox", "replay", "x"]],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_missing_fix_is_left_out(monkeypatch, capsys):
    def fail(_words):
        raise LabelloopError("It broke.")

    monkeypatch.setattr(cli, "create_cli", lambda _words: fail)
    with pytest.raises(SystemExit) as ended:
        main(["down"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "It broke.\n"


def test_empty_defaults_are_not_shown():
    text = help_of("export")
    assert '[default: ""]' not in text
    assert "[default: False]" not in text
    assert "[default: latest]" in text


@pytest.mark.parametrize("command", ["export", "import", "dataset pull", "dataset validate", "dataset gc"])
def test_help_shows_example_calls(command):
    lines = [line.strip() for line in help_of(*command.split()).splitlines()]
    assert any(line.startswith(f"labelloop {command} ") for line in lines)


def test_version_is_that_of_the_installed_package():
    assert labelloop("--version").stdout.strip() == VERSION == version("labelloop")


def test_ctrl_c_during_import_or_run_exits_with_status_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "create_cli", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["learn"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("before", [None, "3"])
def test_exports_start_without_blas_threads_and_restore_the_setting(before, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", before)
    with cli.one_blas_thread():
        assert os.environ["OPENBLAS_NUM_THREADS"] == (before or "1")
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


@pytest.mark.parametrize(
    ("words", "frozen"),
    [("sys.argv[1:] = ['--version']; main()", True), ("main(['--version'])", False)],
    ids=["program", "called by Python code"],
)
def test_the_program_imports_without_the_garbage_collector(words, frozen):
    code = (
        "import gc, sys; from labelloop.cli.main import main\n"
        f"try: {words}\n"
        "finally: print(gc.isenabled(), gc.get_freeze_count() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"True {frozen}"


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("connect http://localhost:8080/projects/7/", "the number in the project's URL"),
        ("connect 7 --nope", "labelloop connect --help"),
        ("connct 7", "labelloop --help"),
        ("connect 7 8", "Put a value with spaces into quotes."),
        ("connect seven", '"seven" is not a whole number.'),
        ("up --port 99999", "Must be <= 65535."),
        ("doctor abc", "`labelloop doctor --help` shows what it takes."),  # beyond the 80th column
    ],
)
def test_wrong_usage_has_status_two_and_a_fix(words, fix, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert any(fix in line for line in capsys.readouterr().err.splitlines())
