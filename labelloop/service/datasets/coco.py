"""COCO's files: instances and key points, and the list of results that a model's evaluation writes.

Formats: https://cocodataset.org/#format-data, https://cocodataset.org/#format-results.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from labelloop.labeling.geometry.shapes import Geometry, Polygon
from labelloop.labeling.studio.region_attributes import NONE, Remarks
from labelloop.labeling.studio.sniff import HEAD_BYTES, no_labels
from labelloop.service.datasets.errors import DatasetError, Flawed, no_data_set
from labelloop.service.datasets.model import Category, DataSet, Keypoint, LabelledObject, LabelledPhoto, Problem
from labelloop.service.datasets.shapes import box, number, outline, rings_as_mask, run_lengths, size_of
from labelloop.service.datasets.text import json_of

IDS_LOST = "ids of annotations: not kept, an export numbers them by their tasks"


class _Sheet(msgspec.Struct):
    images: list[Any] = []
    annotations: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    categories: list[Any] = []
    info: Any = None
    licenses: Any = None


class _Annotation(msgspec.Struct):
    """Each field is judged by itself, so that one odd value costs its annotation alone."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    segmentation: Any = None
    keypoints: Any = None
    iscrowd: Any = 0
    score: Any = None
    remarks: Any = NONE


class _Image(msgspec.Struct):
    id: Any = None
    file_name: Any = ""
    width: Any = 0
    height: Any = 0
    coco_url: Any = ""
    flickr_url: Any = ""
    task_id: Any = None


class _Category(msgspec.Struct, frozen=True):
    name: str
    joints: tuple[str, ...]
    supercategory: str = ""
    skeleton: tuple[tuple[str, str], ...] = ()


_one = msgspec.json.Decoder(_Annotation).decode
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_OUR_DESCRIPTION = "exported by labelloop"
_OURS = frozenset({"region_id", "annotation_id", "annotator", "annotators", "attributes", "meta"})
_MEASURED = frozenset({"area", "num_keypoints"})
"""Follow from the shape."""
_LARGEST = 2000
"""Bytes of JSON of what is kept with each image."""


def read_coco(data: bytes, place: str) -> DataSet:
    """An ``instances`` or ``person_keypoints`` file.

    Raises:
        DatasetError: It is no such file.
    """
    try:
        sheet = json_of(data, _Sheet)
    except Flawed as flaw:
        raise no_data_set(data, place, otherwise=f"it is no COCO file ({flaw})") from None
    if not sheet.images:
        fix = "A COCO file has images, annotations and categories."
        raise no_data_set(data, place, otherwise="it lists no images", fix=fix)
    categories, wrong = _categories(sheet.categories)
    images, twice = _images(sheet.images)
    about, notes = _about(sheet)
    of_image: dict[Any, list[msgspec.Raw]] = {image: [] for image in images}
    astray = []
    for raw in () if sheet.annotations is msgspec.UNSET else sheet.annotations:
        try:
            one = _one(raw)
            of_image[_whole_or_text(one.image_id)].append(raw)
        except (msgspec.DecodeError, Flawed, RecursionError):
            astray.append(Problem("an annotation", f"no object with an image_id: {bytes(raw)[:60]!r}"))
        except KeyError:
            image_id = f"{one.image_id!r:.40}"
            astray.append(Problem(f"annotation {one.id!r:.40}", f"its image {image_id} is not among the images"))
    # An annotation that belongs to no image may be of any of them: then no image is known to have nothing on it.
    labelled = sheet.annotations is not msgspec.UNSET and bool(sheet.annotations or categories)

    def photos() -> Iterator[LabelledPhoto | Problem]:
        yield from (*wrong, *twice, *astray)
        for number_, image in images.items():
            raws, told = of_image[number_], about.get(number_, {})
            for each in _photo(image, [_remarked(raw) for raw in raws], categories):
                if isinstance(each, LabelledPhoto):
                    each = msgspec.structs.replace(each, about=told)  # noqa: PLW2901
                    if not raws:
                        each = msgspec.structs.replace(each, labelled=labelled, unread=int(bool(astray)))  # noqa: PLW2901
                yield each

    labels = tuple(dict.fromkeys(each.name for each in categories.values()))
    joints = tuple(dict.fromkeys(name for each in categories.values() for name in each.joints))
    silent = "it has no annotations: its photos are not labelled"
    return DataSet(
        "coco",
        photos,
        labels,
        joints,
        notes=(*(() if labelled else (silent,)), *notes),
        counts={IDS_LOST: sum(map(len, of_image.values()))},
        categories={each.name: Category(number_, each.supercategory) for number_, each in reversed(categories.items())},
        skeleton=tuple(dict.fromkeys(pair for each in categories.values() for pair in each.skeleton)),
    )


