"""FLAWS: what can be wrong with a data set that loaders take without a word, and how to put it right."""

from collections import Counter
from collections.abc import Mapping

import msgspec

KEPT_OF_A_KIND = 1000


class Flaw(msgspec.Struct, frozen=True):
    """One kind of fault: ``harm`` is what it does to a training or an evaluation, ``fix`` how it goes away."""

    title: str
    harm: str
    fix: str


FLAWS: Mapping[str, Flaw] = {
    "coco-unreadable": Flaw("not a COCO file", "nothing is read", "write a JSON object with images and annotations"),
    "coco-image-id": Flaw(
        "an image id that is no whole number, or that two images share",
        "annotations go to one of the two images",
        "number the images 1, 2, 3 ...",
    ),
    "coco-image-name": Flaw(
        "an image without a file name, with one that leads out of its folder, or listed twice (also in two splits)",
        "it counts twice, or test images are trained on",
        "list each image once, in one split",
    ),
    "coco-image-size": Flaw(
        "an image without a width and a height",
        "globox and labelformat stop, masks cannot be decoded",
        "write the size in pixels",
    ),
    "coco-image-missing": Flaw(
        "an image that is not in the images folder", "training stops or skips it", "bring the image, or drop its entry"
    ),
    "coco-annotation-id": Flaw(
        "an annotation id below 1, no whole number, or used twice",
        "pycocotools takes id 0 for no match: AP of the truth against itself falls as low as 0",
        "number the annotations 1, 2, 3 ...",
    ),
    "coco-orphan": Flaw(
        "an annotation of an image that is not listed", "it is never trained on", "list its image, or drop it"
    ),
    "coco-category": Flaw(
        "an annotation of a category that is not listed", "loaders stop or drop it", "list the category"
    ),
    "coco-category-twice": Flaw(
        "a category id or name that two categories share", "two classes become one", "give each its own id and name"
    ),
    "coco-box": Flaw(
        "a box that is not [x, y, width, height] with a size over 0",
        "losses become NaN, areas negative",
        "turn negative sizes round, drop empty boxes",
    ),
    "coco-box-outside": Flaw(
        "a box over the edge of its image", "crops and normalised coordinates go wrong", "clip it to the image"
    ),
    "coco-field": Flaw(
        "an annotation without area or iscrowd, or with an area larger than its box",
        "COCOeval stops with a KeyError, or sorts objects into the wrong sizes",
        "write area (pixels) and iscrowd 0",
    ),
    "coco-outline": Flaw(
        "an outline of fewer than three points, an odd count of numbers, points outside the image, or run lengths that"
        " do not fill it",
        "pycocotools stops or draws another shape",
        "write x, y pairs of three points or more, and the image's own size",
    ),
    "coco-keypoints": Flaw(
        "key points that are not three numbers for each name of the category, outside the image, or counted wrong",
        "evaluation of key points stops or ignores the object",
        "write x, y, visibility for each name, and num_keypoints",
    ),
    "coco-twice": Flaw(
        "an annotation that says the same as another one of its image",
        "one of the two can never be found: recall is too low",
        "drop one",
    ),
    "yolo-sheet": Flaw(
        "data.yaml missing, unreadable, or its names, nc, kpt_shape or flip_idx do not fit together",
        "training does not start, or mirrors key points wrongly",
        "write names for the classes 0 to nc - 1",
    ),
    "yolo-columns": Flaw(
        "a row with a wrong count of columns, or with something that is no number",
        "Ultralytics drops the whole image",
        "5 columns for boxes, 1 + 2 n for n points (3 or more), 5 + key points for pose",
    ),
    "yolo-mixed": Flaw(
        "rows of boxes and rows of points in one data set",
        "Ultralytics drops the image, or every outline of the data set",
        "keep one kind of shape",
    ),
    "yolo-class": Flaw(
        "a class that is no whole number from 0 to nc - 1",
        "Ultralytics drops the whole image",
        "number the classes as in data.yaml",
    ),
    "yolo-outside": Flaw(
        "a coordinate outside 0 to 1, or a box over the edge",
        "Ultralytics drops the whole image",
        "divide by the image's size, then clip",
    ),
    "yolo-size": Flaw("a box without width or height", "its loss becomes NaN", "drop the row"),
    "yolo-twice": Flaw("a row that is there twice", "Ultralytics takes one away", "drop one"),
    "yolo-image-unlabelled": Flaw(
        "an image without a label file",
        "it is trained as background",
        "write its labels; an empty file says that there is nothing",
    ),
    "yolo-label-alone": Flaw("a label file without an image", "it is never trained on", "bring the image, or drop it"),
    "voc-unreadable": Flaw("not an XML of Pascal VOC", "loading stops", "write <annotation> with <size> and <object>"),
    "voc-size": Flaw("an image without a width and a height", "loading stops", "write <size> in pixels"),
    "voc-box": Flaw(
        "an object without a name, or a box without four numbers, or turned round",
        "loading stops, areas become negative",
        "write <name> and xmin <= xmax, ymin <= ymax",
    ),
    "voc-box-outside": Flaw(
        "a box outside 1 .. width, 1 .. height",
        "VOC counts pixels from 1; readers take 1 off and get -1",
        "count from 1 and clip to the image",
    ),
    "voc-twice": Flaw(
        "an object that says the same as another one of its image",
        "one of the two can never be found: recall is too low",
        "drop one",
    ),
    "voc-imagesets": Flaw(
        "no ImageSets/Main lists, or lists and Annotations that do not name the same images",
        "torchvision and the development kit cannot load it, or leave images out",
        "write ImageSets/Main/{train,val,trainval,test}.txt",
    ),
    "voc-image-missing": Flaw("an image that is not in JPEGImages", "loading stops", "bring the image"),
    "label-unread": Flaw(
        "labels that cannot be read", "they are lost to whoever trains on it", "write them as the format has it"
    ),
    "class-alike": Flaw(
        "two classes whose names differ only in case, spaces, - or _",
        "one kind of thing is trained as two",
        "`labelloop export --rename OLD=NEW` counts both as one; an export refuses a new label that is like another",
    ),
    "labels-shared": Flaw(
        "a label file that two images share, such as a.jpg and a.png",
        "both are trained with the objects of one",
        "rename one of the images, and write its own labels",
    ),
    "photo-unreadable": Flaw(
        "a photo that cannot be opened", "training stops, or drops the image", "bring it anew, or drop its labels"
    ),
    "photo-size": Flaw(
        "a photo of another size than its labels say",
        "every box and outline lies wrong, and nothing says so",
        "bring the photo that was labelled, or scale the labels",
    ),
    "version-file": Flaw(
        "an object of the version that is missing, or whose size or SHA-256 is not the manifest's",
        "training reads something else than was exported",
        "pull another version, or write every object again: `labelloop export --afresh`",
    ),
    "version-counts": Flaw(
        "numbers of the manifest that do not fit its files or each other", "the bill is wrong", "export again"
    ),
    "version-leak": Flaw(
        "one photo in two splits, by its address or by its copied bytes",
        "what is tested was trained on: scores are too good",
        "export again: each image is then in the split of the first task that has it",
    ),
    "version-manifest": Flaw(
        "a manifest that is missing, unreadable or not the one that HEAD.json names",
        "nothing can be trusted",
        "pull another version; where it is the published one, remove HEAD.json and export again",
    ),
}


class Problem(msgspec.Struct, frozen=True):
    """One fault: which flaw, in which file, where in it (a line, an id) and what is there."""

    flaw: str
    file: str
    where: str
    detail: str


class Problems:
    """What was found: every fault counted, the first thousand of a kind kept, and what was looked at."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.looked_at: Counter[str] = Counter()
        self.kept: list[Problem] = []

    def add(self, flaw: str, file: str, where: str = "", detail: str = "") -> None:
        """Note one fault; ``flaw`` is a name in ``FLAWS``."""
        assert flaw in FLAWS, flaw
        self.counts[flaw] += 1
        if self.counts[flaw] <= KEPT_OF_A_KIND:
            self.kept.append(Problem(flaw, file, where, detail))

    def __bool__(self) -> bool:
        return bool(self.counts)
