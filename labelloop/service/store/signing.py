"""Addresses from which anybody can read an object of a private bucket for a limited time."""

from collections.abc import Callable
from functools import cache

from labelloop.service.settings import Settings
from labelloop.service.store import open_bucket
from labelloop.service.store.addresses import from_studio_url, split_bucket_url

# The limit of S3 and of Google:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
# https://cloud.google.com/storage/docs/access-control/signed-urls
LONGEST_HOURS = 7 * 24

# The address of an object in a bucket -> an address that is public for a limited time.
Sign = Callable[[str], str]


def signer(settings: Settings, hours: float) -> Sign:
    """Return a function that signs addresses of objects, also as Label Studio writes them.

    Requests are sent only where the credentials have no key of their own.

    Args:
        settings: The S3 server and the key.
        hours: How long an address is valid, at most `LONGEST_HOURS`.
    """
    seconds = int(min(hours, LONGEST_HOURS) * 3600)

    @cache
    def in_bucket(bucket: str) -> Sign:
        if bucket.startswith("s3://"):
            return _s3_signer(settings, bucket, seconds)
        opened = open_bucket(bucket)
        return lambda key: opened.sign(key, seconds)

    def sign(address: str) -> str:
        bucket, key = split_bucket_url(from_studio_url(address))
        return in_bucket(bucket)(key)

    return sign


def _s3_signer(settings: Settings, bucket: str, seconds: int) -> Sign:
    from labelloop.service.store.s3_client import s3_client
    from labelloop.service.store.s3_errors import translate_errors

    client, name = s3_client(settings), bucket.removeprefix("s3://")

    def sign(key: str) -> str:
        with translate_errors(bucket, key):
            return str(client.generate_presigned_url("get_object", {"Bucket": name, "Key": key}, ExpiresIn=seconds))

    return sign
