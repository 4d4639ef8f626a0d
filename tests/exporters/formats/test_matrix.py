"""Third-party loaders read every data set of the test matrix without warnings and with equal boxes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import labelformat.formats as labelformat
import numpy as np
import pytest
import supervision
from globox import AnnotationSet
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.exporters import matrix
from tests.exporters.conftest import CHECKER, Build
from tests.supervision_referee import boxes_of

DATUMARO = CHECKER.parent / "datumaro/bin/python"
CASES = tuple(matrix.cases(Build()))
Found = dict[str, list[tuple]]
"""Photo -> boxes of its objects: (label, x_min, y_min, x_max, y_max), sorted."""


@pytest.fixture(scope="session")
def matrix_of(tmp_path_factory) -> Callable[[str], dict[str, Path]]:
    """The folders of a case by format; each case is exported once."""
    folders: dict[str, dict[str, Path]] = {}
    build = Build()

    def matrix_of(case: str) -> dict[str, Path]:
        if case not in folders:
            labels = matrix.LABELS if case != "names" else (*matrix.ODD_LABELS, *matrix.LABELS)
            root = tmp_path_factory.mktemp(f"matrix-{case}")
            folders[case] = matrix.make(matrix.cases(build)[case], build, root, labels=labels)
        return folders[case]

    return matrix_of


def the_coco(folders: dict[str, Path]) -> Path:
    return folders["coco"] / "annotations/instances_train.json"


def truth(folders: dict[str, Path]) -> Found:
    """The boxes as COCO's file has them; whether those are right is the matter of other tests."""
    sheet = json.loads(the_coco(folders).read_text())
    names = {category["id"]: category["name"] for category in sheet["categories"]}
    boxes_by_image: Found = {image["file_name"]: [] for image in sheet["images"]}
    files = {image["id"]: image["file_name"] for image in sheet["images"]}
    for annotation in sheet["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes_by_image[files[annotation["image_id"]]].append(
            (names[annotation["category_id"]], x, y, x + width, y + height)
        )
    return {name: sorted(boxes) for name, boxes in boxes_by_image.items()}


def by_globox(data: AnnotationSet, names: dict[str, str] | None = None) -> Found:
    if names is not None:
        data = data.map_labels(names)
    return {
        entry.image_id: sorted((box.label, box.xmin, box.ymin, box.xmax, box.ymax) for box in entry.boxes)
        for entry in data
    }


def by_labelformat(data) -> Found:
    boxes_by_image = {}
    for label in data.get_labels():
        boxes = [
            (bbox.category.name, bbox.box.xmin, bbox.box.ymin, bbox.box.xmax, bbox.box.ymax) for bbox in label.objects
        ]
        boxes_by_image[Path(label.image.filename).name] = sorted(boxes)
    return boxes_by_image


def numbered(folders: dict[str, Path]) -> dict[str, str]:
    sheet = json.loads(the_coco(folders).read_text())
    return {str(category["id"] - 1): category["name"] for category in sheet["categories"]}


def yolo(folders: dict[str, Path], name: str) -> tuple[str, str, str]:
    folder = folders[name]
    return str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")


def listed(folders: dict[str, Path]) -> str:
    return ",".join(numbered(folders).values())


HALF = 1.51
"""VOC's pixels are whole (half a pixel), and readers differ in whether they take its 1 off."""

