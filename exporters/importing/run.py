"""Run an import: read the data set, create or check the project, upload in batches. Imports are idempotent."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path, PurePosixPath

import msgspec

from exporters.errors import ImportFailed
from exporters.importing.class_ids import class_names_by_id, with_class_names
from exporters.importing.existing_tasks import ExistingTasks
from exporters.importing.image_locations import ImageLocator, ImageMode, LocatedImage, default_mode
from exporters.importing.label_config import (
    count_unkept_categories,
    extend_label_config,
    image_tag,
    missing_labels,
    new_label_config,
)
from exporters.importing.region_writer import RegionWriter
from exporters.importing.report import ImportReport, LabelsAs
from exporters.importing.requirements import LabelConfigRequirements, Progress, scan
from exporters.importing.upload import TaskUpload, TaskUploader
from labelloop.labeling.geometry.shapes import Geometry, Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.datasets import (
    DataSet,
    DatasetImage,
    DatasetProblem,
    DatasetSource,
    ImageFiles,
    open_source,
    read_dataset,
    shape_of,
)
from labelloop.service.errors import LabelloopError
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError, StudioRefused

BATCH = 100
CATEGORIES_LOST = "categories whose id or supercategory is not in the project's labels: not kept"
METADATA_LOST = "images with an existing task: their further fields, license and info are not added"
UNNAMED = "images without labels: not imported (a second import with --format images adds them)"
SPLITS_KEPT = "images whose split is in their task's data: labelloop export --split-key split keeps it"
# HTTP status -> fix.
_REFUSAL_FIXES = {
    400: "If it is the label config: create the project in Label Studio, and import with --project NUMBER.",
    403: "Use the token of an account that may change projects: LABELLOOP_LABEL_STUDIO_API_KEY.",
    413: "Raise the request size limit of the proxy in front of Label Studio, or reference the images:"
    " --images reference.",
    429: "Label Studio is overloaded: run the command again later with --project NUMBER; nothing is added twice.",
}
_SERVER_FIX = "Check the log of Label Studio. Then run the command again: nothing is added twice."


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an import.

    Attributes:
        source: The data set: a folder, a file or an S3 address.
        project: Id of an existing project; None creates a new one.
        title: The new project's title.
        format: One of `READERS`, or ``auto``.
        labels_as: Import labels as annotations or predictions.
        version: The model version of predictions.
        images: What to do with the images; None: `default_mode` of the data set.
        images_from: Folder or address of the images if they are not in the data set.
        image_base: Address prefix of referenced images.
        extend_labels: Add missing labels to the label config of the project.
        known_only: Leave out objects whose label the project does not have.
        boxes: Import bounding boxes instead of other shapes.
        crowds: Import a crowd as one object.
        ground_truth: Mark annotations as ground truth.
        classes: File with the classes of COCO results.
        skip_incomplete: Import no annotation for an image with unreadable objects.
    """

    source: str
    project: int | None = None
    title: str = ""
    format: str = "auto"
    labels_as: LabelsAs = "annotations"
    version: str = ""
    images: ImageMode | None = None
    images_from: str = ""
    image_base: str = ""
    extend_labels: bool = False
    known_only: bool = False
    boxes: bool = False
    crowds: bool = False
    ground_truth: bool = False
    classes: Path | None = None
    skip_incomplete: bool = False


