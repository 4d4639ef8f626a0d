"""Where annotated tasks come from: a live project, a JSON file, Label Studio's target storage, on the disk or in S3."""

from exporters.sources.base import Source
from exporters.sources.open import open_source

__all__ = ["Source", "open_source"]
