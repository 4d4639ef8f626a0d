"""Which split an image is in: a stable hash of its identity, so that no image ever moves as the project grows."""

import hashlib
from collections.abc import Mapping

import msgspec

from exporters.errors import BadOption
from exporters.names import public_url

SPLITS = ("train", "val", "test")
APART = "disputed"
"""The split of the disputed tasks where they are kept apart."""
DEFAULT_SPLIT = "train=.8,val=.1,test=.1"


class Split(msgspec.Struct, frozen=True):
    """Shares of the splits, in the order train, val, test; they add up to one.

    >>> Split.parse("train=.8,val=.2").of("s3://bucket/a.jpg") in ("train", "val")
    True
    """

    shares: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> "Split":
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
        return cls({name: shares[name] / total for name in SPLITS if shares.get(name)})

    def of(self, url: str) -> str:
        """The split of the image at ``url``: two tasks with one image are in one split, signed anew or not."""
        digest = hashlib.blake2b(public_url(url).encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return list(self.shares)[-1]
