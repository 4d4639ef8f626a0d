"""Problems of what `labelloop import` and `labelloop dataset validate` are given."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelloop.service.studio import Studio
from tests import dataset_makers as makers
from tests.exporters.fake_studio import ImportStudio
from tests.input_problems.case import Case

SECTION = "Imports: `labelloop import`"
_studio = ImportStudio()


def prepare(monkeypatch: Any, folder: Path) -> None:
    """A Label Studio without projects."""
    del folder
    _studio.__init__()  # type: ignore[misc]
    monkeypatch.setattr(Studio, "from_settings", lambda _: _studio)


def into_new(source: Path) -> list[str]:
    """The words that import into a new project."""
    return ["import", str(source), "--project", "new", "--title", "cars"]


def nothing_left(_folder: Path) -> None:
    """No project was made."""
    assert not _studio.projects_by_id


def annotated(**photos: int) -> Callable[[Path], None]:
    """How many annotations photos have, by their names without the ending; no annotation is empty by mistake."""

    def check(_folder: Path) -> None:
        found = {name.rpartition(".")[0]: results for name, results in _studio.results().items()}
        assert {name: len(found[name]) for name in photos} == photos
        assert all(found[name] != [0] for name in photos)

    return check


def yolo(text: str | bytes, task: str = "detect") -> Callable[[Path], list[str]]:
    """A data set one of whose label files holds this."""

    def make(folder: Path) -> list[str]:
        makers.make_yolo(folder / "set", task)
        (folder / "set/labels/a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return [*into_new(folder / "set"), "--format", f"yolo-{task}"]

    return make


def coco(**changes: Any) -> Callable[[Path], list[str]]:
    """A COCO file the last annotation of which, its photo's only one, has these fields."""

    def make(folder: Path) -> list[str]:
        sheet = makers.coco_sheet()
        sheet["annotations"][-1] |= changes
        return into_new(makers.make_coco(folder / "set", sheet))

    return make


def voc(old: str, new: str) -> Callable[[Path], list[str]]:
    """A VOC file with something replaced."""

    def make(folder: Path) -> list[str]:
        file = makers.make_voc(folder / "set") / "Annotations/a.xml"
        file.write_text(file.read_text().replace(old, new))
        return into_new(folder / "set")

    return make


def ndjson(annotations: Any) -> Callable[[Path], list[str]]:
    """An NDJSON file with this on its only photo."""

    def make(folder: Path) -> list[str]:
        photo = {"file": "a.jpg", "url": "https://h/a.jpg", "width": 9, "height": 9, "annotations": annotations}
        head = {"type": "dataset", "class_names": {"0": "car"}}
        (folder / "x.ndjson").write_text(f"{json.dumps(head)}\n{json.dumps(photo)}\n")
        return into_new(folder / "x.ndjson")

    return make


def label_txt(folder: Path) -> list[str]:
    """DOTA's rows in folders, as Roboflow exports them."""
    for split in ("train", "valid"):
        makers.make_photos(folder / f"set/{split}/images", ("a.jpg" if split == "train" else "empty.jpg",))
        (folder / f"set/{split}/labelTxt").mkdir()
    (folder / "set/train/labelTxt/a.txt").write_text("10 10 50 10 50 40 10 40 car 0\n")
    (folder / "set/valid/labelTxt/empty.txt").write_text("10 10 50 10 50 40 car 0\n")
    (folder / "set/data.yaml").write_text("nc: 1\nnames: [car]\n")
    return into_new(folder / "set")


