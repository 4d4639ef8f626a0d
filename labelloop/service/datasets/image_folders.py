"""Photos in folders: with nothing said about them, or with the folder's name as the class of the photo."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import Files, Photos, is_photo
from labelloop.service.datasets.model import DataSet, LabelledPhoto, Problem

SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


_NAMED = 5


def read_images(photos: Photos, files: Files) -> DataSet:
    """Every photo of a folder or of a prefix of a bucket, without labels.

    Args:
        photos: The photos.
        files: What lies beside them: it is not read, and a note says so.

    Raises:
        DatasetError: There is none.
    """
    others = [name for name in files.names if not is_photo(name)]
    if not photos.names:
        labels = "If it holds labels, give the folder above it, or say where the photos are: --images-from DIR."
        usual = "Is it the right folder? Photos end in .jpg, .png or .webp."
        raise DatasetError(photos.files.place, "there is no photo in it", fix=labels if others else usual)

    def read() -> Iterator[LabelledPhoto | Problem]:
        return (LabelledPhoto(name, labelled=False) for name in photos.names)

    more = ", ..." if len(others) > _NAMED else ""
    note = f"not read, as it is no data set of a known layout: {', '.join(others[:_NAMED])}{more}"
    return DataSet("images", read, notes=(note,) if others else ())


def read_classes(photos: Photos) -> DataSet:
    """YOLO classify and ImageNet: ``train/cat/1.jpg`` or ``cat/1.jpg``; the folder that holds a photo is its class.

    Classes are in the order of their names, as Ultralytics and torchvision number them.

    Raises:
        DatasetError: No photo is in the folder of a class.
    """
    of_photo = {name: _class(name) for name in photos.names}
    classes = tuple(sorted({each for each in of_photo.values() if each}))
    if not classes:
        raise DatasetError(photos.files.place, "no photo lies in a folder named for its class")

    def read() -> Iterator[LabelledPhoto | Problem]:
        for name, choice in of_photo.items():
            if not choice:
                yield Problem(name, "it is in no folder of a class")
            yield LabelledPhoto(name, choices=(choice,) if choice else (), labelled=bool(choice))

    return DataSet("yolo-classify", read, choices=classes)


def _class(name: str) -> str:
    folder = PurePosixPath(name).parent.name
    return "" if folder in SPLITS else folder
