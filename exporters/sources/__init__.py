"""Sources of annotated tasks: a live project, a JSON file, or Label Studio's target storage, on disk or in S3."""

from pathlib import Path
from typing import TYPE_CHECKING

from exporters.errors import BadOption, SourceNotFound
from exporters.sources.base import Progress, TaskSource
from exporters.sources.json_file import JsonFile, S3JsonFile
from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

if TYPE_CHECKING:
    from labelloop.service.studio import Studio

__all__ = ["TaskSource", "open_source"]


def open_source(
    source: str | int | Path,
    *,
    settings: Settings,
    label_config: str | None = None,
    studio: "Studio | None" = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> TaskSource:
    """Open the source that a project id, a file path, a folder, or an s3:// URL names.

    Args:
        source: Where the tasks are. An s3:// URL of an object is a JSON export; any other s3:// URL, like a folder, is
            Label Studio's target storage.
        settings: Access to Label Studio and S3, and the home folder for local copies of projects and storages.
        label_config: XML of the label config; for a project the default is its own.
        studio: Client to use instead of one from the settings.
        fresh: Read everything again, ignoring the local copy.
        progress: Called while tasks are read.

    Raises:
        SourceNotFound: The source does not exist.
        BadOption: The label config is invalid.
    """
    config = None
    if label_config is not None:
        try:
            config = LabelConfig.parse(label_config)
        except MalformedConfig as error:
            excerpt = " ".join(label_config.split())[:60]
            expected = f"the XML of a project's labeling interface (it is {error.reason})"
            raise BadOption("--label-config", excerpt, expected) from error
    text = str(source)
    if text.isdecimal():
        from exporters.sources.project import LabelStudioProject

        return LabelStudioProject(int(text), config, settings, studio, fresh=fresh, progress=progress)
    path = Path(text.removeprefix("file://"))
    if text.startswith("s3://"):
        bucket, _, key = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise SourceNotFound(source=text, reason="it names no bucket")
        if key and not key.endswith("/") and open_store(f"s3://{bucket}", settings).exists(key):
            return S3JsonFile(text, config, settings)
    elif path.is_dir():
        text = path.absolute().as_uri()
    else:
        return JsonFile(path, config)
    from exporters.sources.target_storage import TargetStorage

    return TargetStorage(text, open_store(text, settings), config, settings, fresh=fresh, progress=progress)
