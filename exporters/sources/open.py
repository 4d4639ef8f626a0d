"""`open_source`: the source that a project's number, a path or an address names."""

from pathlib import Path
from typing import TYPE_CHECKING

from exporters.errors import BadOption, SourceNotFound
from exporters.sources.base import Progress, Source
from exporters.sources.json_file import JsonFile, S3Json
from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

if TYPE_CHECKING:
    from labelloop.service.studio import Studio


def open_source(
    source: str | int | Path,
    *,
    settings: Settings,
    label_config: str | None = None,
    studio: "Studio | None" = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Source:
    """The source of a project's number, a file's path, a folder, or an s3:// address.

    Args:
        source: where the tasks are. An s3:// address that is an object is a JSON export; else what is below it is
            Label Studio's target storage, as a folder is.
        settings: how to reach Label Studio and S3, and the home folder, where copies of projects and storages lie.
        label_config: the label config's XML; for a project its own is taken where this is not given.
        studio: a client to use instead of the settings' own.
        fresh: read everything, whatever was read before.
        progress: told while tasks are brought here.

    Raises:
        SourceNotFound: there is nothing there.
        BadOption: the label config is not one.
    """
    config = None
    if label_config is not None:
        try:
            config = LabelConfig.parse(label_config)
        except MalformedConfig as error:
            shown = " ".join(label_config.split())[:60]
            wanted = f"the XML of a project's labelling interface (it is {error.reason})"
            raise BadOption("--label-config", shown, wanted) from error
    text = str(source)
    if text.isdecimal():
        from exporters.sources.project import Project

        return Project(int(text), config, settings, studio, fresh=fresh, progress=progress)
    path = Path(text.removeprefix("file://"))
    if text.startswith("s3://"):
        bucket, _, key = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise SourceNotFound(text, "it names no bucket")
        if key and not key.endswith("/") and open_store(f"s3://{bucket}", settings).exists(key):
            return S3Json(text, config, settings)
    elif path.is_dir():
        text = path.absolute().as_uri()
    else:
        return JsonFile(path, config)
    from exporters.sources.target_storage import TargetStorage

    return TargetStorage(text, open_store(text, settings), config, settings, fresh=fresh, progress=progress)
