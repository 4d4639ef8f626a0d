"""The command line: the table of commands. The code of a command is imported when it is called."""

import errno
import gc
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labelloop import VERSION

if TYPE_CHECKING:  # cyclopts is imported by `create_cli`; rich takes a tenth of the start
    from cyclopts import App, CycloptsError
    from rich.console import Console, Group

GROUPS = {
    "ml": "The ML backend, which pre-labels tasks.",
    "models": "Model files, and the served versions.",
    "learn": "Learning from annotations.",  # with a project: its state
    "qc": "Quality control, which measures agreement and routes disputes.",
    "inbox": "The inbox: stored events, and dead letters.",
    "dataset": "Exported data sets.",
}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: The words of the command, such as "qc serve".
        target: "module:function"; its docstring is the command's help.
        purpose: One line for the list of commands.
    """

    name: str
    target: str
    purpose: str


COMMANDS: Sequence[Command] = (
    Command("up", "labelloop.cli.stack:up", "Start the whole loop on this machine, with a demo project."),
    Command("down", "labelloop.cli.stack:down", "Stop the loop that `up` runs in another terminal."),
    Command("install", "labelloop.cli.stack:install", "Install stock Label Studio before the first `up`."),
    Command("connect", "labelloop.cli.stack:connect", "Connect a Label Studio project to the loop."),
    Command("doctor", "labelloop.cli.doctor:doctor", "Find out what is wrong, and how to fix it."),
    Command(
        "export", "exporters.cli.export:export", "Export annotated tasks as COCO, Pascal VOC and YOLO, to disk or S3."
    ),
    Command(
        "import", "exporters.cli.import_dataset:import_dataset", "Import COCO, VOC, YOLO or images into a project."
    ),
    Command("dataset list", "exporters.cli.dataset:dataset_list", "List the versions of a data set."),
    Command("dataset diff", "exporters.cli.dataset:dataset_diff", "Show what changed from one version to another."),
    Command(
        "dataset gc", "exporters.cli.dataset:dataset_gc", "Delete objects to which no version of a data set refers."
    ),
    Command(
        "dataset pull", "exporters.cli.dataset:dataset_pull", "Download a version as folders that a trainer reads."
    ),
    Command("dataset latest", "exporters.cli.dataset:dataset_latest", "Make latest/ equal to the published version."),
    Command(
        "dataset validate",
        "exporters.cli.validate:dataset_validate",
        "Check a data set for errors that loaders ignore.",
    ),
    Command(
        "dataset check",
        "labelloop.cli.check:dataset_check",
        "Look at a data set: near-duplicates, leaky splits, class balance, odd boxes.",
    ),
    Command(
        "dataset link",
        "exporters.cli.dataset:dataset_link",
        "Sign one URL from which a trainer elsewhere downloads labels and images.",
    ),
    Command(
        "dataset report",
        "exporters.cli.dataset:dataset_report",
        "Write a version as one HTML page with images and statistics.",
    ),
    Command("dataset verify", "exporters.cli.validate:dataset_verify", "Compare a version with its manifest."),
    Command("prelabel", "ml_backend.cli.prelabel:prelabel_project", "Pre-label a whole project (resumable)."),
    Command("ml serve", "ml_backend.cli.serve:serve", "Serve the ML backend."),
    Command("models list", "ml_backend.cli.models:models_list", "List the model versions, and which are served."),
    Command("models add", "ml_backend.cli.models:models_add", "Add an ONNX detector to the store as a version."),
    Command("models activate", "ml_backend.cli.models:models_activate", "Serve a version, without downtime."),
    Command("models pull", "ml_backend.cli.models:models_pull", "Download a model of the catalogue."),
    Command("models rollback", "ml_backend.cli.models:models_rollback", "Serve the previous version again."),
    Command(
        "models inspect",
        "ml_backend.cli.serve:models_inspect",
        "Describe a model file, and run it on an image.",
    ),
    Command(
        "learn",
        "ml_backend.cli.learn:learn",
        "Show the learning state of a project, and how many labels it needs.",
    ),
    Command(
        "learn report",
        "ml_backend.cli.learn_report:learn_report",
        "Report on the learning of a project: curve, edits, classes and versions, as a page or JSON.",
    ),
    Command(
        "learn simulate",
        "ml_backend.cli.learn_simulate:learn_simulate",
        "Estimate how many labels you need, from a data set that is already labelled.",
    ),
    Command("train", "ml_backend.cli.train:train", "Fine-tune the detector on your labels for some minutes."),
    Command("trainer", "ml_backend.cli.trainer:trainer", "Fine-tune on this machine for an ML backend on another one."),
    Command("qc serve", "qc_webhooks.cli.qc:serve", "Serve the webhook of quality control."),
    Command(
        "qc status",
        "qc_webhooks.cli.qc:status",
        "Show the task counts of a project: agreed, disputed, waiting, not judged.",
    ),
    Command(
        "qc report",
        "qc_webhooks.cli.offline:report",
        "Measure an exported file: agreement, conflicts, annotator reliability.",
    ),
    Command("qc what-if", "qc_webhooks.cli.what_if:what_if", "Replay past annotations under another policy."),
    Command(
        "qc tune",
        "qc_webhooks.cli.tune:tune_policy",
        "Propose the policy that reaches a wanted error with the fewest labels.",
    ),
    Command(
        "qc consensus",
        "qc_webhooks.cli.offline:consensus",
        "Merge the annotations of each task of an exported file into one.",
    ),
    Command("qc adopt", "qc_webhooks.cli.defaults:adopt", "Let a project use the newest defaults of the policy."),
    Command(
        "qc send-back", "labelloop.cli.send_back:send_back", "Send a task back to its annotator, or accept it redone."
    ),
    Command("qc undo", "qc_webhooks.cli.qc:undo", "Undo what quality control wrote to tasks."),
    Command("qc recheck", "qc_webhooks.cli.qc:recheck", "Check a project's tasks again."),
    Command("worker", "labelloop.cli.stack:worker", "Run the background worker (QC, learning, exports)."),
    Command(
        "rotate", "labelloop.stack.rotate:rotate", "Give every project's webhooks a new secret, without losing events."
    ),
    Command("inbox counts", "labelloop.cli.inbox:counts", "Count the events in each state."),
    Command("inbox dead", "labelloop.cli.inbox:dead", "List dead letters, with the reason."),
    Command("inbox replay", "labelloop.cli.inbox:replay", "Retry dead letters."),
    Command("inbox discard", "labelloop.cli.inbox:discard", "Delete dead letters, and print each."),
    Command("backup", "labelloop.cli.backup:backup", "Write the home folder into one file; services may keep running."),
    Command("restore", "labelloop.cli.backup:restore", "Restore a home folder from a backup."),
)


_FIXES = {
    errno.EDQUOT: "Your quota of that disk is used up: free some space there.",
    errno.ENOSPC: "Free some space on that disk, or in the folder of temporary files (set TMPDIR for another).",
    errno.EACCES: "Choose a folder that you may write.",
    errno.EROFS: "Choose a folder that can be written.",
}


def create_cli(words: Sequence[str] = ()) -> "App":
    """The command line for the given words.

    Lists of commands use the one-line purposes, so no command is imported; only the called command is, and its help
    is its docstring.
    """
    from cyclopts import App, Parameter

    app = App(
        name="labelloop",
        help="The annotation loop around stock Label Studio: pre-labels, quality control and data sets.",
        help_epilogue="Start with `labelloop up`. Settings are LABELLOOP_... in the environment or in settings.env of"
        " the home folder (.labelloop).",
        version=VERSION,
        version_format="plaintext",  # Markdown takes a third of the start
        default_parameter=Parameter(show_default=_default_text),
        error_formatter=_usage_error,
        suppress_keyboard_interrupt=False,  # `main` reports it, also during the import of a command
    )
    groups = {"": app}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if name in GROUPS:  # a group called without a subcommand; cyclopts needs the function itself, not its name
            is_called = list(words[:1]) == [name]
            groups[name] = App(name=name, help=None if is_called else command.purpose, help_epilogue="")
            app.command(groups[name])
            if is_called:
                module, _, function = command.target.partition(":")
                groups[name].default(getattr(importlib.import_module(module), function))
            continue
        if group not in groups:
            groups[group] = App(name=group, help=GROUPS[group], help_epilogue="")
            app.command(groups[group])
        is_called = list(words[: len(command.name.split())]) == command.name.split()
        if is_called and command.target.startswith("exporters."):
            with one_blas_thread():
                importlib.import_module(command.target.partition(":")[0])
        groups[group].command(command.target, name=name, help=None if is_called else command.purpose, help_epilogue="")
    return app


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Import numpy without starting BLAS threads, for programs that multiply no matrices.

    OpenBLAS starts one thread per core when numpy is imported: a tenth of the time of an export. Child processes,
    such as a training, do not inherit the limit.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause the garbage collector during imports and exempt what they made from it: a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _usage_error(error: "CycloptsError") -> "Group":
    """Print what the command line does not take, then the fix, as for every other error."""
    from cyclopts import CoercionError, UnusedCliTokensError
    from rich.console import Console, Group

    shown = " ".join(("labelloop", *(error.command_chain or ()), "--help"))
    message, fix = str(error), f"`{shown}` shows what it takes."
    for kind, name in {"int": "a whole number", "float": "a number"}.items():
        message = re.sub(rf'unable to convert (".*") into {kind}', rf"\1 is not {name}", message)
    argument = error.argument
    if isinstance(error, CoercionError) and argument is not None and "--project" in argument.names:
        fix = f"Give the number in the project's URL, /projects/NUMBER/. {fix}"
    if isinstance(error, UnusedCliTokensError):
        message = f"Too many words: {' '.join(error.unused_tokens or ())}."
        fix = f"Put a value with spaces into quotes. {fix}"
    _print_lines(error.console or Console(stderr=True), message, fix)
    return Group()  # what cyclopts prints is cut into lines, also within a command


def _default_text(default: Any) -> str | None:
    """A default as the help shows it; None for options that are off or empty."""
    return None if default in ("", 0, None) else str(default)


def main(words: Sequence[str] | None = None) -> None:
    """Run one command; our errors and those of the disk print one line with the fix and exit with status 1."""
    from labelloop.service.errors import LabelloopError
    from labelloop.service.signals import exit_status_of, raise_on_sigterm

    imports = paused_collector() if words is None else nullcontext()  # a caller's objects are not ours to freeze
    if words is None:
        words = sys.argv[1:]
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 gets \u2192 instead of an arrow
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with raise_on_sigterm():
            with imports:
                cli = create_cli(words)
            cli(words)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the last flush fails too
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        _print_error("Stopped.", "")
        raise SystemExit(exit_status_of(stop)) from None
    except (LabelloopError, OSError) as error:
        if os.environ.get("LABELLOOP_DEBUG"):
            raise
        if isinstance(error, LabelloopError):
            _print_error(error.message, error.fix)
        else:
            message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            _print_error(f"{message}.", _FIXES.get(error.errno or 0, ""))
        raise SystemExit(1) from None


def _print_error(message: str, fix: str) -> None:
    from rich.console import Console

    _print_lines(Console(stderr=True, highlight=False), message, fix)


def _print_lines(console: "Console", message: str, fix: str) -> None:
    """Print what is wrong, then the fix, each on a line of its own however long: commands are copied from it."""
    from rich.text import Text

    console.print(Text(message, "bold red"), soft_wrap=True)
    if fix:
        console.print(Text(f"→ {fix}"), soft_wrap=True)


if __name__ == "__main__":
    main()
