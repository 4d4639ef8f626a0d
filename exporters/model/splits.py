"""Which split an image is in: a stable hash of its identity, so that no image ever moves as the project grows."""

from collections.abc import Mapping
from typing import Any

import msgspec

from exporters.errors import BadOption
from exporters.model.file_names import key_of, public_url
from labelloop.labeling.splits import SPLITS, split_of

FOLDER = "folder"
"""``group_by`` the folder of an image's address, where the data has no such key."""
APART = "disputed"
"""The split of the disputed tasks where they are kept apart."""
DEFAULT_SPLIT = "train=.8,val=.1,test=.1"


class Split(msgspec.Struct, frozen=True):
    """Shares of the splits, in the order train, val, test; they add up to one.

    >>> Split.parse("train=.8,val=.2").of("s3://bucket/a.jpg") in ("train", "val")
    True
    """

    shares: Mapping[str, float]
    group_by: str = ""
    """The key of a task's data: the images of one value are in one split. Empty: each goes by itself."""
    key: str = ""
    """The key of a task's data that says its split; where it does not, the shares decide. Empty: they always do."""

    @classmethod
    def parse(cls, text: str, *, group_by: str = "", key: str = "") -> "Split":
        """Read ``train=.8,val=.1,test=.1``; shares are scaled to add up to one.

        Raises:
            BadOption: an unknown split, a share below zero, or nothing over zero.
        """
        wanted = ", ".join(SPLITS) + " with shares, such as " + DEFAULT_SPLIT
        shares: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, share = part.partition("=")
            try:
                shares[name.strip()] = float(share)
            except ValueError:
                raise BadOption("--split", text, wanted) from None
        total = sum(shares.values())
        if not set(shares) <= set(SPLITS) or not all(share >= 0 for share in shares.values()) or not 0 < total < 1e9:
            raise BadOption("--split", text, wanted)
        return cls({name: shares[name] / total for name in SPLITS if shares.get(name)}, group_by.strip(), key.strip())

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that an image can be in."""
        return SPLITS if self.key else tuple(self.shares)

    @property
    def reads_data(self) -> bool:
        """Whether more than an image's address decides."""
        return bool(self.group_by or self.key)

    def explicit_split(self, data: Mapping[str, Any]) -> str:
        """The split that a task's data says; empty where it says none."""
        return split_of(str(_value(data, self.key))) if self.key else ""

    def group(self, url: str, data: Mapping[str, Any]) -> str:
        """The group of an image by its task's data, or by the folder of its address (``folder``); empty: none.

        A key with dots leads into objects: ``patient.id``.
        """
        if not self.group_by:
            return ""
        value = _value(data, self.group_by)
        if value is None and self.group_by == FOLDER:
            address = public_url(url)
            if address.startswith(("http://", "https://")):  # elsewhere "?" is a letter, or the path is behind it
                address = address.partition("?")[0]
            return address.rpartition("/")[0]
        return str(value) if isinstance(value, str | int | float) and str(value) else ""

    def of(self, url: str, group: str = "") -> str:
        """The split of the image at ``url``: two tasks with one image are in one split, signed anew or not.

        Where the image is of a group, the group's: no image of a group is ever in another split than the rest of it.
        """
        identity = f"group {self.group_by}={group}" if group else public_url(url)
        return self.at(key_of(identity))

    def at(self, key: int) -> str:
        """The split of an image in no group, by the key of its public address: see `exporters.model.file_names.Named`."""
        place = key / 2**64
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return list(self.shares)[-1]


def _value(data: Mapping[str, Any], key: str) -> Any:
    """The value of a key; one with dots leads into objects."""
    value: Any = data
    for part in [key] if key in data else key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
