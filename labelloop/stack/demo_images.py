"""Images of the demo project: a folder of the user, or crops of sample images in installed packages, with toys."""

import importlib.util
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from labelloop.stack.demo_objects import Toy, add_toys
from labelloop.stack.errors import StackError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
LONGEST_SIDE = 800  # pixels, of a demo image


@dataclass(frozen=True)
class ImageCrop:
    """One crop of a sample image.

    Attributes:
        box: left, top, right, bottom as fractions of the image, 0 to 1.
        mirrored: Flip horizontally.
    """

    box: tuple[float, float, float, float] = (0, 0, 1, 1)
    mirrored: bool = False


@dataclass(frozen=True)
class PackagedImage:
    """A sample image in an installed package and the crops of it that become tasks."""

    name: str
    package: str
    file: str
    crops: Sequence[ImageCrop]


_WHOLE, _MIRRORED = ImageCrop(), ImageCrop(mirrored=True)

PACKAGED_IMAGES: Sequence[PackagedImage] = (
    PackagedImage(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        (_WHOLE, ImageCrop((0, 0, 0.75, 0.7)), ImageCrop((0, 0, 0.8, 0.9), mirrored=True)),
    ),
    PackagedImage(
        "cat",
        "skimage",
        "data/chelsea.png",
        (_WHOLE, _MIRRORED, ImageCrop((0, 0, 0.9, 1), mirrored=True), ImageCrop((0.05, 0.05, 1, 0.95))),
    ),
    PackagedImage(
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        (_WHOLE, ImageCrop((0.1, 0.05, 1, 0.95)), ImageCrop((0.05, 0, 1, 1), mirrored=True)),
    ),
    PackagedImage(
        "kittens",
        "label_studio",
        "core/static/samples/kittens.jpg",
        (_WHOLE, _MIRRORED, ImageCrop((0, 0.1, 0.65, 1)), ImageCrop((0.35, 0, 1, 0.85), mirrored=True)),
    ),
    PackagedImage("cameraman", "skimage", "data/camera.png", (_WHOLE, _MIRRORED, ImageCrop((0, 0.05, 0.8, 1)))),
    PackagedImage(
        "officer",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        (_WHOLE, _MIRRORED, ImageCrop((0.05, 0, 0.95, 0.7))),
    ),
    PackagedImage(
        "motorcycle2",
        "skimage",
        "data/motorcycle_right.png",
        (_MIRRORED, ImageCrop((0, 0.1, 0.9, 1)), ImageCrop((0.05, 0.05, 1, 1))),
    ),
    PackagedImage(
        "flower", "sklearn", "datasets/images/flower.jpg", (_WHOLE, ImageCrop((0.1, 0.1, 0.9, 1), mirrored=True))
    ),
)


def packaged_images(folder: Path, *, label_studio: Path | None = None) -> list[Path]:
    """Write the demo images; deterministic for given package versions.

    Args:
        folder: Output folder of the JPEG files.
        label_studio: Folder of Label Studio's Python package, which has its own virtual environment.

    Returns:
        The files, round-robin over the sample images, so that consecutive tasks differ.

    Raises:
        StackError: None of the packages is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    available = [(photo, path) for photo in PACKAGED_IMAGES if (path := _path(photo, label_studio)) is not None]
    if not available:
        raise StackError(
            "No installed package has images for the demo.",
            fix="Run: pip install 'labelloop[demo]', or give a folder of images: labelloop up --images FOLDER.",
            code="no_photos",
        )
    rounds = max(len(photo.crops) for photo, _ in available)
    crops = [(photo, path, index) for index in range(rounds) for photo, path in available if index < len(photo.crops)]
    return [_write(photo, path, index, folder) for photo, path, index in crops]


def user_images(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted by path.

    Raises:
        StackError: The folder does not exist or has no image.
    """
    if not folder.is_dir():
        raise StackError(
            f"The folder {folder} does not exist.",
            fix="Give a folder with images: labelloop up --images FOLDER, or make up IMAGES=FOLDER.",
            code="no_photos",
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise StackError(
            f"The folder {folder} has no images.",
            fix=f"Label Studio accepts {', '.join(sorted(IMAGE_SUFFIXES))}.",
            code="no_photos",
        )
    return files


def _path(photo: PackagedImage, label_studio: Path | None) -> Path | None:
    if photo.package == "label_studio":
        root = label_studio
    else:
        spec = importlib.util.find_spec(photo.package)  # does not import the package
        locations = spec.submodule_search_locations if spec else None
        root = Path(locations[0]) if locations else None
    path = root / photo.file if root is not None else None
    return path if path is not None and path.exists() else None


def _write(photo: PackagedImage, path: Path, index: int, folder: Path) -> Path:
    view = photo.crops[index]
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    left, top, right, bottom = view.box
    image = image.crop(
        (round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height))
    )
    if view.mirrored:
        image = ImageOps.mirror(image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = folder / f"{photo.name}-{index + 1}.jpg"
    painted, _ = add_toys(image, _toy_seed(written.name))
    painted.save(written, quality=90)
    return written


def toys_on(name: str, size: tuple[int, int]) -> tuple[Toy, ...]:
    """Where the toys are on a packaged image.

    Args:
        name: Its file name, as `packaged_images` wrote it.
        size: Its width and height in pixels.
    """
    return add_toys(Image.new("RGB", size), _toy_seed(name))[1]


def _toy_seed(name: str) -> int:
    return zlib.crc32(name.encode())
