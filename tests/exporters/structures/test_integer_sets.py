"""Sets of numbers: what was added is in them, once, whether it is in memory or on the disk by now."""

import random
from collections.abc import Callable, Sequence

import pytest

from exporters.structures import integer_sets as keyset
from exporters.structures.integer_sets import KeySet, Runs

RANDOM = random.Random(5)
ORDERS: dict[str, Callable[[], Sequence[int]]] = {
    "ascending": lambda: range(1, 3000),
    "descending": lambda: range(3000, 0, -1),
    "with gaps": lambda: range(7, 30_000, 11),
    "shuffled": lambda: RANDOM.sample(range(1, 3001), 3000),
    "hashes": lambda: [RANDOM.getrandbits(63) for _ in range(3000)],
    "of which the bytes of two hold a third": lambda: [0x0202020202020202, 0x0102020202020202, 0x0202020202020203],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [KeySet, Runs])
def test_each_number_is_new_once(kind: type[KeySet] | type[Runs], order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "_NEWEST", 512)  # so that most of them are on the disk
    monkeypatch.setattr(keyset, "_MERGED", 256)
    numbers, found, known = ORDERS[order](), kind(), set[int]()
    for number in numbers:
        assert number not in found
        assert found.add(number)
        assert number in found
        assert not found.add(number)
        known.add(number)
    assert sorted(found.keys()) == sorted(known)
    others = [RANDOM.choice(numbers) + RANDOM.randrange(-3, 4) for _ in range(2000)]
    assert [max(other, 1) in found for other in others] == [max(other, 1) in known for other in others]
    assert all(number in found for number in numbers)
    assert not any(found.add(number) for number in numbers)


def test_numbers_that_are_known_take_no_memory() -> None:
    found = KeySet()
    for _ in range(200_000):
        found.add(RANDOM.getrandbits(64))
    assert len(found._slots) <= 2 * keyset._NEWEST
    assert len(found.keys()) == 200_000
