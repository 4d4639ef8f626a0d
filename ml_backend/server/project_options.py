"""Owns what each project asked for in `/setup`, and its label config: `/predict` and the pages need them later.

A request may reach another worker than the `/setup` before it, so the options lie in files that all workers read.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Self

import msgspec
import structlog

from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import Settings
from ml_backend.predict.protocol import ProjectOptions

log = structlog.get_logger(__name__)


class Projects:
    """The options of every project, one small file each. Safe to use from many threads and processes."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing: the folder is made when the first option is kept."""
        self._folder = folder

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Where the services of these settings keep them."""
        return cls(settings.home / "ml_backend" / "projects")

    def options(self, project: str | int | None) -> ProjectOptions:
        """What the project asked for; the defaults where it asked for nothing."""
        try:
            return msgspec.json.decode(self._file(project).read_bytes(), type=ProjectOptions)
        except FileNotFoundError:
            return ProjectOptions()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("project_options_unreadable", project=project, reason=str(error))
            return ProjectOptions()

    def keep(self, project: str | int | None, options: ProjectOptions) -> None:
        """Remembers the options; writes only where they changed, for `/setup` comes at every opening of a page."""
        if project in {None, ""} or options == self.options(project):
            return
        if options == ProjectOptions():
            self.forget(project)
            return
        try:
            self._write(self._file(project), msgspec.json.encode(options))
        except OSError as error:
            log.warning("project_options_not_kept", project=project, reason=str(error), folder=str(self._folder))

    def config(self, project: int) -> LabelConfig | None:
        """The label config of the last `/setup`; None where there was none, or it cannot be read."""
        try:
            return LabelConfig.parse(self._config_file(project).read_text(encoding="utf-8"))
        except (OSError, ValueError, MalformedConfig):
            return None

    def keep_config(self, project: str | int | None, xml: str | None) -> None:
        """Remembers a label config; writes only where it changed."""
        file = self._config_file(project)
        if not xml or not file.stem.isdecimal():
            return
        try:
            if file.is_file() and file.read_text(encoding="utf-8") == xml:
                return
            self._write(file, xml.encode())
        except (OSError, ValueError) as error:
            log.warning("label_config_not_kept", project=project, reason=str(error), folder=str(self._folder))

    def forget(self, project: str | int | None) -> None:
        """Back to the defaults."""
        try:
            self._file(project).unlink(missing_ok=True)
        except OSError as error:
            log.warning("project_options_not_kept", project=project, reason=str(error), folder=str(self._folder))

    def _write(self, file: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as part:
            part.write(data)
        Path(part.name).replace(file)

    def _config_file(self, project: str | int | None) -> Path:
        return self._folder / f"{self._file(project).name.partition('.')[0]}.xml"

    def _file(self, project: str | int | None) -> Path:
        key = str(project)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", key):  # not Label Studio's form: no path may be made of it
            key = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._folder / f"{key}.json"
