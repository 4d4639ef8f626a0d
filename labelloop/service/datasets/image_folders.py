"""Read folders of images: unlabelled, or with the folder name as the class of each image."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from labelloop.service.datasets.errors import DatasetError
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, is_image_name
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem

SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
# Maximum number of file names in a note.
_MAX_LISTED = 5


def read_unlabelled(images: ImageFiles, files: DatasetFiles) -> DataSet:
    """Read all images of a folder or a bucket prefix without labels.

    Args:
        images: The image files.
        files: All files; those that are not images are named in a note.

    Raises:
        DatasetError: There is no image.
    """
    others = [name for name in files.names if not is_image_name(name)]
    if not images.names:
        labels = "If it has labels, pass its parent folder, or the folder of the images: --images-from DIR."
        hint = "Check the folder: image files end in .jpg, .png or .webp."
        raise DatasetError(images.files.location, "it has no images", fix=labels if others else hint)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        return (DatasetImage(name, labelled=False) for name in images.names)

    more = ", ..." if len(others) > _MAX_LISTED else ""
    note = f"not read, since it has no known layout: {', '.join(others[:_MAX_LISTED])}{more}"
    return DataSet("images", read, notes=(note,) if others else ())


def read_image_folders(images: ImageFiles) -> DataSet:
    """Read YOLO classify and ImageNet: ``train/cat/1.jpg`` or ``cat/1.jpg``; the folder name is the class.

    Classes are sorted by name, as Ultralytics and torchvision number them.

    Raises:
        DatasetError: No image is in a class folder.
    """
    class_by_image = {name: _class(name) for name in images.names}
    classes = tuple(sorted({class_name for class_name in class_by_image.values() if class_name}))
    if not classes:
        raise DatasetError(images.files.location, "no image is in a class folder")

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, class_name in class_by_image.items():
            if not class_name:
                yield DatasetProblem(name, "it is not in a class folder")
            yield DatasetImage(name, choices=(class_name,) if class_name else (), labelled=bool(class_name))

    return DataSet("yolo-classify", read, choices=classes)


def _class(name: str) -> str:
    folder = PurePosixPath(name).parent.name
    return "" if folder in SPLITS else folder
