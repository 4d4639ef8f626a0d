"""A set of whole numbers that mostly follow each other, as those of tasks do: sixteen bytes a run, not a number."""

from array import array
from bisect import bisect_right


class Runs:
    """Numbers from 0, as runs in ascending order: ``_first[i]`` to before ``_after[i]``; no two runs touch."""

    def __init__(self) -> None:
        self._first, self._after = array("q"), array("q")

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._first, number) - 1
        return place >= 0 and number < self._after[place]

    def add(self, number: int) -> bool:
        """Add a number; whether it is new."""
        first, after = self._first, self._after
        if after and after[-1] == number:  # nearly always
            after[-1] += 1
            return True
        place = bisect_right(first, number)
        if place and number < after[place - 1]:
            return False
        follows = place > 0 and after[place - 1] == number
        leads = place < len(first) and first[place] == number + 1
        if follows and leads:
            after[place - 1] = after[place]
            del first[place], after[place]
        elif follows:
            after[place - 1] += 1
        elif leads:
            first[place] = number
        else:
            first.insert(place, number)
            after.insert(place, number + 1)
        return True

    def keys(self) -> "array[int]":
        """The numbers, in ascending order."""
        found = array("q")
        for first, after in zip(self._first, self._after, strict=True):
            found.extend(range(first, after))
        return found
