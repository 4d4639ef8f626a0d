"""Runs a command for a published version: the program itself, no shell, told of the version by its environment."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from exporters.errors import BadOption, ExportError


class CommandFailed(ExportError):
    """The command ended with another status than 0, or could not be started."""

    code = "command_failed"

    def __init__(self, command: Sequence[str], reason: str, *, status: int = 1) -> None:
        self.exit_status = status
        super().__init__(f"The command {command[0]!r} {reason}.", fix="Its own output says why.")


def words(text: str) -> tuple[str, ...]:
    """A command line as words, quotes respected; nothing in it is expanded.

    Raises:
        BadOption: It has no words, or an open quote.
    """
    try:
        found = tuple(shlex.split(text))
    except ValueError as error:
        raise BadOption("--then", text, f"a command and its arguments: {error}") from error
    if not found:
        raise BadOption("--then", text, "a command and its arguments")
    return found


def startable(command: Sequence[str]) -> tuple[str, ...]:
    """The command, if its program is there: told before an export is made, not after.

    Raises:
        BadOption: No such program, or it may not be run.
    """
    if shutil.which(command[0]) is None:
        wanted = f"a program that can be started: {command[0]} is not there, or not executable (chmod +x)"
        raise BadOption("--then", shlex.join(command), wanted)
    return tuple(command)


GRACE_S = 10.0
"""How long a command may take to end after SIGTERM, before it is killed."""


def run_post_export_command(command: Sequence[str], told: Mapping[str, str]) -> None:
    """Run the command and wait for it; what it prints goes where ours goes.

    Raises:
        CommandFailed: It ended with another status than 0, or could not be started.
    """
    try:
        process = subprocess.Popen(list(command), env=os.environ | told, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CommandFailed(command, f"cannot be started: {error.strerror or error}", status=127) from error
    try:
        status = process.wait()
    except KeyboardInterrupt:  # a terminal's Ctrl-C has reached the command too; SIGTERM has not
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()
        process.wait()
        raise
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with {status}"
        raise CommandFailed(command, how, status=status if status > 0 else 128 - status)
