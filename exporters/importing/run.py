"""An import from beginning to end: read, interface made or checked, photos in batches; a second one adds nothing."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path, PurePosixPath

import msgspec

from exporters.importing.class_ids import class_numbers, named
from exporters.importing.errors import ImportFailed, LabelsMissing, Refused, TitleTaken
from exporters.importing.existing_tasks import ExistingTasks
from exporters.importing.image_locations import Images, Located, Locator, usual_images
from exporters.importing.label_config import extended, lacks, new_interface, the_image, unkept
from exporters.importing.region_writer import RegionWriter
from exporters.importing.report import As, Imported
from exporters.importing.requirements import LabelConfigRequirements, Progress, scan
from exporters.importing.upload import Parcel, Sender
from labelloop.labeling.geometry.shapes import Geometry, Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.datasets import DataSet, LabelledPhoto, Photos, Place, Problem, open_place, read_dataset
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError, StudioRefused

BATCH = 100
CATEGORIES_LOST = "categories whose number or supercategory the project's labels do not have: not kept"
ABOUT_LOST = "images that were tasks already: their further fields, license and info are not added"
UNNAMED = "photos that the labels do not name: not imported (a second import with --format images adds them)"
SPLITS_KEPT = "photos whose split is in their task's data: labelloop export --split-key split keeps it"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asks for.

    Attributes:
        source: Where the data set is.
        project: An existing project's number; None makes a new one.
        title: The new project's title.
        format: One of `READERS`, or ``auto``.
        labels_as: What labels become.
        version: The model version of predictions.
        images: What is done with photos; None: what is usual for the data set.
        images_from: Where the photos are, where not beside the labels.
        image_base: What stands before a photo's name in its address.
        extend_labels: Whether labels that the project does not have are added to it.
        known_only: Whether objects of labels that the project does not have are left out.
        boxes: Whether only the boxes of objects are taken.
        crowds: Whether an object that is many is imported as one.
        ground_truth: Whether annotations are marked as ground truth.
        classes: Where the numbers of COCO results' classes are told.
        whole: Whether a photo of which some objects cannot be read gets no annotation at all.
    """

    source: str
    project: int | None = None
    title: str = ""
    format: str = "auto"
    labels_as: As = "annotations"
    version: str = ""
    images: Images | None = None
    images_from: str = ""
    image_base: str = ""
    extend_labels: bool = False
    known_only: bool = False
    boxes: bool = False
    crowds: bool = False
    ground_truth: bool = False
    classes: Path | None = None
    whole: bool = False


