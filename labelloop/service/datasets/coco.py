"""Read COCO: instances and person_keypoints files, and folders with one file per split.

Format: https://cocodataset.org/#format-data.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from labelloop.labeling.geometry.shapes import Geometry, Polygon
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.region_attributes import NO_OBJECT_ATTRIBUTES, ObjectAttributes
from labelloop.service.datasets.coco_files import may_be_coco, split_folder
from labelloop.service.datasets.coco_records import (
    CocoAnnotation,
    CocoCategory,
    CocoImage,
    coco_id,
    is_ring,
    keypoint_triples,
    ring_points,
)
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import Category, DataSet, DatasetImage, DatasetProblem, Keypoint, LabelledObject
from labelloop.service.datasets.shapes import (
    decode_rle,
    image_size_or_zero,
    is_number,
    parse_number,
    rectangle,
    rectangle_or_polygon,
    rings_to_mask,
)
from labelloop.service.datasets.text import decode_json

IDS_NOT_KEPT = "ids of annotations: not kept, an export numbers them by their tasks"
IDS_AS_NUMBERS = "entries whose id is written as 7.0 or '7': read as the number 7"


class _CocoFile(msgspec.Struct):
    images: list[Any] = []
    annotations: list[msgspec.Raw] | None = None
    categories: list[Any] | None = None
    info: Any = None
    licenses: Any = None


class _Category(msgspec.Struct, frozen=True):
    name: str
    keypoints: tuple[str, ...]
    supercategory: str = ""
    skeleton: tuple[tuple[str, str], ...] = ()


_decode_annotation = msgspec.json.Decoder(CocoAnnotation).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_EXPORT_DESCRIPTION = "exported by labelloop"
_EXPORT_FIELDS = frozenset({"region_id", "annotation_id", "annotator", "annotators", "attributes", "meta"})
# Computed from the geometry.
_DERIVED_FIELDS = frozenset({"area", "num_keypoints"})
# Size limit of the JSON metadata that is stored with each image.
_MAX_METADATA_BYTES = 2000


def read_coco(data: bytes, location: str) -> DataSet:
    """Read an ``instances`` or ``person_keypoints`` file.

    Raises:
        DatasetError: The file is not COCO.
    """
    try:
        content = decode_json(data, _CocoFile)
    except MalformedData as error:
        fix = "`python -m json.tool FILE` names the place of the fault."
        if "Expected" in str(error):
            fix = "A COCO file has lists of images, annotations and categories."
        elif "UTF-8" in str(error):
            fix = "Save it as UTF-8."
        raise unreadable_error(data, location, default=f"it is not a COCO file ({error})", fix=fix) from None
    if not content.images:
        fix = "A COCO file has images, annotations and categories."
        raise unreadable_error(data, location, default="it lists no images", fix=fix)
    categories, category_problems = _categories(content.categories or ())
    images, image_problems = _images(content.images)
    metadata, notes = _image_metadata(content)
    annotations_by_image: dict[Any, list[msgspec.Raw]] = {image: [] for image in images}
    orphans = []
    listed = [entry for entry in (*content.images, *(content.categories or ())) if isinstance(entry, dict)]
    odd_ids = sum(_is_read_as_number(entry.get("id")) for entry in listed)
    for raw in content.annotations or ():
        try:
            annotation = _decode_annotation(raw)
            annotations_by_image[_valid_id(annotation.image_id)].append(raw)
            odd_ids += _is_read_as_number(annotation.image_id) or _is_read_as_number(annotation.category_id)
        except (msgspec.DecodeError, MalformedData, RecursionError):
            orphans.append(DatasetProblem("an annotation", f"not an object with an image_id: {bytes(raw)[:60]!r}"))
        except KeyError:
            image_id = f"{annotation.image_id!r:.40}"
            orphans.append(
                DatasetProblem(f"annotation {annotation.id!r:.40}", f"its image {image_id} is not in images")
            )
    # An annotation without a valid image may belong to any image, so no image counts as empty then.
    labelled = content.annotations is not None and bool(content.annotations or categories)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        yield from (*category_problems, *image_problems, *orphans)
        for image_id, image in images.items():
            raws, image_metadata = annotations_by_image[image_id], metadata.get(image_id, {})
            for item in _read_image(image, raws, categories):
                if isinstance(item, DatasetProblem):
                    yield item
                elif raws:
                    yield msgspec.structs.replace(item, about=image_metadata)
                else:
                    unread = int(bool(orphans))
                    yield msgspec.structs.replace(item, about=image_metadata, labelled=labelled, unread=unread)

    labels = tuple(dict.fromkeys(category.name for category in categories.values()))
    keypoint_names = tuple(dict.fromkeys(name for category in categories.values() for name in category.keypoints))
    unlabelled_note = "it has no annotations: its images are not labelled"
    return DataSet(
        "coco",
        read,
        labels,
        keypoint_names,
        notes=(*(() if labelled else (unlabelled_note,)), *notes),
        counts={
            IDS_NOT_KEPT: sum(map(len, annotations_by_image.values())),
            **({IDS_AS_NUMBERS: odd_ids} if odd_ids else {}),
        },
        categories={
            category.name: Category(category_id, category.supercategory)
            for category_id, category in reversed(categories.items())
        },
        skeleton=tuple(dict.fromkeys(pair for category in categories.values() for pair in category.skeleton)),
    )


def _categories(listed: Sequence[Any]) -> tuple[dict[Any, _Category], list[DatasetProblem]]:
    """The categories by id, sorted by id; and the problems of invalid ones."""
    categories: dict[Any, _Category] = {}
    problems = []
    for entry in listed:
        category = msgspec.convert(entry, CocoCategory) if isinstance(entry, dict) else CocoCategory()
        category_id = category.id
        name = str(category.name) if type(category.name) is int else category.name
        if type(category_id) is not int or not isinstance(name, str) or not name.strip():
            problems.append(DatasetProblem("a category", f"id or name is missing: {entry!r:.60}"))
        elif category_id in categories:
            problems.append(
                DatasetProblem(
                    f"category {category_id} {name!r}", f"category {categories[category_id].name!r} has the same id"
                )
            )
        else:
            keypoints = category.keypoints
            keypoint_names = (
                keypoints
                if isinstance(keypoints, list) and all(isinstance(keypoint, str) for keypoint in keypoints)
                else []
            )
            supercategory = category.supercategory if isinstance(category.supercategory, str) else ""
            categories[category_id] = _Category(
                name.strip(), tuple(keypoint_names), supercategory, _edges(category.skeleton, keypoint_names)
            )
    return dict(sorted(categories.items())), problems


def _edges(skeleton: Any, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The edges of a skeleton as pairs of key point names; COCO numbers key points from 1."""
    pairs = skeleton if isinstance(skeleton, list) else []
    valid = [
        pair
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n <= len(names) for n in pair)
    ]
    return tuple((names[first - 1], names[second - 1]) for first, second in valid)


