"""Where everything of one local stack is: folders, ports, addresses, and how each of our programs is started."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labelloop.stack.environment import read_env
from labelloop.stack.errors import PortTaken
from labelloop.stack.label_studio import LabelStudio
from labelloop.stack.ports import require_free
from labelloop.stack.process import Part

LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"port": 8080, "ml_port": 9090, "qc_port": 9091}
URLS = {"port": "LABELLOOP_LABEL_STUDIO_URL", "ml_port": "LABELLOOP_ML_URL", "qc_port": "LABELLOOP_QC_URL"}
NAMES = {"port": "Label Studio", "ml_port": "the ML backend", "qc_port": "quality control"}


@dataclass(frozen=True)
class Plan:
    """One local stack.

    Attributes:
        home: The home folder, absolute.
        port: Label Studio's.
        ml_port: The ML backend's.
        qc_port: Quality control's.
        label_studio: The installation.
    """

    home: Path
    port: int
    ml_port: int
    qc_port: int
    label_studio: LabelStudio

    @classmethod
    def make(
        cls,
        home: Path,
        *,
        port: int | None = None,
        ml_port: int | None = None,
        qc_port: int | None = None,
        label_studio: Path | None = None,
    ) -> "Plan":
        """The plan for a home folder; a port that is not given is the one of the last run, else the usual one."""
        last, given = read_env(home), {"port": port, "ml_port": ml_port, "qc_port": qc_port}
        ports = {
            name: number or urlsplit(last.get(URLS[name], "")).port or DEFAULT_PORTS[name]
            for name, number in given.items()
        }
        folder = (label_studio or home / "label-studio").expanduser().absolute()
        return cls(home, **ports, label_studio=LabelStudio(folder))

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
        """The folder that says which children run."""
        return self.home / "run"

    @property
    def urls(self) -> dict[str, str]:
        """The addresses, by the settings that hold them."""
        ports = {"port": self.port, "ml_port": self.ml_port, "qc_port": self.qc_port}
        return {URLS[name]: f"http://localhost:{number}" for name, number in ports.items()}

    def require_ports(self) -> None:
        """Refuse taken ports before anything is started.

        Raises:
            PortTaken: Names the port, who has it and the option that chooses another.
        """
        taken: dict[int, str] = {}
        for name, number in (("port", self.port), ("ml_port", self.ml_port), ("qc_port", self.qc_port)):
            option = f"--{name.replace('_', '-')}"
            if number in taken:
                raise PortTaken(f"{taken[number]} and {NAMES[name]} cannot share port {number}.", fix=f"Use {option}.")
            require_free(number, NAMES[name], option=option)
            taken[number] = NAMES[name]

    def forget(self) -> None:
        """Delete what Label Studio and quality control have in this home; the installation, logs and exports stay."""
        for folder in (self.data, self.home / "photos"):
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in ("state.json", "labelloop.sqlite3*", "queue.sqlite3*"):
            for file in self.home.glob(pattern):
                file.unlink()

    def services(self) -> Sequence[Part]:
        """Our own programs: ML backend, quality control and the worker."""
        ml, qc = f"http://localhost:{self.ml_port}", f"http://localhost:{self.qc_port}"
        return (
            self._program("ML backend", "ml-backend", f"ml serve --host {LOOPBACK} --port {self.ml_port}", ml),
            self._program("Quality control", "qc", f"qc serve --host {LOOPBACK} --port {self.qc_port}", qc),
            self._program("Worker", "worker", "worker"),
        )

    def _program(self, name: str, key: str, command: str, url: str = "") -> Part:
        return Part(
            name=name,
            key=key,
            command=[sys.executable, "-m", "labelloop.cli.main", *command.split()],
            env=self._env(),
            log=self.logs / f"{key}.log",
            url=url,
            health=f"{url}/health" if url else "",
        )

    def _env(self) -> dict[str, str]:
        """Our programs read `settings.env` of this home; what the shell says about the same values does not count."""
        ours = read_env(self.home)
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        no_proxy = ",".join(filter(None, [kept.get("NO_PROXY", kept.get("no_proxy", "")), "localhost,127.0.0.1"]))
        return kept | {"LABELLOOP_HOME": str(self.home), "PYTHONUNBUFFERED": "1", "NO_PROXY": no_proxy}
