"""Images in buckets of Google and Azure: what is kept of buckets that tasks name."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from labelloop.service.media import Media, MediaMissing, cloud
from labelloop.service.media.cloud import MAX_BUCKETS, CloudDownloader
from labelloop.service.settings import Settings


class FakeBucket:
    """A bucket of Google can open others with its client; one of Azure cannot."""

    def __init__(self, url):
        self.url = url

    def sibling(self, url):
        return FakeBucket(url) if self.url.startswith("gs://") and url.startswith("gs://") else None

    def download(self, name, into):
        into.write(f"{self.url}/{name}".encode())


@pytest.mark.parametrize(("scheme", "clients"), [("gs", 1), ("az", 3 * MAX_BUCKETS)])
def test_clients_of_buckets_that_tasks_name_are_bounded(scheme, clients, tmp_path, monkeypatch):
    opened = []

    def open_bucket(url, *, timeout_s):
        opened.append(url)
        return FakeBucket(url)

    monkeypatch.setattr(cloud, "open_bucket", open_bucket)
    downloader = CloudDownloader(Settings(home=tmp_path))
    for number in range(3 * MAX_BUCKETS):
        for _ in range(2):
            into = BytesIO()
            downloader.fetch(f"{scheme}://bucket-{number}/a.png", into)
            assert into.getvalue() == f"{scheme}://bucket-{number}/a.png".encode()
    assert len(opened) == clients
    assert len(downloader._buckets) <= MAX_BUCKETS


class CountedObjects:
    """Objects by name, and what is read of them."""

    def __init__(self, objects):
        self.objects, self.read = objects, []

    def start(self, url, size):
        return self._read(url)[:size]

    def fetch(self, url, into):
        into.write(self._read(url))
        self.read[-1] = f"{self.read[-1]} whole"

    def _read(self, url):
        name = url.rpartition("/")[2]
        self.read.append(name)
        if name not in self.objects:
            raise MediaMissing(url, "no such object")
        return self.objects[name]


def encoded(kind, *, turn):
    """A noisy image of 300 x 200 pixels, over 64 KiB, with an EXIF orientation."""
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = turn
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, quality=100, exif=exif)
    assert len(file.getvalue()) > 1 << 16
    return file.getvalue()


def chunks_moved(png):
    """A PNG whose eXIf chunk follows the pixels."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    return png[:start] + png[end:-12] + png[start:end] + png[-12:]


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_size_is_read_from_the_start_of_a_jpeg_and_from_the_whole_of_others(scheme, tmp_path):
    jpeg = encoded("JPEG", turn=6)
    objects = {
        "a.jpg": jpeg,
        "late.jpg": jpeg[:2] + (b"\xff\xe2\xff\xff" + bytes(0xFFFD)) * 2 + jpeg[2:],  # two full colour profiles
        "b.png": chunks_moved(encoded("PNG", turn=6)),
    }
    with BytesIO() as small:
        Image.new("RGB", (6, 4)).save(small, "PNG")
        objects["small.png"] = small.getvalue()
    media = Media(Settings(home=tmp_path, s3_endpoint_url="http://127.0.0.1:9"), None)
    counted = CountedObjects(objects)
    media._buckets = dict.fromkeys(media._buckets, counted)
    sizes = {name: media.size(f"{scheme}://bucket/{name}") for name in objects}
    assert sizes == {"a.jpg": (200, 300), "late.jpg": (200, 300), "b.png": (200, 300), "small.png": (6, 4)}
    assert counted.read == ["a.jpg", "late.jpg", "late.jpg whole", "b.png", "b.png whole", "small.png"]
    media.size(f"{scheme}://bucket/b.png")
    assert len(counted.read) == 6  # it is in the cache
    with pytest.raises(MediaMissing, match="no such object"):
        media.size(f"{scheme}://bucket/gone.jpg")
