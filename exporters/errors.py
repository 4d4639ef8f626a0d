"""The exporters' errors: each names the item that is wrong and what to do about it."""

from labelloop.service.errors import LabelloopError


class ExportError(LabelloopError):
    """An export could not be made."""

    code = "export_failed"


class SourceNotFound(ExportError):
    """There is nothing to export at the given place."""

    code = "source_not_found"
    status = 404

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(
            f"Nothing to export at {source!r}: {reason}.",
            fix="Give a project's number, a Label Studio JSON or JSON lines file, or s3://BUCKET/KEY.json.",
        )


class BadOption(ExportError):
    """An option of the export is not one of its choices."""

    code = "bad_option"
    status = 400

    def __init__(self, option: str, value: str, choices: str) -> None:
        self.option, self.value = option, value
        super().__init__(f"{option}: {value!r} is not understood.", fix=f"Use {choices}.")


class ClassMapMoved(ExportError):
    """Another exporter gave one of our new classes a number first; the export is made again with its numbers."""

    code = "class_map_moved"
    status = 409

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the class map of {url} changed during the export.", fix="Run the export again when the other one is done."
        )


class ObjectsCollected(ExportError):
    """`dataset gc` took away what the new version was about to name; the export is made again."""

    code = "objects_collected"
    status = 409

    def __init__(self, url: str) -> None:
        super().__init__(
            f"`dataset gc` removed objects of {url} during the export.",
            fix="Run the export again, and give `dataset gc` a longer --grace than an export takes.",
        )


class StoreBusy(ExportError):
    """Other exporters kept winning the race for a version number or for the head."""

    code = "store_busy"
    status = 409

    def __init__(self, url: str, key: str) -> None:
        super().__init__(
            f"{key} of {url} keeps changing under the export.", fix="Run the export again when the others are done."
        )


class DatasetDamaged(ExportError):
    """A file of a data set in the store cannot be read as what it should be."""

    code = "dataset_damaged"

    def __init__(self, url: str, key: str, reason: str) -> None:
        self.key, self.reason = key, reason
        super().__init__(f"{key} of {url}: {reason}.", fix="Pull another version (see `labelloop dataset list`).")


class VersionNotFound(ExportError):
    """The data set has no such version."""

    code = "version_not_found"
    status = 404

    def __init__(self, url: str, version: str) -> None:
        super().__init__(f"{url} has no version {version!r}.", fix="See `labelloop dataset list` for what is there.")
