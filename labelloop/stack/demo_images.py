"""The demo's photographs: the user's own folder, or crops of photographs that come inside installed packages."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from labelloop.stack.errors import NoPhotos

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
LONGEST_SIDE = 800  # pixels, of a demo photograph


@dataclass(frozen=True)
class View:
    """One crop of a photograph.

    Attributes:
        box: left, top, right, bottom as fractions of the photograph.
        mirrored: Left and right exchanged.
    """

    box: tuple[float, float, float, float] = (0, 0, 1, 1)
    mirrored: bool = False


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package, and the views of it that become tasks."""

    name: str
    package: str
    file: str
    views: Sequence[View]


_WHOLE, _MIRRORED = View(), View(mirrored=True)

PHOTOGRAPHS: Sequence[Photograph] = (
    Photograph(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        (_WHOLE, View((0, 0, 0.75, 0.7)), View((0, 0, 0.8, 0.9), mirrored=True)),
    ),
    Photograph(
        "cat",
        "skimage",
        "data/chelsea.png",
        (_WHOLE, _MIRRORED, View((0, 0, 0.9, 1), mirrored=True), View((0.05, 0.05, 1, 0.95))),
    ),
    Photograph(
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        (_WHOLE, View((0.1, 0.05, 1, 0.95)), View((0.05, 0, 1, 1), mirrored=True)),
    ),
    Photograph(
        "kittens",
        "label_studio",
        "core/static/samples/kittens.jpg",
        (_WHOLE, _MIRRORED, View((0, 0.1, 0.65, 1)), View((0.35, 0, 1, 0.85), mirrored=True)),
    ),
    Photograph("cameraman", "skimage", "data/camera.png", (_WHOLE, _MIRRORED, View((0, 0.05, 0.8, 1)))),
    Photograph(
        "officer",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        (_WHOLE, _MIRRORED, View((0.05, 0, 0.95, 0.7))),
    ),
    Photograph(
        "motorcycle2",
        "skimage",
        "data/motorcycle_right.png",
        (_MIRRORED, View((0, 0.1, 0.9, 1)), View((0.05, 0.05, 1, 1))),
    ),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", (_WHOLE, View((0.1, 0.1, 0.9, 1), mirrored=True))),
)


def packaged_photos(folder: Path, *, label_studio: Path | None = None) -> list[Path]:
    """Write the demo's photographs; the same bytes at every run with the same packages.

    Args:
        folder: Where the JPEG files go.
        label_studio: Its package's folder, which is in another virtual environment than ours.

    Returns:
        The files, one photograph after the other, so that neighbours in the label stream differ.

    Raises:
        NoPhotos: None of the packages is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [(photo, path) for photo in PHOTOGRAPHS if (path := _path(photo, label_studio)) is not None]
    if not found:
        raise NoPhotos(
            "No installed package has photographs for the demo.",
            fix="Run: pip install 'labelloop[demo]', or give a folder of your own: labelloop up --images FOLDER.",
        )
    rounds = max(len(photo.views) for photo, _ in found)
    turns = [(photo, path, turn) for turn in range(rounds) for photo, path in found if turn < len(photo.views)]
    return [_write(photo, path, turn, folder) for photo, path, turn in turns]


def own_photos(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, in the order of their names.

    Raises:
        NoPhotos: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise NoPhotos(f"There is no folder {folder}.", fix="Give a folder with images: make up IMAGES=folder.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise NoPhotos(
            f"The folder {folder} has no images.", fix=f"Label Studio takes {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def _path(photo: Photograph, label_studio: Path | None) -> Path | None:
    if photo.package == "label_studio":
        root = label_studio
    else:
        spec = importlib.util.find_spec(photo.package)  # finds, imports nothing
        places = spec.submodule_search_locations if spec else None
        root = Path(places[0]) if places else None
    path = root / photo.file if root is not None else None
    return path if path is not None and path.exists() else None


def _write(photo: Photograph, path: Path, turn: int, folder: Path) -> Path:
    view = photo.views[turn]
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    left, top, right, bottom = view.box
    image = image.crop(
        (round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height))
    )
    if view.mirrored:
        image = ImageOps.mirror(image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = folder / f"{photo.name}-{turn + 1}.jpg"
    image.save(written, quality=90)
    return written