LOADERS: dict[str, tuple[Callable[[dict[str, Path]], Found], float]] = {
    "supervision coco": (
        lambda of: boxes_of(
            supervision.DetectionDataset.from_coco(str(of["coco"] / "images/train"), str(the_coco(of)))
        ),
        0.01,
    ),
    "supervision yolo-detect": (
        lambda of: boxes_of(supervision.DetectionDataset.from_yolo(*yolo(of, "yolo-detect"))),
        0.01,
    ),
    "supervision yolo-segment": (
        lambda of: boxes_of(supervision.DetectionDataset.from_yolo(*yolo(of, "yolo-segment"), force_masks=True)),
        1.01,  # from the pixels of the mask
    ),
    "supervision voc": (
        lambda of: boxes_of(
            supervision.DetectionDataset.from_pascal_voc(str(of["voc"] / "JPEGImages"), str(of["voc"] / "Annotations"))
        ),
        HALF,
    ),
    "globox coco": (lambda of: by_globox(AnnotationSet.from_coco(the_coco(of))), 0.01),
    "globox yolo-detect": (
        lambda of: by_globox(
            AnnotationSet.from_yolo_v5(
                of["yolo-detect"] / "labels/train", image_folder=of["yolo-detect"] / "images/train"
            ),
            numbered(of),
        ),
        0.01,
    ),
    "globox voc": (lambda of: by_globox(AnnotationSet.from_pascal_voc(of["voc"] / "Annotations")), HALF),
    "labelformat coco": (lambda of: by_labelformat(labelformat.COCOObjectDetectionInput(the_coco(of))), 0.01),
    "labelformat yolo-detect": (
        lambda of: by_labelformat(labelformat.YOLOv8ObjectDetectionInput(of["yolo-detect"] / "data.yaml", "train")),
        0.01,
    ),
    "labelformat voc": (
        lambda of: by_labelformat(labelformat.PascalVOCObjectDetectionInput(of["voc"] / "Annotations", listed(of))),
        HALF,
    ),
    "labelformat voc-masks": (
        lambda of: by_labelformat(
            labelformat.PascalVOCObjectDetectionInput(of["voc-masks"] / "Annotations", listed(of))
        ),
        HALF,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loader", LOADERS)
def test_loader_finds_the_same_boxes(matrix_of, case, loader):
    read, tolerance = LOADERS[loader]
    folders = matrix_of(case)
    same(read(folders), truth(folders), tolerance)


def same(actual: Found, wanted: Found, tolerance: float) -> None:
    assert {name: len(boxes) for name, boxes in actual.items()} == {name: len(boxes) for name, boxes in wanted.items()}
    for name, boxes in wanted.items():
        unmatched = list(actual[name])
        for label, *box in boxes:  # rounding may change the order of boxes
            near = [row for row in unmatched if row[0] == label and np.abs(np.subtract(row[1:], box)).max() < tolerance]
            assert near, (name, label, box, unmatched)
            unmatched.remove(near[0])


@pytest.mark.parametrize("case", CASES)
def test_pycocotools_scores_it_against_itself_as_perfect(matrix_of, case, capsys):
    coco = COCO(str(the_coco(matrix_of(case))))
    rows = coco.dataset["annotations"]
    kinds = ["bbox", "segm", *(["keypoints"] if any(row["num_keypoints"] for row in rows) else [])]
    for kind in kinds:
        keys = ("image_id", "category_id", "segmentation", *(["keypoints"] if kind == "keypoints" else ["bbox"]))
        # an object without key points is no truth for COCO's judge of key points
        drawn = [row for row in rows if kind != "keypoints" or row["num_keypoints"]]
        guesses = [{key: shape[key] for key in keys} | {"score": 1.0} for shape in drawn]
        judge = COCOeval(coco, coco.loadRes(guesses), kind)
        judge.params.kpt_oks_sigmas = np.full(len(matrix.JOINTS), 0.05)  # COCO's own are of its 17 key points
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert judge.stats[0] == pytest.approx(1.0), kind


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", ["detect", "segment", "obb", "pose"])
def test_ultralytics_training_drops_nothing(matrix_of, ultralytics, case, task):
    folders = matrix_of(case)
    images, labels, _ = yolo(folders, f"yolo-{task}")
    points = len(matrix.JOINTS) if task == "pose" else 0
    assert ultralytics(Path(images), Path(labels), len(numbered(folders)), points) == []


# labelformat reads run lengths of crowds only, and as lists: COCO's own tools write them compressed, for any object.
@pytest.mark.parametrize("case", [case for case in CASES if case not in {"masks", "mixed"}])
def test_labelformat_reads_outlines_of_coco(matrix_of, case):
    folders = matrix_of(case)
    read = labelformat.COCOInstanceSegmentationInput(the_coco(folders))
    objects = {Path(label.image.filename).name: len(label.objects) for label in read.get_labels()}
    assert {name: count for name, count in objects.items() if count} == {
        name: len(boxes) for name, boxes in truth(folders).items() if boxes
    }


@pytest.fixture(scope="session")
def by_datumaro(matrix_of) -> dict[tuple[str, str], dict]:
    """What datumaro says of all cases, asked at once: it takes seconds to start."""
    if not DATUMARO.exists():
        pytest.skip("no datumaro in .labelloop/test/datumaro (tests/system/setup.sh brings it)")
    kinds = {"coco": "coco", "voc": "voc", "yolo": "yolo-detect"}
    lines = [f"{case}\t{kind}\t{matrix_of(case)[name]}" for case in CASES for kind, name in kinds.items()]
    script = Path(__file__).with_name("datumaro_referee.py")
    done = subprocess.run(
        [str(DATUMARO), str(script)], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    answers = map(json.loads, done.stdout.splitlines())
    return {(answer["case"], answer["kind"]): answer for answer in answers}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_datumaro_reads_it(matrix_of, by_datumaro, case, kind):
    answer = by_datumaro[case, kind]
    assert answer.get("error") is None
    assert answer["warnings"] == []
    wanted = truth(matrix_of(case))
    assert set(answer["images"]) == {Path(name).stem for name in wanted}
    for name, boxes in wanted.items():
        actual = answer["images"][Path(name).stem]
        assert {label for label, *_ in actual} == {label for label, *_ in boxes}
        # COCO's objects come as a box and as outlines; VOC's boxes are read as they stand, from 1
        assert len(actual) == len(boxes) or (kind == "coco" and len(actual) > len(boxes))
        for label, x0, y0, x1, y1 in boxes:
            apart = [
                np.abs(np.subtract(box, (x0, y0, x1 - x0, y1 - y0))).max() for other, *box in actual if other == label
            ]
            assert min(apart) <= (2.01 if kind == "voc" else 0.05), (name, label)
