"""The command `labelloop import`: its options, progress bar, Ctrl-C, and what it says when it is done."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from exporters.console import Json, checked, counted, progress_bar, shown, write_json
from exporters.errors import BadOption
from exporters.importing.image_locations import Images
from exporters.importing.report import As, Imported
from exporters.importing.requirements import LabelConfigRequirements
from exporters.importing.run import UNNAMED, Order, look, run_import
from labelloop.service.datasets import READERS, DataSet, Problem
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import finishing
from labelloop.service.studio import Studio

LISTED = 20
"""Problems that are printed; of more, the number is said (all are in the report)."""


def import_dataset(
    source: str,
    *,
    project: str,
    title: str = "",
    format: str = "auto",  # noqa: A002 - the user's word for it
    labels_as: Annotated[As, Parameter(name="--as")] = "annotations",
    model_version: str = "",
    images: Images | None = None,
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
    json: Json = None,
) -> int:
    """Bring a labelled data set, or plain photos, into a Label Studio project. Again: nothing is added twice.

    ```
    labelloop import ./coco --project new --title Cars --dry-run
    labelloop import ./coco --project new --title Cars
    labelloop import s3://bucket/photos --project new
    labelloop import results.json --project 5 --as predictions --model-version n7
    ```

    Args:
        source: a folder, a zip, a COCO or NDJSON file, a data.yaml, or s3://BUCKET/PREFIX.
        project: the project's number, or "new".
        title: the title of a new project. Default: the data set's own name.
        format: what the data set is: coco, coco-results, voc, yolo, yolo-detect, yolo-segment, yolo-obb, yolo-pose,
            yolo-classify, ndjson or images. "auto" tells all but yolo-obb from yolo-segment.
        labels_as: what the labels become: annotations (of people) or predictions (of a model).
        model_version: the name of the model, for predictions.
        images: upload the photos, reference them where they are, or find them among the tasks that the project has
            already (existing). Default: files of this machine are uploaded, those in a bucket referenced, and COCO
            results are of existing tasks.
        images_from: where the photos are, if not beside the labels: a folder or s3://BUCKET/PREFIX.
        image_base: what Label Studio finds before each photo's name, for referenced photos: s3://BUCKET/PREFIX,
            https://HOST/PATH or /data/local-files/?d=FOLDER.
        extend_labels: add labels and controls that the project's labelling interface lacks; nothing there is changed.
        only_known_labels: leave out objects of labels that the project does not have.
        shapes: boxes: take the box of each object, whatever its shape.
        crowds: import a region of many objects (COCO's iscrowd) as one that is marked `crowd`, which an export writes
            as iscrowd again; else it is left out and counted, which is no failure.
        incomplete: skip: a photo of which some objects cannot be read comes in without an annotation, instead of one
            with the objects that can. A photo of which none can be read never gets one.
        ground_truth: mark the annotations as ground truth.
        classes: for coco-results: a COCO file, classes.json or a list of names that tells what the category numbers
            mean. Default: the project's labels in their order, from 1.
        max_errors: the share of photos and objects that may fail before the exit status is 1.
        dry_run: read the data set, say what is in it, and write nothing.
        json: where to write the report as JSON ("-": to the standard output).

    Returns:
        0, 1 where more than `max_errors` failed, 130 or 143 where Ctrl-C or SIGTERM stopped it.
    """
    settings = Settings()
    setup_logging(settings.but(log_level="ERROR"))  # log lines would tear the progress bar
    if format != "auto" and format not in READERS:
        raise BadOption("--format", format, ", ".join(["auto", *READERS]))
    if project != "new" and not project.isdecimal():
        raise BadOption("--project", project, 'the number of a project, or "new"')
    report_to = checked(json)
    order = Order(
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
        whole=incomplete == "skip",
    )
    with (
        closing(Studio.from_settings(settings)) as studio,
        finishing("the photos at work") as stop,
        progress_bar("photos") as progress,
    ):
        if dry_run:
            data, needs = look(order, settings=settings, studio=studio, progress=progress)
        else:
            report = run_import(order, settings=settings, studio=studio, progress=progress, stop=stop)
    if dry_run:
        print(_told(data, needs))
        return 0
    if not write_json(report_to, report):
        print(summary(report, settings.label_studio_url))
    if report.stopped:
        return stop.status
    return 1 if report.failed_share > max_errors else 0


def summary(report: Imported, url: str) -> str:
    """The report as a person reads it."""
    what = report.labels_as
    if not report.project:
        lines = [f"{report.format}: none of {report.photos} photos could be imported, and no project is left of it"]
        return "\n".join(lines + _left_out(report))
    lines = [
        f"{report.format}: {report.photos} photos -> {url.rstrip('/')}/projects/{report.project}/",
        f"  {report.tasks_made} tasks made, {report.tasks_there} were there",
        f"  {report.added} {what} added with {report.regions} regions"
        + (f", {report.empty} of them empty: nothing is on the photo" if report.empty else "")
        + (f", {report.there} were there" if report.there else ""),
    ]
    if report.unlabelled:
        kind = "a prediction" if what == "predictions" else "an annotation"
        come = "image comes" if report.unlabelled == 1 else "images come"
        lines.append(f"  {report.unlabelled} {come} in without {kind}: nothing is said of them that could be read")
    lines += [f"  {note}" + (f" ({number})" if number > 1 else "") for note, number in report.notes.items()]
    lines += _left_out(report)
    if report.stopped:
        lines.append(f"Stopped. What is done stays; the same command with --project {report.project} goes on.")
    return "\n".join(lines)


def _left_out(report: Imported) -> list[str]:
    lines = []
    for title, failed in (("left out", True), ("not asked for, which is no failure", False)):
        problems = [each for each in report.problems if each.failed == failed]
        if problems:
            lines.append(f"  {len(problems)} {title}:")
            lines += [f"    {each.item}: {each.reason}" for each in problems[:LISTED]]
            if len(problems) > LISTED:
                lines.append(f"    and {len(problems) - LISTED} more (--json lists all)")
    return lines


def _told(data: DataSet, needs: LabelConfigRequirements) -> str:
    shapes = ", ".join(needs.shapes) or "nothing drawn"
    problems = counted(needs.problems, "problem")
    lines = [f"{data.format}: {needs.photos} photos, {needs.objects} objects ({shapes}), {problems}"]
    for name, values in (("labels", needs.labels), ("key points", needs.joints), ("classes", needs.choices)):
        if values:
            lines.append(f"  {name}: {', '.join(map(shown, values))}")
    lines += [f"  {note}" for note in data.notes]
    if needs.empty:
        lines.append(f"  nothing is on {counted(needs.empty, 'photo')}: empty annotations")
    if needs.unlabelled:
        lines.append(f"  {counted(needs.unlabelled, 'photo')} without labels that can be read: no annotation")
    lines += [f"  {note}: {number}" for note, number in data.counts.items() if number]
    if needs.unnamed:
        lines.append(f"  {UNNAMED}: {needs.unnamed}")
    faults = (each for each in data.photos() if isinstance(each, Problem))
    lines += [f"  {each.item}: {each.reason}" for each, _ in zip(faults, range(LISTED), strict=False)]
    return "\n".join([*lines, "Nothing was written (--dry-run)."])


def _title(given: str, source: str) -> str:
    """The title of a new project: Label Studio takes 3 to 50 characters, spaces at the ends not counted.

    Raises:
        BadOption: The one that the user gave is shorter or longer.
    """
    if title := given.strip():
        if not 3 <= len(title) <= 50:
            raise BadOption("--title", given, "3 to 50 characters: Label Studio takes no other title")
        return title
    path = Path(source.rstrip("/"))
    path = path if source.startswith("s3://") else path.expanduser().absolute()
    name = (path.stem if path.suffix else path.name).encode(errors="replace").decode()[:50].strip()
    return name if len(name) > 2 else f"Imported {name}".strip()
