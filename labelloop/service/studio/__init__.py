"""Label Studio's API as labelloop uses it: `Studio` and the errors it raises."""

from labelloop.service.studio.errors import (
    NotFound,
    PredictionsDropped,
    StudioError,
    StudioRefused,
    StudioUnauthorized,
    StudioUnreachable,
)
from labelloop.service.studio.studio import Studio

__all__ = [
    "NotFound",
    "PredictionsDropped",
    "Studio",
    "StudioError",
    "StudioRefused",
    "StudioUnauthorized",
    "StudioUnreachable",
]
