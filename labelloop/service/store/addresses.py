"""Addresses of buckets: `s3://BUCKET/KEY`, `gs://BUCKET/KEY` and `az://CONTAINER/KEY`."""

import re

# Scheme -> what it is called.
BUCKET_SCHEMES = {"s3": "Amazon S3 or a compatible server", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
# How addresses of stores are written, for messages.
FORMS = "file:///folder, a path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
_MISTYPED = re.compile(rf"(?P<scheme>{'|'.join(BUCKET_SCHEMES)})(:+/*|//+)(?P<rest>[^:/].*)", re.IGNORECASE | re.DOTALL)
# Scheme in Label Studio's tasks -> ours, where they differ.
_STUDIO_SCHEMES = {"azure-blob": "az"}


def bucket_scheme(url: str) -> str:
    """The scheme of the address of a bucket or of an object in one; empty for any other text."""
    scheme = url.partition("://")[0]
    return scheme if scheme in BUCKET_SCHEMES and "://" in url else ""


def corrected(url: str) -> str:
    """The address meant by one with a typing error, such as `s3:/cars/x` or `S3://cars/x`; empty for any other text."""
    match = _MISTYPED.match(url)
    return f"{match['scheme'].lower()}://{match['rest']}" if match and not bucket_scheme(url) else ""


def is_bucket_url(url: str) -> bool:
    """Whether a text is the address of a bucket, or of a prefix or an object in one."""
    return bool(bucket_scheme(url))


def split_bucket_url(url: str) -> tuple[str, str]:
    """Split an address into the bucket's own address and the rest.

    >>> split_bucket_url("gs://cars/images/a b.jpg")
    ('gs://cars', 'images/a b.jpg')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def to_studio_url(url: str) -> str:
    """The address of an object as Label Studio's cloud storages write it: `azure-blob://` for `az://`."""
    return f"azure-blob://{url.removeprefix('az://')}" if url.startswith("az://") else url


def from_studio_url(url: str) -> str:
    """The reverse of `to_studio_url`."""
    scheme, separator, rest = url.partition("://")
    return f"{_STUDIO_SCHEMES.get(scheme, scheme)}{separator}{rest}"