def read_results(data: bytes, place: str) -> DataSet:
    """A list of detections, as ``COCO.loadRes`` takes it: the photos are named by ``image_id``, the task's number.

    `labelloop export` numbers the images of a COCO data set by their tasks, so a model that was trained on it says by
    ``image_id`` which task it means. The numbers of classes are the data set's: see `labelled`.

    Raises:
        DatasetError: It is no such file.
    """
    try:
        rows = json_of(data, list[msgspec.Raw])
    except Flawed as flaw:
        raise no_data_set(data, place, otherwise=f"it is no list of COCO results ({flaw})") from None
    if (other := no_labels(data[:HEAD_BYTES])) is not None:
        raise DatasetError(place, f"it is {other.what}", fix=other.fix)
    if rows and not any(bytes(raw).lstrip().startswith(b"{") for raw in rows):
        raise DatasetError(place, "it is a list without objects", fix="COCO results are a list of objects.")
    wrong: list[Problem] = []
    of_image: dict[int, list[tuple[int, msgspec.Raw]]] = {}
    for place_in_list, raw in enumerate(rows):
        try:
            one = _one(raw)
        except (msgspec.DecodeError, RecursionError):
            wrong.append(Problem(f"result {place_in_list}", "no object"))
            continue
        if type(one.image_id) is not int or one.image_id < 1:
            wrong.append(Problem(f"result {place_in_list}", f"image_id {one.image_id!r:.40} is no task's number"))
            continue
        of_image.setdefault(one.image_id, []).append((place_in_list, raw))

    def photos() -> Iterator[LabelledPhoto | Problem]:
        yield from wrong
        for task, found in of_image.items():
            drawn = []
            for place_in_list, raw in found:
                one = _one(raw)
                try:
                    drawn.append(_result(one))
                except Flawed as flaw:
                    yield Problem(f"result {place_in_list} (image {task})", str(flaw))
            yield LabelledPhoto(name=f"task {task}", drawn=tuple(drawn), task=task, unread=len(found) - len(drawn))

    return DataSet("coco-results", photos)


def _result(one: _Annotation) -> LabelledObject:
    if type(one.category_id) is not int:
        raise Flawed(f"category_id is {one.category_id!r:.40}")
    score = number(one.score, "score")
    if one.segmentation:
        size = one.segmentation.get("size") if isinstance(one.segmentation, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(type(edge) is int and edge > 0 for edge in size)):
            raise Flawed("its segmentation is no RLE with a size")
        shape: Geometry = run_lengths(one.segmentation, size[1], size[0])
    else:
        shape = _box(one.bbox)
    return LabelledObject(shape, f"#{one.category_id}", score)


def _categories(listed: Sequence[Any]) -> tuple[dict[Any, _Category], list[Problem]]:
    """By id, in the order of the ids; and those that are none."""
    found: dict[Any, _Category] = {}
    wrong = []
    for each in listed:
        identity, name = (each.get("id"), each.get("name")) if isinstance(each, dict) else (None, None)
        if type(identity) is not int or not isinstance(name, str) or not name.strip():
            wrong.append(Problem("a category", f"no id and name: {each!r:.60}"))
        elif identity in found:
            wrong.append(Problem(f"category {identity} {name!r}", f"its id is {found[identity].name!r}'s too"))
        else:
            joints = each.get("keypoints")
            names = joints if isinstance(joints, list) and all(isinstance(joint, str) for joint in joints) else []
            above = each.get("supercategory")
            above = above if isinstance(above, str) else ""
            found[identity] = _Category(name.strip(), tuple(names), above, _edges(each.get("skeleton"), names))
    return dict(sorted(found.items())), wrong


