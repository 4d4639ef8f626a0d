"""The boto3 client for the S3 server that the settings name; boto3 is imported only here, when first used (0.25 s)."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from labelloop.service.settings import Settings

CONNECTIONS = 32
_AWS = (".amazonaws.com", ".amazonaws.com.cn")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store's objects are.

    Attributes:
        client: A boto3 S3 client.
        bucket: Its bucket.
        prefix: In front of every key; empty, or ending with a slash.
        url: The store's address, for errors.
    """

    client: Any
    bucket: str
    prefix: str
    url: str

    def of(self, key: str) -> dict[str, str]:
        """The arguments of boto3's calls that name an object."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    @property
    def decides(self) -> bool:
        """Whether the server is known to let one of several creators through: AWS, wherever its address came from."""
        return (urlsplit(str(self.client.meta.endpoint_url)).hostname or "").endswith(_AWS)


def s3_client(settings: Settings, *, timeout_s: float = 60.0) -> Any:
    """A thread-safe S3 client with its own pool of connections.

    Args:
        settings: Endpoint, region and keys; keys left empty come from boto3's own chain (environment, profile, role).
        timeout_s: Longest silence of the server.
    """
    import boto3
    from botocore.config import Config

    own = bool(settings.s3_endpoint_url)
    secret = settings.s3_secret_access_key.get_secret_value()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=secret or None,
        config=Config(
            signature_version="s3v4",
            max_pool_connections=CONNECTIONS,
            connect_timeout=min(timeout_s, 10.0),
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": 6},
            s3={"addressing_style": "path" if own else "auto"},
            # Not every S3-compatible server knows the checksums that newer clients add unasked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
