"""Sign addresses of images in a private bucket, in an NDJSON file for a trainer without a key."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from exporters.dataset.folder import DiskTree
from exporters.dataset.plain_files import format_context
from exporters.dataset.shards import read_table, read_verified
from exporters.errors import ExportError, VersionNotFound
from exporters.formats import FORMATS
from exporters.formats.base import included
from exporters.formats.ndjson import FILE
from exporters.model.manifest import PHOTOS, DatasetManifest, ImageCopy
from labelloop.service.store import Store, is_bucket_url
from labelloop.service.store.addresses import from_studio_url
from labelloop.service.store.signing import Sign


def signed_lines(store: Store, manifest: DatasetManifest, name: str, sign: Sign) -> Iterator[bytes]:
    """Yield the lines of a version's NDJSON file, with a fetchable address for each image.

    A copy in the version is preferred to the source, as it never changes.

    Args:
        store: where the data set lives.
        manifest: the version.
        name: one of the ``ndjson-`` formats.
        sign: signs addresses of objects.

    Raises:
        VersionNotFound: the version does not have the format.
        ExportError: an image has no such address.
    """
    if name not in manifest.formats:
        raise VersionNotFound(store.url, f"{manifest.version} with {name}", [manifest.version])
    copies = _copies(store, manifest) if is_bucket_url(store.url) else {}
    first_line, *rows = _content(store, manifest, name).splitlines()
    header = msgspec.json.decode(first_line)
    header.pop("path", None)
    yield msgspec.json.encode(header) + b"\n"
    missing: list[str] = []
    for row in rows:
        image: dict[str, Any] = msgspec.json.decode(row)
        address = f"{store.url}/{copies[image['file']]}" if image["file"] in copies else image["url"]
        if is_bucket_url(from_studio_url(address)):
            image["url"] = sign(address)
        elif not address.startswith(("http://", "https://")):
            missing.append(address)
            continue
        yield msgspec.json.encode(image) + b"\n"
    if missing:
        number, example = len(missing), missing[0][:100]
        raise ExportError(
            f"{number} images of {store.url} can only be read by Label Studio or this machine, such as {example}.",
            fix="Export with --copy-images to a bucket: the images are then stored with the labels.",
            code="photos_not_linked",
            status=409,
        )


def _content(store: Store, manifest: DatasetManifest, name: str) -> bytes:
    """Return the file of a format: the version's own, or made of its records."""
    for file in manifest.files:
        if file.path == f"{name}/{FILE}":
            return read_verified(store, file.key, file.sha256, file.size)
    with store.scratch() as folder:
        records = included(read_table(store, manifest, name))
        FORMATS[name](format_context(manifest)).write_files(records, DiskTree(folder))
        return (folder / FILE).read_bytes()


def _copies(store: Store, manifest: DatasetManifest) -> Mapping[str, str]:
    """Return file name -> key of the image copies."""
    decode = msgspec.json.Decoder(ImageCopy).decode
    copies = (decode(record.body) for record in read_table(store, manifest, PHOTOS))
    return {copy.file_name: copy.store_key for copy in copies}
