"""The errors of exports and imports: each names the item that is wrong and how to fix it."""

import shlex
from collections.abc import Sequence

from labelloop.service.errors import LabelloopError


class ExportError(LabelloopError):
    """An export failed."""

    code = "export_failed"


class SourceNotFound(ExportError):
    """The source does not exist."""

    code = "source_not_found"
    status = 404
    message = "Nothing to export at {source!r}: {reason}."
    fix = "Pass a project's number, a Label Studio JSON or JSON lines file, or s3://BUCKET/KEY.json (gs://, az://)."


class IncompleteInput(ExportError):
    """The input is incomplete or damaged, so that missing tasks cannot be detected; nothing is exported."""

    code = "input_broken"
    status = 409
    message = "{source}: {reason}. Nothing was published."
    fix = "Copy the file again and compare its size with the original's. Wait until it is completely written."


class DatasetNotFound(ExportError):
    """There is no data set at the given location."""

    code = "no_data_set"
    status = 404
    message = "No data set at {location}: {reason}."
    fix = (
        "Pass the folder that contains annotations/*.json (COCO), Annotations/ (Pascal VOC), labels/ (YOLO),"
        " dataset.ndjson, metadata.jsonl (ImageFolder), or files of LabelMe, CVAT, Create ML, DOTA or Open Images;"
        " one such file, or the address of a data set made by `labelloop export`."
    )


class BadOption(ExportError):
    """An option has an invalid value."""

    code = "bad_option"
    status = 400
    value: str

    def __init__(self, option: str, value: str, choices: str, *, near: Sequence[str] = ()) -> None:
        message = f"{option}: {value!r} is not valid." if value else f"{option} needs more options."
        question = f"Did you mean {', '.join(near)}? " if near else ""
        super().__init__(message, fix=f"{question}Use {choices}.", value=value)


class ClassMapChanged(ExportError):
    """Another exporter numbered one of our new classes first; the export is retried with its numbers."""

    code = "class_map_moved"
    status = 409
    message = "the class map of {url} changed during the export."
    fix = "Run the export again when the other one has finished."


class NearDuplicateLabels(ExportError):
    """Two labels differ only in spelling, so one class would be trained as two."""

    code = "labels_alike"
    status = 409

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        examples = [f"{first!r} and {second!r}" for first, second in pairs[:5]]
        more = [f"{len(pairs) - 5} more pairs"] if len(pairs) > 5 else []
        first, second = pairs[0]
        super().__init__(
            f"Labels differ only in case, spaces, - or _: {', '.join([*examples, *more])}. Nothing was published.",
            fix=f"Count both as one class: --rename {shlex.quote(f'{second}={first}')}."
            " Or rename one of them in the project.",
        )


class ObjectsCollected(ExportError):
    """`dataset gc` removed objects that the new version refers to; the export is retried."""

    code = "objects_collected"
    status = 409
    message = "`dataset gc` removed objects of {url} during the export."
    fix = "Run the export again, and give `dataset gc` a longer --grace than an export takes."


class StoreBusy(ExportError):
    """Other exporters kept winning the race for a version number or for the head."""

    code = "store_busy"
    status = 409
    message = "{key} of {url} keeps changing during the export."
    fix = "Run the export again when the others have finished."


class LatestTakenOver(ExportError):
    """Another process took the lock of ``latest/``, because this one did not answer for ten seconds."""

    code = "latest_taken_over"
    status = 409
    message = "latest/ of {url}: another process took over its update, as this one stood still."
    fix = "Check it with `labelloop dataset latest {url}`."


class DatasetDamaged(ExportError):
    """A file of a data set in the store is damaged."""

    code = "dataset_damaged"
    message = "{key} of {url}: {reason}."
    fix = "Pull another version (see `labelloop dataset list`), or repair it with `labelloop export --afresh`."
    key: str
    reason: str


class VersionNotFound(ExportError):
    """The data set has no such version."""

    code = "version_not_found"
    status = 404

    def __init__(self, url: str, version: str, versions: Sequence[str] = ()) -> None:
        if not versions:
            super().__init__(
                f"There is no data set at {url}.",
                fix="Check the address. `labelloop export --to ADDRESS --from ...` makes the first version.",
            )
        elif version == "latest":
            super().__init__(
                f"{url} has no published version: too much failed in each of {', '.join(versions[-3:])}.",
                fix=f"Pass --version {versions[-1]} to inspect one. `labelloop export --max-errors` publishes more.",
            )
        else:
            super().__init__(f"{url} has no version {version!r}.", fix=f"It has {', '.join(versions[-5:])}.")


class ImportFailed(LabelloopError):
    """A data set could not be imported."""

    code = "import_failed"
    status = 400
