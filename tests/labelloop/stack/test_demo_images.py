"""The demo's photographs: real ones from installed packages, the same at every run; or the user's own folder."""

import hashlib
import itertools

import pytest
from PIL import Image

from labelloop.stack.demo_images import PHOTOGRAPHS, own_photos, packaged_photos
from labelloop.stack.errors import NoPhotos


def sums(paths):
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def test_packaged_photos_are_a_couple_of_dozen_and_the_same_each_time(tmp_path):
    first, second = packaged_photos(tmp_path / "a"), packaged_photos(tmp_path / "b")
    assert sums(first) == sums(second)
    assert len(first) >= 20
    for path in first:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 200 < max(image.size) <= 800


def test_no_two_photos_are_the_same_and_neighbours_show_different_things(tmp_path):
    photos = packaged_photos(tmp_path)
    assert len({digest for _, digest in sums(photos)}) == len(photos)
    subjects = [path.name.rpartition("-")[0] for path in photos]
    assert all(one != next_ for one, next_ in itertools.pairwise(subjects))


def test_views_lie_inside_their_photograph():
    for photo in PHOTOGRAPHS:
        for view in photo.views:
            left, top, right, bottom = view.box
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1


def test_without_the_packages_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(NoPhotos, match=r"labelloop\[demo\].*--images"):
        packaged_photos(tmp_path)


def test_own_photos_are_found_in_subfolders_and_other_files_left_out(tmp_path):
    for name in ("b.JPG", "deep/a.png", "notes.txt", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in own_photos(tmp_path)] == ["b.JPG", "c.webp", "deep/a.png"]


@pytest.mark.parametrize(("folder", "said"), [("missing", "There is no folder"), (".", "has no images")])
def test_a_folder_without_photos_is_said(tmp_path, folder, said):
    with pytest.raises(NoPhotos, match=said):
        own_photos(tmp_path / folder)
