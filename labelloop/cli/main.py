"""The command line: which commands there are. The code of each is loaded when it is called."""

import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cyclopts import App, Parameter

from labelloop import VERSION

GROUPS = {
    "ml": "The ML backend, which draws pre-labels.",
    "models": "Model files, and the versions that are served.",
    "learn": "Learning from what annotators draw.",  # with a project: how it stands
    "qc": "Quality control, which measures agreement and routes disputes.",
    "inbox": "The durable inbox of events.",
    "dataset": "Data sets that were exported.",
}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What is typed, e.g. "qc serve".
        target: "module:function"; its docstring is the command's help.
        purpose: One line for the list of commands.
    """

    name: str
    target: str
    purpose: str


COMMANDS: Sequence[Command] = (
    Command("up", "labelloop.cli.stack:up", "Bring the whole loop up on this machine, with a project to try."),
    Command("down", "labelloop.cli.stack:down", "End what `up` runs in another terminal."),
    Command("install", "labelloop.cli.stack:install", "Install stock Label Studio ahead of the first `up`."),
    Command("connect", "labelloop.cli.stack:connect", "Join a Label Studio project to the loop."),
    Command("doctor", "labelloop.cli.doctor:doctor", "Say in plain words what is wrong, and the fix."),
    Command(
        "export", "exporters.cli.export:export", "Write annotated tasks as COCO, Pascal VOC and YOLO, to disk or S3."
    ),
    Command("import", "exporters.cli.import_dataset:import_dataset", "Bring COCO, VOC, YOLO or photos into a project."),
    Command("dataset list", "exporters.cli.dataset:dataset_list", "List the versions of a data set."),
    Command("dataset diff", "exporters.cli.dataset:dataset_diff", "Say what changed from one version to another."),
    Command("dataset gc", "exporters.cli.dataset:dataset_gc", "Remove what no version of a data set refers to."),
    Command("dataset pull", "exporters.cli.dataset:dataset_pull", "Lay a version out as folders that a trainer reads."),
    Command(
        "dataset validate",
        "exporters.cli.validate:dataset_validate",
        "Look a data set through for what no loader notices.",
    ),
    Command(
        "dataset link",
        "exporters.cli.dataset:dataset_link",
        "Sign one address that a trainer elsewhere fetches labels and photos by.",
    ),
    Command(
        "dataset report",
        "exporters.cli.dataset:dataset_report",
        "Write a version as one page that a person reads, with pictures.",
    ),
    Command("dataset verify", "exporters.cli.validate:dataset_verify", "Compare a version with its manifest."),
    Command("prelabel", "ml_backend.cli.prelabel:prelabel_project", "Pre-label a whole project, to be gone on with."),
    Command("ml serve", "ml_backend.cli.serve:serve", "Serve the ML backend."),
    Command("models list", "ml_backend.cli.models:models_list", "List the model versions, and what is served."),
    Command("models add", "ml_backend.cli.models:models_add", "Put an ONNX detector on the store as a version."),
    Command("models activate", "ml_backend.cli.models:models_activate", "Serve a version, without a gap."),
    Command("models pull", "ml_backend.cli.models:models_pull", "Download a model of the catalogue."),
    Command("models rollback", "ml_backend.cli.models:models_rollback", "Go back to what was served before."),
    Command(
        "models inspect",
        "ml_backend.cli.serve:models_inspect",
        "Say what a model file is, and what it sees on a photo.",
    ),
    Command(
        "learn",
        "ml_backend.cli.learning_commands:learn",
        "How learning of a project stands; how many labels are needed.",
    ),
    Command(
        "learn report",
        "ml_backend.cli.learn_report:learn_report",
        "How learning of a project went: its curve, edits, classes and versions, as a page or JSON.",
    ),
    Command(
        "learn simulate",
        "ml_backend.cli.learn:learn_simulate",
        "Say how many labels you need, from a data set that is labelled already.",
    ),
    Command("qc serve", "qc_webhooks.cli.qc:serve", "Serve the webhook of quality control."),
    Command(
        "qc status",
        "qc_webhooks.cli.qc:status",
        "Say how a project's tasks stand: agreed, disputed, waiting, not judged.",
    ),
    Command(
        "qc report",
        "qc_webhooks.cli.offline:report",
        "Measure an exported file: agreement, conflicts, who is reliable.",
    ),
    Command("qc what-if", "qc_webhooks.cli.what_if:what_if", "Replay the past under another policy."),
    Command(
        "qc consensus", "qc_webhooks.cli.offline:consensus", "Make one annotation of several, from an exported file."
    ),
    Command("qc undo", "qc_webhooks.cli.qc:undo", "Take back what quality control wrote to tasks."),
    Command("qc recheck", "qc_webhooks.cli.qc:recheck", "Check a project's tasks anew."),
    Command("worker", "labelloop.cli.stack:worker", "Do what events ask for: verdicts, routes, reconciliation."),
    Command("rotate", "labelloop.stack.rotate:rotate", "Give every project's webhooks a new secret, losing no event."),
    Command("inbox counts", "labelloop.cli.inbox:counts", "Say how many events are in each state."),
    Command("inbox dead", "labelloop.cli.inbox:dead", "List events that were given up, with the reason."),
    Command("inbox replay", "labelloop.cli.inbox:replay", "Try given-up events again."),
    Command("inbox discard", "labelloop.cli.inbox:discard", "Delete given-up events, saying what each was."),
    Command("backup", "labelloop.cli.backup:backup", "Write the home folder into one file, while it runs."),
    Command("restore", "labelloop.cli.backup:restore", "Make a home folder of a backup."),
)


_FIXES = {
    errno.EDQUOT: "Your share of that disk is used up: free some room there.",
    errno.ENOSPC: "Free some room where it writes, or in the folder of temporary files (TMPDIR names another).",
    errno.EACCES: "Choose a folder that you may write.",
    errno.EROFS: "Choose a folder that can be written.",
}


def create_cli(words: Sequence[str] = ()) -> App:
    """The command line for the given words.

    The one-line purposes make the lists without loading any command; the command that was asked for shows its own
    docstring instead.
    """
    app = App(
        name="labelloop",
        help="The annotation loop around stock Label Studio: pre-labels, quality control and data sets.",
        help_epilogue="Start with `labelloop up`. Settings are LABELLOOP_... in the environment or in settings.env of"
        " the home folder (.labelloop).",
        version=VERSION,
        default_parameter=Parameter(show_default=_shown),
        suppress_keyboard_interrupt=False,  # `main` says it, also where it comes while a command is loaded
    )
    groups = {"": app}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if name in GROUPS:  # what a group does with no further word; cyclopts takes the function itself, not its name
            asked = list(words[:1]) == [name]
            groups[name] = App(name=name, help=None if asked else command.purpose, help_epilogue="")
            app.command(groups[name])
            if asked:
                module, _, function = command.target.partition(":")
                groups[name].default(getattr(importlib.import_module(module), function))
            continue
        if group not in groups:
            groups[group] = App(name=group, help=GROUPS[group], help_epilogue="")
            app.command(groups[group])
        asked = list(words[: len(command.name.split())]) == command.name.split()
        if asked and command.target.startswith("exporters."):
            with one_blas_thread():
                importlib.import_module(command.target.partition(":")[0])
        groups[group].command(command.target, name=name, help=None if asked else command.purpose, help_epilogue="")
    return app


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let no threads begin that multiply matrices, for programs that have none to multiply.

    OpenBLAS begins one a core as numpy is loaded: a tenth of the time of an export. What such a program starts itself,
    a training for one, is not held to that.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _shown(default: Any) -> str | None:
    """A default as the help shows it; of options that are off or empty none."""
    return None if default in ("", 0, None) else str(default)


def main(words: Sequence[str] | None = None) -> None:
    """Run one command; errors of ours and of the disk are one line with the fix, and exit status 1."""
    from labelloop.service.errors import LabelloopError
    from labelloop.service.signals import status_of, terminating

    words = sys.argv[1:] if words is None else words
    try:
        with terminating():
            create_cli(words)(words)
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails too
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        _print_error("Stopped.", "")
        raise SystemExit(status_of(stop)) from None
    except (LabelloopError, OSError) as error:
        if os.environ.get("LABELLOOP_DEBUG"):
            raise
        if isinstance(error, LabelloopError):
            _print_error(error.message, error.fix)
        else:
            said = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            _print_error(f"{said}.", _FIXES.get(error.errno or 0, ""))
        raise SystemExit(1) from None


def _print_error(message: str, fix: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text(message, "bold red"), soft_wrap=True)
    if fix:
        console.print(Text(f"→ {fix}"), soft_wrap=True)


if __name__ == "__main__":
    main()
