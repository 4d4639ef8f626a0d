"""Where annotated tasks come from: a live project, a JSON file, Label Studio's target storage, on the disk or in S3."""

from exporters.sources.open import open_source
from exporters.sources.source import Source

__all__ = ["Source", "open_source"]
