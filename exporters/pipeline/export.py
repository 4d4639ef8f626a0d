"""Run an export: validate its options, open source and store, convert, and publish."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from exporters.convert.annotation_policy import DISPUTED, consensus, parse_policy
from exporters.convert.options import ConversionOptions, image_class_control
from exporters.convert.task_images import LazyImageSizeReader, task_images
from exporters.dataset.latest import FileProgress
from exporters.dataset.versions import published_version
from exporters.errors import BadOption, ExportError, NearDuplicateLabels
from exporters.formats import DEFAULT_FORMATS, FORMATS
from exporters.formats.base import FormatContext
from exporters.formats.yolo_classify import YoloClassify
from exporters.model.accounting import ExportReport
from exporters.model.class_map import CATEGORY_IDS, ORIGINAL, Categories, config_labels, near_duplicates, parse_renames
from exporters.model.file_names import safe_name
from exporters.model.keypoints import KEYPOINT_TOKEN, Skeleton, shapes_of
from exporters.model.splits import DEFAULT_SPLIT, DISPUTED_SPLIT, SplitPolicy
from exporters.pipeline.export_run import ExportRun, Progress
from exporters.sources import TaskSource, open_source
from exporters.sources.json_file import JsonFile
from exporters.tasks.table import DEFAULT_TASK_FORMATS, TASK_FORMATS, format_names, image_formats, task_formats
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.labeling.studio.values import GEOMETRIES
from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store

if TYPE_CHECKING:
    from exporters.pipeline.scheduler import Pool, WorkerConfig
    from labelloop.service.media import Media
    from labelloop.service.studio import Studio

MAX_ERRORS = 0.01
POSE = "-pose"
# Formats that hold key points, besides those ending in `POSE`.
KEYPOINT_FORMATS = frozenset({"coco", "webdataset"})
NO_KEY_POINTS = "it needs key points (KeyPointLabels), and there are none"
NO_IMAGES = "it is of images, and the label config has no <Image> that takes its value from the task's data"
NO_QUESTION = "it needs Choices about the whole image, and the label config has none"
_log = logging.getLogger(__name__)


def export(
    source: str | int | Path,
    *,
    settings: Settings,
    formats: Sequence[str] = (),
    to: str | None = None,
    label_config: str | None = None,
    annotation: str = "latest",
    split: str = DEFAULT_SPLIT,
    split_key: str = "",
    group_by: str = "",
    disputed: str = "out",
    rename: Sequence[str] = (),
    category_ids: str = CATEGORY_IDS[0],
    max_errors: float = MAX_ERRORS,
    allow_shrink: bool = False,
    fetch: bool = True,
    copy_images: bool = False,
    afresh: bool = False,
    workers: int = 0,
    ray: str = "",
    archives: bool = True,
    latest: bool = True,
    studio: "Studio | None" = None,
    progress: Progress | None = None,
    file_progress: FileProgress | None = None,
    look_progress: Progress | None = None,
) -> ExportReport:
    """Export annotated tasks as a new version of a data set in the store.

    Args:
        source: a project's number, a Label Studio JSON export (or JSON lines), or ``s3://BUCKET/KEY.json``.
        settings: how to reach Label Studio, S3 and the default store.
        formats: names in ``FORMATS`` and ``TASK_FORMATS``; none: ``DEFAULT_FORMATS``, or ``DEFAULT_TASK_FORMATS`` where
            nothing is drawn on images.
        to: the data set's address; by default a folder of the store named after the source.
        label_config: the label config's XML, for a source that has none.
        annotation: which annotations to export: a name in ``POLICIES`` or ``user:ID``.
        split: shares of train, val and test.
        split_key: a key of the tasks' data that holds train, val or test; otherwise the shares decide.
        group_by: a key of the tasks' data: images with one value are in one split; ``folder``: those of one folder;
            ``look``: near-duplicate images.
        disputed: what to do with tasks that quality control marked as disputed or could not judge: ``in``, ``out``, or
            ``apart``, in a split of their own.
        rename: labels that count as another class, each as ``OLD=NEW``.
        category_ids: the ids of COCO's categories: a name in ``CATEGORY_IDS``.
        max_errors: the largest share of failed regions at which the version is still published.
        allow_shrink: publish a version that is far smaller than the published one (`publish_checks`).
        fetch: whether the header of an image is read if its size is unknown.
        copy_images: whether the images are copied into the version.
        afresh: convert every task, including those unchanged since the published version.
        workers: processes that convert; 1: this one alone; 0: chosen by the size of the source.
        ray: the address of a Ray cluster that converts instead, or ``local``.
        archives: whether the version has plain files: archives, COCO files, README.md and report.html.
        latest: whether ``latest/`` is made equal to the version, when it is published.
        studio: a client to use instead of the settings' own.
        progress: called after each task.
        file_progress: called after each file of ``latest/``.
        look_progress: called after each image that is read for ``group_by="look"``.

    Returns:
        The report; ``published`` says whether the head points to the new version.

    Raises:
        ExportError: an option is invalid, there is no source, or other exporters kept the store busy.
        StoreError: the store cannot be read or written. Nothing of the unfinished version is visible.
    """
    names = format_names(",".join(formats))
    if disputed not in DISPUTED:
        raise BadOption("--disputed", disputed, ", ".join(DISPUTED))
    if category_ids not in CATEGORY_IDS:
        raise BadOption("--category-ids", category_ids, ", ".join(CATEGORY_IDS))
    if workers < 0:
        raise BadOption("--workers", str(workers), "1 or more; 0 decides by itself")
    if not 0 <= max_errors <= 1:
        raise BadOption("--max-errors", str(max_errors), "a share from 0 to 1")
    if ray:
        from exporters.pipeline.pools import RAY_PURPOSE
        from labelloop.service.ray import import_ray

        import_ray(RAY_PURPOSE)  # a small export starts no cluster, and would accept anything
    renamed = parse_renames(rename)
    shares, chosen = SplitPolicy.parse(split, group_by=group_by, key=split_key), parse_policy(annotation)
    with ExitStack() as stack:
        if studio is None and settings.label_studio_api_key.get_secret_value():
            from labelloop.service.studio import Studio

            studio = stack.enter_context(closing(Studio.from_settings(settings)))
        tasks = open_source(
            source, settings=settings, label_config=label_config, studio=studio, fresh=afresh, progress=progress
        )
        stack.callback(tasks.close)
        names = names or (DEFAULT_FORMATS if _draws_on_images(tasks) else DEFAULT_TASK_FORMATS)
        if tasks.config and not tasks.config.images and not task_formats(names):
            raise ExportError(
                f"The label config of {tasks.title} has no <Image> that takes its value from the task's data,"
                f" and {', '.join(names)} {'are' if len(names) > 1 else 'is'} of images.",
                fix="Use --format tasks-jsonl: it holds any project. For a file, check --label-config.",
                code="no_images",
                status=409,
            )
        store = open_store(to or _default_location(settings, tasks), settings)
        skeleton = _skeleton(tasks, store, image_formats(names))
        left_out = _left_out(names, tasks.config, skeleton)
        if not set(names) - set(left_out):
            raise BadOption("--format", ",".join(names), f"another: {next(iter(left_out.values()))}")
        names = tuple(name for name in names if name not in left_out)
        if YoloClassify.name in names and (pairs := list(near_duplicates(_image_classes(tasks.config, renamed)))):
            raise NearDuplicateLabels(pairs)
        of_images = image_formats(names)
        sized = set(of_images) != {YoloClassify.name}
        crowd, annotators = None, {}
        if chosen is consensus and of_images:
            from exporters.convert.consensus import estimate_annotators, reliability

            crowd = estimate_annotators(tasks.tasks(), tasks.config)
            annotators = {"annotators": reliability(crowd)} if crowd else {}

        @cache
        def media() -> "Media":
            _log.info("photos_are_read", extra={"why": "to copy them" if copy_images else "to know their size"})
            from labelloop.service.media import Media

            return stack.enter_context(closing(Media(settings, studio)))

        run = ExportRun(
            source=tasks,
            store=store,
            formats=names,
            rules=ConversionOptions(
                policy=chosen,
                split=shares,
                disputed=disputed,
                config=tasks.config,
                config_labels=frozenset(
                    (
                        *(renamed.get(label, label) for label in config_labels(tasks.config)),
                        *(skeleton.names if skeleton else ()),
                    )
                    if tasks.config
                    else ()
                ),
                crowd=crowd,
                renamed=renamed,
                sized=sized,
                sizeless=any(not FORMATS[name].needs_size for name in of_images),
                images=bool(of_images),
                tasks=bool(task_formats(names)),
            ),
            skeleton=skeleton,
            categories=Categories.from_config(tasks.config, original=category_ids == ORIGINAL, renamed=renamed),
            left_out=left_out,
            splits=(*shares.splits, *([DISPUTED_SPLIT] if disputed == "apart" else [])),
            max_errors=max_errors,
            allow_shrink=allow_shrink,
            archives=archives,
            latest=latest,
            file_progress=file_progress,
            look_progress=look_progress,
            policy={
                "annotation": annotation,
                "disputed": disputed,
                "split": shares.shares,
                **({"split_key": shares.key} if shares.key else {}),
                **({"group_by": shares.group_by} if shares.group_by else {}),
                **({"rename": renamed} if renamed else {}),
                **({"category_ids": category_ids} if category_ids != CATEGORY_IDS[0] else {}),
                "several_labels": "an object for each label",
                "images": "copied" if copy_images else "in place",
                **annotators,
            },
            headers=LazyImageSizeReader(media) if fetch and sized else None,
            photos=media() if copy_images else None,
            progress=progress,
            afresh=afresh,
            settings=settings,
            workers=workers,
            pool=partial(_cluster, ray, workers) if ray else None,
        )
        return run.run_with_retries()


def _cluster(address: str, workers: int, config: "WorkerConfig") -> "Pool":
    from exporters.pipeline.pools import RayCluster

    return RayCluster(address, config, workers)


def _draws_on_images(tasks: TaskSource) -> bool:
    """Whether objects are drawn on images: by the label config; without one, whether the first task has an image."""
    if tasks.config:
        images = {tag.name for tag in tasks.config.images}
        controls = tasks.config.controls.values()
        return any(control.type in GEOMETRIES and images & set(control.to_names) for control in controls)
    first = next((task for task in tasks.tasks() if isinstance(task, Task)), None)
    return first is None or bool(task_images(first, None))


def _left_out(names: tuple[str, ...], config: LabelConfig | None, skeleton: Skeleton | None) -> dict[str, str]:
    """Return the formats that the project cannot fill, with the reason."""
    reasons = {} if skeleton else {name: NO_KEY_POINTS for name in names if name.endswith(POSE)}
    context = FormatContext((), config=config)
    reasons |= {name: TASK_FORMATS[name].needs for name in task_formats(names) if not TASK_FORMATS[name].fits(context)}
    if config and not config.images:
        reasons |= dict.fromkeys(image_formats(names), NO_IMAGES)
    elif config and not image_class_control(config):
        reasons |= {name: NO_QUESTION for name in names if name == YoloClassify.name}
    return reasons


def _image_classes(config: LabelConfig | None, renamed: Mapping[str, str]) -> list[str]:
    """Return the classes of whole images: the choices of the control of the image class."""
    control = config.controls.get(image_class_control(config)) if config else None
    return [renamed.get(label.stored, label.stored) for label in control.labels] if control else []


def _skeleton(tasks: TaskSource, store: Store, formats: Sequence[str]) -> Skeleton | None:
    """Return the key points of the label config, or those used by the tasks, with permanent indices.

    The tasks decide without a config, and where ``Labels`` are drawn by ``KeyPoint`` and by other shapes.
    """
    if tasks.config:
        skeleton = Skeleton.from_config(tasks.config)
        mixed = any("keypoint" in shapes_of(tasks.config, labels) for labels in tasks.config.controls_of("Labels"))
        if skeleton or not mixed:
            return skeleton
    needs_keypoints = any(name in KEYPOINT_FORMATS or name.endswith(POSE) for name in formats)
    if not needs_keypoints or (isinstance(tasks, JsonFile) and not tasks.contains(KEYPOINT_TOKEN)):
        return None
    return Skeleton.from_tasks(tasks.raw(), parent.keypoints if (parent := published_version(store)) else ())


def _default_location(settings: Settings, source: TaskSource) -> str:
    stem, _ = safe_name(f"{source.title}.jpg")
    return f"{settings.store_url.rstrip('/')}/{quote(stem) if settings.store_url.startswith('file:') else stem}"
