"""Images of the demo project: sample images of installed packages, deterministic; or a folder of the user."""

import hashlib
import itertools

import pytest
from PIL import Image

from labelloop.stack.demo_images import PACKAGED_IMAGES, packaged_images, user_images
from labelloop.stack.errors import StackError


def sums(paths):
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return packaged_images(tmp_path_factory.mktemp("photos"))


def test_packaged_images_are_deterministic(tmp_path, written):
    first, second = written, packaged_images(tmp_path)
    assert sums(first) == sums(second)
    assert len(first) >= 20
    for path in first:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 200 < max(image.size) <= 800


def test_images_differ_and_neighbours_show_different_subjects(written):
    photos = written
    assert len({digest for _, digest in sums(photos)}) == len(photos)
    subjects = [path.name.rpartition("-")[0] for path in photos]
    assert all(previous != next_ for previous, next_ in itertools.pairwise(subjects))


def test_crops_lie_inside_their_image():
    for photo in PACKAGED_IMAGES:
        for view in photo.crops:
            left, top, right, bottom = view.box
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1


def test_without_the_packages_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StackError, match=r"labelloop\[demo\].*--images"):
        packaged_images(tmp_path)


def test_user_images_include_subfolders_and_exclude_other_files(tmp_path):
    for name in ("b.JPG", "deep/a.png", "notes.txt", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in user_images(tmp_path)] == [
        "b.JPG",
        "c.webp",
        "deep/a.png",
    ]


@pytest.mark.parametrize(("folder", "message"), [("missing", "does not exist"), (".", "has no images")])
def test_a_folder_without_images_is_an_error(tmp_path, folder, message):
    with pytest.raises(StackError, match=message):
        user_images(tmp_path / folder)
