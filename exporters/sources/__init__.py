"""Sources of annotated tasks: a live project, a JSON file, or Label Studio's target storage, on disk or in a bucket."""

from pathlib import Path
from typing import TYPE_CHECKING

from exporters.errors import BadOption, SourceNotFound
from exporters.sources.base import Progress, TaskSource
from exporters.sources.json_file import BucketJsonFile, JsonFile
from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import Settings
from labelloop.service.store import is_bucket_url, open_store, split_bucket_url

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
    """Open the source that a project id, a file path, a folder, or the URL of a bucket names.

    Args:
        source: Where the tasks are. The URL of an object in a bucket is a JSON export; any other, like a folder, is
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
    if is_bucket_url(text):
        bucket, key = split_bucket_url(text)
        if bucket.endswith("/"):
            raise SourceNotFound(source=text, reason="it names no bucket")
        if key and not key.endswith("/") and open_store(bucket, settings).exists(key):
            return BucketJsonFile(text, config, settings)
    elif path.is_dir():
        text = path.absolute().as_uri()
    else:
        return JsonFile(path, config)
    from exporters.sources.target_storage import TargetStorage

    return TargetStorage(text, open_store(text, settings), config, settings, fresh=fresh, progress=progress)
