"""Images of tasks that name an object of Google's or Azure's store, read with this machine's credentials."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from labelloop.service.media import Media, MediaMissing
from labelloop.service.media.errors import MediaTooLarge, NotAnImage
from labelloop.service.settings import Settings
from labelloop.service.store import open_bucket, open_store
from tests.system.test_stores import cloud_bucket

pytestmark = pytest.mark.system
# What Label Studio's cloud storages write into tasks.
STUDIO = {"gs": "gs", "az": "azure-blob"}


@pytest.fixture(params=list(STUDIO))
def image(request, monkeypatch, tmp_path):
    """The address of an image in a task."""
    bucket = cloud_bucket(request.param, request, monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)  # 9 MB, in parts
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    open_bucket(bucket).write("images/a b ü#1.bmp", tmp_path / "a.bmp", content_type="image/bmp")
    return f"{STUDIO[request.param]}://{bucket.partition('://')[2]}/images/a b ü#1.bmp"


def test_an_image_in_the_cloud_is_read_without_label_studio(image, tmp_path):
    media = Media(Settings(home=tmp_path / "home"), None)
    assert media.size(image) == (2000, 1500)
    assert media.photo(image, max_side=400).pixels.shape[1] == 400


@pytest.mark.parametrize("scheme", ["s3", *STUDIO])
def test_the_size_of_a_jpeg_in_a_bucket_takes_its_start_alone(scheme, request, monkeypatch, tmp_path):
    if scheme == "s3":
        server = request.getfixturevalue("s3_server")
        bucket, settings = f"s3://{server.make_bucket()}", server.settings(tmp_path)
    else:
        bucket, settings = cloud_bucket(scheme, request, monkeypatch), Settings(home=tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    assert (tmp_path / "a.jpg").stat().st_size > 200_000
    store = open_store(bucket, settings)
    store.put("a.jpg", tmp_path / "a.jpg")
    store.put("empty.jpg", b"")
    media = Media(replace(settings, media_max_bytes=100_000), None)
    assert media.size(f"{bucket}/a.jpg") == (600, 800)
    with pytest.raises(MediaTooLarge):
        media.path(f"{bucket}/a.jpg")
    with pytest.raises(NotAnImage, match="an empty"):
        media.size(f"{bucket}/empty.jpg")


def test_a_missing_image_in_the_cloud_is_named(image, tmp_path):
    with pytest.raises(MediaMissing, match="no such object"):
        Media(Settings(home=tmp_path / "home"), None).size(image.replace("#1", "#2"))


def test_an_image_over_the_limit_is_refused_before_its_end(image, tmp_path):
    with pytest.raises(MediaTooLarge):
        Media(Settings(home=tmp_path / "home", media_max_bytes=1 << 20), None).size(image)