def _edges(given: Any, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of key points that a skeleton joins, which COCO numbers from 1."""
    pairs = given if isinstance(given, list) else []
    whole = [
        pair
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n <= len(names) for n in pair)
    ]
    return tuple((names[first - 1], names[second - 1]) for first, second in whole)


def _remarked(raw: msgspec.Raw) -> _Annotation:
    """An annotation with its attributes and with the fields that only its writer knows."""
    keys = {name: value for name, value in _keys(raw).items() if name not in _KNOWN}
    if not keys:
        return _one(raw)
    told = {name: msgspec.json.decode(value) for name, value in keys.items()}
    attributes, meta = told.get("attributes"), told.get("meta")
    said = Remarks(
        attributes=attributes if isinstance(attributes, dict) else {},
        fields={name: value for name, value in told.items() if name not in _OURS and (name, value) != ("ignore", 0)},
        meta=meta if isinstance(meta, dict) else {},
    )
    return msgspec.structs.replace(_one(raw), remarks=said)


_KNOWN = (frozenset(_Annotation.__struct_fields__) | _MEASURED | _OURS) - {"attributes", "meta", "remarks"}


def _about(sheet: _Sheet) -> tuple[dict[Any, dict[str, Any]], tuple[str, ...]]:
    """What is said of each image beside its name and size, by its id; and what of that is not kept."""
    listed = sheet.licenses if isinstance(sheet.licenses, list) else []
    short = [each for each in listed if isinstance(each, dict) and len(msgspec.json.encode(each)) <= _LARGEST]
    licenses = {each.get("id"): each for each in short if _hashable(each.get("id"))}
    info = sheet.info if isinstance(sheet.info, dict) else {}
    notes = []
    if len(short) < len(listed):
        notes.append(
            f"licenses that are no object or longer than {_LARGEST} bytes, not kept: {len(listed) - len(short)}"
        )
    if len(msgspec.json.encode(info)) > _LARGEST:
        info = {}
        notes.append(f"its info is longer than {_LARGEST} bytes and is not kept")
    if info.get("description") == _OUR_DESCRIPTION:
        info = {}
    found: dict[Any, dict[str, Any]] = {}
    for each in sheet.images:
        if not isinstance(each, dict) or not _hashable(each.get("id")):
            continue
        kept = {
            key: value for key, value in each.items() if key not in {*_NAMED, "license"} and value not in (None, "")
        }
        if not str(kept.get("coco_url", "http")).startswith("http"):
            del kept["coco_url"]  # where our own export found it
        if (number_ := each.get("license")) is not None and _hashable(number_):
            kept["license"] = licenses.get(number_, {"id": number_})
        found[each.get("id")] = kept | ({"info": info} if info else {})
    used = {msgspec.json.encode(each.get("license")) for each in found.values()}
    if unused := sum(msgspec.json.encode(each) not in used for each in licenses.values()):
        notes.append(f"licenses that no image has, not kept: {unused}")
    return found, tuple(notes)


_NAMED = frozenset({"id", "file_name", "width", "height", "task_id", "item_index"})


def _hashable(value: Any) -> bool:
    return isinstance(value, int | str) or value is None


def _whole_or_text(value: Any) -> int | str:
    if type(value) not in {int, str}:
        raise Flawed(f"{value!r:.40} is no id")
    return value  # type: ignore[no-any-return]


def _images(listed: Sequence[Any]) -> tuple[dict[Any, _Image], list[Problem]]:
    found: dict[Any, _Image] = {}
    wrong = []
    names: set[str] = set()
    for each in listed:
        try:
            image = msgspec.convert(each, _Image)
        except msgspec.ValidationError:
            wrong.append(Problem("an image", f"no object: {each!r:.60}"))
            continue
        name = image.file_name
        if type(image.id) not in {int, str} or not isinstance(name, str) or not name:
            wrong.append(Problem(f"image {image.id!r:.40}", "no id and file_name"))
        elif image.id in found or name in names:
            wrong.append(Problem(f"image {image.id} {name}", "its id or file_name is another image's too"))
        else:
            found[image.id] = image
            names.add(name)
    return found, wrong


def _photo(
    image: _Image, annotations: Sequence[_Annotation], categories: Mapping[Any, _Category]
) -> Iterator[LabelledPhoto | Problem]:
    width, height = size_of(image.width, image.height)
    drawn = []
    for one in annotations:
        try:
            drawn.append(_drawn(one, categories, width, height))
        except Flawed as flaw:
            yield Problem(f"{image.file_name}, annotation {one.id!r:.40}", str(flaw))
    address = next((url for url in (image.coco_url, image.flickr_url) if isinstance(url, str) and "://" in url), "")
    task = image.task_id if type(image.task_id) is int else None
    unread = len(annotations) - len(drawn)
    yield LabelledPhoto(image.file_name, width, height, tuple(drawn), address=address, task=task, unread=unread)


def _drawn(one: _Annotation, categories: Mapping[Any, _Category], width: int, height: int) -> LabelledObject:
    try:
        category = categories[one.category_id]
    except (KeyError, TypeError):
        raise Flawed(f"its category {one.category_id!r:.40} is not among the categories") from None
    shape = _shape(one, width, height)
    score = None if one.score is None else number(one.score, "score")
    joints = _joints(one.keypoints, category.joints) if category.joints else ()
    return LabelledObject(shape, category.name, score, joints, crowd=one.iscrowd == 1, remarks=one.remarks)


def _shape(one: _Annotation, width: int, height: int) -> Geometry:
    given = one.segmentation
    if not given:
        return _box(one.bbox)
    if not width or not height:
        raise Flawed("it has a segmentation, and its image no width and height")
    if isinstance(given, dict):
        return run_lengths(given, width, height)
    if not isinstance(given, list) or not all(isinstance(ring, list) for ring in given):
        raise Flawed("its segmentation is neither a list of rings nor run lengths")
    rings = [[number(value, "a corner") for value in ring] for ring in given if ring]
    if any(len(ring) < 6 or len(ring) % 2 for ring in rings):
        raise Flawed("a ring of its segmentation has fewer than three corners, or half of one")
    if len(rings) == 1:
        return outline(list(zip(rings[0][::2], rings[0][1::2], strict=True)))
    try:
        return rings_as_mask(rings, width, height)
    except Flawed:  # no pixel is in it: its largest part is all that can be drawn of it
        corners = [list(zip(ring[::2], ring[1::2], strict=True)) for ring in rings]
        return outline(max(corners, key=lambda ring: abs(Polygon(tuple(ring)).area)))


def _box(given: Any) -> Geometry:
    if not isinstance(given, list) or len(given) != 4:
        raise Flawed(f"its bbox is {given!r:.60}, not [x, y, width, height]")
    return box(*(number(value, "bbox") for value in given))


def _joints(given: Any, names: Sequence[str]) -> tuple[Keypoint, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) != 3 * len(names):
        raise Flawed(f"its keypoints are not {len(names)} times x, y, visibility")
    found = []
    for name, x, y, seen in zip(names, given[::3], given[1::3], given[2::3], strict=True):
        if type(seen) not in {int, float} or seen not in {0, 1, 2}:
            raise Flawed(f"key point {name!r} has the visibility {seen!r:.20}")
        if seen:
            found.append(Keypoint(name, number(x, name), number(y, name), hidden=seen == 1))
    return tuple(found)
