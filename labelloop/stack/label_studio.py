"""Stock Label Studio as we install it: a virtual environment of its own and one migrated data folder to copy."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from labelloop.service.disk import close_to_others
from labelloop.stack.errors import InstallFailed, TooLittleDisk
from labelloop.stack.process import end_group
from labelloop.stack.progress import Step, Steps

VERSION = "1.23.2"
INSTALL_BYTES = 1_500_000_000  # 1.0 GB installed, the rest is pip's own unpacking
PACKAGES = 150  # what pip collects for it; only the progress bar believes this

_PIP = "install --no-input --disable-pip-version-check --progress-bar off --retries 2"
_OFFLINE = (
    "Failed to establish a new connection",
    "NewConnectionError",
    "Name or service not known",
    "ProxyError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Read timed out",
    "ConnectTimeoutError",
)


@dataclass(frozen=True)
class LabelStudio:
    """Where stock Label Studio is installed.

    Several home folders may share one: nothing in it belongs to a running server.

    Attributes:
        folder: Holds `venv/` and `baked-<version>/`.
        version: The release, exactly.
    """

    folder: Path
    version: str = VERSION

    @property
    def python(self) -> Path:
        """The interpreter of its virtual environment."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def baked(self) -> Path:
        """The migrated data folder, without users and without a secret key."""
        return self.folder / f"baked-{self.version}"

    @property
    def package(self) -> Path | None:
        """The folder of its Python package; it has sample photographs."""
        return next(iter(self.folder.glob("venv/lib/python*/site-packages/label_studio")), None)

    @property
    def installed(self) -> bool:
        """Whether this very version is in the virtual environment; pip writes its RECORD last of all."""
        site = self.folder.glob(f"venv/lib/python*/site-packages/label_studio-{self.version}.dist-info/RECORD")
        return self.python.exists() and any(site)

    def prepare(self, steps: Steps) -> None:
        """Install and bake what is missing; safe when several processes ask at once.

        Raises:
            TooLittleDisk: Before anything is downloaded.
            InstallFailed: pip or the migration failed; the message says which and why.
        """
        if self.installed and self.baked.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "install.lock", steps):
            if not self.installed:
                self._install(steps)
            if not self.baked.exists():
                self._bake(steps)

    def fresh_data(self, data: Path) -> None:
        """Copy the migrated folder to `data`, where a server then makes a secret key of its own."""
        shutil.copytree(self.baked, data)
        close_to_others(data)

    def _install(self, steps: Steps) -> None:
        require_disk(self.folder, INSTALL_BYTES, what=f"Label Studio {self.version}")
        log = self.folder / "install.log"
        with (
            steps.step(f"installing Label Studio {self.version} into {self.folder / 'venv'}") as step,
            log.open("w") as out,
        ):
            out.write(_run([sys.executable, "-m", "venv", str(self.folder / "venv")], log, "python -m venv"))
            requirement = f"label-studio=={self.version}"
            code, text = _follow_pip([str(self.python), "-m", "pip", *_PIP.split(), requirement], out, step)
        if code != 0 or not self.installed:
            raise _pip_error(text, requirement, log)

    def _bake(self, steps: Steps) -> None:
        log = self.folder / "bake.log"
        part = self.baked.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with steps.step("preparing an empty Label Studio database (once)") as step, log.open("wb") as out:
            # `version` runs every migration before it prints; no account is made.
            command = [str(self.python), "-m", "label_studio.server", "version", "--data-dir", str(part)]
            process = subprocess.Popen(
                command, env=server_env(part), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            try:
                while process.poll() is None:
                    step.say("running its migrations")
                    time.sleep(0.2)
            finally:
                _end(process)
        if process.returncode != 0 or not (part / "label_studio.sqlite3").exists():
            raise InstallFailed("Label Studio could not migrate an empty database.", fix="Read the log.", log=log)
        (part / ".env").unlink(missing_ok=True)  # its SECRET_KEY signs log-ins: every copy makes its own
        part.rename(self.baked)


def server_env(data: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that stock Label Studio runs in: offline, and allowed to call back to this machine.

    The lists of banned networks are swapped for the link-local one: loopback and the local network open up for our
    services while the cloud's metadata address stays closed.
    """
    unwanted = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DJANGO_SETTINGS_MODULE", "HOST", "PORT", "SECRET_KEY")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in unwanted and not key.startswith(("LABEL_STUDIO_", "HEARTEX_", "LABELLOOP_"))
    }
    return kept | {
        "HOME": str(data),  # it keeps caches below the home folder
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": "169.254.0.0/16",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LOG_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": ",".join(filter(None, [kept.get("NO_PROXY", kept.get("no_proxy", "")), "localhost,127.0.0.1"])),
        **(extra or {}),
    }


def require_disk(folder: Path, needed: int, *, what: str) -> None:
    """Refuse a step for which the disk has too little room.

    Raises:
        TooLittleDisk: Names both figures.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TooLittleDisk(
            f"{what} takes {needed / 1e9:.1f} GB and the disk of {place} has {free / 1e9:.1f} GB left.",
            fix="Make room, or set LABELLOOP_HOME to a folder on another disk.",
        )


@contextlib.contextmanager
def _locked(path: Path, steps: Steps) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            steps.note(f"Another labelloop is installing into {path.parent}; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], log: Path, name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log.write_text(done.stdout + done.stderr)
        raise InstallFailed(
            f"{name} failed: {(done.stdout + done.stderr).strip()[-300:]}.",
            fix="Debian and Ubuntu keep it apart: sudo apt-get install python3-venv.",
            log=log,
        )
    return done.stdout


def _follow_pip(command: list[str], out: IO[str], step: Step) -> tuple[int, str]:
    collected, lines = 0, []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        for line in process.stdout or ():
            out.write(line)
            lines.append(line.strip())
            word, _, rest = line.strip().partition(" ")
            if word == "Collecting":
                collected += 1
                step.say(rest.split()[0], done=min(collected, PACKAGES), total=PACKAGES)
            elif line.startswith("Installing collected"):
                step.say("unpacking", done=PACKAGES, total=PACKAGES)
        return process.wait(), "\n".join(lines)
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """Leave nothing behind when the step is interrupted."""
    if process.poll() is None:
        end_group(process.pid)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _pip_error(text: str, requirement: str, log: Path) -> InstallFailed:
    if "No space left on device" in text:
        return InstallFailed(
            f"The disk filled up while installing {requirement}", fix="Make room, then again.", log=log
        )
    if any(sign in text for sign in _OFFLINE):
        return InstallFailed(
            f"{requirement} could not be downloaded: the package index did not answer.",
            fix="The first start needs the network (or PIP_INDEX_URL set to a mirror of PyPI); later starts do not.",
            log=log,
        )
    told = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()[-1:]
    return InstallFailed(
        f"pip could not install {requirement}: {' '.join(told)[:300]}.",
        fix="It needs Python 3.10 to 3.13 and a package index that has this version.",
        log=log,
    )
