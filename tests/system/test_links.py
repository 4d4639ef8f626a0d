"""One signed address is enough for a trainer without a key: the file and every photo are fetched over plain HTTP."""

import io
import json

import httpx
import pytest
from cyclopts import App
from PIL import Image

from exporters.cli.dataset import dataset_link
from exporters.dataset.signed_links import signed_lines
from exporters.dataset.versions import read_version
from exporters.errors import BadOption, ExportError
from exporters.pipeline.export import export
from labelloop.service.store import open_store
from labelloop.service.store.signing import signer
from tests.system.test_export import bucket, s3, settings, task

__all__ = ["bucket", "s3", "settings"]
pytestmark = pytest.mark.system


@pytest.fixture
def env(monkeypatch, settings, tmp_path):
    """The settings as a user gives them."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABELLOOP_S3_ENDPOINT_URL", settings.s3_endpoint_url)
    monkeypatch.setenv("LABELLOOP_S3_ACCESS_KEY_ID", settings.s3_access_key_id)
    monkeypatch.setenv("LABELLOOP_S3_SECRET_ACCESS_KEY", settings.s3_secret_access_key.get_secret_value())


@pytest.mark.parametrize("copied", [True, False])
def test_labels_and_photos_are_fetched_without_a_key(bucket, s3, settings, env, capsys, copied):
    to = f"s3://{bucket}/sets/linked"
    export(
        f"s3://{bucket}/export.json",
        settings=settings,
        to=to,
        formats=("ndjson-detect",),
        split="train=1",
        copy_images=copied,
    )
    App(default_command=dataset_link, result_action="return_value")([to])
    address = capsys.readouterr().out.strip()
    head, *rows = [json.loads(line) for line in httpx.get(address).raise_for_status().text.splitlines()]
    assert "path" not in head
    assert [row["file"] for row in rows] == ["first.jpg", "second.jpg", "empty.jpg"]
    for row in rows:
        photo = httpx.get(row["url"]).raise_for_status().content
        assert photo == s3.get_object(Bucket=bucket, Key=f"photos/{row['file']}")["Body"].read()
        with Image.open(io.BytesIO(photo)) as image:
            assert image.size == (row["width"], row["height"])
        assert ("/photos/first" not in row["url"]) or not copied
    assert httpx.get(rows[0]["url"].partition("?")[0]).is_client_error, "the bucket is private"


def test_photos_that_nobody_else_can_read_are_told(bucket, s3, settings, env):
    there = task(1, bucket, "first.jpg", [("car", 1, 2, 3, 4, 0)])
    here = task(2, bucket, "x.jpg", [("car", 1, 2, 3, 4, 0)]) | {"data": {"image": "/data/upload/1/00000000-x.jpg"}}
    s3.put_object(Bucket=bucket, Key="two.json", Body=json.dumps([there, here]).encode())
    to = f"s3://{bucket}/sets/mixed"
    export(f"s3://{bucket}/two.json", settings=settings, to=to, formats=("ndjson-detect",), max_errors=1)
    store = open_store(to, settings)
    with pytest.raises(ExportError) as told:
        list(signed_lines(store, read_version(store), "ndjson-detect", signer(settings, 1)))
    assert told.value.code == "photos_not_linked"
    with pytest.raises(BadOption):
        dataset_link(to, format="ndjson-pose")
    with pytest.raises(BadOption):
        dataset_link(to, hours=200)
