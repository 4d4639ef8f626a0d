"""Install stock Label Studio: its own virtual environment and a migrated data folder that new servers copy."""

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

from labelloop.service.system import restrict_tree_to_owner
from labelloop.stack.errors import StackError
from labelloop.stack.process import kill_group
from labelloop.stack.progress import Step, Steps

VERSION = "1.23.2"
INSTALL_BYTES = 1_500_000_000  # 1.0 GB installed, the rest is temporary space of pip
PACKAGES = 150  # number of packages that pip collects, for the progress bar only

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
class LabelStudioInstallation:
    """An installation of stock Label Studio.

    Several home folders may share one: it holds no data of a running server.

    Attributes:
        folder: Contains `venv/` and `baked-<version>/`.
        version: The exact release.
    """

    folder: Path
    version: str = VERSION

    @property
    def python(self) -> Path:
        """The interpreter of its virtual environment."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def template_data(self) -> Path:
        """The migrated data folder, without users and secret key."""
        return self.folder / f"baked-{self.version}"

    @property
    def package(self) -> Path | None:
        """The folder of its Python package, which includes sample images."""
        return next(iter(self.folder.glob("venv/lib/python*/site-packages/label_studio")), None)

    @property
    def installed(self) -> bool:
        """Whether this exact version is installed; pip writes RECORD last."""
        site = self.folder.glob(f"venv/lib/python*/site-packages/label_studio-{self.version}.dist-info/RECORD")
        return self.python.exists() and any(site)

    def prepare(self, steps: Steps) -> None:
        """Install Label Studio and migrate the template data folder unless done; safe for concurrent processes.

        Raises:
            StackError: The disk has too little space, or pip or the migration failed; the message says which and why.
        """
        if self.installed and self.template_data.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "install.lock", steps):
            if not self.installed:
                self._install(steps)
            if not self.template_data.exists():
                self._bake(steps)

    def copy_template_data(self, data: Path) -> None:
        """Copy the migrated folder to `data`; the server creates its own secret key there."""
        shutil.copytree(self.template_data, data)
        restrict_tree_to_owner(data)

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
        part = self.template_data.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with steps.step("preparing an empty Label Studio database (once)") as step, log.open("wb") as out:
            # `version` runs every migration before it prints and creates no account.
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
            raise StackError(
                "Label Studio could not migrate an empty database.", fix="Read the log.", log=log, code="install_failed"
            )
        (part / ".env").unlink(missing_ok=True)  # its SECRET_KEY signs sessions: every copy creates its own
        part.rename(self.template_data)


def server_env(data: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for stock Label Studio: no telemetry, and requests to this machine allowed.

    The banned networks are replaced by the link-local one: our services on loopback and the local network become
    reachable, while the cloud's metadata address stays blocked.
    """
    unwanted = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DJANGO_SETTINGS_MODULE", "HOST", "PORT", "SECRET_KEY")
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in unwanted and not key.startswith(("LABEL_STUDIO_", "HEARTEX_", "LABELLOOP_"))
    }
    return inherited | {
        "HOME": str(data),  # Label Studio keeps caches below the home folder
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": "169.254.0.0/16",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LOG_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": ",".join(
            filter(None, [inherited.get("NO_PROXY", inherited.get("no_proxy", "")), "localhost,127.0.0.1"])
        ),
        **(extra or {}),
    }


def require_disk(folder: Path, needed: int, *, what: str) -> None:
    """Check the free disk space.

    Raises:
        StackError: Fewer than `needed` bytes are free; the message has both numbers.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StackError(
            f"{what} needs {needed / 1e9:.1f} GB, and the disk of {existing} has {free / 1e9:.1f} GB free.",
            fix="Free disk space, or set LABELLOOP_HOME to a folder on another disk.",
            code="too_little_disk",
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
        raise StackError(
            f"{name} failed: {(done.stdout + done.stderr).strip()[-300:]}.",
            fix="On Debian and Ubuntu run: sudo apt-get install python3-venv.",
            log=log,
            code="install_failed",
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
    """Kill the process group if the step was interrupted."""
    if process.poll() is None:
        kill_group(process.pid)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _pip_error(text: str, requirement: str, log: Path) -> StackError:
    if "No space left on device" in text:
        return StackError(
            f"The disk filled up while installing {requirement}",
            fix="Free disk space, then run it again.",
            log=log,
            code="install_failed",
        )
    if any(sign in text for sign in _OFFLINE):
        return StackError(
            f"{requirement} could not be downloaded: the package index did not answer.",
            fix="The first start needs the network (or PIP_INDEX_URL set to a mirror of PyPI); later starts do not.",
            log=log,
            code="install_failed",
        )
    error_lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()[-1:]
    return StackError(
        f"pip could not install {requirement}: {' '.join(error_lines)[:300]}.",
        fix="Label Studio needs Python 3.10 to 3.13 and a package index that has this version.",
        log=log,
        code="install_failed",
    )
