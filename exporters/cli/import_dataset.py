"""The command `labelloop import`: options, progress bar, Ctrl-C, and its report."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from exporters.console import JsonPath, progress_bar, terminal_label, writable_json_path, write_json
from exporters.errors import BadOption
from exporters.importing.image_locations import ImageMode
from exporters.importing.report import ImportReport, LabelsAs
from exporters.importing.requirements import LabelConfigRequirements
from exporters.importing.run import UNNAMED, ImportOptions, run_import, scan_dataset
from labelloop.service.charts import pluralize
from labelloop.service.datasets import READERS, DataSet, DatasetProblem
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import graceful_stop
from labelloop.service.store import is_bucket_url
from labelloop.service.studio import Studio

# Problems printed; the report lists all.
LISTED = 20


def import_dataset(
    source: str,
    *,
    project: str,
    title: str = "",
    format: str = "auto",  # noqa: A002 - the user's word for it
    labels_as: Annotated[LabelsAs, Parameter(name="--as")] = "annotations",
    model_version: str = "",
    images: ImageMode | None = None,
    images_from: str = "",
    image_base: str = "",
    extend_labels: Annotated[bool, Parameter(negative="")] = False,
    only_known_labels: Annotated[bool, Parameter(negative="")] = False,
    shapes: Literal["drawn", "boxes"] = "drawn",
    crowds: Annotated[bool, Parameter(negative="")] = False,
    incomplete: Literal["keep", "skip"] = "keep",
    ground_truth: Annotated[bool, Parameter(negative="")] = False,
    classes: Path | None = None,
    max_errors: float = 0.01,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: JsonPath = None,
) -> int:
    """Import a labelled data set, or plain images, into a Label Studio project. Repeated imports add nothing twice.

    ```
    labelloop import ./coco --project new --title Cars --dry-run
    labelloop import ./coco --project new --title Cars
    labelloop import s3://bucket/photos --project new
    labelloop import results.json --project 5 --as predictions --model-version n7
    ```

    Args:
        source: A folder, a zip, a file of the data set (COCO, CVAT, NDJSON, data.yaml ...), or s3://BUCKET/PREFIX.
        project: The project's number, or "new".
        title: The title of a new project. Default: the data set's own name.
        format: The format of the data set: coco, coco-results, coco-captions, voc, yolo, yolo-detect, yolo-segment,
            yolo-obb, yolo-pose, yolo-classify, labelme, cvat, createml, dota, open-images, ndjson or images. "auto"
            detects all, but cannot distinguish yolo-obb from yolo-segment.
        labels_as: What the labels become: annotations (of people) or predictions (of a model).
        model_version: The name of the model, for predictions.
        images: Upload the images, reference them where they are, or match them to tasks of the project (existing).
            Default: local files are uploaded, those in a bucket referenced, and COCO results matched to existing tasks.
        images_from: Where the images are, if not next to the labels: a folder or s3://BUCKET/PREFIX.
        image_base: The prefix of image names in Label Studio, for referenced images: s3://BUCKET/PREFIX,
            https://HOST/PATH or /data/local-files/?d=FOLDER.
        extend_labels: Add labels and controls that the project's label config lacks; existing ones are not changed.
        only_known_labels: Leave out objects of labels that the project does not have.
        shapes: With boxes, import the box of each object instead of its shape.
        crowds: Import crowd regions (COCO's iscrowd) as regions marked `crowd`, which an export writes as iscrowd
            again. By default they are left out and counted, but not as failures.
        incomplete: With skip, an image with unreadable objects is imported without an annotation, instead of with its
            readable objects. An image without any readable object never gets one.
        ground_truth: Mark the annotations as ground truth.
        classes: For coco-results: a COCO file, classes.json or a list of names that defines the category
            numbers. Default: the project's labels in their order, from 1.
        max_errors: The share of images and objects that may fail before the exit status is 1.
        dry_run: Read the data set, print what is in it, and write nothing.
        json: Where to write the report as JSON ("-": to the standard output).

    Returns:
        0; 1 if more than `max_errors` failed; 130 or 143 after Ctrl-C or SIGTERM.
    """
    settings = Settings()
    setup_logging(settings.replace(log_level="ERROR"))  # log lines would tear the progress bar
    if format != "auto" and format not in READERS:
        raise BadOption("--format", format, ", ".join(["auto", *READERS]))
    if project != "new" and not project.isdecimal():
        raise BadOption("--project", project, 'the number of a project, or "new"')
    report_to = writable_json_path(json)
    order = ImportOptions(
        source=source,
        project=None if project == "new" else int(project),
        title=_title(title, source),
        format=format,
        labels_as=labels_as,
        version=model_version,
        images=images,
        images_from=images_from,
        image_base=image_base,
        extend_labels=extend_labels,
        known_only=only_known_labels,
        boxes=shapes == "boxes",
        crowds=crowds,
        ground_truth=ground_truth,
        classes=classes,
        skip_incomplete=incomplete == "skip",
    )
    with (
        closing(Studio.from_settings(settings)) as studio,
        graceful_stop("the images in progress") as stop,
        progress_bar("images") as progress,
    ):
        if dry_run:
            data, requirements = scan_dataset(order, settings=settings, studio=studio, progress=progress)
        else:
            report = run_import(order, settings=settings, studio=studio, progress=progress, stop=stop)
    if dry_run:
        print(_dry_run_summary(data, requirements))
        return 0
    if not write_json(report_to, report):
        print(summary(report, settings.label_studio_url))
    if report.stopped:
        return stop.exit_status
    return 1 if report.failed_share > max_errors else 0


def summary(report: ImportReport, url: str) -> str:
    """Format the report for people."""
    what = report.labels_as
    if not report.project:
        lines = [f"{report.format}: none of {report.photos} images could be imported, and no project was created"]
        return "\n".join(lines + _left_out(report))
    lines = [
        f"{report.format}: {report.photos} images -> {url.rstrip('/')}/projects/{report.project}/",
        f"  {report.tasks_made} tasks created, {report.tasks_there} existed",
        f"  {report.added} {what} added with {report.regions} regions"
        + (f", {report.empty} of them empty: images without objects" if report.empty else "")
        + (f", {report.there} existed" if report.there else ""),
    ]
    if report.unlabelled:
        kind = "a prediction" if what == "predictions" else "an annotation"
        lines.append(f"  {pluralize(report.unlabelled, 'image')} imported without {kind}: no readable labels")
    lines += [f"  {note}" + (f" ({number})" if number > 1 else "") for note, number in report.notes.items()]
    lines += _left_out(report)
    if report.stopped:
        lines.append(f"Stopped. Run the same command with --project {report.project} to continue.")
    return "\n".join(lines)


def _left_out(report: ImportReport) -> list[str]:
    lines = []
    for title, failed in (("left out", True), ("excluded by the options (not failures)", False)):
        problems = [problem for problem in report.problems if problem.failed == failed]
        if problems:
            lines.append(f"  {len(problems)} {title}:")
            lines += [f"    {problem.item}: {problem.reason}" for problem in problems[:LISTED]]
            if len(problems) > LISTED:
                lines.append(f"    and {len(problems) - LISTED} more (--json lists all)")
    return lines


def _dry_run_summary(data: DataSet, requirements: LabelConfigRequirements) -> str:
    shapes = ", ".join(requirements.shapes) or "nothing drawn"
    problems = pluralize(requirements.problems, "problem")
    lines = [f"{data.format}: {requirements.images} images, {requirements.objects} objects ({shapes}), {problems}"]
    for name, values in (
        ("labels", requirements.labels),
        ("key points", requirements.keypoint_names),
        ("classes", requirements.choices),
    ):
        if values:
            lines.append(f"  {name}: {', '.join(map(terminal_label, values))}")
    lines += [f"  {note}" for note in data.notes]
    if requirements.empty:
        lines.append(f"  {pluralize(requirements.empty, 'image')} without objects: empty annotations")
    if requirements.unlabelled:
        lines.append(f"  {pluralize(requirements.unlabelled, 'image')} without readable labels: no annotation")
    lines += [f"  {note}: {number}" for note, number in data.counts.items() if number]
    if requirements.unnamed:
        lines.append(f"  {UNNAMED}: {requirements.unnamed}")
    dataset_problems = (problem for problem in data.images() if isinstance(problem, DatasetProblem))
    lines += [
        f"  {problem.item}: {problem.reason}" for problem, _ in zip(dataset_problems, range(LISTED), strict=False)
    ]
    return "\n".join([*lines, "Nothing was written (--dry-run)."])


def _title(requested: str, source: str) -> str:
    """Return the title of a new project: Label Studio accepts 3 to 50 characters, without spaces at the ends.

    Raises:
        BadOption: the given title is shorter or longer.
    """
    if title := requested.strip():
        if not 3 <= len(title) <= 50:
            raise BadOption("--title", requested, "3 to 50 characters, the limits of Label Studio")
        return title
    path = Path(source.rstrip("/"))
    path = path if is_bucket_url(source) else path.expanduser().absolute()
    name = (path.stem if path.suffix else path.name).encode(errors="replace").decode()[:50].strip()
    return name if len(name) > 2 else f"Imported {name}".strip()