def _remarks(raw: msgspec.Raw) -> ObjectAttributes:
    """The attributes and non-standard fields of an annotation."""
    fields = {name: value for name, value in _decode_fields(raw).items() if name not in _KNOWN_FIELDS}
    if not fields:
        return NO_OBJECT_ATTRIBUTES
    decoded = {name: _decode_field(name, value) for name, value in fields.items()}
    attributes, meta = decoded.get("attributes"), decoded.get("meta")
    return ObjectAttributes(
        attributes=attributes if isinstance(attributes, dict) else {},
        fields={
            name: value
            for name, value in decoded.items()
            if name not in _EXPORT_FIELDS and (name, value) != ("ignore", 0)
        },
        meta=meta if isinstance(meta, dict) else {},
    )


def _decode_field(name: str, value: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError as error:  # such as a number beyond double precision
        raise MalformedData(f"its field {name!r:.40} cannot be read: {error}") from None


_KNOWN_FIELDS = (frozenset(CocoAnnotation.__struct_fields__) | _DERIVED_FIELDS | _EXPORT_FIELDS) - {
    "attributes",
    "meta",
}


def _image_metadata(content: _CocoFile) -> tuple[dict[Any, dict[str, Any]], tuple[str, ...]]:
    """The metadata of each image by its id (license, info, other fields); and notes about dropped metadata."""
    listed = content.licenses if isinstance(content.licenses, list) else []
    short = [
        entry for entry in listed if isinstance(entry, dict) and len(msgspec.json.encode(entry)) <= _MAX_METADATA_BYTES
    ]
    licenses = {license_.get("id"): license_ for license_ in short if _hashable(license_.get("id"))}
    info = content.info if isinstance(content.info, dict) else {}
    notes = []
    if len(short) < len(listed):
        notes.append(
            f"licenses that are not objects or exceed {_MAX_METADATA_BYTES} bytes, not kept: {len(listed) - len(short)}"
        )
    if len(msgspec.json.encode(info)) > _MAX_METADATA_BYTES:
        info = {}
        notes.append(f"its info is longer than {_MAX_METADATA_BYTES} bytes and is not kept")
    if info.get("description") == _EXPORT_DESCRIPTION:
        info = {}
    metadata: dict[Any, dict[str, Any]] = {}
    for image in content.images:
        if not isinstance(image, dict) or coco_id(image.get("id")) is None:
            continue
        fields = {
            key: value
            for key, value in image.items()
            if key not in {*_READ_FIELDS, "license"} and value not in (None, "")
        }
        if not str(fields.get("coco_url", "http")).startswith("http"):
            del fields["coco_url"]  # the storage address that our own export wrote
        if (license_id := image.get("license")) is not None and _hashable(license_id):
            fields["license"] = licenses.get(license_id, {"id": license_id})
        metadata[coco_id(image.get("id"))] = fields | ({"info": info} if info else {})
    used = {msgspec.json.encode(fields_.get("license")) for fields_ in metadata.values()}
    if unused := sum(msgspec.json.encode(license_) not in used for license_ in licenses.values()):
        notes.append(f"licenses that no image has, not kept: {unused}")
    return metadata, tuple(notes)


_READ_FIELDS = frozenset({"id", "file_name", "width", "height", "task_id", "item_index"})


def _hashable(value: Any) -> bool:
    return isinstance(value, int | str) or value is None


def _valid_id(value: Any) -> int | str:
    if (number := coco_id(value)) is None:
        raise MalformedData(f"{value!r:.40} is not an id")
    return number  # type: ignore[no-any-return]


def _is_read_as_number(value: Any) -> bool:
    return type(value) is not int and type(coco_id(value)) is int


def _images(listed: Sequence[Any]) -> tuple[dict[Any, CocoImage], list[DatasetProblem]]:
    images: dict[Any, CocoImage] = {}
    problems = []
    names: set[str] = set()
    for entry in listed:
        try:
            image = msgspec.convert(entry, CocoImage)
        except msgspec.ValidationError:
            problems.append(DatasetProblem("an image", f"not an object: {entry!r:.60}"))
            continue
        name = image.file_name
        if image.id is None or not isinstance(name, str) or not name:
            problems.append(DatasetProblem(f"image {image.id!r:.40}", "id or file_name is missing"))
        elif image.id in images or name in names:
            problems.append(DatasetProblem(f"image {image.id} {name}", "another image has the same id or file_name"))
        else:
            images[image.id] = image
            names.add(name)
    return images, problems


def _read_image(
    image: CocoImage, raws: Sequence[msgspec.Raw], categories: Mapping[Any, _Category]
) -> Iterator[DatasetImage | DatasetProblem]:
    width, height = image_size_or_zero(image.width, image.height)
    objects = []
    for raw in raws:
        annotation = _decode_annotation(raw)
        try:
            objects.append(_labelled_object(annotation, _remarks(raw), categories, width, height))
        except MalformedData as error:
            yield DatasetProblem(f"{image.file_name}, annotation {annotation.id!r:.40}", str(error))
    image_url = next((url for url in (image.coco_url, image.flickr_url) if isinstance(url, str) and "://" in url), "")
    task = image.task_id if type(image.task_id) is int else None
    unread = len(raws) - len(objects)
    yield DatasetImage(image.file_name, width, height, tuple(objects), url=image_url, task=task, unread=unread)


def _labelled_object(
    annotation: CocoAnnotation,
    remarks: ObjectAttributes,
    categories: Mapping[Any, _Category],
    width: int,
    height: int,
) -> LabelledObject:
    try:
        category = categories[coco_id(annotation.category_id)]
    except KeyError:
        raise MalformedData(f"its category {annotation.category_id!r:.40} is not in categories") from None
    shape = _shape(annotation, width, height)
    score = None if annotation.score is None else parse_number(annotation.score, "score")
    keypoints = _keypoints(annotation.keypoints, category.keypoints) if category.keypoints else ()
    return LabelledObject(shape, category.name, score, keypoints, crowd=annotation.iscrowd == 1, remarks=remarks)


def _shape(annotation: CocoAnnotation, width: int, height: int) -> Geometry:
    segmentation = annotation.segmentation
    if not segmentation or (isinstance(segmentation, list) and not any(segmentation)):
        return coco_box(annotation.bbox)
    if not width or not height:
        raise MalformedData("it has a segmentation, but its image has no width and height")
    if isinstance(segmentation, dict):
        return decode_rle(segmentation, width, height)
    if isinstance(segmentation, list) and all(map(is_number, segmentation)):
        segmentation = [segmentation]  # one polygon, not in a list: pycocotools reads it too
    if not isinstance(segmentation, list) or not all(isinstance(ring, list) for ring in segmentation):
        raise MalformedData("its segmentation is neither a list of polygons nor an RLE")
    rings = [[parse_number(value, "a coordinate") for value in ring] for ring in segmentation if ring]
    if not all(map(is_ring, rings)):
        raise MalformedData("a polygon of its segmentation has fewer than three points or an odd number of coordinates")
    if len(rings) == 1:
        return rectangle_or_polygon(ring_points(rings[0]))
    try:
        return rings_to_mask(rings, width, height)
    except MalformedData:  # the mask is empty: keep the largest polygon
        polygons = [ring_points(ring) for ring in rings]
        return rectangle_or_polygon(max(polygons, key=lambda ring: abs(Polygon(tuple(ring)).area)))


def coco_box(bbox: Any) -> Geometry:
    """The rectangle of a ``bbox``. Raises `MalformedData` if it is not [x, y, width, height] with an area."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise MalformedData(f"its bbox is {bbox!r:.60}, not [x, y, width, height]")
    return rectangle(*(parse_number(value, "bbox") for value in bbox))


def _keypoints(values: Any, names: Sequence[str]) -> tuple[Keypoint, ...]:
    if values is None or values is msgspec.UNSET:
        return ()
    if not isinstance(values, list) or len(values) != 3 * len(names):
        raise MalformedData(f"its keypoints are not {len(names)} times x, y, visibility")
    keypoints = []
    for name, (x, y, visibility) in zip(names, keypoint_triples(values), strict=True):
        if not is_number(visibility) or visibility not in {0, 1, 2}:
            raise MalformedData(f"key point {name!r} has visibility {visibility!r:.20}, not 0, 1 or 2")
        if visibility:
            keypoints.append(Keypoint(name, parse_number(x, name), parse_number(y, name), hidden=visibility == 1))
    return tuple(keypoints)


def read_coco_files(files: DatasetFiles, images: ImageFiles, names: Sequence[str]) -> DataSet:
    """Read several COCO files as one data set; classes are matched by name, in the order of the files.

    Args:
        files: The files of the data set.
        images: Its image files. If images of the same name are in folders named after splits (``train/1.jpg`` and
            ``val/1.jpg``), the split of the COCO file selects the image.
        names: Names of the COCO files.

    Raises:
        DatasetError: None of the files is COCO, or one is damaged.
    """
    datasets: dict[str, DataSet] = {}
    errors: dict[str, DatasetError] = {}
    for name in names:
        data = files.read(name)
        try:
            datasets[name] = read_coco(data, f"{files.location}/{name}")
        except DatasetError as error:
            if may_be_coco(data):
                raise
            errors[name] = error
    if not datasets:
        raise next(iter(errors.values()), DatasetError(files.location, "it has no COCO file"))

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, dataset in datasets.items():
            split = split_folder(name)
            for item in dataset.images():
                if isinstance(item, DatasetProblem):
                    where = f"{name}: {item.item}" if len(datasets) > 1 else item.item
                    yield DatasetProblem(where, item.reason)
                else:
                    image_name = _name_in_split(item.name, split, images)
                    yield msgspec.structs.replace(item, name=image_name, split=split_of(split))

    def union(*lists: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain(*lists)))

    categories: dict[str, Category] = {}
    renumbered = 0
    for dataset in datasets.values():
        renumbered += sum(
            categories.get(name, category).id != category.id for name, category in dataset.categories.items()
        )
        categories = {**dataset.categories, **categories}
    return DataSet(
        "coco",
        read,
        union(*(dataset.labels for dataset in datasets.values())),
        union(*(dataset.keypoint_names for dataset in datasets.values())),
        notes=(
            *(note for dataset in datasets.values() for note in dataset.notes),
            *([f"{' and '.join(datasets)}: read as one data set"] if len(datasets) > 1 else []),
            *(f"{name}: {error.reason}; left out" for name, error in errors.items()),
            *([f"categories with another id in a later file, the first id counts: {renumbered}"] if renumbered else []),
        ),
        counts=sum((Counter(dataset.counts) for dataset in datasets.values()), Counter()),
        categories=categories,
        skeleton=tuple(dict.fromkeys(edge for dataset in datasets.values() for edge in dataset.skeleton)),
    )


def _name_in_split(name: str, split: str, images: ImageFiles) -> str:
    prefixed = f"{split}/{name}" if split else name
    return prefixed if images.find(name) is None and images.find(prefixed) is not None else name
