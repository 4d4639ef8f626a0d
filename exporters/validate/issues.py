"""ISSUE_KINDS: faults of a data set that most loaders accept silently, with their effect and fix; `IssueReport`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

MAX_ISSUES_PER_KIND = 1000


@dataclass(frozen=True, slots=True)
class IssueKind:
    """One kind of issue.

    Attributes:
        title: What is wrong.
        effect: The effect on training or evaluation.
        fix: How to fix it.
    """

    title: str
    effect: str
    fix: str


ISSUE_KINDS: Mapping[str, IssueKind] = {
    "coco-unreadable": IssueKind(
        "not a COCO file", "nothing is read", "write a JSON object with images, annotations and categories"
    ),
    "coco-image-id": IssueKind(
        "an image id that is not an integer, or is used twice",
        "annotations are assigned to the wrong image",
        "number the images 1, 2, 3 ...",
    ),
    "coco-image-name": IssueKind(
        "an image with no file name, a path outside the images folder, or a duplicate entry (also in two splits)",
        "the image counts twice, or the model is trained on test images",
        "list each image once, in one split",
    ),
    "coco-image-size": IssueKind(
        "an image without width and height",
        "globox and labelformat stop, masks cannot be decoded",
        "write the size in pixels",
    ),
    "coco-image-missing": IssueKind(
        "an image that is not in the images folder", "training stops or skips it", "add the image, or drop its entry"
    ),
    "coco-annotation-id": IssueKind(
        "an annotation id that is not an integer, below 1, or used twice",
        "pycocotools treats id 0 as unmatched: the AP of the ground truth against itself can drop to 0",
        "number the annotations 1, 2, 3 ...",
    ),
    "coco-orphan": IssueKind(
        "an annotation whose image is not listed", "it is never used", "list the image, or drop the annotation"
    ),
    "coco-category": IssueKind(
        "an annotation whose category is not listed", "loaders stop, or drop it", "list the category"
    ),
    "coco-category-twice": IssueKind(
        "a category id or name that two categories share",
        "two classes are merged",
        "give each category its own id and name",
    ),
    "coco-box": IssueKind(
        "a box that is not [x, y, width, height] with a positive size",
        "losses become NaN, areas negative",
        "swap the corners of boxes with a negative size, drop empty boxes",
    ),
    "coco-box-outside": IssueKind(
        "a box that exceeds its image", "crops and normalised coordinates are wrong", "clip it to the image"
    ),
    "coco-field": IssueKind(
        "an annotation without area or iscrowd, or with an area larger than its box",
        "COCOeval stops with a KeyError, or assigns objects to the wrong size range",
        "write area (in pixels) and iscrowd 0",
    ),
    "coco-outline": IssueKind(
        "a segmentation with fewer than three points, an odd number of coordinates, points outside the image, or an RLE"
        " of another size",
        "pycocotools stops, or draws another shape",
        "write x, y pairs of at least three points, or an RLE with the size of the image",
    ),
    "coco-keypoints": IssueKind(
        "keypoints that are not three numbers per name of the category, outside the image, or counted wrong",
        "the evaluation of keypoints stops, or ignores the object",
        "write x, y, visibility for each name, and num_keypoints",
    ),
    "coco-twice": IssueKind(
        "a duplicate annotation of an image",
        "one of the two can never be matched: recall is too low",
        "drop one",
    ),
    "yolo-sheet": IssueKind(
        "data.yaml is missing or unreadable, or its names, nc, kpt_shape and flip_idx are inconsistent",
        "training does not start, or mirrors keypoints wrongly",
        "write names for the classes 0 to nc - 1",
    ),
    "yolo-columns": IssueKind(
        "a row with a wrong number of columns, or with a value that is not a number",
        "Ultralytics drops the image",
        "write 5 columns for a box, 1 + 2 n for n points (3 or more), 5 + keypoints for a pose",
    ),
    "yolo-mixed": IssueKind(
        "rows of boxes and rows of points in one data set",
        "Ultralytics drops the image, or all polygons of the data set",
        "use one kind of shape",
    ),
    "yolo-class": IssueKind(
        "a class that is not an integer from 0 to nc - 1",
        "Ultralytics drops the image",
        "number the classes as in data.yaml",
    ),
    "yolo-outside": IssueKind(
        "a coordinate outside 0 to 1, or a box that exceeds the image",
        "Ultralytics drops the image",
        "divide by the image's size, then clip",
    ),
    "yolo-size": IssueKind("a box without width or height", "its loss becomes NaN", "drop the row"),
    "yolo-twice": IssueKind("a duplicate row", "Ultralytics removes one", "drop one"),
    "yolo-image-unlabelled": IssueKind(
        "an image without a label file",
        "it is trained as background",
        "write its labels; an empty file means no objects",
    ),
    "yolo-label-alone": IssueKind(
        "a label file without an image", "it is never used", "add the image, or drop the label file"
    ),
    "voc-unreadable": IssueKind(
        "not a Pascal VOC XML file", "loading stops", "write <annotation> with <size> and <object>"
    ),
    "voc-size": IssueKind("an image without width and height", "loading stops", "write <size> in pixels"),
    "voc-box": IssueKind(
        "an object without a name, a box without four numbers, or a box with swapped corners",
        "loading stops, or areas are negative",
        "write <name> and xmin <= xmax, ymin <= ymax",
    ),
    "voc-box-outside": IssueKind(
        "a box outside 1 .. width, 1 .. height",
        "VOC counts pixels from 1; readers subtract 1 and get -1",
        "count from 1 and clip to the image",
    ),
    "voc-twice": IssueKind(
        "a duplicate object of an image",
        "one of the two can never be matched: recall is too low",
        "drop one",
    ),
    "voc-imagesets": IssueKind(
        "no ImageSets/Main lists, or lists that do not match the files in Annotations",
        "torchvision and the development kit cannot load it, or omit images",
        "write ImageSets/Main/{train,val,trainval,test}.txt",
    ),
    "voc-image-missing": IssueKind("an image that is not in JPEGImages", "loading stops", "add the image"),
    "image-missing": IssueKind(
        "an image that is not in the data set, or a name that several images have",
        "its labels are never used",
        "add the image, or drop its labels",
    ),
    "image-twice": IssueKind(
        "an image that is listed twice",
        "an import keeps the labels of the first entry alone",
        "put its labels into one entry",
    ),
    "object-outside": IssueKind(
        "an object that exceeds its image", "crops and normalised coordinates are wrong", "clip it to the image"
    ),
    "object-twice": IssueKind(
        "a duplicate object of an image",
        "one of the two can never be matched: recall is too low",
        "drop one",
    ),
    "imagefolder-split": IssueKind(
        "an ImageFolder split without objects although others have some",
        "load_dataset infers other types for its columns, and stops",
        "load each split by itself (data_dir=DIR/val), or choose a larger split",
    ),
    "tasks-line": IssueKind(
        "a line that is not in its format, or in the file of another split",
        "reading stops, or the task is used in another split",
        "export the data set again with --afresh",
    ),
    "tasks-twice": IssueKind("a task with one annotation on two lines", "it counts twice", "drop one of the lines"),
    "tasks-dangling": IssueKind(
        "a relation to a region that the line does not have",
        "the relation cannot be used",
        "delete the relation in Label Studio, and export again",
    ),
    "tasks-span": IssueKind(
        "a span or token that does not fit its text, or a tag that continues another entity",
        "loaders drop the entity, or read other ones",
        "correct the span in Label Studio, and export again",
    ),
    "tasks-pair": IssueKind(
        "a preference between two equal or missing responses",
        "it teaches nothing",
        "correct the responses in the tasks' data",
    ),
    "tasks-leak": IssueKind(
        "a task with the same data in another split",
        "the model is tested on what it was trained on",
        "export without --split-key, or give both tasks one split",
    ),
    "label-unread": IssueKind(
        "labels that cannot be read", "training does not use them", "write them in the data set's format"
    ),
    "class-alike": IssueKind(
        "two classes whose names differ only in case, spaces, - or _",
        "one class is trained as two",
        "merge them with `labelloop export --rename OLD=NEW`; an export refuses a new label that resembles another",
    ),
    "labels-shared": IssueKind(
        "a label file that two images share, such as a.jpg and a.png",
        "both images are trained with the objects of one",
        "rename one of the images, and write its own labels",
    ),
    "photo-unreadable": IssueKind(
        "an image file that cannot be opened", "training stops, or drops the image", "replace it, or drop its labels"
    ),
    "photo-size": IssueKind(
        "an image file whose size differs from the size in its labels",
        "all boxes and outlines are misplaced, without an error",
        "use the image that was labelled, or scale the labels",
    ),
    "version-file": IssueKind(
        "an object of the version that is missing, or whose size or SHA-256 differs from the manifest",
        "training reads other data than was exported",
        "pull another version, or write every object again: `labelloop export --afresh`",
    ),
    "version-counts": IssueKind(
        "numbers of the manifest that contradict its files or each other", "the accounting is wrong", "export again"
    ),
    "version-leak": IssueKind(
        "one image in two splits, by its address or by its content",
        "the model is tested on training data: scores are too high",
        "export again: each image is then in the split of the first task that has it",
    ),
    "latest-file": IssueKind(
        "a file of latest/ that is missing, differs from its version, or is not of it",
        "training reads other data than was exported",
        "restore it: `labelloop dataset latest`",
    ),
    "latest-old": IssueKind(
        "latest/ holds another version than the published one",
        "training reads an older version",
        "`labelloop dataset latest`; exports with --no-latest do not update the folder",
    ),
    "latest-state": IssueKind(
        "latest/VERSION.json is missing, unreadable, or says that an update has not finished",
        "files of several versions may be mixed",
        "finish it: `labelloop dataset latest`, or export again",
    ),
    "version-manifest": IssueKind(
        "a manifest that is missing, unreadable, or not the one that HEAD.json names",
        "the version cannot be trusted",
        "pull another version; if it is the published one, remove HEAD.json and export again",
    ),
}


class Issue(msgspec.Struct, frozen=True):
    """One issue.

    Attributes:
        flaw: Its kind, a key of `ISSUE_KINDS`.
        file: The file.
        where: The position in the file: a line, an id; may be empty.
        detail: What was found there.
    """

    flaw: str
    file: str
    where: str
    detail: str


class IssueReport:
    """The issues of a data set.

    Attributes:
        counts: Number of issues by kind.
        checked: Number of checked items by name, such as "images".
        issues: The first `MAX_ISSUES_PER_KIND` issues of each kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self.issues: list[Issue] = []

    def add(self, kind: str, file: str, where: str = "", detail: str = "") -> None:
        """Record an issue; ``kind`` is a key of ``ISSUE_KINDS``."""
        assert kind in ISSUE_KINDS, kind
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_ISSUES_PER_KIND:
            self.issues.append(Issue(kind, file, where, detail))

    def __bool__(self) -> bool:
        return bool(self.counts)
