"""Read and write `settings.env` of the home folder: addresses and secrets that every labelloop command reads."""

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
    """The variables of the file; empty if it does not exist."""
    file = settings_file(home)
    if not file.exists():
        return {}
    pairs = (line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines() if _is_value(line))
    return {name.strip(): value.strip() for name, value in pairs}


def write_env(home: Path, values: Mapping[str, str]) -> None:
    """Set variables in the file (mode 0600); other lines and comments are kept."""
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
    """The values, with a new random secret for each name without a value."""
    return {**values, **{name: _secret() for name in names if not values.get(name)}}


def _secret(length: int = 20) -> str:
    """A random secret of letters and digits, easy to copy from a terminal."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def _is_value(line: str) -> bool:
    return "=" in line and not line.lstrip().startswith("#")
