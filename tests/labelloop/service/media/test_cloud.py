"""Images in buckets of Google and Azure: what is kept of buckets that tasks name."""

from io import BytesIO

import pytest

from labelloop.service.media import cloud
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
