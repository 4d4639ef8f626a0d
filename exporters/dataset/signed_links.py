"""Signed addresses: an NDJSON file whose photos lie in a private bucket, for a trainer that has no key to it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from exporters.dataset.shards import compare, read_table
from exporters.errors import ExportError, VersionNotFound
from exporters.formats.ndjson import FILE
from exporters.model.manifest import PHOTOS, Manifest, Photo
from labelloop.service.media.s3 import split_s3
from labelloop.service.settings import Settings
from labelloop.service.store import Store
from labelloop.service.store.s3_client import s3_client
from labelloop.service.store.s3_errors import plainly

LONGEST_HOURS = 7 * 24
"""S3 signs for no longer: https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html"""

Sign = Callable[[str], str]
"""An ``s3://`` address -> one that anybody may fetch for a while."""


class NotLinked(ExportError):
    """Photos of the version have no address that a trainer elsewhere could fetch."""

    code = "photos_not_linked"
    status = 409

    def __init__(self, url: str, number: int, example: str) -> None:
        self.number = number
        super().__init__(
            f"{number} photos of {url} lie where only Label Studio or this machine can read them, such as {example}.",
            fix="Export with --copy-images to s3://..., which puts them beside the labels.",
        )


def signer(settings: Settings, hours: float) -> Sign:
    """Signs with the settings' key; no request is made.

    Args:
        settings: the S3 server and the key.
        hours: how long an address is good for, at most `LONGEST_HOURS`.
    """
    client = s3_client(settings)
    seconds = int(min(hours, LONGEST_HOURS) * 3600)

    def sign(address: str) -> str:
        bucket, key = split_s3(address)
        with plainly(f"s3://{bucket}", key):
            found: str = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=seconds)
        return found

    return sign


def linked(store: Store, manifest: Manifest, name: str, sign: Sign) -> Iterator[bytes]:
    """The lines of a version's NDJSON file, each photo with an address that can be fetched.

    A copy in the version is preferred to the source, as it never changes.

    Args:
        store: where the data set lives.
        manifest: the version.
        name: one of the ``ndjson-`` formats.
        sign: signs ``s3://`` addresses.

    Raises:
        VersionNotFound: the version does not have the format.
        NotLinked: a photo has no such address.
    """
    file = next((each for each in manifest.files if each.path == f"{name}/{FILE}"), None)
    if file is None:
        raise VersionNotFound(store.url, f"{manifest.version} with {name}", [manifest.version])
    copies = _copies(store, manifest) if store.url.startswith("s3://") else {}
    head, *rows = compare(store, file.key, file.sha256, file.size).splitlines()
    told = msgspec.json.decode(head)
    told.pop("path", None)
    yield msgspec.json.encode(told) + b"\n"
    missing: list[str] = []
    for row in rows:
        each: dict[str, Any] = msgspec.json.decode(row)
        address = f"{store.url}/{copies[each['file']]}" if each["file"] in copies else each["url"]
        if address.startswith("s3://"):
            each["url"] = sign(address)
        elif not address.startswith(("http://", "https://")):
            missing.append(address)
            continue
        yield msgspec.json.encode(each) + b"\n"
    if missing:
        raise NotLinked(store.url, len(missing), missing[0][:100])


def _copies(store: Store, manifest: Manifest) -> Mapping[str, str]:
    """File name -> key of the copies of photos."""
    decode = msgspec.json.Decoder(Photo).decode
    photos = (decode(record.body) for record in read_table(store, manifest, PHOTOS))
    return {photo.file_name: photo.place for photo in photos}
