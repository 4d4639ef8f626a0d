"""Stores the last tuning of a project in its folder of the home, for the dashboard."""

from pathlib import Path

import msgspec
import structlog

from qc_webhooks.report.tuning import Tuning

log = structlog.get_logger(__name__)


def tuning_file(home: Path, project: int) -> Path:
    """File of a project's last tuning."""
    return home / "qc" / str(project) / "tuning.json"


def save_tuning(home: Path, project: int, tuning: Tuning) -> None:
    """Replace the last tuning of a project."""
    path = tuning_file(home, project)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(tuning))
    part.replace(path)


def load_tuning(home: Path, project: int) -> Tuning | None:
    """The last tuning of a project; None without one, or where it is of another version."""
    path = tuning_file(home, project)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tuning) if path.is_file() else None
    except (msgspec.MsgspecError, OSError) as error:
        log.warning("tuning_unreadable", project=project, reason=str(error))
        return None