def run_import(
    order: Order,
    *,
    settings: Settings,
    studio: Studio,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Imported:
    """Imports a data set.

    Args:
        order: What is asked for.
        settings: Where things are.
        studio: Label Studio.
        progress: Called with (photos done, photos in all).
        stop: Asked between batches; what is done stays, and the next import goes on.

    Raises:
        DatasetError: There is no data set.
        LabelsMissing: The project cannot hold it, and neither `extend_labels` nor `known_only` is given.
        TitleTaken, ImportFailed, StudioError
    """
    if order.labels_as == "predictions" and not order.version:
        raise ImportFailed("Predictions need the name of their model.", fix="Give --model-version NAME.")
    place = open_place(order.source, settings, images=order.images_from)
    data = read_dataset(place, order.format)
    images = order.images or usual_images(data, place)
    if order.project is None and images == "existing":
        raise ImportFailed("Photos that are in a project already need that project.", fix="Give --project NUMBER.")
    data = _numbered(data, order, studio)
    if order.boxes:
        data = _boxes_only(data)
    needs = scan(data, crowds=order.crowds, beside=_beside(place, images), progress=progress)
    if images == "upload":
        _not_elsewhere(data, place, needs.photos)
    project = _project(order, needs, studio)
    problems: list[Problem] = []
    sender: Sender | None = None
    there = stopped = done = 0
    try:
        config = studio.label_config(project)
        image = the_image(config)
        assert image is not None  # _project looked
        board = ExistingTasks(studio.tasks(project), image.value)
        placer = RegionWriter(config, image, crowds=order.crowds, tell=problems.append, whole=order.whole)
        sender = Sender(
            studio,
            project,
            key=image.value,
            labels_as=order.labels_as,
            version=order.version,
            ground_truth=order.ground_truth,
            board=board,
            tell=problems.append,
        )
        with closing(Media(settings, studio)) as media:
            root = settings.local_files_root
            locator = Locator(place, board, images, base=order.image_base, local_root=root, media=media)
            photos = _located(data, locator, problems)
            while batch := list(islice(photos, BATCH)):
                sender.send([Parcel(each, placer.place(each.photo, each.identity)) for each in batch])
                there += sum(each.known is not None for each in batch)
                done += len(batch)
                if progress is not None:
                    progress(done, needs.photos)
                if stop():
                    stopped = done < needs.photos
                    break
        if order.project is None and order.labels_as == "predictions" and sender.added:
            studio.update_project(project, model_version=order.version, show_collab_predictions=True)
    except StudioRefused as refused:
        raise refused if refused.fix else Refused(refused) from None
    finally:
        if order.project is None and not (sender is not None and sender.made) and not stopped:
            with suppress(StudioError):  # what went wrong before is what counts
                studio.delete_project(project)
            project = 0
    lost = Counter({CATEGORIES_LOST: unkept(needs, config), ABOUT_LOST: sender.unsaid, UNNAMED: needs.unnamed})
    notes = Counter(data.notes) + Counter(data.counts) + placer.notes + Counter({SPLITS_KEPT: sender.in_splits}) + lost
    return Imported(
        project=project,
        format=data.format,
        labels_as=order.labels_as,
        photos=needs.photos,
        tasks_made=sender.made,
        tasks_there=there,
        added=sender.added,
        there=sender.there,
        regions=sender.regions,
        problems=problems,
        notes=dict(sorted(notes.items())),
        stopped=bool(stopped),
        empty=sender.empty,
        unlabelled=sender.unlabelled,
    )


def _not_elsewhere(data: DataSet, place: Place, photos: int) -> None:
    """Raises `ImportFailed` where none of the photos is where it is looked for: nothing is made for it then."""
    if photos and not any(isinstance(each, LabelledPhoto) and place.photos.find(each.name) for each in data.photos()):
        raise ImportFailed(
            f"None of the {photos} photos of the data set is in {place.photos.files.place}.",
            fix="Say where they are: --images-from DIR. For photos that the project has: --images existing.",
        )


def look(
    order: Order, *, settings: Settings, studio: Studio, progress: Progress | None = None
) -> tuple[DataSet, LabelConfigRequirements]:
    """Reads a data set through and writes nothing: what `--dry-run` tells."""
    place = open_place(order.source, settings, images=order.images_from)
    data = _numbered(read_dataset(place, order.format), order, studio)
    data = _boxes_only(data) if order.boxes else data
    beside = _beside(place, order.images or usual_images(data, place))
    return data, scan(data, crowds=order.crowds, beside=beside, progress=progress)


def _beside(place: Place, images: Images) -> Photos | None:
    """The photos that would be tasks if the labels named them."""
    return None if images == "existing" else place.photos


def _located(data: DataSet, locator: Locator, problems: list[Problem]) -> Iterator[Located]:
    for each in data.photos():
        found = each if isinstance(each, Problem) else locator.find(each)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            split = found.photo.split or _split(found.photo.name)
            yield msgspec.structs.replace(found, photo=msgspec.structs.replace(found.photo, split=split))


def _split(name: str) -> str:
    """The split that one of a photo's folders is named for."""
    return next(filter(None, map(split_of, PurePosixPath(name).parts[:-1])), "")


def _project(order: Order, needs: LabelConfigRequirements, studio: Studio) -> int:
    """The project, with an interface that can hold the data set."""
    if order.project is None:
        taken = next((each for each in studio.projects() if each.get("title") == order.title), None)
        if taken is not None:
            raise TitleTaken(order.title, int(taken["id"]))
        try:
            made = studio.create_project(title=order.title, label_config=new_interface(needs))
        except StudioRefused as refused:
            raise refused if refused.fix else Refused(refused) from None
        return int(made["id"])
    told = studio.project(order.project)
    config = LabelConfig.parse(told["label_config"])
    image = the_image(config)
    if image is None:
        raise ImportFailed(
            f"Project {order.project} shows no single image.", fix='Its labelling interface needs <Image value="$...">.'
        )
    missing = lacks(needs, config, image.name)
    if missing and order.extend_labels:
        studio.update_project(order.project, label_config=extended(told["label_config"], missing, image.name))
    elif missing and not order.known_only:
        raise LabelsMissing(order.project, [str(each) for each in missing])
    return order.project


def _numbered(data: DataSet, order: Order, studio: Studio) -> DataSet:
    """COCO results with the names of their classes, which are numbers there."""
    if data.format != "coco-results":
        return data
    config = None if order.project is None else studio.label_config(order.project)
    return named(data, class_numbers(order.classes, config))


def _boxes_only(data: DataSet) -> DataSet:
    def photos() -> Iterator[LabelledPhoto | Problem]:
        for each in data.photos():
            if isinstance(each, Problem):
                yield each
            else:
                drawn = (msgspec.structs.replace(one, geometry=_box(one.geometry)) for one in each.drawn)
                yield msgspec.structs.replace(each, drawn=tuple(drawn))

    return msgspec.structs.replace(data, photos=photos)


def _box(shape: Geometry) -> Rectangle:
    x_min, y_min, x_max, y_max = shape.bounds
    return Rectangle(x_min, y_min, x_max - x_min, y_max - y_min)
