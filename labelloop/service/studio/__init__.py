"""Label Studio's API as labelloop uses it: `Studio` and the errors it raises."""

from labelloop.service.studio.errors import (
    PredictionsDropped,
    StudioError,
    StudioNotFound,
    StudioRefused,
    StudioUnauthorized,
    StudioUnreachable,
)
from labelloop.service.studio.studio import Studio

__all__ = [
    "PredictionsDropped",
    "Studio",
    "StudioError",
    "StudioNotFound",
    "StudioRefused",
    "StudioUnauthorized",
    "StudioUnreachable",
]
