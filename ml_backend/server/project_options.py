"""Options and label config of each project, stored from `/setup` for later `/predict` requests and pages.

A request may reach another worker than the `/setup` before it, so they are stored in files that all workers read.
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


class ProjectOptionsStore:
    """The options of every project, one small file each. Safe for threads and processes."""

    def __init__(self, folder: Path) -> None:
        """Does not touch the disk; the folder is created with the first file."""
        self._folder = folder

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Use the folder below the home of the settings."""
        return cls(settings.home / "ml_backend" / "projects")

    def options(self, project: str | int | None) -> ProjectOptions:
        """Return the project's options; the defaults if none are stored."""
        try:
            return msgspec.json.decode(self._file(project).read_bytes(), type=ProjectOptions)
        except FileNotFoundError:
            return ProjectOptions()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("project_options_unreadable", project=project, reason=str(error))
            return ProjectOptions()

    def save(self, project: str | int | None, options: ProjectOptions) -> None:
        """Store the options; writes only changes, because `/setup` comes whenever a page opens."""
        if project in {None, ""} or options == self.options(project):
            return
        if options == ProjectOptions():
            self.delete(project)
            return
        try:
            self._write(self._file(project), msgspec.json.encode(options))
        except OSError as error:
            log.warning("project_options_not_kept", project=project, reason=str(error), folder=str(self._folder))

    def config(self, project: int) -> LabelConfig | None:
        """Return the label config of the last `/setup`; None if there is none or it cannot be read."""
        try:
            return LabelConfig.parse(self._config_file(project).read_text(encoding="utf-8"))
        except (OSError, ValueError, MalformedConfig):
            return None

    def save_config(self, project: str | int | None, xml: str | None) -> None:
        """Store a label config; writes only changes."""
        file = self._config_file(project)
        if not xml or not file.stem.isdecimal():
            return
        try:
            if file.is_file() and file.read_text(encoding="utf-8") == xml:
                return
            self._write(file, xml.encode())
        except (OSError, ValueError) as error:
            log.warning("label_config_not_kept", project=project, reason=str(error), folder=str(self._folder))

    def delete(self, project: str | int | None) -> None:
        """Delete the options: back to the defaults."""
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
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", key):  # not Label Studio's format: never use it as a path
            key = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._folder / f"{key}.json"
