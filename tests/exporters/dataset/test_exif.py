"""Images with an EXIF rotation are pulled unchanged, or rotated so that labels fit in every loader."""

import io

import numpy as np
import pytest
from PIL import Image

from exporters.dataset.exif import needs_rotation, rotate_upright
from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from labelloop.service.media import Media, load_image
from labelloop.service.store import open_store

ORIENTATION = 0x0112


def photo(orientation, kind="JPEG", size=(64, 48)):
    """A photo whose upright form has one bright corner, and a camera's name in its EXIF."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    image = Image.fromarray(np.stack((x * 3, y * 4, (x + y) * 2), axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if orientation:
        exif[ORIENTATION] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photo_shows_by_its_pixels_what_its_exif_said(kind, orientation):
    before = photo(orientation, kind)
    assert needs_rotation(before)
    after = rotate_upright(before)
    assert not needs_rotation(after)
    with Image.open(io.BytesIO(after)) as image:  # by Pillow alone, as torchvision does
        assert image.format == kind
        assert image.getexif()[0x010F] == "a camera"
        rotated = np.asarray(image.convert("RGB")).astype(int)
    upright = load_image(before).pixels.astype(int)
    assert rotated.shape == upright.shape
    assert np.abs(rotated - upright).mean() < (3 if kind in {"JPEG", "WEBP"} else 0.01)


@pytest.mark.parametrize("data", [photo(0), photo(1), photo(1, "PNG"), b"", b"no photo", photo(6)[:30]])
def test_other_photos_do_not_lie(data):
    assert not needs_rotation(data)


@pytest.fixture
def version(run, build, tmp_path):
    """Two photos, one of them from a phone that was held upright."""

    def version(**options):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos/lying.jpg").write_bytes(photo(6))
        (tmp_path / "photos/plain.jpg").write_bytes(photo(1))
        box = build.box(10, 10, 20, 20) | {"original_width": 48, "original_height": 64}
        other = build.box(10, 10, 20, 20) | {"original_width": 64, "original_height": 48}
        tasks = [
            build.task(1, build.annotation(box), image="/data/local-files/?d=lying.jpg"),
            build.task(2, build.annotation(other), image="/data/local-files/?d=plain.jpg"),
        ]
        return run(tasks, formats=("coco", "yolo-detect"), **options)

    return version


@pytest.mark.parametrize("options", [{}, {"copy_images": True}, {"link": True}])
def test_pull_rotates_with_upright_and_counts_without(version, settings, tmp_path, options):
    version(**{name: value for name, value in options.items() if name == "copy_images"})
    link = options.get("link", False)
    store, media = open_store(f"file://{tmp_path / 'set'}", settings), Media(settings, None)
    try:
        for upright in (False, True):  # into one folder: what lay there is turned the second time
            pulled = pull(
                store,
                read_version(store),
                to=tmp_path / "out",
                formats=["coco"],
                media=media,
                upright=upright,
                link=link,
            )
            assert (pulled.images, pulled.rotated, pulled.missing) == (2, 1, ())
            folder = tmp_path / "out/images/train"
            with Image.open(folder / "lying.jpg") as image:
                assert image.size == ((48, 64) if upright else (64, 48))
            assert (folder / "lying.jpg").is_symlink() == (link and not upright)
            assert (folder / "plain.jpg").read_bytes() == photo(1)
    finally:
        media.close()
