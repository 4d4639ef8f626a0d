"""The exporters' errors: each names the item that is wrong and what to do about it."""

import shlex
from collections.abc import Sequence

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


class NotTasks(ExportError):
    """The file is something else than Label Studio's tasks."""

    code = "not_tasks"
    status = 400

    def __init__(self, source: str, what: str, fix: str) -> None:
        self.source, self.what = source, what
        super().__init__(f"{source}: it is {what}, not Label Studio's tasks.", fix=fix)


class InputBroken(ExportError):
    """The input is not whole, so that nobody knows what is missing: nothing is made of it."""

    code = "input_broken"
    status = 409

    def __init__(self, source: str, reason: str, fix: str = "") -> None:
        self.source, self.reason = source, reason
        again = "Get it again and compare its size with the original's; one that is still being written has to be done."
        super().__init__(f"{source}: {reason}. Nothing was published.", fix=fix or again)


class NoImages(ExportError):
    """The labelling interface shows no images, so there is nothing that these formats hold."""

    code = "no_images"
    status = 409

    def __init__(self, title: str) -> None:
        super().__init__(
            f"The label config of {title} has no <Image> that takes its value from the task's data.",
            fix="Data sets are of images. With a file, is --label-config that of its project?",
        )


class InTheWay(ExportError):
    """What is to be pulled would be written over something else."""

    code = "in_the_way"
    status = 409

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is there and was not pulled: it would be written over.",
            fix="Give an empty folder or one that was pulled into before, or move it away.",
        )


class NoDataSet(ExportError):
    """There is no data set at the given place."""

    code = "no_data_set"
    status = 404

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        super().__init__(
            f"No data set at {place}: {reason}.",
            fix="Give the folder that holds annotations/*.json (COCO), Annotations/ (Pascal VOC), labels/ (YOLO) or"
            " dataset.ndjson, one such file, or the address of a data set that `labelloop export` made.",
        )


class BadOption(ExportError):
    """An option of the export is not one of its choices."""

    code = "bad_option"
    status = 400

    def __init__(self, option: str, value: str, choices: str) -> None:
        self.option, self.value = option, value
        said = f"{option}: {value!r} is not understood." if value else f"{option} alone does not say enough."
        super().__init__(said, fix=f"Use {choices}.")


class ClassMapMoved(ExportError):
    """Another exporter gave one of our new classes a number first; the export is made again with its numbers."""

    code = "class_map_moved"
    status = 409

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the class map of {url} changed during the export.", fix="Run the export again when the other one is done."
        )


class LabelsAlike(ExportError):
    """Two labels differ only in how they are written, so one kind of thing would be trained as two classes."""

    code = "labels_alike"
    status = 409

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)
        shown = [f"{first!r} and {second!r}" for first, second in self.pairs[:5]]
        more = [f"{len(self.pairs) - 5} more pairs"] if len(self.pairs) > 5 else []
        first, second = self.pairs[0]
        super().__init__(
            f"Labels differ only in case, spaces, - or _: {', '.join([*shown, *more])}. Nothing was published.",
            fix=f"Count both as one class: --rename {shlex.quote(f'{second}={first}')}."
            " Or rename one of them in the project.",
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


class WorkerLost(ExportError):
    """A process that converted a part of the tasks is gone; nothing of the unfinished version can be seen."""

    code = "worker_lost"
    status = 500

    def __init__(self, reason: str, option: str) -> None:
        super().__init__(
            f"The export was given up: {reason}.",
            fix=f"Run it again; if memory is short, with {option}. No version was made, the last one is whole.",
        )


class DatasetDamaged(ExportError):
    """A file of a data set in the store cannot be read as what it should be."""

    code = "dataset_damaged"

    def __init__(self, url: str, key: str, reason: str, *, fix: str = "") -> None:
        self.key, self.reason = key, reason
        another = "Pull another version (see `labelloop dataset list`), or mend it: `labelloop export --afresh`."
        super().__init__(f"{key} of {url}: {reason}.", fix=fix or another)


class VersionNotFound(ExportError):
    """The data set has no such version."""

    code = "version_not_found"
    status = 404

    def __init__(self, url: str, version: str, there: Sequence[str] = ()) -> None:
        self.there = tuple(there)
        if not there:
            super().__init__(
                f"There is no data set at {url}.",
                fix="Is the address right? `labelloop export --to ADDRESS --from ...` makes the first version.",
            )
        elif version == "latest":
            super().__init__(
                f"{url} has no published version: too much failed in each of {', '.join(there[-3:])}.",
                fix=f"Name one to look at it: --version {there[-1]}. `labelloop export --max-errors` publishes more.",
            )
        else:
            super().__init__(f"{url} has no version {version!r}.", fix=f"It has {', '.join(there[-5:])}.")
