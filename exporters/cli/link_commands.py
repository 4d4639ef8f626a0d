"""The command `labelloop dataset link`."""

import hashlib
from pathlib import Path

from exporters.dataset.signed_links import LONGEST_HOURS, linked, signer
from exporters.dataset.versions import read_version
from exporters.errors import BadOption
from labelloop.service.settings import Settings
from labelloop.service.store import open_store


def dataset_link(
    url: str,
    *,
    format: str = "",  # noqa: A002 - the option's name
    version: str = "latest",
    hours: float = 24.0,
    out: Path | None = None,
) -> None:
    """Make one address that `yolo train data=...` takes: an NDJSON file whose photos may be fetched for some hours.

    For photos in a private bucket and a trainer that has no key to it. The version needs an ndjson format
    (`labelloop export --format ndjson-detect`).

    ```
    labelloop export 7 --to s3://bucket/cars --format ndjson-obb --copy-images
    yolo detect train data="$(labelloop dataset link s3://bucket/cars --hours 48)"
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        format: ndjson-detect, ndjson-segment, ndjson-obb or ndjson-pose; the version's only one by default.
        version: "latest", or a number: 3 or v000003.
        hours: how long the addresses are good for, at most 168.
        out: a file to write instead of putting it into the bucket.
    """
    settings = Settings()
    if not 0 < hours <= LONGEST_HOURS:
        raise BadOption("--hours", f"{hours:g}", f"a number over 0, up to {LONGEST_HOURS}")
    store = open_store(url, settings)
    manifest = read_version(store, version)
    there = [name for name in manifest.formats if name.startswith("ndjson-")]
    name = format or (there[0] if len(there) == 1 else "")
    if name not in there:
        choices = ", ".join(there) or "a version that was exported with --format ndjson-detect or the like"
        raise BadOption("--format", format, choices)
    sign = signer(settings, hours)
    data = b"".join(linked(store, manifest, name, sign))
    if out is not None or not store.url.startswith("s3://"):
        path = out or Path(f"{manifest.version}-{name}.ndjson")
        path.write_bytes(data)
        print(f"{path}: good for {hours:g} hours")
        return
    key = f"links/{hashlib.sha256(data).hexdigest()}/{manifest.version}.ndjson"
    store.put(key, data, content_type="application/x-ndjson")
    print(sign(f"{store.url}/{key}"))