def file(value: Any, name: str = "file.json") -> Callable[[Path], list[str]]:
    """A file with a JSON value, or with bytes."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return into_new(folder / name)

    return make


def without_photos(folder: Path) -> list[str]:
    """COCO whose photos are elsewhere."""
    source = makers.make_coco(folder / "set")
    for path in (folder / "set/images").rglob("*.*"):
        path.unlink()
    makers.make_photos(folder / "set", ("a.jpg",))
    (folder / "set/a.jpg").rename(folder / "set/other.jpg")
    return into_new(source)


def cut_zip(folder: Path) -> list[str]:
    """Half of an archive."""
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("classes.txt", "car\n" * 100)
    (folder / "set.zip").write_bytes((folder / "set.zip").read_bytes()[:300])
    return into_new(folder / "set.zip")


def label_studio_zip(folder: Path) -> list[str]:
    """YOLO_WITH_IMAGES of Label Studio."""
    makers.make_yolo(folder / "set", "detect")
    with zipfile.ZipFile(folder / "project.zip", "w") as archive:
        for path in sorted((folder / "set").rglob("*.*")):
            if path.suffix != ".yaml":
                archive.write(path, path.relative_to(folder / "set").as_posix())
        archive.writestr("classes.txt", "\n".join(makers.LABELS) + "\n")
        archive.writestr("notes.json", '{"categories": [], "info": {"contributor": "Label Studio"}}')
    return into_new(folder / "project.zip")


def titled(folder: Path) -> list[str]:
    """Photos, and a title of two letters."""
    makers.make_photos(folder / "set")
    return ["import", str(folder / "set"), "--project", "new", "--title", "ab"]


def short_folder(folder: Path) -> list[str]:
    """Photos in a folder of two letters."""
    makers.make_photos(folder / "ab")
    return ["import", str(folder / "ab"), "--project", "new"]


ALONE = "1 image imported without an annotation"
UNREAD = "skipped and counted"
_UNLABELLED = "the photo comes in without an annotation"
CASES = (
    Case(
        "a YOLO file whose only row has four numbers",
        UNREAD,
        yolo("0 .5 .5 .1\n"),
        (ALONE, "labels/a.txt, line 1"),
        1,
        annotated(a=0, b=1),
        _UNLABELLED,
    ),
    *(
        Case(
            "a YOLO file in another form: a caption, commas for decimals, binary",
            UNREAD,
            yolo(text),
            (ALONE, "labels/a.txt"),
            1,
            annotated(a=0, b=1),
            _UNLABELLED,
        )
        for text in ("a red car\n", "0 0,5 0,5 0,1 0,1\n", b"\x00\xff\xfe" * 9)
    ),
    Case(
        "a YOLO row of a class that does not exist",
        UNREAD,
        yolo("9 .5 .5 .1 .1\n"),
        (ALONE, "class 9"),
        1,
        annotated(a=0, b=1),
        _UNLABELLED,
    ),
    Case(
        "one bad YOLO row among good ones",
        UNREAD,
        yolo("0 .5 .5 .1 .1\n0 .5 .5\n"),
        ("labels/a.txt, line 2",),
        1,
        annotated(a=1),
        "the good rows become the annotation; `--incomplete skip` leaves it away",
    ),
    Case(
        "a row of `labelTxt` (DOTA) without four corners",
        UNREAD,
        label_txt,
        ("empty.txt, line 1", "not four corners"),
        1,
        annotated(a=1, empty=0),
        _UNLABELLED,
    ),
    Case(
        "a COCO photo whose only annotation is broken",
        UNREAD,
        coco(bbox=None),
        (ALONE, "bbox"),
        1,
        annotated(a=1),
        _UNLABELLED,
    ),
    Case(
        "a COCO photo with nothing but a crowd",
        UNREAD,
        coco(iscrowd=1),
        (ALONE, "it has only crowds"),
        0,
        annotated(a=1),
        f"{_UNLABELLED}; with `--crowds` the crowd is imported",
    ),
    Case(
        "a COCO annotation of no image",
        UNREAD,
        coco(image_id=None),
        ("not an object with an image_id",),
        1,
        annotated(a=1, empty=0),
        "a photo without any annotation of its own comes in without one",
    ),
    Case(
        "a VOC file that is no XML",
        UNREAD,
        voc("</annotation>", ""),
        (ALONE, "Annotations/a.xml"),
        1,
        annotated(a=0, b=1),
        _UNLABELLED,
    ),
    Case(
        "VOC objects without a box",
        UNREAD,
        voc("bndbox>", "polygon>"),
        (ALONE, "it has no bndbox"),
        1,
        annotated(a=0, b=1),
        _UNLABELLED,
    ),
    Case(
        "an NDJSON photo whose rows cannot be read",
        UNREAD,
        ndjson({"boxes": [["car", 1, 1, 1, 1]]}),
        (ALONE, "line 2 (a.jpg)"),
        1,
        annotated(a=0),
        _UNLABELLED,
    ),
    Case(
        "a COCO file that is cut off",
        "refused",
        file(b'{"images": [{"id": 1, "file'),
        ("it is not a COCO file",),
        1,
        nothing_left,
    ),
    *(
        Case(problem, "refused", file(value), (says, fix), 1, nothing_left)
        for problem, value, says, fix in (
            (
                "Label Studio's JSON",
                [{"id": 1, "data": {}, "annotations": []}],
                "it is Label Studio's own JSON",
                "labelloop export --from",
            ),
            ("Label Studio's JSON", {"tasks": []}, "it is Label Studio's own JSON", "labelloop export --from"),
            (
                "a list of Label Studio's predictions",
                [{"task": 1, "result": [], "model_version": "a"}],
                "it is a list of predictions of Label Studio",
                "import/predictions",
            ),
            ("Labelbox's JSON", [{"ID": "a", "Labeled Data": "u", "Label": {}}], "it is Labelbox's export", "COCO"),
            ("`[null, 1]`", [None, 1], "it is a list without objects", "list of objects"),
        )
    ),
    Case("COCO whose photos are elsewhere", "refused", without_photos, ("None of the 4 images",), 1, nothing_left),
    Case("a zip that is damaged", "refused", cut_zip, ("the zip archive is damaged",), 1, nothing_left),
    Case("a title of two letters", "refused", titled, ("3 to 50 characters",), 1, nothing_left),
    Case(
        "a folder whose name has two letters",
        "read",
        short_folder,
        ("4 tasks created",),
        0,
        note="the project is called `Imported ab`",
    ),
    Case(
        "Label Studio's own `YOLO_WITH_IMAGES` zip",
        "read",
        label_studio_zip,
        ("yolo-detect: 4 images",),
        0,
        annotated(a=1, b=1),
    ),
)
