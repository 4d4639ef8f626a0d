"""Assign images to splits by a stable hash of their identity, so that no image changes split as the project grows."""

from collections.abc import Mapping
from typing import Any

import msgspec

from exporters.errors import BadOption
from exporters.model.file_names import hash_key, public_url
from labelloop.labeling.splits import SPLITS, split_of
from labelloop.labeling.studio.config import data_value

# `group_by` value: the folder of the image's address, unless the task's data has such a key.
FOLDER = "folder"
# `group_by` value: near-duplicate images are in one split, see `exporters.pipeline.look_splits`.
LOOK = "look"
# Split of disputed tasks with ``disputed="apart"``.
DISPUTED_SPLIT = "disputed"
DEFAULT_SPLIT = "train=.8,val=.1,test=.1"


class SplitPolicy(msgspec.Struct, frozen=True):
    """Shares of the splits, in the order train, val, test; they add up to one.

    Attributes:
        shares: Split -> share, 0 to 1.
        group_by: A key of the task's data: images with one value are in one split. Empty: no groups.
        key: A key of the task's data that holds its split; without a valid value the shares decide. Empty: none.
        twins: `hash_key` of an image's public address -> its split, for images that follow their near-duplicates.

    >>> Split.parse("train=.8,val=.2").of("s3://bucket/a.jpg") in ("train", "val")
    True
    """

    shares: Mapping[str, float]
    group_by: str = ""
    key: str = ""
    twins: Mapping[int, str] = {}

    @classmethod
    def parse(cls, text: str, *, group_by: str = "", key: str = "") -> "SplitPolicy":
        """Parse ``train=.8,val=.1,test=.1``; shares are normalised to add up to one.

        Raises:
            BadOption: an unknown split, a negative share, or no positive share.
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
        """All splits that an image can be in."""
        return SPLITS if self.key else tuple(self.shares)

    @property
    def reads_data(self) -> bool:
        """Whether the task's data decides, besides the image's address."""
        return bool(self.groups_by_data or self.key)

    @property
    def groups_by_data(self) -> bool:
        """Whether a value of the task's data, or the folder of the image, groups images."""
        return bool(self.group_by) and self.group_by != LOOK

    def explicit_split(self, data: Mapping[str, Any]) -> str:
        """Return the split stated in a task's data; empty if there is none."""
        return split_of(str(data_value(data, self.key))) if self.key else ""

    def group(self, url: str, data: Mapping[str, Any]) -> str:
        """Return the group of an image: a value of its task's data or the folder of its address; empty if none.

        A key with dots addresses nested objects: ``patient.id``.
        """
        if not self.groups_by_data:
            return ""
        value = data_value(data, self.group_by)
        if value is None and self.group_by == FOLDER:
            address = public_url(url)
            if address.startswith(("http://", "https://")):  # elsewhere "?" is part of the key, or precedes the path
                address = address.partition("?")[0]
            return address.rpartition("/")[0]
        return str(value) if isinstance(value, str | int | float) and str(value) else ""

    def assign(self, url: str, group: str = "") -> str:
        """Return the split of an image by its public address, so that signatures do not matter, or by its group.

        All images of a group are in one split.
        """
        identity = f"group {self.group_by}={group}" if group else public_url(url)
        return self.assign_key(hash_key(identity))

    def assign_key(self, key: int) -> str:
        """Return the split of an image without a group, by `hash_key` of its public address."""
        if (twins := self.twins.get(key)) is not None:
            return twins
        position = key / 2**64
        for name, share in self.shares.items():
            if position < share:
                return name
            position -= share
        return list(self.shares)[-1]
