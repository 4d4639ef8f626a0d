"""Errors of a whole data set; an error of one image or object is a `DatasetProblem`."""

from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_non_data_set
from labelloop.service.errors import LabelloopError


class DatasetError(LabelloopError):
    """A data set cannot be read."""

    code = "dataset_unreadable"
    status = 400

    def __init__(self, location: object, reason: str, *, fix: str = "") -> None:
        super().__init__(f"{location} cannot be read as a data set: {reason}.", fix=fix)
        self.location = str(location)
        self.reason = reason


class MalformedData(ValueError):
    """An object, row or record of a data set is malformed; ``args[0]`` is the reason."""


def unreadable_error(data: bytes, location: str, *, default: str, fix: str = "") -> DatasetError:
    """The error for a file that a reader cannot decode.

    Args:
        data: Its content; a known foreign format is named in the error.
        location: Its path or address.
        default: The reason if the format is unknown.
        fix: The fix if the format is unknown.
    """
    foreign = sniff_non_data_set(data[:HEAD_BYTES])
    return DatasetError(location, f"it is {foreign.what}" if foreign else default, fix=(foreign and foreign.fix) or fix)
