"""Folders, ports and addresses of one local stack, and the commands that start its services."""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labelloop.service.errors import LabelloopError
from labelloop.stack.environment import read_env
from labelloop.stack.errors import StackError
from labelloop.stack.label_studio import LabelStudioInstallation
from labelloop.stack.ports import require_free
from labelloop.stack.process import RECORDS, ServiceSpec
from labelloop.stack.state import read_state

LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"port": 8080, "ml_port": 9090, "qc_port": 9091}
URLS = {"port": "LABELLOOP_LABEL_STUDIO_URL", "ml_port": "LABELLOOP_ML_URL", "qc_port": "LABELLOOP_QC_URL"}
NAMES = {"port": "Label Studio", "ml_port": "the ML backend", "qc_port": "quality control"}


@dataclass(frozen=True)
class StackLayout:
    """One local stack.

    Attributes:
        home: The home folder, absolute.
        port: Port of Label Studio.
        ml_port: Port of the ML backend.
        qc_port: Port of quality control.
        label_studio: The Label Studio installation.
    """

    home: Path
    port: int
    ml_port: int
    qc_port: int
    label_studio: LabelStudioInstallation

    @classmethod
    def for_home(
        cls,
        home: Path,
        *,
        port: int | None = None,
        ml_port: int | None = None,
        qc_port: int | None = None,
        label_studio: Path | None = None,
    ) -> "StackLayout":
        """The layout of a home folder; what is not given is as in the last run, else the default."""
        last, requested = read_env(home), {"port": port, "ml_port": ml_port, "qc_port": qc_port}
        ports = {
            name: number or urlsplit(last.get(URLS[name], "")).port or DEFAULT_PORTS[name]
            for name, number in requested.items()
        }
        folder = (label_studio or _last_label_studio(home)).expanduser().absolute()
        return cls(home, **ports, label_studio=LabelStudioInstallation(folder))

    @property
    def data(self) -> Path:
        """Label Studio's data folder."""
        return self.home / "data"

    @property
    def logs(self) -> Path:
        """The folder of the log files."""
        return self.home / "logs"

    @property
    def records(self) -> Path:
        """The folder with a record of each running child process."""
        return self.home / RECORDS

    @property
    def ports(self) -> dict[str, int]:
        """The ports by the names of their options."""
        return {name: getattr(self, name) for name in DEFAULT_PORTS}

    @property
    def urls(self) -> dict[str, str]:
        """The addresses by the names of their settings."""
        return {URLS[name]: f"http://localhost:{number}" for name, number in self.ports.items()}

    def require_ports(self) -> None:
        """Check that all ports are free.

        Raises:
            StackError: A port is in use; the message names the program and the option for another port.
        """
        used: dict[int, str] = {}
        for name, number in self.ports.items():
            option = f"--{name.replace('_', '-')}"
            if number in used:
                raise StackError(
                    f"{used[number]} and {NAMES[name]} cannot share port {number}.",
                    fix=f"Use {option}.",
                    code="port_taken",
                )
            require_free(number, NAMES[name], option=option)
            used[number] = NAMES[name]

    def delete_data(self) -> None:
        """Delete the data of Label Studio and quality control; the installation, logs and exports stay."""
        for folder in (self.data, self.home / "photos"):
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in ("state.json", "labelloop.sqlite3*", "queue.sqlite3*"):
            for file in self.home.glob(pattern):
                file.unlink()

    def services(self) -> Sequence[ServiceSpec]:
        """The labelloop services: ML backend, quality control and worker."""
        ml, qc = self.urls[URLS["ml_port"]], self.urls[URLS["qc_port"]]
        return (
            self._service("ML backend", "ml-backend", f"ml serve --host {LOOPBACK} --port {self.ml_port}", ml),
            self._service("Quality control", "qc", f"qc serve --host {LOOPBACK} --port {self.qc_port}", qc),
            self._service("Worker", "worker", "worker"),
        )

    def _service(self, name: str, key: str, command: str, url: str = "") -> ServiceSpec:
        return ServiceSpec(
            name=name,
            key=key,
            command=[sys.executable, "-m", "labelloop.cli.main", *command.split()],
            env=self._env(),
            log=self.logs / f"{key}.log",
            url=url,
            health=f"{url}/health" if url else "",
        )

    def _env(self) -> dict[str, str]:
        """The environment of the services, without variables that `settings.env` of this home folder sets."""
        stored = read_env(self.home)
        inherited = {name: value for name, value in os.environ.items() if name not in stored}
        no_proxy = ",".join(
            filter(None, [inherited.get("NO_PROXY", inherited.get("no_proxy", "")), "localhost,127.0.0.1"])
        )
        return inherited | {"LABELLOOP_HOME": str(self.home), "PYTHONUNBUFFERED": "1", "NO_PROXY": no_proxy}


def _last_label_studio(home: Path) -> Path:
    """Where the last run had Label Studio installed, if that folder still exists; else a folder in the home folder."""
    with suppress(LabelloopError):  # `up` reports a state file that cannot be read
        if (last := read_state(home).label_studio) and Path(last).is_dir():
            return Path(last)
    return home / "label-studio"
