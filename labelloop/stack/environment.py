"""The home folder's `settings.env`: addresses and secrets of the stack, made once and read by every other command."""

import os
import secrets
import string
from collections.abc import Mapping
from pathlib import Path

from labelloop.service.settings import settings_file

_HEAD = """\
# Written by `labelloop up`, read by every labelloop command that uses this home folder. It holds secrets.
# Lines that you add are kept.
"""


def read_env(home: Path) -> dict[str, str]:
    """The file's values by name; empty when it does not exist."""
    file = settings_file(home)
    if not file.exists():
        return {}
    pairs = (line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines() if _is_value(line))
    return {name.strip(): value.strip() for name, value in pairs}


def write_env(home: Path, values: Mapping[str, str]) -> None:
    """Set values in the file, readable by its owner only; other lines and comments stay as they are."""
    file = settings_file(home)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else _HEAD.splitlines()
    missing = dict(values)
    written = []
    for line in lines:
        name = line.split("=", 1)[0].strip()
        written.append(f"{name}={missing.pop(name)}" if _is_value(line) and name in missing else line)
    written += [f"{name}={value}" for name, value in missing.items()]
    text = "\n".join(written) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    part.replace(file)


def with_secrets(values: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """The values, with a new secret under each name that has none yet."""
    return {**values, **{name: _secret() for name in names if not values.get(name)}}


def _secret(length: int = 20) -> str:
    """Letters and digits only: people copy it from a terminal."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def _is_value(line: str) -> bool:
    return "=" in line and not line.lstrip().startswith("#")
