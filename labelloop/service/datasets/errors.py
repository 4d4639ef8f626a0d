"""What is wrong with a data set as a whole; what is wrong with one photo or object of it is a `Problem`."""

from labelloop.labeling.studio.sniff import HEAD_BYTES, no_labels
from labelloop.service.errors import LabelloopError


class DatasetError(LabelloopError):
    """A data set cannot be read."""

    code = "dataset_unreadable"
    status = 400

    def __init__(self, place: object, reason: str, *, fix: str = "") -> None:
        super().__init__(f"{place} cannot be read as a data set: {reason}.", fix=fix)
        self.place = str(place)
        self.reason = reason


class Flawed(ValueError):
    """One object, row or record of a data set is malformed; ``args[0]`` says how."""


def no_data_set(data: bytes, place: str, *, otherwise: str, fix: str = "") -> DatasetError:
    """The error for a file that is not what a reader wants: by what it is, else as the reader says."""
    found = no_labels(data[:HEAD_BYTES])
    return DatasetError(place, f"it is {found.what}" if found else otherwise, fix=(found and found.fix) or fix)
