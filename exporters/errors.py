"""The errors of exports and imports: each names the item that is wrong and how to fix it."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labelloop.service.errors import LabelloopError

if TYPE_CHECKING:  # importing it loads an HTTP client, which most exports never need
    from labelloop.service.studio import StudioRefused


class ExportError(LabelloopError):
    """An export failed."""

    code = "export_failed"


class SourceNotFound(ExportError):
    """The source does not exist."""

    code = "source_not_found"
    status = 404

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(
            f"Nothing to export at {source!r}: {reason}.",
            fix="Pass a project's number, a Label Studio JSON or JSON lines file, or s3://BUCKET/KEY.json.",
        )


class NotTaskExport(ExportError):
    """The file does not contain Label Studio's tasks."""

    code = "not_tasks"
    status = 400

    def __init__(self, source: str, what: str, fix: str) -> None:
        self.source, self.what = source, what
        super().__init__(f"{source}: it is {what}, not Label Studio's tasks.", fix=fix)


class IncompleteInput(ExportError):
    """The input is incomplete or damaged, so that missing tasks cannot be detected; nothing is exported."""

    code = "input_broken"
    status = 409

    def __init__(self, source: str, reason: str, fix: str = "") -> None:
        self.source, self.reason = source, reason
        again = "Copy the file again and compare its size with the original's. Wait until it is completely written."
        super().__init__(f"{source}: {reason}. Nothing was published.", fix=fix or again)


class NoImages(ExportError):
    """The label config shows no images, so the formats have nothing to hold."""

    code = "no_images"
    status = 409

    def __init__(self, title: str) -> None:
        super().__init__(
            f"The label config of {title} has no <Image> that takes its value from the task's data.",
            fix="Data sets are made of images. For a file, pass the label config of its project with --label-config.",
        )


class PathOccupied(ExportError):
    """A pull would overwrite something else."""

    code = "in_the_way"
    status = 409

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} exists and was not pulled: it would be overwritten.",
            fix="Pass an empty folder or the folder of an earlier pull, or move it away.",
        )


class DatasetNotFound(ExportError):
    """There is no data set at the given location."""

    code = "no_data_set"
    status = 404

    def __init__(self, location: str, reason: str) -> None:
        self.location = location
        super().__init__(
            f"No data set at {location}: {reason}.",
            fix="Pass the folder that contains annotations/*.json (COCO), Annotations/ (Pascal VOC), labels/ (YOLO) or"
            " dataset.ndjson, one such file, or the address of a data set made by `labelloop export`.",
        )


class BadOption(ExportError):
    """An option has an invalid value."""

    code = "bad_option"
    status = 400

    def __init__(self, option: str, value: str, choices: str) -> None:
        self.option, self.value = option, value
        message = f"{option}: {value!r} is not valid." if value else f"{option} needs more options."
        super().__init__(message, fix=f"Use {choices}.")


class ClassMapChanged(ExportError):
    """Another exporter numbered one of our new classes first; the export is retried with its numbers."""

    code = "class_map_moved"
    status = 409

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the class map of {url} changed during the export.",
            fix="Run the export again when the other one has finished.",
        )


class NearDuplicateLabels(ExportError):
    """Two labels differ only in spelling, so one class would be trained as two."""

    code = "labels_alike"
    status = 409

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)
        examples = [f"{first!r} and {second!r}" for first, second in self.pairs[:5]]
        more = [f"{len(self.pairs) - 5} more pairs"] if len(self.pairs) > 5 else []
        first, second = self.pairs[0]
        super().__init__(
            f"Labels differ only in case, spaces, - or _: {', '.join([*examples, *more])}. Nothing was published.",
            fix=f"Count both as one class: --rename {shlex.quote(f'{second}={first}')}."
            " Or rename one of them in the project.",
        )


class ObjectsCollected(ExportError):
    """`dataset gc` removed objects that the new version refers to; the export is retried."""

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
            f"{key} of {url} keeps changing during the export.",
            fix="Run the export again when the others have finished.",
        )


class WorkerLost(ExportError):
    """A worker process ended; nothing of the unfinished version is visible."""

    code = "worker_lost"
    status = 500

    def __init__(self, reason: str, option: str) -> None:
        super().__init__(
            f"The export failed: {reason}.",
            fix=f"Run it again; if memory is short, with {option}. No version was made; the last one is intact.",
        )


class DatasetDamaged(ExportError):
    """A file of a data set in the store is damaged."""

    code = "dataset_damaged"

    def __init__(self, url: str, key: str, reason: str, *, fix: str = "") -> None:
        self.key, self.reason = key, reason
        another = "Pull another version (see `labelloop dataset list`), or repair it with `labelloop export --afresh`."
        super().__init__(f"{key} of {url}: {reason}.", fix=fix or another)


class VersionNotFound(ExportError):
    """The data set has no such version."""

    code = "version_not_found"
    status = 404

    def __init__(self, url: str, version: str, versions: Sequence[str] = ()) -> None:
        self.versions = tuple(versions)
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


class LabelsMissing(ImportFailed):
    """The label config of the project has no control for some labels of the data set."""

    code = "labels_missing"
    status = 409

    def __init__(self, project: int, missing: Sequence[str]) -> None:
        super().__init__(
            f"The label config of project {project} lacks: {'; '.join(missing)}.",
            fix="Add them with --extend-labels (existing labels and controls stay unchanged), or leave them out with"
            " --only-known-labels.",
        )
        self.missing = tuple(missing)


# HTTP status -> fix.
_REFUSAL_FIXES = {
    400: "If it is the label config: create the project in Label Studio, and import with --project NUMBER.",
    403: "Use the token of an account that may change projects: LABELLOOP_LABEL_STUDIO_API_KEY.",
    413: "Raise the request size limit of the proxy in front of Label Studio, or reference the images:"
    " --images reference.",
    429: "Label Studio is overloaded: run the command again later with --project NUMBER; nothing is added twice.",
}
_SERVER_FIX = "Check the log of Label Studio. Then run the command again: nothing is added twice."


class ImportRefused(ImportFailed):
    """Label Studio refused a request of the import; the message quotes its answer."""

    code = "import_refused"
    status = 502

    def __init__(self, refused: "StudioRefused") -> None:
        detail = refused.detail or f"HTTP {refused.http_status}"
        super().__init__(
            f"Label Studio refused {refused.what} ({refused.http_status}): {detail}",
            fix=_REFUSAL_FIXES.get(refused.http_status, _SERVER_FIX),
        )
        self.http_status = refused.http_status


class TitleTaken(ImportFailed):
    """A project with the title of the new project exists, most likely from an interrupted import."""

    code = "title_taken"
    status = 409

    def __init__(self, title: str, project: int) -> None:
        super().__init__(
            f"A project {title!r} exists already, number {project}.",
            fix=f"Continue it with --project {project} (nothing is added twice), or pass another --title.",
        )