def run_import(
    options: ImportOptions,
    *,
    settings: Settings,
    studio: Studio,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ImportReport:
    """Import a data set.

    Args:
        options: The options.
        settings: S3 access, media limits and the root of local files.
        studio: Label Studio.
        progress: Called with (images done, total number of images).
        stop: Called between batches; True stops the import, and the next import continues it.

    Returns:
        The report.

    Raises:
        DatasetError: The data set cannot be read.
        ImportFailed: The options do not fit the data set or the project; the title of a new project exists; or the
            project lacks labels, and neither `extend_labels` nor `known_only` is set.
        StudioError: A request to Label Studio failed.
    """
    if options.labels_as == "predictions" and not options.version:
        raise ImportFailed("Predictions need the name of their model.", fix="Pass --model-version NAME.")
    source = open_source(options.source, settings, images=options.images_from)
    data = read_dataset(source, options.format)
    mode = options.images or default_mode(data, source)
    if options.project is None and mode == "existing":
        raise ImportFailed("Images of existing tasks need an existing project.", fix="Pass --project NUMBER.")
    data = _with_result_classes(data, options, studio)
    if options.boxes:
        data = _boxes_only(data)
    requirements = scan(data, crowds=options.crowds, folder_images=_folder_images(source, mode), progress=progress)
    if mode == "upload":
        _require_images(data, source, requirements.images)
    project = _prepare_project(options, requirements, studio)
    problems: list[DatasetProblem] = []
    uploader: TaskUploader | None = None
    existing = stopped = done = 0
    try:
        config = studio.label_config(project)
        image = image_tag(config)
        assert image is not None  # checked by _prepare_project
        existing_tasks = ExistingTasks(studio.tasks(project), image.value)
        region_writer = RegionWriter(
            config, image, crowds=options.crowds, report=problems.append, skip_incomplete=options.skip_incomplete
        )
        uploader = TaskUploader(
            studio,
            project,
            key=image.value,
            labels_as=options.labels_as,
            version=options.version,
            ground_truth=options.ground_truth,
            existing_tasks=existing_tasks,
            report=problems.append,
        )
        with closing(Media(settings, studio)) as media:
            root = settings.local_files_root
            locator = ImageLocator(
                source, existing_tasks, mode, base_url=options.image_base, local_root=root, media=media
            )
            located = _locate_images(data, locator, problems)
            while batch := list(islice(located, BATCH)):
                uploader.upload([TaskUpload(item, region_writer.write(item.image, item.identity)) for item in batch])
                existing += sum(item.existing_task is not None for item in batch)
                done += len(batch)
                if progress is not None:
                    progress(done, requirements.images)
                if stop():
                    stopped = done < requirements.images
                    break
        if options.project is None and options.labels_as == "predictions" and uploader.added:
            studio.update_project(project, model_version=options.version, show_collab_predictions=True)
    except StudioRefused as refused:
        raise _import_error(refused) from None
    finally:
        if options.project is None and not (uploader is not None and uploader.made) and not stopped:
            with suppress(StudioError):  # the first error counts
                studio.delete_project(project)
            project = 0
    lost = Counter(
        {
            CATEGORIES_LOST: count_unkept_categories(requirements, config),
            METADATA_LOST: uploader.metadata_not_added,
            UNNAMED: requirements.unnamed,
        }
    )
    notes = (
        Counter(data.notes)
        + Counter(data.counts)
        + region_writer.notes
        + Counter({SPLITS_KEPT: uploader.in_splits})
        + lost
    )
    return ImportReport(
        project=project,
        format=data.format,
        labels_as=options.labels_as,
        photos=requirements.images,
        tasks_made=uploader.made,
        tasks_there=existing,
        added=uploader.added,
        there=uploader.there,
        regions=uploader.regions,
        problems=problems,
        notes=dict(sorted(notes.items())),
        stopped=bool(stopped),
        empty=uploader.empty,
        unlabelled=uploader.unlabelled,
    )


def _require_images(data: DataSet, source: DatasetSource, count: int) -> None:
    """Raise `ImportFailed` before anything is created if none of the images is found."""
    if count and not any(isinstance(item, DatasetImage) and source.images.find(item.name) for item in data.images()):
        raise ImportFailed(
            f"None of the {count} images of the data set is in {source.images.files.location}.",
            fix="Pass their folder: --images-from DIR. For images of existing tasks: --images existing.",
        )


def scan_dataset(
    options: ImportOptions, *, settings: Settings, studio: Studio, progress: Progress | None = None
) -> tuple[DataSet, LabelConfigRequirements]:
    """Read and scan a data set without writing anything, for `--dry-run`."""
    source = open_source(options.source, settings, images=options.images_from)
    data = _with_result_classes(read_dataset(source, options.format), options, studio)
    data = _boxes_only(data) if options.boxes else data
    folder_images = _folder_images(source, options.images or default_mode(data, source))
    return data, scan(data, crowds=options.crowds, folder_images=folder_images, progress=progress)


def _folder_images(source: DatasetSource, mode: ImageMode) -> ImageFiles | None:
    """The images of the folder, of which those without labels are counted; None for existing tasks."""
    return None if mode == "existing" else source.images


def _locate_images(data: DataSet, locator: ImageLocator, problems: list[DatasetProblem]) -> Iterator[LocatedImage]:
    for item in data.images():
        located = item if isinstance(item, DatasetProblem) else locator.find(item)
        if isinstance(located, DatasetProblem):
            problems.append(located)
        else:
            split = located.image.split or _split(located.image.name)
            yield msgspec.structs.replace(located, image=msgspec.structs.replace(located.image, split=split))


def _split(name: str) -> str:
    """The split in the folder names of an image; empty if there is none."""
    return next(filter(None, map(split_of, PurePosixPath(name).parts[:-1])), "")


def _prepare_project(options: ImportOptions, requirements: LabelConfigRequirements, studio: Studio) -> int:
    """Create the project, or check and extend the label config of an existing one; return its id."""
    if options.project is None:
        same_title = next((project for project in studio.projects() if project.get("title") == options.title), None)
        if same_title is not None:
            raise ImportFailed(
                f"A project {options.title!r} exists already, number {same_title['id']}.",
                fix=f"Continue it with --project {same_title['id']} (nothing is added twice), or pass another --title.",
                code="title_taken",
                status=409,
            )
        try:
            created = studio.create_project(title=options.title, label_config=new_label_config(requirements))
        except StudioRefused as refused:
            raise _import_error(refused) from None
        return int(created["id"])
    project = studio.project(options.project)
    config = LabelConfig.parse(project["label_config"])
    image = image_tag(config)
    if image is None:
        raise ImportFailed(
            f"Project {options.project} shows no single image.", fix='Its label config needs <Image value="$...">.'
        )
    missing = missing_labels(requirements, config, image.name)
    if missing and options.extend_labels:
        studio.update_project(
            options.project, label_config=extend_label_config(project["label_config"], missing, image.name)
        )
    elif missing and not options.known_only:
        raise ImportFailed(
            f"The label config of project {options.project} lacks: {'; '.join(map(str, missing))}.",
            fix="Add them with --extend-labels (existing labels and controls stay unchanged), or leave them out with"
            " --only-known-labels.",
            code="labels_missing",
            status=409,
        )
    return options.project


def _with_result_classes(data: DataSet, options: ImportOptions, studio: Studio) -> DataSet:
    """Replace the category ids of COCO results by class names; other data sets are unchanged."""
    if data.format != "coco-results":
        return data
    config = None if options.project is None else studio.label_config(options.project)
    return with_class_names(data, class_names_by_id(options.classes, config))


def _boxes_only(data: DataSet) -> DataSet:
    def images() -> Iterator[DatasetImage | DatasetProblem]:
        for item in data.images():
            if isinstance(item, DatasetProblem):
                yield item
                continue
            boxes = []
            for obj in item.objects:
                box = _box(obj.geometry)
                if box.width > 0 and box.height > 0:
                    boxes.append(msgspec.structs.replace(obj, geometry=box))
                else:
                    reason = f"a {shape_of(obj.geometry)} of {obj.label!r} has no box (--shapes boxes)"
                    yield DatasetProblem(item.name, reason, failed=False)
            yield msgspec.structs.replace(item, objects=tuple(boxes))

    return msgspec.structs.replace(data, images=images)


def _box(shape: Geometry) -> Rectangle:
    x_min, y_min, x_max, y_max = shape.bounds
    return Rectangle(x_min, y_min, x_max - x_min, y_max - y_min)


def _import_error(refused: StudioRefused) -> LabelloopError:
    """The error with a fix of the import, where the client has none."""
    if refused.fix:
        return refused
    detail = refused.detail or f"HTTP {refused.http_status}"
    return ImportFailed(
        f"Label Studio refused {refused.what} ({refused.http_status}): {detail}",
        fix=_REFUSAL_FIXES.get(refused.http_status, _SERVER_FIX),
        code="import_refused",
        status=502,
    )
